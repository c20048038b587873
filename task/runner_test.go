package task_test

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
	"github.com/aiguard-go/aiguard/task"
)

// logs keeps the log output.
type logs struct{ syncbuf.Buffer }

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func newGuard(t testing.TB, cfg aiguard.Config) *aiguard.Guard {
	t.Helper()
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g
}

func newMemory(t testing.TB) *task.Memory {
	t.Helper()
	m, err := task.NewMemory(task.MemoryConfig{})
	require.NoError(t, err)
	return m
}

// newRunner returns a runner that the test's cleanup shuts down. The cleanup checks that all started operations have
// ended and are counted.
func newRunner(t testing.TB, store task.Store, cfg task.Config) *task.Runner {
	t.Helper()
	r, err := task.NewRunner(newGuard(t, aiguard.Config{}), store, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Shutdown(ctx)
		s := r.Stats()
		require.Equal(t, s.Started, s.Succeeded+s.Failed+s.Cancelled+s.Released+s.Lost, "%+v", s)
	})
	return r
}

// inVirtualTime runs f in a synctest bubble with a runner over a Memory.
func inVirtualTime(t *testing.T, cfg task.Config, f func(t *testing.T, r *task.Runner)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newRunner(t, newMemory(t), cfg)) })
}

func start(t testing.TB, r *task.Runner, fn func(context.Context) (any, error)) task.Operation {
	t.Helper()
	op, err := r.Start(t.Context(), "test", fn)
	require.NoError(t, err)
	require.Equal(t, task.Pending, op.Status)
	return op
}

func wait(t testing.TB, r *task.Runner, id string) task.Operation {
	t.Helper()
	op, err := r.Wait(t.Context(), id)
	require.NoError(t, err)
	require.True(t, op.Status.Final())
	return op
}

func get(t testing.TB, r *task.Runner, id string) task.Operation {
	t.Helper()
	op, err := r.Get(t.Context(), id)
	require.NoError(t, err)
	return op
}

// untilEnd is a function that returns when its context ends.
func untilEnd(ctx context.Context) (any, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// stubborn returns a function that ignores its context for d.
func stubborn(d time.Duration) func(context.Context) (any, error) {
	return func(context.Context) (any, error) {
		time.Sleep(d)
		return "late", nil
	}
}

func TestSucceededOperationHasItsResult(t *testing.T) {
	type questions struct{ Questions []string }
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		before := time.Now()
		op := start(t, r, func(ctx context.Context) (any, error) {
			time.Sleep(time.Second)
			return questions{[]string{"Why?"}}, nil
		})
		synctest.Wait()
		running := get(t, r, op.ID)
		require.Equal(t, task.Running, running.Status)
		require.Equal(t, 1, running.Attempts)
		require.True(t, running.FinishedAt.IsZero())
		_, err := task.Result[questions](running)
		require.ErrorContains(t, err, "running")

		op = wait(t, r, op.ID)
		require.Equal(t, task.Succeeded, op.Status)
		require.Equal(t, 100, op.Progress)
		require.NoError(t, op.Err())
		require.True(t, op.CreatedAt.Equal(before))
		require.Equal(t, time.Second, op.FinishedAt.Sub(op.StartedAt))
		v, err := task.Result[questions](op)
		require.NoError(t, err)
		require.Equal(t, []string{"Why?"}, v.Questions)
		_, err = task.Result[int](op)
		require.ErrorContains(t, err, "cannot be decoded as int")
	})
}

func TestFunctionContextHasValuesButNotCancellation(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		type key struct{}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
		op, err := r.Start(ctx, "test", func(ctx context.Context) (any, error) {
			time.Sleep(time.Second)
			return ctx.Value(key{}), ctx.Err()
		})
		require.NoError(t, err)
		cancel()
		v, err := task.Result[string](wait(t, r, op.ID))
		require.NoError(t, err)
		require.Equal(t, "v", v)
		_, err = r.Start(ctx, "test", untilEnd)
		require.ErrorIs(t, err, context.Canceled, "the caller has left")
	})
}

func TestOperationStartedInsideACallDoesNotShareItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, QueueTimeout: time.Second})
		r, err := task.NewRunner(g, newMemory(t), task.Config{})
		require.NoError(t, err)
		defer func() { _ = r.Shutdown(t.Context()) }()
		_, err = aiguard.Do(t.Context(), g, func(ctx context.Context) (int, error) {
			op, err := r.Start(ctx, "test", func(ctx context.Context) (any, error) {
				return aiguard.Do(ctx, g, func(context.Context) (int, error) { return 1, nil })
			})
			require.NoError(t, err)
			op = wait(t, r, op.ID)
			require.Equal(t, aiguard.ErrOverloaded, op.ErrorCode, "the slot is taken")
			return 0, nil
		})
		require.NoError(t, err)
	})
}

func TestTimedOutOperationFailsWithAFriendlyMessage(t *testing.T) {
	var l logs
	inVirtualTime(t, task.Config{Logger: l.logger()}, func(t *testing.T, r *task.Runner) {
		op := start(t, r, untilEnd)
		op = wait(t, r, op.ID)
		require.Equal(t, task.Failed, op.Status)
		require.Equal(t, aiguard.ErrTimeout, op.ErrorCode)
		require.Equal(t, "This took longer than expected and was stopped. Please try again, or try with a smaller request.", op.ErrorMessage)
		require.Equal(t, 2*time.Minute, op.FinishedAt.Sub(op.StartedAt))
		require.ErrorIs(t, op.Err(), aiguard.ErrTimeout)
		_, err := task.Result[string](op)
		require.ErrorIs(t, err, aiguard.ErrTimeout)
		synctest.Wait()
		for _, want := range []string{"level=ERROR", "name=test", "id=" + op.ID, "elapsed=2m0s", "code=timeout"} {
			require.Contains(t, l.String(), want)
		}
	})
}

func TestStuckFunctionEndsAfterGraceAndKeepsItsSlot(t *testing.T) {
	var l logs
	inVirtualTime(t, task.Config{MaxRunning: 1, Logger: l.logger()}, func(t *testing.T, r *task.Runner) {
		stuck := start(t, r, stubborn(time.Hour))
		next := start(t, r, func(context.Context) (any, error) { return "ran", nil })
		op := wait(t, r, stuck.ID)
		require.Equal(t, aiguard.ErrTimeout, op.ErrorCode)
		require.Equal(t, 2*time.Minute+task.DefaultGrace, op.FinishedAt.Sub(op.StartedAt))
		synctest.Wait()
		require.Equal(t, 1, r.Stats().Stuck)
		require.Equal(t, 1, r.Stats().Running)
		require.Contains(t, l.String(), "task: stuck")
		require.Equal(t, task.Pending, get(t, r, next.ID).Status)
		ran := wait(t, r, next.ID)
		require.Equal(t, time.Hour, ran.StartedAt.Sub(op.StartedAt), "after the stuck function returns")
		require.Equal(t, op, get(t, r, stuck.ID), "the late result changes nothing")
		synctest.Wait()
		require.Zero(t, r.Stats().Stuck)
	})
}

func TestPanicFailsOnlyItsOperation(t *testing.T) {
	for name, fn := range map[string]func(context.Context) (any, error){
		"panic":         func(context.Context) (any, error) { panic("the secret prompt") },
		"runtime error": func(context.Context) (any, error) { return []int{}[len("the secret prompt")], nil },
		"nil panic":     func(context.Context) (any, error) { panic(nil) },
		"result":        func(context.Context) (any, error) { return panicking{}, nil },
		"error":         func(context.Context) (any, error) { return nil, errors.New("the secret prompt") },
		"no JSON":       func(context.Context) (any, error) { return func() {}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			var l logs
			inVirtualTime(t, task.Config{Logger: l.logger()}, func(t *testing.T, r *task.Runner) {
				op := wait(t, r, start(t, r, fn).ID)
				require.Equal(t, task.Failed, op.Status)
				require.Equal(t, task.KindInternal, op.ErrorCode)
				require.Equal(t, "Something went wrong. Please try again later.", op.ErrorMessage)
				synctest.Wait()
				require.NotContains(t, l.String(), "the secret prompt")
				if strings.Contains(name, "panic") {
					require.Contains(t, l.String(), "runner_test.go", "the stack")
				}
			})
		})
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("the secret prompt") }

func TestErrorsOfTheFunctionBecomeCodesAndMessages(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		for code, err := range map[aiguard.Kind]error{
			aiguard.ErrTimeout:          context.DeadlineExceeded, // from a shorter timeout in the function
			aiguard.ErrRateLimited:      &aiguard.Error{Kind: aiguard.ErrRateLimited},
			aiguard.ErrResponseTooLarge: nil,
			task.KindInternal:           context.Canceled, // not cancelled by Cancel
		} {
			op := wait(t, r, start(t, r, func(context.Context) (any, error) { return strings.Repeat("x", 1<<20), err }).ID)
			require.Equal(t, code, op.ErrorCode)
			require.NotEmpty(t, op.ErrorMessage)
			require.Empty(t, op.Result)
		}
	})
}

func TestCancelledOperationEnds(t *testing.T) {
	inVirtualTime(t, task.Config{MaxRunning: 1}, func(t *testing.T, r *task.Runner) {
		running, ran := start(t, r, untilEnd), false
		pending := start(t, r, func(context.Context) (any, error) { ran = true; return nil, nil })
		synctest.Wait()

		op, err := r.Cancel(t.Context(), pending.ID)
		require.NoError(t, err)
		require.Equal(t, task.Cancelled, op.Status, "at once: it has not started")
		require.Zero(t, op.Attempts)

		_, err = r.Cancel(t.Context(), running.ID)
		require.NoError(t, err)
		op = wait(t, r, running.ID)
		require.Equal(t, task.Cancelled, op.Status)
		require.Equal(t, task.KindCancelled, op.ErrorCode)
		require.Equal(t, "This was cancelled.", op.ErrorMessage)
		require.ErrorIs(t, op.Err(), task.KindCancelled)

		again, err := r.Cancel(t.Context(), running.ID)
		require.NoError(t, err)
		require.Equal(t, op, again, "a final operation does not change")
		_, err = r.Cancel(t.Context(), "unknown")
		require.ErrorIs(t, err, task.ErrNotFound)
		synctest.Wait()
		require.False(t, ran)
		require.EqualValues(t, 2, r.Stats().Cancelled)
	})
}

func TestFunctionThatSucceedsAfterCancelSucceeds(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		op := start(t, r, func(ctx context.Context) (any, error) { <-ctx.Done(); return "done", nil })
		synctest.Wait()
		_, err := r.Cancel(t.Context(), op.ID)
		require.NoError(t, err)
		require.Equal(t, task.Succeeded, wait(t, r, op.ID).Status)
	})
}

func TestCancelledStuckFunctionEndsAfterGrace(t *testing.T) {
	inVirtualTime(t, task.Config{Grace: time.Second}, func(t *testing.T, r *task.Runner) {
		op := start(t, r, stubborn(time.Minute))
		synctest.Wait()
		_, err := r.Cancel(t.Context(), op.ID)
		require.NoError(t, err)
		op = wait(t, r, op.ID)
		require.Equal(t, task.Cancelled, op.Status)
		require.Equal(t, time.Second, op.FinishedAt.Sub(op.StartedAt))
		require.Equal(t, 1, r.Stats().Stuck)
		time.Sleep(time.Minute)
	})
}

func TestOperationsBeyondCapacityWaitAndThenAreRejected(t *testing.T) {
	inVirtualTime(t, task.Config{MaxRunning: 2, MaxPending: 3}, func(t *testing.T, r *task.Runner) {
		var order []task.Operation
		running, most := 0, 0
		var mu sync.Mutex
		for range 5 {
			order = append(order, start(t, r, func(ctx context.Context) (any, error) {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(10 * time.Second)
				mu.Lock()
				running--
				mu.Unlock()
				return nil, nil
			}))
		}
		before := time.Now()
		_, err := r.Start(t.Context(), "test", untilEnd)
		require.Zero(t, time.Since(before), "at once")
		require.ErrorIs(t, err, aiguard.ErrOverloaded)
		require.Equal(t, 503, aiguard.HTTPStatus(err))
		var e *aiguard.Error
		require.ErrorAs(t, err, &e)
		require.EqualValues(t, 3, e.Max)
		require.GreaterOrEqual(t, e.RetryAfter, time.Second)
		require.Equal(t, task.Stats{Running: 2, Pending: 3, Started: 5, Refused: 1}, r.Stats())

		var last time.Time
		for _, op := range order {
			op = wait(t, r, op.ID)
			require.False(t, op.StartedAt.Before(last), "first in, first out")
			last = op.StartedAt
		}
		require.Equal(t, 2, most)
		_, err = r.Start(t.Context(), "test", func(context.Context) (any, error) { return nil, nil })
		require.NoError(t, err)
	})
}

// The largest value of a field means no limit. A sum with it must not overflow.
func TestLargestValuesLimitNothing(t *testing.T) {
	for name, cfg := range map[string]task.Config{
		"MaxRunning": {MaxRunning: math.MaxInt}, "MaxPending": {MaxPending: math.MaxInt}, "Grace": {Grace: math.MaxInt64}, "Lease": {Lease: math.MaxInt64},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cfg, func(t *testing.T, r *task.Runner) {
				op := start(t, r, func(context.Context) (any, error) { return 1, nil })
				require.Equal(t, task.Succeeded, wait(t, r, op.ID).Status)
			})
		})
	}
}

func TestInvalidInputErrorsNameTheProblem(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	for field, cfg := range map[string]task.Config{
		"MaxRunning": {MaxRunning: -2}, "MaxPending": {MaxPending: -2}, "Grace": {Grace: -1}, "Lease": {Lease: 1},
	} {
		_, err := task.NewRunner(g, newMemory(t), cfg)
		require.ErrorContains(t, err, "Config."+field)
	}
	_, err := task.NewRunner(nil, newMemory(t), task.Config{})
	require.Error(t, err)
	_, err = task.NewRunner(g, (*task.Memory)(nil), task.Config{})
	require.Error(t, err)
	r := newRunner(t, newMemory(t), task.Config{})
	for _, name := range []string{"", strings.Repeat("x", 101), "a\nb", "\xff"} {
		_, err = r.Start(t.Context(), name, untilEnd)
		require.ErrorContains(t, err, "name")
	}
	_, err = r.Submit(t.Context(), "nobody", 1)
	require.ErrorContains(t, err, "no handler")
	_, err = r.Get(t.Context(), "unknown")
	require.ErrorIs(t, err, task.ErrNotFound)
	_, err = r.Wait(t.Context(), "unknown")
	require.ErrorIs(t, err, task.ErrNotFound)
	task.Register(r, "twice", func(context.Context, int) (int, error) { return 0, nil })
	require.Panics(t, func() { task.Register(r, "twice", func(context.Context, int) (int, error) { return 0, nil }) })
	_, err = r.Submit(t.Context(), "twice", func() {})
	require.ErrorContains(t, err, "cannot be encoded")
	task.SetProgress(t.Context(), 50, "of nothing")
}

func TestShutdownWaitsForRunningAndPending(t *testing.T) {
	inVirtualTime(t, task.Config{MaxRunning: 1}, func(t *testing.T, r *task.Runner) {
		ten := func(context.Context) (any, error) { time.Sleep(10 * time.Second); return nil, nil }
		running, pending := start(t, r, ten), start(t, r, ten)
		before := time.Now()
		require.NoError(t, r.Shutdown(t.Context()))
		require.Equal(t, 20*time.Second, time.Since(before))
		require.Equal(t, task.Succeeded, get(t, r, running.ID).Status)
		require.Equal(t, task.Succeeded, get(t, r, pending.ID).Status)
		_, err := r.Start(t.Context(), "test", ten)
		require.ErrorIs(t, err, aiguard.ErrClosed)
		require.NoError(t, r.Shutdown(t.Context()), "again")
	})
}

func TestShutdownMarksUnfinishedAsInterrupted(t *testing.T) {
	inVirtualTime(t, task.Config{MaxRunning: 2}, func(t *testing.T, r *task.Runner) {
		obedient, stuck := start(t, r, untilEnd), start(t, r, stubborn(time.Minute))
		pending := start(t, r, untilEnd)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		before := time.Now()
		require.ErrorIs(t, r.Shutdown(ctx), context.DeadlineExceeded)
		require.Equal(t, 10*time.Second+task.DefaultGrace, time.Since(before))
		for _, op := range []task.Operation{obedient, stuck, pending} {
			op = get(t, r, op.ID)
			require.Equal(t, task.Failed, op.Status)
			require.Equal(t, task.KindInterrupted, op.ErrorCode)
			require.Equal(t, "The service was restarted before this was done. Please try again.", op.ErrorMessage)
		}
		time.Sleep(time.Minute)
	})
}

func TestSubmitLimitsItsInput(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		task.Register(r, "length", func(_ context.Context, in string) (int, error) { return len(in), nil })
		const most = 1<<20 - 2 // the quotes take two bytes
		op, err := r.Submit(t.Context(), "length", strings.Repeat("x", most))
		require.NoError(t, err)
		n, err := task.Result[int](wait(t, r, op.ID))
		require.NoError(t, err)
		require.Equal(t, most, n)

		_, err = r.Submit(t.Context(), "length", strings.Repeat("x", most+1))
		var e *aiguard.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, &aiguard.Error{Kind: aiguard.ErrPromptTooLarge, Op: "length", Phase: "task", Size: 1<<20 + 1, Max: 1 << 20}, e)
		require.Equal(t, http.StatusRequestEntityTooLarge, aiguard.HTTPStatus(err))
		require.EqualValues(t, 1, r.Stats().Started)
	})
}

// weighed is a store that counts the bytes it returns.
type weighed struct {
	task.Store
	inputs atomic.Int64 // bytes of inputs returned
}

func (w *weighed) weigh(ops ...task.Operation) {
	for _, op := range ops {
		w.inputs.Add(int64(len(op.Input)))
	}
}

func (w *weighed) Get(ctx context.Context, id string) (task.Operation, error) {
	op, err := w.Store.Get(ctx, id)
	w.weigh(op)
	return op, err
}

func (w *weighed) List(ctx context.Context, q task.Query) ([]task.Operation, error) {
	ops, err := w.Store.List(ctx, q)
	w.weigh(ops...)
	return ops, err
}

func (w *weighed) Orphans(ctx context.Context, names []string, limit int) ([]task.Operation, error) {
	ops, err := w.Store.Orphans(ctx, names, limit)
	w.weigh(ops...)
	return ops, err
}

// Get and each lease round would otherwise cost as much as the size of the inputs.
func TestInputIsReadOnlyForTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &weighed{Store: newMemory(t)}
		r := newRunner(t, store, task.Config{MaxRunning: 1})
		work := func(ctx context.Context, _ string) (any, error) { sleep(ctx, time.Hour); return nil, ctx.Err() }
		task.Register(r, "work", work)
		var last task.Operation
		for range 10 {
			var err error
			last, err = r.Submit(t.Context(), "work", strings.Repeat("x", 1000))
			require.NoError(t, err)
		}
		time.Sleep(3 * task.DefaultLease)
		for range 10 {
			get(t, r, last.ID)
			_, err := r.List(t.Context(), task.Query{})
			require.NoError(t, err)
		}
		require.Zero(t, store.inputs.Load())

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.Error(t, r.Shutdown(ctx))
		require.EqualValues(t, 9, r.Stats().Released, "pending operations are left to other processes, with their input")
		other := newRunner(t, store, task.Config{MaxRunning: 20})
		task.Register(other, "work", func(context.Context, string) (int, error) { return 7, nil })
		time.Sleep(2 * task.DefaultLease)
		n, err := task.Result[int](wait(t, other, last.ID))
		require.NoError(t, err)
		require.Equal(t, 7, n)
		require.Positive(t, store.inputs.Load())
	})
}

// Clients can request any ID. A database may reject such a text, which is not a failure of the store.
func TestInvalidIDsAreNotFoundWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &flakyStore{Memory: newMemory(t)}
		r := newRunner(t, store, task.Config{})
		synctest.Wait()
		broken := errors.New("invalid byte sequence")
		store.err.Store(&broken)
		defer store.err.Store(nil)
		for _, id := range []string{"", "a\x00b", "\xff", "a b", "a\nb", "é", strings.Repeat("x", 129)} {
			_, err := r.Get(t.Context(), id)
			require.ErrorIs(t, err, task.ErrNotFound, "%q", id)
			_, err = r.Wait(t.Context(), id)
			require.ErrorIs(t, err, task.ErrNotFound, "%q", id)
			_, err = r.Cancel(t.Context(), id)
			require.ErrorIs(t, err, task.ErrNotFound, "%q", id)
		}
	})
}
