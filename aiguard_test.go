package aiguard_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// sleep waits as well-behaved code does.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func do(ctx context.Context, g *aiguard.Guard, fn func(context.Context) error) error {
	_, err := aiguard.Do(ctx, g, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}

func TestDoReturnsValueAndError(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	v, err := aiguard.Do(t.Context(), g, func(context.Context) (int, error) { return 42, nil })
	require.NoError(t, err)
	require.Equal(t, 42, v)

	own := errors.New("the caller's business")
	require.Equal(t, own, do(t.Context(), g, func(context.Context) error { return own }), "an unknown error passes unchanged")
	st := g.Stats()
	require.EqualValues(t, 2, st.Calls)
	require.EqualValues(t, 1, st.Succeeded)
	require.EqualValues(t, 1, st.Failed)
}

func TestDoTimesOutWithFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{}).With(aiguard.Call{Op: "report", Model: "m"})
		start := time.Now()
		err := do(t.Context(), g, func(ctx context.Context) error { return sleep(ctx, time.Hour) })
		took(t, start, 30*time.Second)
		e := facts(t, err, aiguard.ErrTimeout)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, "call", e.Phase)
		require.Equal(t, 30*time.Second, e.Limit)
		require.Equal(t, 30*time.Second, e.InFlight)
		require.Equal(t, 1, e.Attempts)
		require.Equal(t, "report", e.Op)
		require.Contains(t, err.Error(), "no complete answer within 30s")
	})
}

func TestPerCallTimeoutReplacesTheDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		start := time.Now()
		err := do(t.Context(), g.With(aiguard.Call{Timeout: time.Second}), func(ctx context.Context) error { return sleep(ctx, time.Hour) })
		took(t, start, time.Second)
		require.Equal(t, time.Second, facts(t, err, aiguard.ErrTimeout).Limit)

		start = time.Now()
		err = do(t.Context(), g.With(aiguard.Call{Timeout: time.Minute}), func(ctx context.Context) error { return sleep(ctx, 50*time.Second) })
		require.NoError(t, err, "longer than the default too")
		took(t, start, 50*time.Second)
	})
}

func TestDeadlinesThatAreOffDoNotExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{CallTimeout: aiguard.Off, TotalTimeout: aiguard.Off})
		require.NoError(t, do(t.Context(), g, func(ctx context.Context) error {
			_, ok := ctx.Deadline()
			require.False(t, ok)
			return sleep(ctx, 24*time.Hour)
		}))
		g = newGuard(t, aiguard.Config{CallTimeout: aiguard.Off})
		start := time.Now()
		err := do(t.Context(), g, func(ctx context.Context) error { return sleep(ctx, 24*time.Hour) })
		took(t, start, 2*time.Minute)
		require.Equal(t, "total", facts(t, err, aiguard.ErrTimeout).Phase, "the total still holds")
	})
}

func TestCallersOwnEndPassesUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		hang := func(ctx context.Context) error { return sleep(ctx, time.Hour) }

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := do(ctx, g, hang)
		require.Equal(t, context.DeadlineExceeded, err, "the caller's 5 s are not our 30 s")
		require.Empty(t, aiguard.KindOf(err))

		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, stop)
		require.Equal(t, context.Canceled, do(ctx, g, hang))
		require.Equal(t, context.Canceled, do(ctx, g, hang), "gone before the call")

		cause := errors.New("user went home")
		cctx, why := context.WithCancelCause(t.Context())
		why(cause)
		err = do(cctx, g, hang)
		require.ErrorIs(t, err, cause)
		require.ErrorIs(t, err, context.Canceled)

		st := g.Stats()
		require.Zero(t, st.Failed)
		require.Zero(t, st.Timeouts)
		require.EqualValues(t, 4, st.Calls)
	})
}

func TestResultAfterTheDeadlineIsStillAResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		v, err := aiguard.Do(t.Context(), g, func(context.Context) (string, error) {
			time.Sleep(time.Minute) // ignores its ctx
			return "late", nil
		})
		require.NoError(t, err)
		require.Equal(t, "late", v)
		own := errors.New("of its own")
		require.Equal(t, own, do(t.Context(), g, func(ctx context.Context) error {
			<-ctx.Done()
			return own
		}), "an error that is not about the deadline")
	})
}

func TestContextOfDoBehavesAsAContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		g := newGuard(t, aiguard.Config{})
		ctx := context.WithValue(t.Context(), key{}, "v")
		var kept context.Context
		start := time.Now()
		err := do(ctx, g, func(ctx context.Context) error {
			kept = ctx
			d, ok := ctx.Deadline()
			require.True(t, ok)
			require.Equal(t, start.Add(30*time.Second), d)
			require.NoError(t, ctx.Err())
			require.Equal(t, "v", ctx.Value(key{}))
			child, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			<-child.Done()
			require.ErrorIs(t, context.Cause(child), aiguard.ErrTimeout, "the cause reaches what is derived")
			require.Equal(t, context.DeadlineExceeded, ctx.Err())
			require.ErrorIs(t, context.Cause(ctx), aiguard.ErrTimeout)
			return child.Err()
		})
		facts(t, err, aiguard.ErrTimeout)
		require.Error(t, kept.Err())

		require.NoError(t, do(ctx, g, func(ctx context.Context) error { kept = ctx; return nil }))
		require.Equal(t, context.Canceled, kept.Err(), "what fn leaves behind finds its context ended")
	})
}

func TestNeverMoreInFlightThanCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		var now, peak atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range 20 {
			wg.Go(func() {
				require.NoError(t, do(t.Context(), g, func(ctx context.Context) error {
					peak.Store(max(peak.Load(), now.Add(1)))
					defer now.Add(-1)
					return sleep(ctx, time.Second)
				}))
			})
		}
		wg.Wait()
		require.EqualValues(t, 5, peak.Load())
		took(t, start, 4*time.Second)
		st := g.Stats()
		require.EqualValues(t, 15, st.WaitCount)
		require.Equal(t, (5+10+15)*time.Second, st.WaitTime)
	})
}

func TestEveryWaitIsCountedHoweverItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, QueueTimeout: 10 * time.Second})
		work := func(ctx context.Context) error { return sleep(ctx, 20*time.Second) }
		var wg sync.WaitGroup
		wg.Go(func() { require.NoError(t, do(t.Context(), g, work)) })
		synctest.Wait()
		leaving, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		wg.Go(func() { require.ErrorIs(t, do(leaving, g, work), context.DeadlineExceeded) })
		wg.Go(func() { facts(t, do(t.Context(), g, work), aiguard.ErrOverloaded) })
		synctest.Wait()
		require.EqualValues(t, 2, g.Stats().Waiting)
		wg.Wait()
		st := g.Stats()
		require.Zero(t, st.Waiting)
		require.EqualValues(t, 2, st.WaitCount)
		require.Equal(t, (3+10)*time.Second, st.WaitTime)
	})
}

func TestQueueIsFirstInFirstOutAndLargeOnesAreNotOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 4})
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i, weight := range []int64{4, 1, 4, 3, 4, 1} {
			wg.Go(func() {
				require.NoError(t, do(t.Context(), g.With(aiguard.Call{Weight: weight}), func(ctx context.Context) error {
					mu.Lock()
					order = append(order, i)
					mu.Unlock()
					return sleep(ctx, time.Second+time.Duration(i)*time.Millisecond)
				}))
			})
			synctest.Wait() // each queues behind the one before
		}
		wg.Wait()
		require.Equal(t, []int{0, 1, 2, 3, 4, 5}, order, "though the small ones would have fitted in earlier")
	})
}

func TestWeightsShareTheCapacity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 4})
		start := time.Now()
		ends := map[int64]time.Duration{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, weight := range []int64{3, 1, 2} {
			wg.Go(func() {
				require.NoError(t, do(t.Context(), g.With(aiguard.Call{Weight: weight}), func(ctx context.Context) error { return sleep(ctx, time.Second) }))
				mu.Lock()
				defer mu.Unlock()
				ends[weight] = time.Since(start)
			})
			synctest.Wait()
		}
		require.EqualValues(t, 4, g.Stats().InFlight)
		wg.Wait()
		require.Equal(t, map[int64]time.Duration{3: time.Second, 1: time.Second, 2: 2 * time.Second}, ends)
	})
}

func TestWeightAboveCapacityIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		start := time.Now()
		err := do(t.Context(), g.With(aiguard.Call{Weight: 6}), func(context.Context) error { panic("not reached") })
		took(t, start, 0)
		e := facts(t, err, aiguard.ErrOverloaded)
		require.Equal(t, "weight", e.Phase)
		require.EqualValues(t, 6, e.Size)
		require.EqualValues(t, 5, e.Max)
		require.EqualValues(t, 1, g.Stats().Refused)
	})
}

func TestFullQueueRefusesAtOnceWithRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 2, OnEvent: rec.OnEvent})
		second := func(ctx context.Context) error { return sleep(ctx, time.Second) }
		require.NoError(t, do(t.Context(), g, second)) // the drain rate is known now
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { require.NoError(t, do(t.Context(), g, second)) })
		}
		synctest.Wait()
		require.EqualValues(t, 2, g.Stats().Waiting)
		start := time.Now()
		e := facts(t, do(t.Context(), g, second), aiguard.ErrOverloaded)
		took(t, start, 0)
		require.Equal(t, "queue", e.Phase)
		require.EqualValues(t, 2, e.Size)
		require.Positive(t, e.RetryAfter)
		require.LessOrEqual(t, e.RetryAfter, 10*time.Second)
		require.Zero(t, e.Attempts)
		wg.Wait()
		require.Len(t, rec.all(aiguard.EventRefused), 1)
		require.Len(t, rec.all(aiguard.EventQueued), 2)
		require.Len(t, rec.all(aiguard.EventDone), 4)
	})
}

func TestFullQueueRefusesAlikeWhetherOrNotSomebodyListens(t *testing.T) {
	for name, onEvent := range map[string]func(context.Context, aiguard.Event){"silent": nil, "observed": func(context.Context, aiguard.Event) {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 1, OnEvent: onEvent})
				g := root.With(aiguard.Call{Op: "report", Model: "m"})
				nothing := func(context.Context) error { return nil }
				queued, leave := context.WithCancel(t.Context())
				require.NoError(t, do(t.Context(), g, func(inside context.Context) error {
					go do(queued, g, nothing)
					synctest.Wait()
					before := g.Stats()
					e := facts(t, do(t.Context(), g, nothing), aiguard.ErrOverloaded)
					require.EqualExportedValues(t, aiguard.Error{Kind: aiguard.ErrOverloaded, Op: "report", Model: "m", Phase: "queue", Size: 1, Max: 1, RetryAfter: time.Second}, *e)
					after := g.Stats()
					require.Equal(t, []int64{1, 1, 0}, []int64{after.Calls - before.Calls, after.Refused - before.Refused, after.Failed})

					large := facts(t, do(t.Context(), g.With(aiguard.Call{Weight: 2}), nothing), aiguard.ErrOverloaded)
					require.Equal(t, "weight", large.Phase, "it could wait for ever")
					require.NoError(t, do(inside, g, nothing), "it needs no slot")
					ended, end := context.WithCancel(t.Context())
					end()
					require.Equal(t, context.Canceled, do(ended, g, nothing), "the caller's own end comes first")
					down := make(chan error)
					waits, giveUp := context.WithCancel(t.Context())
					go func() { down <- g.Shutdown(waits) }()
					synctest.Wait()
					require.EqualValues(t, 1, g.Stats().Waiting)
					facts(t, do(t.Context(), g, nothing), aiguard.ErrClosed)
					giveUp()
					require.ErrorIs(t, <-down, context.Canceled)
					facts(t, do(t.Context(), g, nothing), aiguard.ErrClosed)
					leave()
					synctest.Wait()
					return nil
				}))
			})
		})
	}
}

func TestQueueTimeoutRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, CallTimeout: time.Minute})
		var wg sync.WaitGroup
		wg.Go(func() {
			require.NoError(t, do(t.Context(), g, func(ctx context.Context) error { return sleep(ctx, 40*time.Second) }))
		})
		synctest.Wait()
		start := time.Now()
		e := facts(t, do(t.Context(), g, func(context.Context) error { return nil }), aiguard.ErrOverloaded)
		took(t, start, 30*time.Second)
		require.Equal(t, "queue", e.Phase)
		require.Equal(t, 30*time.Second, e.Limit)
		require.Equal(t, 30*time.Second, e.Queued)
		require.Positive(t, e.RetryAfter)
		require.NotErrorIs(t, e, context.DeadlineExceeded, "not a timeout of the call")
		wg.Wait()
	})
}

func TestWaiterThatLeavesIsRemovedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 1})
		var wg sync.WaitGroup
		hold := func() {
			require.NoError(t, do(t.Context(), g, func(ctx context.Context) error { return sleep(ctx, 10*time.Second) }))
		}
		wg.Go(hold)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			require.Equal(t, context.Canceled, do(ctx, g, func(context.Context) error { return nil }))
		})
		synctest.Wait()
		require.EqualValues(t, 1, g.Stats().Waiting)
		cancel()
		synctest.Wait()
		require.Zero(t, g.Stats().Waiting)
		wg.Go(hold) // its place is free again
		wg.Wait()
	})
}

func TestPanicAndGoexitLoseNothing(t *testing.T) {
	g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
	for range 3 {
		require.PanicsWithValue(t, "boom", func() {
			_ = do(t.Context(), g, func(context.Context) error { panic("boom") })
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = do(t.Context(), g, func(context.Context) error { runtime.Goexit(); return nil })
		}()
		<-done
	}
	require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
	require.NoError(t, g.Shutdown(t.Context()), "nothing is under way")
}

func TestNestedCallsShareTheSlot(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		start := time.Now()
		v, err := aiguard.Do(t.Context(), c.Guard(), func(ctx context.Context) (string, error) {
			a, err := chat(ctx, c)
			if err != nil {
				return "", err
			}
			b, err := aiguard.Do(ctx, c.Guard(), func(ctx context.Context) (string, error) { return streamChat(ctx, c) })
			require.EqualValues(t, 1, c.Guard().Stats().InFlight)
			return a + b, err
		})
		require.NoError(t, err)
		require.Equal(t, "Hello!Hello!", v)
		took(t, start, 0)
		require.EqualValues(t, 1, c.Guard().Stats().Calls)

		require.NoError(t, c.Guard().RunTask(t.Context(), func(ctx context.Context) error {
			require.Zero(t, c.Guard().Stats().InFlight, "a task holds no slot")
			_, err := chat(ctx, c)
			return err
		}))
	})
}

func TestAttemptsNeverMultiply(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{Budget: aiguard.Off}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(500, "server_error"))
		runs := 0
		_, err := aiguard.Do(t.Context(), c.Guard(), func(ctx context.Context) (string, error) {
			runs++
			return chat(ctx, c)
		})
		e := facts(t, err, aiguard.ErrUnavailable)
		require.Equal(t, 3, srv.Count())
		require.Equal(t, 3, e.Attempts)
		require.Equal(t, 500, e.StatusCode)
		require.Equal(t, "chat.completions", e.Op)
		require.Positive(t, e.Backoff)

		srv.Reset()
		runs = 0
		_, err = aiguard.Do(t.Context(), c.Guard(), func(context.Context) (string, error) {
			runs++
			return "", &aiguard.Error{Kind: aiguard.ErrUnavailable, Attempts: 3}
		})
		require.Equal(t, 1, runs, "attempts used inside count")
		require.Equal(t, 3, facts(t, err, aiguard.ErrUnavailable).Attempts)
	})
}

func TestStreamThatBrokeInsideDoIsTriedAgainAsAWhole(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Cut(400, aiguardtest.TextN("Hello, hello, hello!", 5)))
		srv.SetDefault(aiguardtest.TextN("Hello, hello, hello!", 5))
		text, err := aiguard.Do(t.Context(), c.Guard(), func(ctx context.Context) (string, error) { return streamChat(ctx, c) })
		require.NoError(t, err)
		require.Equal(t, "Hello, hello, hello!", text)
		require.Equal(t, 2, srv.Count())
	})
}

func TestSlotIsFreeWhileBackingOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, Retry: aiguard.Retry{BaseDelay: 8 * time.Second}})
		var wg sync.WaitGroup
		tries := 0
		wg.Go(func() {
			require.NoError(t, do(t.Context(), g, func(context.Context) error {
				if tries++; tries == 1 {
					return &openai.APIError{HTTPStatusCode: 503}
				}
				return nil
			}))
		})
		synctest.Wait()
		require.Zero(t, g.Stats().InFlight)
		start := time.Now()
		require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
		took(t, start, 0)
		wg.Wait()
		require.Equal(t, 2, tries)
	})
}

func TestMiddlewareWrapsTheWholeCall(t *testing.T) {
	var order []string
	mw := func(name string) aiguard.Middleware {
		return func(ctx context.Context, call aiguard.Call, next func(context.Context) error) error {
			order = append(order, name+" "+call.Op)
			defer func() { order = append(order, "/"+name) }()
			return next(ctx)
		}
	}
	veto := errors.New("vetoed")
	vetoing := false
	g := newGuard(t, aiguard.Config{
		Middleware: []aiguard.Middleware{mw("a"), mw("b"), func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
			if vetoing {
				return veto
			}
			return next(ctx)
		}},
		Retry: aiguard.Retry{BaseDelay: time.Microsecond},
	})
	tries := 0
	require.NoError(t, do(t.Context(), g.With(aiguard.Call{Op: "op"}), func(context.Context) error {
		if tries++; tries == 1 {
			return &openai.APIError{HTTPStatusCode: 503}
		}
		return nil
	}))
	require.Equal(t, []string{"a op", "b op", "/b", "/a"}, order, "outside the retries")
	require.Equal(t, 2, tries)
	vetoing = true
	require.Equal(t, veto, do(t.Context(), g, func(context.Context) error { panic("not reached") }))
}
