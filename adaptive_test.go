package aiguard_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// adapting is a limit from 1 to 10, and one attempt a call so that each failure is one drop.
var adapting = aiguard.Config{MaxConcurrent: 10, Retry: aiguard.Retry{MaxAttempts: 1}}

// named is a guard whose calls have a route: nothing is known of a Do without a name.
func named(g *aiguard.Guard) *aiguard.Guard { return g.With(aiguard.Call{Op: "work"}) }

// limit is that of the only route.
func limit(t *testing.T, g *aiguard.Guard) int64 {
	t.Helper()
	routes := g.Routes()
	require.Len(t, routes, 1)
	return routes[0].Limit
}

// allAtOnce runs n calls of fn at once and returns when all are over.
func allAtOnce(t *testing.T, g *aiguard.Guard, n int, fn func(context.Context) error) {
	t.Helper()
	var calls sync.WaitGroup
	for range n {
		calls.Go(func() { _ = do(t.Context(), g, fn) })
	}
	calls.Wait()
}

// refuse is a drop, but no outage: a provider was there.
func refuse(context.Context) error {
	return &aiguard.Error{Kind: aiguard.ErrUnavailable, StatusCode: 408}
}

func answerInASecond(context.Context) error {
	time.Sleep(time.Second)
	return nil
}

func TestFixedLimitStaysWhateverHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, aiguard.Config{MinConcurrent: 5, Retry: aiguard.Retry{MaxAttempts: 1}}))
		allAtOnce(t, g, 50, refuse)
		require.EqualValues(t, 5, limit(t, g))
	})
}

func TestDropLowersTheLimitOnceARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, adapting))
		allAtOnce(t, g, 10, func(ctx context.Context) error {
			time.Sleep(time.Second)
			return refuse(ctx)
		})
		require.EqualValues(t, 7, limit(t, g), "ten drops of one round are one")
		time.Sleep(time.Second)
		_ = do(t.Context(), g, refuse)
		require.EqualValues(t, 4, limit(t, g), "4.9: the next round's")
	})
}

func TestAnswersRaiseTheLimitByOneARoundWhileItIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, adapting))
		_ = do(t.Context(), g, refuse) // 7
		for range 100 {
			_ = do(t.Context(), g, answerInASecond)
		}
		require.EqualValues(t, 7, limit(t, g), "one at a time proves nothing")
		var limits []int64
		var watch sync.WaitGroup
		watch.Go(func() {
			for range 5 {
				time.Sleep(time.Second + time.Millisecond)
				limits = append(limits, limit(t, g))
			}
		})
		allAtOnce(t, g, 100, answerInASecond)
		watch.Wait()
		require.Equal(t, []int64{7, 8, 9, 10, 10}, limits) // 7.96 after seven answers, and at the most ten
	})
}

func TestAdaptiveLimitHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, adapting))
		_ = do(t.Context(), g, refuse) // 7
		var mu sync.Mutex
		inFlight, most := 0, 0
		allAtOnce(t, g, 30, func(ctx context.Context) error {
			mu.Lock()
			inFlight++
			most = max(most, inFlight)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			inFlight--
			mu.Unlock()
			return errors.New("of no kind: neither an answer nor a drop")
		})
		require.Equal(t, 7, most)
		require.EqualValues(t, 7, limit(t, g))
	})
}

func TestOnlyWhatMayBeCongestionLowersTheLimit(t *testing.T) {
	for name, tc := range map[string]struct {
		reply aiguardtest.Reply
		want  int64
	}{
		"429":            {aiguardtest.Error(429, "rate_limit_exceeded"), 3}, // of 7, with half of which the route reopens
		"503":            {aiguardtest.Error(503, ""), 7},
		"529":            {aiguardtest.Error(529, "overloaded_error"), 7},
		"504":            {aiguardtest.Raw(504, "text/html", "<h1>Gateway Timeout</h1>"), 7},
		"408":            {aiguardtest.Error(408, ""), 7},
		"reset":          {aiguardtest.ResetConn(), 7},
		"timeout":        {aiguardtest.Hang(), 7},
		"stream timeout": {aiguardtest.HeadersThen(time.Hour, aiguardtest.Text("")), 7},
		"500":            {aiguardtest.Error(500, ""), 10},
		"quota":          {aiguardtest.Error(429, "insufficient_quota"), 10},
		"400":            {aiguardtest.Error(400, ""), 10},
		"401":            {aiguardtest.Error(401, "invalid_api_key"), 10},
		"truncated":      {aiguardtest.Cut(20, aiguardtest.Text("Hello!")), 10},
		"slow answer":    {aiguardtest.After(29*time.Second, aiguardtest.Text("Hello!")), 10},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, adapting, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				if name == "stream timeout" {
					_, _ = streamChat(t.Context(), c)
				} else {
					_, _ = chat(t.Context(), c)
				}
				require.EqualValues(t, tc.want, limit(t, c.Guard()))
			})
		})
	}
	inVirtualTime(t, adapting, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := chat(ctx, c)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.EqualValues(t, 10, limit(t, c.Guard()), "the caller's own deadline")
	})
}

func TestWhatSaysNothingOfLoadLowersNoLimit(t *testing.T) {
	cfg := adapting
	cfg.TotalTimeout = 5 * time.Second
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		_, err := chat(t.Context(), c)
		require.Equal(t, "total", facts(t, err, aiguard.ErrTimeout).Phase)
		require.EqualValues(t, 10, limit(t, c.Guard()), "the time that all attempts have together")
	})
	inVirtualTime(t, adapting, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Text("Hello!"), aiguardtest.Drop())
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		_, err = chat(t.Context(), c)
		require.ErrorIs(t, err, aiguard.ErrUnavailable)
		require.EqualValues(t, 10, limit(t, c.Guard()), "a connection that had been idle for too long")
	})
	inVirtualTime(t, adapting, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "5"))
		_, err := chat(t.Context(), c)
		require.ErrorIs(t, err, aiguard.ErrRateLimited)
		time.Sleep(time.Second)
		before := limit(t, c.Guard())
		err = do(t.Context(), c.Guard(), func(ctx context.Context) error {
			_, err := chat(ctx, c)
			return err
		})
		require.Equal(t, "pause", facts(t, err, aiguard.ErrRateLimited).Phase)
		require.Equal(t, before, limit(t, c.Guard()), "a call that met the pause was not sent")
	})
}

// The call inside tells its own route; the Do, whose work it was, has none to tell.
func TestCallInsideADoIsOneDrop(t *testing.T) {
	inVirtualTime(t, adapting, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(503, ""))
		err := do(t.Context(), named(c.Guard()), func(ctx context.Context) error {
			_, err := chat(ctx, c)
			return err
		})
		require.ErrorIs(t, err, aiguard.ErrUnavailable)
		limits := map[string]int64{}
		for _, r := range c.Guard().Routes() {
			limits[r.Name] = r.Limit
		}
		require.Equal(t, map[string]int64{"gpt-4o-mini": 7, "work": 10}, limits)
	})
}

func TestWeightAboveTheAdaptiveLimitIsAdmittedAloneAndInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, adapting))
		for range 4 { // 7, 4.9, 3.43, 2.4
			_ = do(t.Context(), g, refuse)
			time.Sleep(time.Millisecond)
		}
		require.EqualValues(t, 2, limit(t, g))
		var mu sync.Mutex
		var order []int64
		var calls sync.WaitGroup
		for _, weight := range []int64{1, 10, 1, 1, 9} {
			calls.Go(func() {
				assert.NoError(t, do(t.Context(), g.With(aiguard.Call{Weight: weight}), func(context.Context) error {
					mu.Lock()
					order = append(order, weight)
					mu.Unlock()
					if weight > 2 {
						assert.EqualValues(t, weight, g.Stats().InFlight, "alone")
					}
					time.Sleep(time.Second)
					return nil
				}))
			})
			synctest.Wait() // in this order
		}
		time.Sleep(2*time.Second + time.Millisecond) // 1 and 10 are over
		require.LessOrEqual(t, limit(t, g), int64(4), "a large answer raises it by one, too")
		calls.Wait()
		require.Equal(t, []int64{1, 10, 1, 1, 9}, order, "small ones don't overtake")

		err := do(t.Context(), g.With(aiguard.Call{Weight: 11}), answerInASecond)
		require.EqualValues(t, 11, facts(t, err, aiguard.ErrOverloaded).Size, "never fits")
	})
}

func TestWaiterOfTheAdaptiveLimitThatLeavesLetsTheNextIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, adapting))
		release := make(chan struct{})
		var calls sync.WaitGroup
		calls.Go(func() {
			_ = do(t.Context(), g.With(aiguard.Call{Weight: 5}), func(context.Context) error { <-release; return nil })
		})
		synctest.Wait()
		large, leave := context.WithCancel(t.Context())
		calls.Go(func() {
			assert.ErrorIs(t, do(large, g.With(aiguard.Call{Weight: 10}), answerInASecond), context.Canceled)
		})
		synctest.Wait()
		calls.Go(func() { assert.NoError(t, do(t.Context(), g, answerInASecond)) })
		synctest.Wait()
		require.EqualValues(t, 2, g.Stats().Waiting)
		leave()
		synctest.Wait()
		require.EqualValues(t, 6, g.Stats().InFlight)
		require.Zero(t, g.Stats().Waiting)
		close(release)
		calls.Wait()
	})
}

// Callers of all weights that succeed, fail, panic and leave at random, through outages: newGuard's cleanup finds every
// slot back, and whoever comes last is served.
func TestAdaptiveLimitLosesNoSlot(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			cfg := adapting
			cfg.MaxQueue = aiguard.Off
			g := named(newGuard(t, cfg))
			rng := rand.New(rand.NewPCG(seed, 0))
			var calls sync.WaitGroup
			for range 300 {
				weight, action := 1+rng.Int64N(10), rng.IntN(5)
				takes, stays := time.Duration(rng.Int64N(int64(time.Second))), time.Duration(rng.Int64N(int64(20*time.Second)))
				time.Sleep(time.Duration(rng.Int64N(int64(100 * time.Millisecond))))
				calls.Go(func() {
					defer func() { _ = recover() }()
					ctx, cancel := context.WithTimeout(t.Context(), stays)
					defer cancel()
					_ = do(ctx, g.With(aiguard.Call{Weight: weight}), func(ctx context.Context) error {
						select {
						case <-time.After(takes):
						case <-ctx.Done():
							return ctx.Err()
						}
						switch action {
						case 0, 1:
							return syscall.ECONNREFUSED
						case 2:
							panic("lost")
						}
						return nil
					})
				})
			}
			calls.Wait()
			time.Sleep(10 * time.Second) // an outage may be on: then this is the probe
			require.NoError(t, do(t.Context(), g.With(aiguard.Call{Weight: 10}), answerInASecond))
		})
	}
}
