package aiguard

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newLine makes slots with a limit that adapts between least and most, or, if they are the same, a fixed one.
func newLine(least, most int64) *slots {
	cfg := Config{MaxConcurrent: most, MinConcurrent: least, MaxQueue: Off}
	if least == most {
		cfg.MinConcurrent = 0
	}
	return newSlots(&cfg, newClock())
}

func TestSlotGrantedTogetherWithTheCallersEndIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLine(1, 1)
		require.True(t, s.try(1))
		ctx, cancel := context.WithCancel(t.Context())
		var err error
		go func() { err = s.acquire(ctx, 1, 0) }()
		synctest.Wait()
		s.mu.Lock() // both have happened before the one in line can look
		cancel()
		s.inFlight--
		s.next()
		s.mu.Unlock()
		synctest.Wait()
		require.ErrorIs(t, err, context.Canceled)
		require.True(t, s.try(1))
	})
}

func TestThoseInLineGiveUpInTheOrderTheyCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLine(2, 2)
		require.True(t, s.try(1))
		gaveUp := make(chan int64, 4)
		wait := func(weight int64, until instant) {
			go func() {
				if err := s.acquire(t.Context(), weight, until); assert.ErrorIs(t, err, ErrOverloaded) {
					gaveUp <- weight
				}
			}()
			synctest.Wait()
		}
		start := time.Now()
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		go func() { assert.ErrorIs(t, s.acquire(ctx, 2, 0), context.Canceled) }() // whom the timer passes over
		synctest.Wait()
		for weight := range int64(3) {
			wait(2+weight, s.now().add(time.Duration(1+weight)*time.Second))
		}
		for weight := range int64(3) {
			require.EqualValues(t, 2+weight, <-gaveUp)
			require.Equal(t, time.Duration(1+weight)*time.Second, time.Since(start))
		}
		require.False(t, s.try(1), "one is still in line")
		leave()
		synctest.Wait()
		require.True(t, s.try(1))
		require.Nil(t, s.timer)
	})
}

func TestOneWhoGivesUpLetsThoseBehindIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLine(2, 2)
		require.True(t, s.try(1))
		var large, small error
		go func() { large = s.acquire(t.Context(), 2, s.now().add(time.Second)) }()
		synctest.Wait()
		go func() { small = s.acquire(t.Context(), 1, s.now().add(time.Minute)) }()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.ErrorIs(t, large, ErrOverloaded)
		require.NoError(t, small)
		require.EqualValues(t, 2, s.taken())
		require.Nil(t, s.timer, "nobody waits")
	})
}

func TestLineThatIsClosedLetsNobodyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newLine(1, 1)
		require.True(t, s.try(1))
		var before error
		go func() { before = s.acquire(t.Context(), 1, s.now().add(time.Second)) }()
		synctest.Wait()
		s.close()
		synctest.Wait()
		require.ErrorIs(t, before, ErrClosed)
		require.ErrorIs(t, s.acquire(t.Context(), 1, 0), ErrClosed)
		require.Nil(t, s.timer)
	})
}

func TestOutageRestoresTheLimitFromTheFirstDropSinceTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newLine(1, 10).adaptive
		drop := func() {
			time.Sleep(time.Millisecond)
			a.dropped(a.slots.now())
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
