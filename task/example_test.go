package task_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
)

// An operation runs in the background. Clients with its ID can read its status and result.
func Example() {
	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	store, err := task.NewMemory(task.MemoryConfig{})
	if err != nil {
		log.Fatal(err)
	}
	runner, err := task.NewRunner(guard, store, task.Config{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer runner.Shutdown(ctx)

	op, err := runner.Start(ctx, "report", func(ctx context.Context) (any, error) {
		task.SetProgress(ctx, 50, "half of it is written")
		return "All is well.", nil // guarded calls with ctx go here
	})
	if err != nil {
		log.Fatal(err)
	}
	op, err = runner.Wait(ctx, op.ID)
	if err != nil {
		log.Fatal(err)
	}
	report, err := task.Result[string](op)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(op.Status, report)
	// Output: succeeded All is well.
}
