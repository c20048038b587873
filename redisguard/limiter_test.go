package redisguard_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/redisguard"
)

var _ aiguard.Limiter = (*redisguard.Limiter)(nil)

func TestWeightIsSharedByTheProcessesOfAKey(t *testing.T) {
	onEach(t, func(t *testing.T, s *server) {
		c := s.client(t)
		one, two := newLimiter(t, c, redisguard.Config{Limit: 3}), newLimiter(t, s.client(t), redisguard.Config{Limit: 3})
		other := newLimiter(t, c, redisguard.Config{Key: "other", Limit: 3})
		subscribed(t, c, "test", 2)

		releaseTwo, err := one.Acquire(t.Context(), aiguard.Call{Weight: 2})
		require.NoError(t, err)
		releaseOne, err := two.Acquire(t.Context(), aiguard.Call{Weight: 1})
		require.NoError(t, err)
		releaseOther, err := other.Acquire(t.Context(), aiguard.Call{Weight: 3})
		require.NoError(t, err)
		releaseOther()

		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = two.Acquire(ctx, aiguard.Call{Weight: 1})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		eventually(t, func() bool { return queued(t.Context(), c, "test") == 0 }, "the call has left the queue")

		got := make(chan func())
		go func() {
			release, err := two.Acquire(t.Context(), aiguard.Call{Weight: 2})
			assert.NoError(t, err)
			got <- release
		}()
		eventually(t, func() bool { return queued(t.Context(), c, "test") == 1 }, "the call waits")
		messages := two.Stats().Messages
		releaseTwo()
		releaseTwo()
		release := <-got
		eventually(t, func() bool { return two.Stats().Messages > messages }, "a message has told the call")
		release()
		releaseOne()
		eventually(t, func() bool { return inFlight(t.Context(), c, "test") == 0 }, "all slots are back")

		_, err = one.Acquire(t.Context(), aiguard.Call{Weight: 4})
		e := aiguard.Explain(err)
		require.NotNil(t, e)
		require.Equal(t, aiguard.PhaseWeight, e.Phase)
	})
}

func TestPriorityOutOfRangeCountsAsTheNearest(t *testing.T) {
	s := startRedis(t)
	c := s.client(t)
	l := newLimiter(t, c, redisguard.Config{Limit: 1})
	acquire(t, l)()
	free := acquire(t, l)
	q := &queue{t: t, c: c}
	q.add(l, "least", aiguard.Call{Priority: -128})
	q.add(l, "normal", aiguard.Call{})
	q.add(l, "most", aiguard.Call{Priority: 127})
	free()
	require.Equal(t, []string{"most", "normal", "least"}, q.all())
	require.True(t, l.Stats().Shared)
}
