package task_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/task"
)

func TestOperationCountsOnlyInTheRunnerThatRanIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(t)
		late := newRunner(t, m, task.Config{MaxRunning: 1})
		other := newRunner(t, m, task.Config{Lease: 3 * time.Second})
		for _, r := range []*task.Runner{late, other} {
			task.Register(r, "echo", func(_ context.Context, in string) (string, error) { return in, nil })
		}
		start(t, late, stubborn(time.Minute))
		op, err := late.Submit(t.Context(), "echo", "hello")
		require.NoError(t, err)
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, m.Renew(t.Context(), op.Owner, 0)) // as if the renewal came too late
		op = wait(t, late, op.ID)
		require.Equal(t, task.Succeeded, op.Status)
		time.Sleep(time.Minute) // the operation starts
		synctest.Wait()
		require.EqualValues(t, 1, other.Stats().Succeeded)
		require.EqualValues(t, 1, other.Stats().Interrupted, "operations that ran")
		require.EqualValues(t, 0, late.Stats().Succeeded)
		require.EqualValues(t, 1, late.Stats().Failed)
		require.EqualValues(t, 1, late.Stats().Released)
	})
}
