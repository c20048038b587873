package aiguard

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAdaptiveGrantThatComesTogetherWithTheEndIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdaptive(1, 1)
		require.True(t, a.TryAcquire(1))
		ctx, cancel := context.WithCancel(t.Context())
		var err error
		go func() { err = a.Acquire(ctx, 1) }()
		synctest.Wait()
		a.mu.Lock() // both have happened before the inLine can look
		cancel()
		a.inFlight--
		a.next()
		a.mu.Unlock()
		synctest.Wait()
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, a.TryAcquire(1))
	})
}

func TestOutageRestoresTheLimitFromTheFirstDropSinceTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAdaptive(1, 10)
		drop := func() {
			time.Sleep(time.Millisecond)
			a.dropped(time.Now())
		}
		drop()
		drop()
		a.answered(1) // not in use: it raises nothing
		require.InDelta(t, 4.9, a.limit, 1e-9)
		for !a.outage {
			drop()
		}
		require.EqualValues(t, 1, a.limit)
		a.answered(1)
		require.InDelta(t, 4.9, a.limit, 1e-9)
		time.Sleep(time.Second)
	})
}
