package aiguard_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// A Do that waits for a pause which a call inside it has met is one of those who wait for the route.
func TestDosThatWaitForAPauseAreBoundedByMaxQueue(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 5, MaxQueue: 2}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(retryAfter(10))
		require.ErrorIs(t, askModel(t.Context(), c.With(aiguard.Call{Attempts: 1}), "a"), aiguard.ErrRateLimited)
		var refused, answered atomic.Int32
		var calls sync.WaitGroup
		start := time.Now()
		for range 5 {
			calls.Go(func() {
				err := do(t.Context(), c.Guard(), func(ctx context.Context) error { return askModel(ctx, c, "a") })
				if err == nil {
					answered.Add(1)
					return
				}
				assert.ErrorIs(t, err, aiguard.ErrRateLimited)
				assert.Zero(t, time.Since(start), "at once")
				refused.Add(1)
			})
		}
		synctest.Wait()
		require.EqualValues(t, 3, refused.Load())
		require.EqualValues(t, 2, c.Guard().Stats().Waiting)
		require.Zero(t, c.Guard().Stats().InFlight)
		calls.Wait()
		require.EqualValues(t, 2, answered.Load())
		require.Zero(t, c.Guard().Stats().Waiting)
	})
}

func TestDoWithAnAlternativeDoesNotWaitForTheRouteOfACallInside(t *testing.T) {
	for name, reply := range map[string]aiguardtest.Reply{"down": aiguardtest.Error(503, ""), "paused": retryAfter(2)} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(reply)
				for range 5 {
					require.Error(t, askModel(t.Context(), c.With(aiguard.Call{Attempts: 1}), "a"))
				}
				start, sent := time.Now(), srv.Count()
				text, err := aiguard.Fallback(t.Context(),
					func(ctx context.Context) (string, error) {
						return aiguard.Do(ctx, c.Guard(), func(ctx context.Context) (string, error) { return "a", askModel(ctx, c, "a") })
					},
					func(context.Context) (string, error) { return "b", nil })
				require.NoError(t, err)
				require.Equal(t, "b", text)
				require.Zero(t, time.Since(start))
				require.Equal(t, sent, srv.Count())
			})
		})
	}
}

func TestWaitersOfARouteThatIsPausedForLongAreToldAtOnce(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(time.Second, retryAfter(300)))
		start := time.Now()
		var calls sync.WaitGroup
		for range 3 {
			calls.Go(func() {
				e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
				assert.Equal(t, time.Second, time.Since(start))
				assert.Equal(t, 300*time.Second, e.RetryAfter)
			})
		}
		calls.Wait()
		require.Equal(t, 1, srv.Count())
	})
}

func TestSettingsOfTheContextGoBeforeWithInDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{}).With(aiguard.Call{Timeout: 5 * time.Second, Op: "work"})
		ctx := aiguard.WithCall(t.Context(), aiguard.Call{Timeout: 2 * time.Second})
		e := facts(t, do(ctx, g, func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }), aiguard.ErrTimeout)
		require.Equal(t, 2*time.Second, e.Limit)
		require.Equal(t, "work", e.Op)
	})
}
