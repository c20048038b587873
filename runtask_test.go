package aiguard_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestRunTaskIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		rec := &recorder{}
		g := newGuard(t, aiguard.Config{OnEvent: rec.OnEvent})
		start := time.Now()
		err := g.RunTask(context.WithValue(t.Context(), key{}, "v"), func(ctx context.Context) error {
			require.Equal(t, "v", ctx.Value(key{}))
			require.Zero(t, g.Stats().InFlight)
			return sleep(ctx, time.Hour)
		})
		took(t, start, 2*time.Minute)
		e := facts(t, err, aiguard.ErrTimeout)
		require.Equal(t, "task", e.Phase)
		require.Equal(t, 2*time.Minute, e.Limit)
		require.Equal(t, 2*time.Minute, e.InFlight)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Contains(t, aiguard.UserMessage(err), "stopped")
		require.EqualValues(t, 1, g.Stats().Timeouts)

		start = time.Now()
		err = g.With(aiguard.Call{Timeout: time.Second}).RunTask(t.Context(), func(context.Context) error {
			time.Sleep(5 * time.Second) // ignores its ctx
			return nil
		})
		took(t, start, 5*time.Second)
		require.Equal(t, time.Second, facts(t, err, aiguard.ErrTimeout).Limit, "reported as soon as it returns")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = g.RunTask(ctx, func(ctx context.Context) error { return sleep(ctx, time.Hour) })
		require.Equal(t, context.DeadlineExceeded, err, "the caller's own")
		require.NoError(t, g.RunTask(t.Context(), func(context.Context) error { return nil }))
		require.PanicsWithValue(t, "boom", func() { _ = g.RunTask(t.Context(), func(context.Context) error { panic("boom") }) })
		require.NoError(t, g.Shutdown(t.Context()))
		facts(t, g.RunTask(t.Context(), func(context.Context) error { panic("not reached") }), aiguard.ErrClosed)
		require.Len(t, rec.all(aiguard.EventTask), 4)
	})
}

func TestACallInATaskEndsWithTheTask(t *testing.T) {
	inVirtualTime(t, aiguard.Config{TaskTimeout: 10 * time.Second}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		start := time.Now()
		err := c.Guard().RunTask(t.Context(), func(ctx context.Context) error { _, err := chat(ctx, c); return err })
		took(t, start, 10*time.Second)
		require.Equal(t, "task", facts(t, err, aiguard.ErrTimeout).Phase)
		require.EqualValues(t, 1, c.Guard().Stats().Timeouts)
		require.Zero(t, c.Guard().Stats().Failed, "the call did not fail, it was called off")
	})
}
