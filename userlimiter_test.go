package aiguard_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestCustomLimiterReplacesOurs(t *testing.T) {
	lim := &countingLimiter{}
	g := newGuard(t, aiguard.Config{Limiter: lim})
	require.NoError(t, do(t.Context(), g.With(aiguard.Call{Weight: 3}), func(context.Context) error {
		require.EqualValues(t, 3, lim.held.Load())
		require.EqualValues(t, 3, g.Stats().InFlight)
		return nil
	}))
	require.Zero(t, lim.held.Load())

	lim.err = errors.New("redis is away")
	e := facts(t, do(t.Context(), g, func(context.Context) error { return nil }), aiguard.ErrOverloaded)
	require.ErrorIs(t, e, lim.err)
	lim.err = &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Minute}
	e = facts(t, do(t.Context(), g, func(context.Context) error { return nil }), aiguard.ErrRateLimited)
	require.Equal(t, time.Minute, e.RetryAfter)
}

type countingLimiter struct {
	held atomic.Int64
	err  error
}

func (l *countingLimiter) Acquire(_ context.Context, call aiguard.Call) (func(), error) {
	if l.err != nil {
		return nil, l.err
	}
	l.held.Add(call.Weight)
	return func() { l.held.Add(-call.Weight) }, nil
}

func TestWaitForCustomLimiterIsCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{Limiter: slowLimiter(2 * time.Second)}).With(aiguard.Call{Op: "summarize", Attempts: 1})
		for range 3 {
			require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
		}
		st := g.Stats()
		require.EqualValues(t, 3, st.WaitCount)
		require.Equal(t, 6*time.Second, st.WaitTime)

		pause := &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: 5 * time.Second}
		facts(t, do(t.Context(), g, func(context.Context) error { return pause }), aiguard.ErrRateLimited)
		start := time.Now()
		require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }), "waits for the route, then for the limiter")
		st = g.Stats()
		require.EqualValues(t, 5, st.WaitCount)
		require.Equal(t, 8*time.Second+time.Since(start), st.WaitTime)
	})
}

// slowLimiter is a Limiter that admits each call after a while.
type slowLimiter time.Duration

func (l slowLimiter) Acquire(ctx context.Context, _ aiguard.Call) (func(), error) {
	return func() {}, sleep(ctx, time.Duration(l))
}

// panicking is a Limiter that breaks in one of its steps.
type panicking struct{ acquire, release bool }

func (p panicking) Acquire(context.Context, aiguard.Call) (func(), error) {
	if p.acquire {
		panic("acquire")
	}
	return func() {
		if p.release {
			panic("release")
		}
	}, nil
}

func TestLimiterThatPanicsLosesNothing(t *testing.T) {
	for _, l := range []panicking{{acquire: true}, {release: true}} {
		g := newGuard(t, aiguard.Config{Limiter: l})
		for range 3 {
			require.NotNil(t, panicOf(func() { _ = do(t.Context(), g, func(context.Context) error { return nil }) }))
		}
		require.Zero(t, g.Stats().InFlight)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.NoError(t, g.Shutdown(ctx))
	}
}

// wholeCall remembers what a Limiter is asked for.
type wholeCall struct{ calls []aiguard.Call }

func (w *wholeCall) Acquire(_ context.Context, c aiguard.Call) (func(), error) {
	w.calls = append(w.calls, c)
	return func() {}, nil
}

func TestLimiterGetsTheWholeCallOnceItsRouteIsOpen(t *testing.T) {
	l := &wholeCall{}
	inVirtualTime(t, aiguard.Config{Limiter: l, Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		call := aiguard.Call{Tenant: "t", Priority: aiguard.Critical, Weight: 7}
		require.NoError(t, askModel(aiguard.WithCall(t.Context(), call), c, "a"))
		call.Op, call.Model = "chat.completions", "a"
		require.Equal(t, []aiguard.Call{call}, l.calls)
		srv.Enqueue(retryAfter(10))
		require.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
		start := time.Now()
		require.NoError(t, askModel(t.Context(), c, "a"))
		took(t, start, 10*time.Second)
		require.Len(t, l.calls, 3)
	})
}

// full is a Limiter without a free slot.
type full struct{}

func (full) Acquire(ctx context.Context, _ aiguard.Call) (func(), error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestWaitInALimiterOfTheUserIsBounded(t *testing.T) {
	const other = 7 * time.Second
	for name, tc := range map[string]struct {
		cfg   aiguard.Config
		after time.Duration
		kind  aiguard.Kind
		phase string
	}{
		"by QueueTimeout":           {aiguard.Config{QueueTimeout: other}, other, aiguard.ErrOverloaded, aiguard.PhaseQueue},
		"by QueueTimeout's default": {aiguard.Config{}, aiguard.DefaultQueueTimeout, aiguard.ErrOverloaded, aiguard.PhaseQueue},
		"by TotalTimeout":           {aiguard.Config{TotalTimeout: other, CallTimeout: time.Second}, other, aiguard.ErrTimeout, aiguard.PhaseTotal},
		"by TotalTimeout alone": {aiguard.Config{QueueTimeout: aiguard.Off, TotalTimeout: other, CallTimeout: time.Second},
			other, aiguard.ErrTimeout, aiguard.PhaseTotal},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.cfg.Limiter = full{}
				g, start := newGuard(t, tc.cfg), time.Now()
				e := facts(t, do(t.Context(), g, func(context.Context) error { panic("not reached") }), tc.kind)
				took(t, start, tc.after)
				require.Equal(t, tc.phase, e.Phase)
				require.Equal(t, tc.after, e.Limit)
				require.Zero(t, g.Stats().Waiting)
			})
		})
	}
}

func TestWaitInALimiterOfTheUserEndsWithItsCallerAndWithTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{Limiter: full{}, MaxQueue: 1})
		ctx, leave := context.WithCancelCause(t.Context())
		var first, second error
		var calls sync.WaitGroup
		calls.Go(func() { first = do(ctx, g, func(context.Context) error { panic("not reached") }) })
		synctest.Wait()
		facts(t, do(t.Context(), g, func(context.Context) error { panic("not reached") }), aiguard.ErrOverloaded)
		leave(errors.New("gone home"))
		calls.Wait()
		require.ErrorIs(t, first, context.Canceled)
		require.Empty(t, aiguard.KindOf(first))

		calls.Go(func() { second = do(t.Context(), g, func(context.Context) error { panic("not reached") }) })
		synctest.Wait()
		require.NoError(t, g.Close())
		calls.Wait()
		facts(t, second, aiguard.ErrClosed)
	})
}

// What the Limiter refuses is not sent: it earns no retries, uses up no rate limit and says nothing of the provider.
func TestCallThatTheLimiterRefusesLeavesItsRouteAsItWas(t *testing.T) {
	l := &countingLimiter{}
	cfg := aiguard.Config{Limiter: l, RequestsPerMinute: 60, Retry: aiguard.Retry{MaxAttempts: 3, BaseDelay: time.Second}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		failing := aiguardtest.After(time.Second, aiguardtest.Error(500, ""))
		srv.SetDefault(failing)
		require.ErrorIs(t, askModel(as(t.Context(), "x"), c, "a"), aiguard.ErrUnavailable)
		before := routeOf(t, c.Guard(), "a")
		require.InDelta(t, 8, before.RetryTokens, 0.5, "two retries")
		l.err = errors.New("redis is away")
		for range 20 {
			facts(t, askModel(as(t.Context(), "x"), c, "a"), aiguard.ErrOverloaded)
		}
		after := routeOf(t, c.Guard(), "a")
		require.Equal(t, before, after)
		tenant := c.Guard().Stats().Tenants[0]
		require.EqualValues(t, 1, tenant.Calls, "a call with three attempts")
		require.EqualValues(t, 20, tenant.Refused)
		require.EqualValues(t, 20, c.Guard().Stats().Normal.Refused)

		l.err = nil
		srv.SetDefault(aiguardtest.Text("Hello!"))
		start := time.Now()
		require.NoError(t, askModel(as(t.Context(), "x"), c, "a"))
		took(t, start, 0)
	})
}
