package task_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
)

// TestTenThousandTasksEndInOneFinalStateEach has 100 callers start 100 short tasks each. The tasks succeed, fail,
// panic, time out, ignore their context or are cancelled at random. The store sometimes fails.
func TestTenThousandTasksEndInOneFinalStateEach(t *testing.T) {
	const callers, each = 100, 100
	synctest.Test(t, func(t *testing.T) {
		memory, err := task.NewMemory(task.MemoryConfig{MaxOperations: aiguard.Off})
		require.NoError(t, err)
		store := &watched{Store: memory, final: map[string]task.Operation{}, fails: true}
		g := newGuard(t, aiguard.Config{TaskTimeout: 2 * time.Second})
		r, err := task.NewRunner(g, store, task.Config{MaxRunning: 50, MaxPending: 200})
		require.NoError(t, err)
		base := heap()

		var running, ran, refused atomic.Int64
		var accepted sync.Map
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for range each {
					fn := randomTask(&running, &ran)
					op, err := r.Start(t.Context(), "random", fn)
					for ; errors.Is(err, aiguard.ErrOverloaded); op, err = r.Start(t.Context(), "random", fn) {
						refused.Add(1)
						var e *aiguard.Error
						errors.As(err, &e)
						time.Sleep(e.RetryAfter)
					}
					if !assert.NoError(t, err) {
						return
					}
					accepted.Store(op.ID, true)
					switch rand.N(4) {
					case 0:
						time.Sleep(rand.N(time.Second))
						_, err := r.Cancel(t.Context(), op.ID)
						assert.NoError(t, err)
					case 1:
						_, err := r.Wait(t.Context(), op.ID)
						assert.NoError(t, err)
					}
				}
			})
		}
		all.Wait()
		require.NoError(t, r.Shutdown(t.Context()))
		time.Sleep(time.Minute) // stuck functions return
		synctest.Wait()

		s := r.Stats()
		require.EqualValues(t, callers*each, s.Started)
		require.EqualValues(t, callers*each, s.Succeeded+s.Failed+s.Cancelled, "%+v", s)
		require.Equal(t, refused.Load(), s.Refused)
		require.Zero(t, s.Running)
		require.Zero(t, s.Pending)
		require.Zero(t, s.Stuck)
		require.Zero(t, running.Load())
		counts := map[task.Status]int64{}
		store.mu.Lock()
		for id, op := range store.final {
			_, ok := accepted.Load(id)
			require.True(t, ok)
			counts[op.Status]++
		}
		store.mu.Unlock()
		require.Equal(t, map[task.Status]int64{task.Succeeded: s.Succeeded, task.Failed: s.Failed, task.Cancelled: s.Cancelled}, counts)
		require.LessOrEqual(t, s.Succeeded, ran.Load())
		require.Positive(t, s.StoreErrors)
		t.Logf("%+v", s)

		time.Sleep(task.DefaultMaxAge + time.Minute)
		left, err := r.List(t.Context(), task.Query{})
		require.NoError(t, err)
		require.Empty(t, left)
		store.final, accepted = nil, sync.Map{}
		require.InDelta(t, base, heap(), 1<<20, "memory returns to its level before the test")
	})
}

// TestManyTasksReportProgressAtTheSameInstant crashed the race detector of Go 1.26.8 when SetProgress used timers of
// zero duration. The crash was a SIGSEGV in runtime.(*timer).modify, or a failed CHECK of ThreadSanitizer. In a
// synctest bubble the runtime runs such a timer in the thread that sets it, but with a race context shared by the
// whole bubble. A zero duration in time.AfterFunc, time.NewTimer, time.After or Timer.Reset can cause this. One
// nanosecond cannot.
func TestManyTasksReportProgressAtTheSameInstant(t *testing.T) {
	const tasks = 5000
	synctest.Test(t, func(t *testing.T) {
		r := newRunner(t, newMemory(t), task.Config{MaxRunning: aiguard.Off})
		report, finish := make(chan struct{}), make(chan struct{})
		for range tasks {
			_, err := r.Start(t.Context(), "report", func(ctx context.Context) (any, error) {
				<-report
				task.SetProgress(ctx, 50, "half")
				<-finish
				return nil, nil
			})
			require.NoError(t, err)
		}
		synctest.Wait()
		close(report)
		time.Sleep(time.Second)
		stored, err := r.List(t.Context(), task.Query{Limit: tasks})
		require.NoError(t, err)
		require.Len(t, stored, tasks)
		for _, op := range stored {
			require.Equal(t, 50, op.Progress)
		}
		close(finish)
		require.NoError(t, r.Shutdown(t.Context()))
	})
}

func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// randomTask succeeds, fails, panics, blocks or ignores its context at random.
func randomTask(running, ran *atomic.Int64) func(context.Context) (any, error) {
	what, d := rand.N(20), rand.N(100*time.Millisecond)
	return func(ctx context.Context) (any, error) {
		running.Add(1)
		defer running.Add(-1)
		ran.Add(1)
		task.SetProgress(ctx, rand.N(100), "working")
		switch what {
		case 0:
			panic("at random")
		case 1:
			runtime.Goexit()
		case 2, 3:
			return nil, &aiguard.Error{Kind: aiguard.ErrUnavailable}
		case 4:
			return nil, errors.New("no kind")
		case 5:
			<-ctx.Done() // timed out or cancelled
			return nil, ctx.Err()
		case 6:
			if rand.N(10) == 0 {
				time.Sleep(10 * time.Second) // ignores its context
			}
		}
		select {
		case <-time.After(d):
			return map[string]int{"n": what}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// watched is a store that checks that final operations do not change. It fails at random.
type watched struct {
	task.Store
	fails bool

	mu    sync.Mutex
	final map[string]task.Operation
}

func (w *watched) Update(ctx context.Context, op task.Operation) error {
	mood := rand.N(50)
	if w.fails && mood == 0 {
		return errStore
	}
	if err := w.Store.Update(ctx, op); err != nil {
		return err
	}
	if op.Status.Final() {
		w.mu.Lock()
		before, twice := w.final[op.ID]
		w.final[op.ID] = op
		w.mu.Unlock()
		if twice {
			panic("final state written twice: " + string(before.Status) + ", " + string(op.Status))
		}
	}
	if w.fails && mood == 1 {
		return errStore // stored although it returns an error
	}
	return nil
}
