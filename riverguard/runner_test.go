package riverguard_test

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
	"github.com/aiguard-go/aiguard/task/enginetest"
)

func TestRunnerIsAnEngine(t *testing.T) {
	var log syncbuf.Buffer
	t.Run("", func(t *testing.T) {
		enginetest.Run(t, func(t *testing.T, l enginetest.Limits) task.Engine {
			t.Parallel()
			return newRunner(t, newDatabase(t), aiguard.Config{TaskTimeout: l.TaskTimeout}, riverguard.Config{
				MaxRunning: l.MaxRunning, MaxPending: l.MaxPending, Grace: l.Grace, Patience: aiguard.Off,
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			})
		})
	})
	require.NotContains(t, log.String(), enginetest.Secret)
	require.Contains(t, log.String(), "riverguard: panic")
}
