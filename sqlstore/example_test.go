package sqlstore_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/sqlstore"
	"github.com/aiguard-go/aiguard/task"
)

func ExampleOpenSQLite() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := sqlstore.OpenSQLite(ctx, filepath.Join(dir, "operations.db"))
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	runner, err := task.NewRunner(guard, store, task.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer runner.Shutdown(ctx)
	// If this process crashes, another process with this handler takes over its pending operations.
	task.Register(runner, "shout", func(_ context.Context, word string) (string, error) { return word + "!", nil })
	op, err := runner.Submit(ctx, "shout", "hello")
	if err != nil {
		log.Fatal(err)
	}
	if op, err = runner.Wait(ctx, op.ID); err != nil {
		log.Fatal(err)
	}
	fmt.Println(op.Status, string(op.Result))

	// Run this once a day.
	if _, err := store.DeleteFinished(ctx, time.Now().AddDate(0, 0, -30)); err != nil {
		log.Fatal(err)
	}
	// Output: succeeded "hello!"
}
