package task_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/task"
)

var errStore = errors.New("the store is down")

// moody is a store that fails on demand: before a call, after a call, or by blocking.
type moody struct {
	task.Store
	before, after, silent atomic.Bool
	updates               atomic.Int64
}

func (m *moody) call(ctx context.Context, f func() error) error {
	if m.silent.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if m.before.Load() {
		return errStore
	}
	err := f()
	if err == nil && m.after.Load() {
		return errStore
	}
	return err
}

func (m *moody) Create(ctx context.Context, op task.Operation) error {
	return m.call(ctx, func() error { return m.Store.Create(ctx, op) })
}

func (m *moody) Update(ctx context.Context, op task.Operation) error {
	m.updates.Add(1)
	return m.call(ctx, func() error { return m.Store.Update(ctx, op) })
}

func (m *moody) Renew(ctx context.Context, owner string, lease time.Duration) error {
	return m.call(ctx, func() error { return m.Store.Renew(ctx, owner, lease) })
}

func TestFinalStateSurvivesAFailingStore(t *testing.T) {
	for name, mood := range map[string]func(m *moody) *atomic.Bool{
		"before": func(m *moody) *atomic.Bool { return &m.before },
		"after":  func(m *moody) *atomic.Bool { return &m.after },
		"silent": func(m *moody) *atomic.Bool { return &m.silent },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l logs
				m := &moody{Store: newMemory(t)}
				r := newRunner(t, m, task.Config{Logger: l.logger()})
				op := start(t, r, func(context.Context) (any, error) {
					mood(m).Store(true)
					return "kept", nil
				})
				time.Sleep(20 * time.Second)
				if name != "after" {
					require.Equal(t, task.Running, get(t, r, op.ID).Status, "not final before the store has it")
					require.Equal(t, 1, r.Stats().Running, "the operation keeps its slot")
				}
				require.Positive(t, r.Stats().StoreErrors)
				require.Contains(t, l.String(), "task: the store failed")
				mood(m).Store(false)
				v, err := task.Result[string](wait(t, r, op.ID))
				require.NoError(t, err)
				require.Equal(t, "kept", v)
				synctest.Wait()
				require.EqualValues(t, 1, r.Stats().Succeeded)
			})
		})
	}
}

func TestStartFailsSoonIfTheStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &moody{Store: newMemory(t)}
		m.before.Store(true)
		r := newRunner(t, m, task.Config{})
		before := time.Now()
		_, err := r.Start(t.Context(), "test", untilEnd)
		require.ErrorIs(t, err, errStore)
		require.Less(t, time.Since(before), time.Second)
		require.Zero(t, r.Stats().Pending, "its slot is free")
	})
}

func TestHalfCreatedOperationIsMarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &moody{Store: newMemory(t)}
		r := newRunner(t, m, task.Config{})
		synctest.Wait()
		m.after.Store(true)
		op := start(t, r, func(context.Context) (any, error) { m.after.Store(false); return 1, nil })
		require.Equal(t, task.Succeeded, wait(t, r, op.ID).Status, "the second attempt finds the operation stored")

		lost := &lostAnswer{Store: m}
		r = newRunner(t, lost, task.Config{})
		_, err := r.Start(t.Context(), "test", untilEnd)
		require.ErrorIs(t, err, errStore)
		time.Sleep(task.DefaultLease)
		all, err := r.List(t.Context(), task.Query{Statuses: []task.Status{task.Failed}})
		require.NoError(t, err)
		require.Len(t, all, 1, "no client has its ID, and no process runs it")
		require.Equal(t, task.KindInterrupted, all[0].ErrorCode)
	})
}

// lostAnswer stores new operations but returns an error.
type lostAnswer struct{ task.Store }

func (l *lostAnswer) Create(ctx context.Context, op task.Operation) error {
	_ = l.Store.Create(ctx, op)
	return errStore
}

func TestShutdownCountsLostOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l logs
		memory := newMemory(t)
		m := &moody{Store: memory}
		r := newRunner(t, m, task.Config{Logger: l.logger()})
		op := start(t, r, func(context.Context) (any, error) { m.before.Store(true); return 1, nil })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, r.Shutdown(ctx), context.DeadlineExceeded)
		synctest.Wait()
		require.EqualValues(t, 1, r.Stats().Lost)
		require.Contains(t, l.String(), "task: lost")

		// After its lease expires, another process marks the operation.
		next := newRunner(t, memory, task.Config{})
		require.Equal(t, task.KindInterrupted, wait(t, next, op.ID).ErrorCode)
		require.LessOrEqual(t, time.Since(op.CreatedAt), 2*task.DefaultLease)
		synctest.Wait() // the store has what Stats does not count yet
		require.EqualValues(t, 1, next.Stats().Interrupted)
	})
}

// A slow store must not receive more writes. Progress is written at most twice a second.
func TestProgressIsWrittenAtMostTwiceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &moody{Store: newMemory(t)}
		r := newRunner(t, m, task.Config{})
		op := start(t, r, func(ctx context.Context) (any, error) {
			for i := range 1000 {
				task.SetProgress(ctx, i/10, "working")
				time.Sleep(10 * time.Millisecond)
			}
			return nil, nil
		})
		time.Sleep(5*time.Second + time.Millisecond)
		half := get(t, r, op.ID)
		require.InDelta(t, 50, half.Progress, 5)
		require.Equal(t, "working", half.ProgressNote)
		op = wait(t, r, op.ID)
		require.Equal(t, 100, op.Progress)
		require.JSONEq(t, "null", string(op.Result))
		require.InDelta(t, 22, m.updates.Load(), 2) // 20 in 10 seconds, the start, and the end
		require.Equal(t, m.updates.Load()+1, op.Revision)
	})
}
