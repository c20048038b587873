package main

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ask sends one request of so much work.
func ask(ctx context.Context, p *provider, work time.Duration) (*http.Response, error) {
	ctx = context.WithValue(ctx, callKey{}, &call{work: work})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://provider.example/v1/chat/completions", strings.NewReader("{}"))
	if err != nil {
		return nil, err
	}
	return p.RoundTrip(req)
}

// inBubble runs test against a provider in virtual time.
func inBubble(t *testing.T, m model, test func(t *testing.T, p *provider)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newProvider(m)) })
}

// answerTimes asks for so much work n times at once and returns how long the answers took.
func answerTimes(t *testing.T, p *provider, n int, work time.Duration) []time.Duration {
	t.Helper()
	times := make([]time.Duration, n)
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			start := time.Now()
			r, err := ask(t.Context(), p, work)
			if assert.NoError(t, err) {
				assert.Equal(t, http.StatusOK, r.StatusCode)
			}
			times[i] = time.Since(start)
		})
	}
	calls.Wait()
	return times
}

func TestUpToCapacityAnAnswerTakesItsOwnTime(t *testing.T) {
	inBubble(t, model{capacity: 5}, func(t *testing.T, p *provider) {
		for n := 1; n <= 5; n++ {
			for _, d := range answerTimes(t, p, n, 3*time.Second) {
				require.InDelta(t, 3, d.Seconds(), 1e-6)
			}
		}
	})
}

func TestBeyondCapacityItsSpeedIsShared(t *testing.T) {
	inBubble(t, model{capacity: 5}, func(t *testing.T, p *provider) {
		for _, d := range answerTimes(t, p, 20, 3*time.Second) {
			require.InDelta(t, 12, d.Seconds(), 1e-6, "four times as many")
		}
	})
	inBubble(t, model{capacity: 1}, func(t *testing.T, p *provider) {
		var long time.Duration
		var calls sync.WaitGroup
		calls.Go(func() { long = answerTimes(t, p, 1, 10*time.Second)[0] })
		time.Sleep(2 * time.Second)
		require.InDelta(t, 6, answerTimes(t, p, 1, 3*time.Second)[0].Seconds(), 1e-6, "half the speed")
		calls.Wait()
		require.InDelta(t, 13, long.Seconds(), 1e-6, "all there was to do")
	})
}

func TestOverloadCostsWhatTheModelSays(t *testing.T) {
	inBubble(t, model{capacity: 8, loss: 0.25}, func(t *testing.T, p *provider) {
		for _, d := range answerTimes(t, p, 16, time.Second) {
			require.InDelta(t, 2*1.25, d.Seconds(), 1e-6)
		}
	})
}

func TestMoreClientsGetNoMoreDone(t *testing.T) {
	inBubble(t, model{capacity: 5}, func(t *testing.T, p *provider) {
		var clients sync.WaitGroup
		for i := range 50 {
			clients.Go(func() {
				for time.Since(p.start) < time.Minute {
					_, err := ask(t.Context(), p, time.Second+time.Duration(i)*time.Millisecond)
					assert.NoError(t, err)
				}
			})
		}
		clients.Wait()
		require.InDelta(t, 5, float64(len(p.answers))/time.Since(p.start).Seconds(), 0.15)
	})
}

func TestRequestsBeyondTheRateLimitAreToldWhenToComeBack(t *testing.T) {
	inBubble(t, model{capacity: 5, rpm: 30, burst: 3}, func(t *testing.T, p *provider) {
		answerTimes(t, p, 3, time.Millisecond)
		start := time.Now()
		r, err := ask(t.Context(), p, time.Millisecond)
		require.NoError(t, err)
		require.Equal(t, http.StatusTooManyRequests, r.StatusCode)
		require.Equal(t, "2", r.Header.Get("Retry-After"))
		require.Equal(t, turnround, time.Since(start))
		time.Sleep(2 * time.Second)
		answerTimes(t, p, 1, time.Millisecond)
		r, err = ask(t.Context(), p, time.Millisecond)
		require.NoError(t, err)
		require.Equal(t, http.StatusTooManyRequests, r.StatusCode)
	})
}

func TestFullProviderRefuses(t *testing.T) {
	inBubble(t, model{capacity: 1, room: 2}, func(t *testing.T, p *provider) {
		var calls sync.WaitGroup
		calls.Go(func() { answerTimes(t, p, 2, time.Second) })
		synctest.Wait()
		r, err := ask(t.Context(), p, time.Second)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		calls.Wait()
	})
}

func TestOutageLosesWhatIsInProgressRefusesAndEnds(t *testing.T) {
	inBubble(t, model{capacity: 5, outageFrom: 10 * time.Second, outageTo: 30 * time.Second}, func(t *testing.T, p *provider) {
		time.Sleep(9 * time.Second)
		_, err := ask(t.Context(), p, 2*time.Second)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, 10*time.Second, time.Since(p.start))
		_, err = ask(t.Context(), p, time.Second)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		time.Sleep(10 * time.Second)
		r, err := ask(t.Context(), p, time.Second)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		time.Sleep(10 * time.Second)
		require.InDelta(t, 1, answerTimes(t, p, 1, time.Second)[0].Seconds(), 1e-6)
	})
}

func TestNoWorkIsDoneForAClientThatHasLeft(t *testing.T) {
	inBubble(t, model{capacity: 1}, func(t *testing.T, p *provider) {
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		var calls sync.WaitGroup
		calls.Go(func() {
			_, err := ask(ctx, p, time.Hour)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		synctest.Wait()
		require.InDelta(t, 1.5, answerTimes(t, p, 1, time.Second)[0].Seconds(), 1e-6, "shared for the first second")
		calls.Wait()
		require.Len(t, p.answers, 1)
	})
}
