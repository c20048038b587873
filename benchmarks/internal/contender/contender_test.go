package contender_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

var errDown = errors.New("down")

// in runs f with each contender in virtual time.
func in(t *testing.T, waiting contender.Waiting, names []string, f func(*testing.T, contender.Run[int])) {
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				run, stop := contender.New[int](name, waiting)
				f(t, run)
				stop()
			})
		})
	}
}

var retrying = []string{contender.Failsafe, contender.FailsafeBreaker, contender.Resilience, contender.Breaker}

func TestValueComesThrough(t *testing.T) {
	in(t, contender.Bounded, contender.Wrapping, func(t *testing.T, run contender.Run[int]) {
		value, err := run(t.Context(), func(context.Context) (int, error) { return 42, nil })
		require.NoError(t, err)
		require.Equal(t, 42, value)
	})
}

func TestCallHasADeadline(t *testing.T) {
	in(t, contender.Bounded, slices.DeleteFunc(slices.Clone(contender.Wrapping), func(name string) bool { return name == contender.Resilience }),
		testDeadline)
	// goresilience leaks a goroutine at each timeout, and a bubble with such a goroutine never ends.
	in(t, contender.Bounded, []string{contender.Resilience}, func(t *testing.T, run contender.Run[int]) {
		_, err := run(t.Context(), func(ctx context.Context) (int, error) {
			deadline, _ := ctx.Deadline()
			assert.Equal(t, contender.Timeout, time.Until(deadline))
			return 0, nil
		})
		require.NoError(t, err)
	})
}

func testDeadline(t *testing.T, run contender.Run[int]) {
	start := time.Now()
	_, err := run(t.Context(), func(ctx context.Context) (int, error) {
		<-ctx.Done()
		return 0, context.Cause(ctx)
	})
	require.Error(t, err)
	took := time.Since(start)
	require.GreaterOrEqual(t, took, contender.Timeout)
	require.Less(t, took, (contender.Attempts+1)*contender.Timeout)
}

func TestFailureIsTriedThreeTimes(t *testing.T) {
	in(t, contender.Bounded, retrying, func(t *testing.T, run contender.Run[int]) {
		attempts := 0
		_, err := run(t.Context(), func(context.Context) (int, error) {
			attempts++
			return 0, errDown
		})
		require.Error(t, err)
		require.Equal(t, contender.Attempts, attempts)
	})
	in(t, contender.Bounded, []string{contender.Aiguard}, func(t *testing.T, run contender.Run[int]) {
		attempts := 0
		_, err := run(t.Context(), func(context.Context) (int, error) {
			attempts++
			return 0, aiguard.ErrUnavailable // an error that aiguard retries
		})
		require.ErrorIs(t, err, aiguard.ErrUnavailable)
		require.Equal(t, contender.Attempts, attempts)
	})
}

func TestConcurrencyStaysWithinTheSlotsAndAllAreServed(t *testing.T) {
	for _, waiting := range []contender.Waiting{contender.Bounded, contender.Endless} {
		in(t, waiting, contender.Limiting, func(t *testing.T, run contender.Run[int]) {
			const callers = 50
			var now, peak atomic.Int64
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					_, err := run(t.Context(), func(context.Context) (int, error) {
						n := now.Add(1)
						defer now.Add(-1)
						for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
						}
						time.Sleep(time.Second)
						return 0, nil
					})
					assert.NoError(t, err)
				})
			}
			start := time.Now()
			wg.Wait()
			require.EqualValues(t, contender.Slots, peak.Load())
			require.Equal(t, callers/contender.Slots*time.Second, time.Since(start))
		})
	}
}

func TestEndlessQueueHoldsMoreThanTheDefault(t *testing.T) {
	in(t, contender.Endless, contender.Limiting, func(t *testing.T, run contender.Run[int]) {
		var wg sync.WaitGroup
		for range contender.Slots + 3*contender.Queue {
			wg.Go(func() {
				_, err := run(t.Context(), func(context.Context) (int, error) {
					time.Sleep(time.Millisecond)
					return 0, nil
				})
				assert.NoError(t, err)
			})
		}
		wg.Wait()
	})
}

func TestFullIsRefusedAtOnce(t *testing.T) {
	refused := func(waiting int) func(*testing.T, contender.Run[int]) {
		return func(t *testing.T, run contender.Run[int]) {
			over := make(chan struct{})
			var wg sync.WaitGroup
			for range contender.Slots {
				wg.Go(func() {
					_, err := run(t.Context(), func(context.Context) (int, error) { <-over; return 0, nil })
					assert.NoError(t, err)
				})
			}
			synctest.Wait()
			for range waiting {
				wg.Go(func() {
					_, err := run(t.Context(), func(context.Context) (int, error) { return 0, nil })
					assert.NoError(t, err)
				})
			}
			synctest.Wait()
			start := time.Now()
			_, err := run(t.Context(), func(context.Context) (int, error) { t.Error("called"); return 0, nil })
			require.Error(t, err)
			require.LessOrEqual(t, time.Since(start), time.Nanosecond)
			close(over)
			wg.Wait()
		}
	}
	in(t, contender.Refused, contender.Refusing[1:], refused(0))
	in(t, contender.Refused, []string{contender.Aiguard}, refused(contender.Queue))
}

func TestBreakerOpensAfterFailures(t *testing.T) {
	in(t, contender.Bounded, []string{contender.FailsafeBreaker, contender.Breaker}, func(t *testing.T, run contender.Run[int]) {
		attempts := 0
		for range 20 {
			_, err := run(t.Context(), func(context.Context) (int, error) { attempts++; return 0, errDown })
			require.Error(t, err)
		}
		require.Equal(t, contender.BreakerFailures, attempts)
	})
}
