package task_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/task"
)

// cut is a store to which a runner has lost its connection. Other processes see this as a crash.
type cut struct {
	task.Store
	gone context.Context
}

func (c cut) Renew(ctx context.Context, owner string, lease time.Duration) error {
	if c.gone.Err() != nil {
		return errStore
	}
	return c.Store.Renew(ctx, owner, lease)
}

func (c cut) Update(ctx context.Context, op task.Operation) error {
	if c.gone.Err() != nil {
		return errStore
	}
	return c.Store.Update(ctx, op)
}

func double(_ context.Context, n int) (int, error) { return 2 * n, nil }

func TestOperationsOfACrashedProcessAreMarkedOrTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newMemory(t)
		gone, crash := context.WithCancel(t.Context())
		a := newRunner(t, cut{memory, gone}, task.Config{MaxRunning: 1})
		task.Register(a, "double", double)
		task.Register(a, "unknown to b", double)
		running, pending := start(t, a, stubborn(time.Hour)), start(t, a, untilEnd)
		submitted, err := a.Submit(t.Context(), "double", 21)
		require.NoError(t, err)
		foreign, err := a.Submit(t.Context(), "unknown to b", 1)
		require.NoError(t, err)

		b := newRunner(t, memory, task.Config{})
		task.Register(b, "double", double)
		time.Sleep(2 * task.DefaultLease)
		require.Equal(t, task.Running, get(t, b, running.ID).Status, "a is alive")
		require.Zero(t, b.Stats().Interrupted)
		crash()
		crashed := time.Now()
		require.Equal(t, task.KindInterrupted, wait(t, b, running.ID).ErrorCode)
		require.LessOrEqual(t, time.Since(crashed), task.DefaultLease*4/3+time.Second)
		require.Equal(t, task.KindInterrupted, wait(t, b, pending.ID).ErrorCode, "only a has its function")
		v, err := task.Result[int](wait(t, b, submitted.ID))
		require.NoError(t, err)
		require.Equal(t, 42, v)
		require.Equal(t, task.Pending, get(t, b, foreign.ID).Status, "b has no handler")
		synctest.Wait() // the store has what Stats does not count yet
		require.EqualValues(t, 2, b.Stats().Interrupted)

		c := newRunner(t, memory, task.Config{})
		task.Register(c, "unknown to b", double)
		require.Equal(t, task.Succeeded, wait(t, c, foreign.ID).Status)
		require.Equal(t, 1, get(t, c, foreign.ID).Attempts)
		time.Sleep(time.Hour)
	})
}

func TestExpiredLeaseEndsRunningOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newMemory(t)
		m := &moody{Store: memory}
		a := newRunner(t, m, task.Config{})
		ended := make(chan error, 1)
		op := start(t, a, func(ctx context.Context) (any, error) {
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return "too late", nil
		})
		synctest.Wait()
		m.before.Store(true)
		b := newRunner(t, memory, task.Config{})
		marked := wait(t, b, op.ID)
		require.Equal(t, task.KindInterrupted, marked.ErrorCode)
		m.before.Store(false)
		require.ErrorIs(t, <-ended, task.KindInterrupted, "its function's context ends")
		synctest.Wait()
		require.Equal(t, marked, get(t, a, op.ID), "its result changes nothing")
		require.EqualValues(t, 1, a.Stats().Failed)
	})
}

func TestCancelReachesAnotherProcessAtItsNextRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newMemory(t)
		a, b := newRunner(t, memory, task.Config{MaxRunning: 1}), newRunner(t, memory, task.Config{})
		running, pending := start(t, a, untilEnd), start(t, a, untilEnd)
		synctest.Wait()
		op, err := b.Cancel(t.Context(), pending.ID)
		require.NoError(t, err)
		require.Equal(t, task.Cancelled, op.Status)
		op, err = b.Cancel(t.Context(), running.ID)
		require.NoError(t, err)
		require.Equal(t, task.Running, op.Status)
		require.True(t, op.CancelRequested)
		before := time.Now()
		require.Equal(t, task.Cancelled, wait(t, b, running.ID).Status)
		require.LessOrEqual(t, time.Since(before), task.DefaultLease/3+time.Second)
		synctest.Wait()
		require.EqualValues(t, 2, a.Stats().Cancelled)
	})
}

func TestShutdownReleasesSubmittedOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newMemory(t)
		a := newRunner(t, memory, task.Config{MaxRunning: 1})
		task.Register(a, "double", double)
		start(t, a, untilEnd)
		op, err := a.Submit(t.Context(), "double", 2)
		require.NoError(t, err)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_ = a.Shutdown(ctx)
		require.Equal(t, task.Pending, get(t, a, op.ID).Status)
		require.EqualValues(t, 1, a.Stats().Released)
		b := newRunner(t, memory, task.Config{})
		task.Register(b, "double", double)
		before := time.Now()
		require.Equal(t, task.Succeeded, wait(t, b, op.ID).Status)
		require.LessOrEqual(t, time.Since(before), task.DefaultLease/3+time.Second, "one renewal and one poll of Wait")
	})
}

func TestSubmittedOperationsRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := newMemory(t)
		gone, crash := context.WithCancel(t.Context())
		dead := newRunner(t, cut{memory, gone}, task.Config{MaxRunning: 1})
		ran := make(chan int, 1000)
		count := func(_ context.Context, n int) (int, error) {
			ran <- n
			time.Sleep(time.Second)
			return n, nil
		}
		task.Register(dead, "count", count)
		start(t, dead, stubborn(time.Hour))
		var ids []string
		for n := range 50 {
			op, err := dead.Submit(t.Context(), "count", n)
			require.NoError(t, err)
			ids = append(ids, op.ID)
		}
		crash()
		for range 4 {
			task.Register(newRunner(t, memory, task.Config{MaxRunning: 2, MaxPending: 2}), "count", count)
		}
		r := newRunner(t, memory, task.Config{})
		for _, id := range ids {
			require.Equal(t, task.Succeeded, wait(t, r, id).Status)
			require.Equal(t, 1, get(t, r, id).Attempts)
		}
		require.Len(t, ran, 50)
		time.Sleep(time.Hour)
	})
}
