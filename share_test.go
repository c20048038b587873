package aiguard_test

import (
	"context"
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// twoProcesses runs f with two guards of the same provider.
func twoProcesses(t *testing.T, f func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server)) {
	t.Helper()
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, one *aiguard.Client, srv *aiguardtest.Server) {
		two := newClient(t, srv, aiguard.Config{})
		one.Guard().RouteChanges()
		two.Guard().RouteChanges()
		f(t, one, two, srv)
	})
}

// tell applies the changes of one guard to another, and returns them.
func tell(from, to *aiguard.Client) []aiguard.RouteState {
	changes, _ := from.Guard().RouteChanges()
	to.Guard().LearnRoutes(changes...)
	return changes
}

func TestPauseOfOneProcessPausesTheRouteOfAnother(t *testing.T) {
	twoProcesses(t, func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(byModel(map[string]aiguardtest.Reply{"a": retryAfter(300)}))
		facts(t, askModel(t.Context(), one, "a"), aiguard.ErrRateLimited)
		changes := tell(one, two)
		require.Len(t, changes, 1)
		require.Equal(t, 5*time.Minute, changes[0].Pause)
		require.Equal(t, time.Minute, changes[0].Probe)
		require.Equal(t, "a", changes[0].Model)

		sent := srv.Count()
		refused := facts(t, askModel(t.Context(), two, "a"), aiguard.ErrRateLimited)
		assert.Equal(t, 5*time.Minute, refused.RetryAfter)
		assert.Equal(t, sent, srv.Count(), "no request is sent into the pause")
		require.NoError(t, askModel(t.Context(), two, "b"), "another route is open")

		time.Sleep(time.Minute) // a probe ends the pause, and both know
		srv.Handle(byModel(nil))
		require.NoError(t, askModel(t.Context(), two, "a"))
		tell(two, one)
		require.NoError(t, askModel(t.Context(), one, "a"))
	})
}

func TestOutageOfOneProcessIsAnOutageOfAnotherAndSoIsItsEnd(t *testing.T) {
	twoProcesses(t, func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(500, "server_error"))
		for range 5 {
			_ = askModel(t.Context(), one, "a")
		}
		require.False(t, routeOf(t, one.Guard(), "a").DownSince.IsZero())
		changes := tell(one, two)
		require.Len(t, changes, 1)
		require.True(t, changes[0].Down)
		sent := srv.Count()
		e := facts(t, askModel(aiguard.WithCall(t.Context(), aiguard.Call{Attempts: 1}), two, "a"), aiguard.ErrUnavailable)
		require.Equal(t, aiguard.PhaseOutage, e.Phase)
		require.Equal(t, sent, srv.Count())

		srv.SetDefault(aiguardtest.Text("Hello!"))
		time.Sleep(time.Second)
		require.NoError(t, askModel(t.Context(), two, "a"))
		tell(two, one)
		require.Zero(t, routeOf(t, one.Guard(), "a").DownSince)
		require.Empty(t, tell(one, two), "what was learned is not passed on again")
	})
}

func TestProbesOfProcessesThatShareAnOutageTakeTurns(t *testing.T) {
	twoProcesses(t, func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(500, "server_error"))
		const last = time.Minute
		start := time.Now()
		sent := 0
		for time.Since(start) < last {
			for _, c := range []*aiguard.Client{one, two} {
				_ = askModel(aiguard.WithCall(t.Context(), aiguard.Call{Attempts: 1}), c, "a")
				tell(one, two)
				tell(two, one)
				time.Sleep(10 * time.Millisecond)
			}
			if time.Since(start) < time.Second {
				sent = srv.Count()
			}
		}
		perMinute := srv.Count() - sent
		require.LessOrEqual(t, perMinute, 130, "one probe each 500 ms, as for one process")
		require.GreaterOrEqual(t, perMinute, 50)
	})
}

func TestProcessesShareTheRetryBudget(t *testing.T) {
	twoProcesses(t, func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server) {
		left := func(c *aiguard.Client) float64 { return routeOf(t, c.Guard(), "a").RetryTokens }
		srv.Handle(byModel(nil))
		require.NoError(t, askModel(t.Context(), one, "a"))
		require.NoError(t, askModel(t.Context(), two, "a"))
		require.Empty(t, tell(one, two), "a full budget is no news")
		srv.Enqueue(aiguardtest.Error(503, "busy"))
		require.NoError(t, askModel(t.Context(), one, "a"))
		changes := tell(one, two)
		require.Len(t, changes, 1)
		assert.InDelta(t, 1, changes[0].RetrySpent, 0.2)
		assert.InDelta(t, left(one), left(two), 0.01)
		assert.Less(t, left(two), 9.5)

		// What this guard has spent and not yet shared is not forgotten.
		srv.Enqueue(aiguardtest.Error(503, "busy"))
		require.NoError(t, askModel(t.Context(), two, "a"))
		before := left(two)
		changes[0].RetryTokens = 5
		two.Guard().LearnRoutes(changes...)
		assert.InDelta(t, 4, left(two), 0.3)
		assert.Less(t, left(two), before)
	})
}

func TestUnsharedPauseIsNotEndedByOthers(t *testing.T) {
	twoProcesses(t, func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(retryAfter(300))
		facts(t, askModel(t.Context(), one, "a"), aiguard.ErrRateLimited)
		host := routeOf(t, one.Guard(), "a").Host
		open := aiguard.RouteState{Host: host, Model: "a", RetryTokens: -1, Reopened: true}
		one.Guard().LearnRoutes(open)
		require.False(t, routeOf(t, one.Guard(), "a").PausedUntil.IsZero())
		tell(one, two)
		one.Guard().LearnRoutes(aiguard.RouteState{Host: host, Model: "a", RetryTokens: 3})
		require.False(t, routeOf(t, one.Guard(), "a").PausedUntil.IsZero(), "the sender does not know of the pause")
		one.Guard().LearnRoutes(open)
		require.True(t, routeOf(t, one.Guard(), "a").PausedUntil.IsZero())
	})
}

// A message about an outage may arrive after its end.
func TestOldOutageDoesNotBeginAgain(t *testing.T) {
	twoProcesses(t, func(t *testing.T, one, two *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(500, "server_error"))
		for range 5 {
			_ = askModel(t.Context(), one, "a")
		}
		old := tell(one, two)
		srv.SetDefault(aiguardtest.Text("Hello!"))
		time.Sleep(time.Second)
		require.NoError(t, askModel(t.Context(), one, "a"))
		one.Guard().LearnRoutes(old...)
		require.True(t, routeOf(t, one.Guard(), "a").DownSince.IsZero())
		require.True(t, tell(one, two)[0].Reopened)
		require.True(t, routeOf(t, two.Guard(), "a").DownSince.IsZero())
	})
}

func TestManyChangesOfARouteAreOneState(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		_, more := c.Guard().RouteChanges()
		srv.SetDefault(aiguardtest.Error(503, "busy"))
		for range 20 {
			_ = askModel(t.Context(), c, "a")
		}
		<-more
		changes, _ := c.Guard().RouteChanges()
		require.Len(t, changes, 1)
		changes, _ = c.Guard().RouteChanges()
		require.Empty(t, changes)
	})
}

// States come from outside the process.
func FuzzLearnRoutes(f *testing.F) {
	f.Add("h", "n", "m", int64(time.Hour), true, int64(time.Second), 3.0)
	f.Add("", "", "", int64(math.MaxInt64), false, int64(math.MinInt64), math.NaN())
	f.Add("h", "", "m", int64(math.MinInt64), true, int64(math.MaxInt64), math.Inf(1))
	f.Fuzz(func(t *testing.T, host, name, model string, pause int64, down bool, probe int64, tokens float64) {
		g := newGuard(t, aiguard.Config{})
		g.LearnRoutes(aiguard.RouteState{Host: host, Name: name, Model: model, Pause: time.Duration(pause), Down: down,
			Probe: time.Duration(probe), RetryTokens: tokens, RetrySpent: tokens})
		for _, r := range g.Routes() {
			require.False(t, math.IsNaN(r.RetryTokens) || math.IsInf(r.RetryTokens, 0))
			require.LessOrEqual(t, time.Until(r.PausedUntil), 24*time.Hour)
		}
	})
}

func TestChangesThatNobodyReadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
		g.RouteChanges()
		for n := range 5000 {
			ctx := aiguard.WithCall(t.Context(), aiguard.Call{Model: strconv.Itoa(n)})
			facts(t, do(ctx, g, func(context.Context) error { return retryAfterError }), aiguard.ErrRateLimited)
		}
		changes, _ := g.RouteChanges()
		require.LessOrEqual(t, len(changes), 2000)
		require.Equal(t, "4999", changes[len(changes)-1].Model)
	})
}

var retryAfterError = &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Hour}
