package task_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
	"github.com/aiguard-go/aiguard/task/enginetest"
)

func TestRunnerIsAnEngine(t *testing.T) {
	enginetest.Run(t, func(t *testing.T, l enginetest.Limits) task.Engine {
		t.Parallel()
		r, err := task.NewRunner(newGuard(t, aiguard.Config{TaskTimeout: l.TaskTimeout}), newMemory(t),
			task.Config{MaxRunning: l.MaxRunning, MaxPending: l.MaxPending, Grace: l.Grace})
		require.NoError(t, err)
		t.Cleanup(func() { _ = r.Shutdown(t.Context()) })
		return r
	})
}
