package aiguardtest_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// simulated is a provider in a bubble with a record of its requests.
type simulated struct {
	*aiguardtest.Provider
	start time.Time

	mu     sync.Mutex
	served []aiguardtest.Served
}

type workKey struct{}

// inBubble runs test against a provider in virtual time. The bubble ends only if nothing is left running.
func inBubble(t *testing.T, cfg aiguardtest.ProviderConfig, test func(t *testing.T, p *simulated)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &simulated{start: time.Now()}
		cfg.Work = func(r *aiguardtest.Request) time.Duration { return r.Context().Value(workKey{}).(time.Duration) }
		cfg.OnServed = func(s aiguardtest.Served) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.served = append(p.served, s)
		}
		p.Provider = aiguardtest.NewProvider(cfg)
		test(t, p)
	})
}

// ask sends one request with this amount of work.
func (p *simulated) ask(ctx context.Context, work time.Duration) (*http.Response, error) {
	ctx = context.WithValue(ctx, workKey{}, work)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://provider.example/v1/chat/completions", strings.NewReader(chatBody))
	if err != nil {
		return nil, err
	}
	return p.RoundTrip(req)
}

// times sends n requests at once and returns the durations of the answers.
func (p *simulated) times(t *testing.T, n int, work time.Duration) []time.Duration {
	t.Helper()
	times := make([]time.Duration, n)
	var calls sync.WaitGroup
	for i := range n {
		calls.Go(func() {
			start := time.Now()
			r, err := p.ask(t.Context(), work)
			if assert.NoError(t, err) {
				assert.Equal(t, http.StatusOK, r.StatusCode)
			}
			times[i] = time.Since(start)
		})
	}
	calls.Wait()
	return times
}

func (p *simulated) statuses() (all []int) {
	for _, s := range p.served {
		all = append(all, s.Status)
	}
	return all
}

func TestProviderUpToCapacityTakesAnAnswersOwnTime(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 5}, func(t *testing.T, p *simulated) {
		for n := 1; n <= 5; n++ {
			for _, d := range p.times(t, n, 3*time.Second) {
				require.InDelta(t, 3, d.Seconds(), 1e-6)
			}
		}
	})
}

func TestProviderSharesItsSpeedBeyondCapacity(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 5}, func(t *testing.T, p *simulated) {
		for _, d := range p.times(t, 20, 3*time.Second) {
			require.InDelta(t, 12, d.Seconds(), 1e-6, "four times as many")
		}
	})
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 1}, func(t *testing.T, p *simulated) {
		var long time.Duration
		var calls sync.WaitGroup
		calls.Go(func() { long = p.times(t, 1, 10*time.Second)[0] })
		time.Sleep(2 * time.Second)
		require.InDelta(t, 6, p.times(t, 1, 3*time.Second)[0].Seconds(), 1e-6, "half the speed")
		calls.Wait()
		require.InDelta(t, 13, long.Seconds(), 1e-6, "all work is done")
	})
}

func TestProviderWithoutCapacityNeverSlowsDown(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{}, func(t *testing.T, p *simulated) {
		for _, d := range p.times(t, 1000, time.Second) {
			require.InDelta(t, 1, d.Seconds(), 1e-6)
		}
	})
}

func TestProviderSlowsDownWithLoss(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 8, Loss: 0.25}, func(t *testing.T, p *simulated) {
		for _, d := range p.times(t, 16, time.Second) {
			require.InDelta(t, 2*1.25, d.Seconds(), 1e-6)
		}
	})
}

func TestProviderThroughputIsConstantUnderOverload(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 5}, func(t *testing.T, p *simulated) {
		var clients sync.WaitGroup
		for i := range 50 {
			clients.Go(func() {
				for time.Since(p.start) < time.Minute {
					_, err := p.ask(t.Context(), time.Second+time.Duration(i)*time.Millisecond)
					assert.NoError(t, err)
				}
			})
		}
		clients.Wait()
		require.InDelta(t, 5, float64(len(p.served))/time.Since(p.start).Seconds(), 0.15)
	})
}

func TestProviderSendsRetryAfterBeyondTheRateLimit(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{RPM: 30}, func(t *testing.T, p *simulated) {
		p.times(t, 3, time.Millisecond)
		start := time.Now()
		r, err := p.ask(t.Context(), time.Millisecond)
		require.NoError(t, err)
		require.Equal(t, http.StatusTooManyRequests, r.StatusCode)
		require.Equal(t, "2", r.Header.Get("Retry-After"))
		require.Equal(t, 20*time.Millisecond, time.Since(start))
		time.Sleep(2 * time.Second)
		p.times(t, 1, time.Millisecond)
		r, err = p.ask(t.Context(), time.Millisecond)
		require.NoError(t, err)
		require.Equal(t, http.StatusTooManyRequests, r.StatusCode)
		require.Equal(t, []int{200, 200, 200, 429, 200, 429}, p.statuses())
	})
}

// limits returns the rate limit headers of an answer: the size, the requests left, and the time until the bucket is
// full.
func limits(t *testing.T, r *http.Response) (limit, remaining, reset string) {
	t.Helper()
	for name, into := range map[string]*string{"limit": &limit, "remaining": &remaining, "reset": &reset} {
		values := r.Header.Values("x-ratelimit-" + name + "-requests")
		require.Len(t, values, 1, name)
		*into = values[0]
	}
	return limit, remaining, reset
}

func TestProviderDescribesItsRateLimitInHeaders(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{RPM: 30, RateLimitHeaders: true}, func(t *testing.T, p *simulated) {
		ask := func(work time.Duration, status int, remaining, reset string) {
			t.Helper()
			r, err := p.ask(t.Context(), work)
			require.NoError(t, err)
			require.Equal(t, status, r.StatusCode)
			gotLimit, gotRemaining, gotReset := limits(t, r)
			require.Equal(t, []string{"30", remaining, reset}, []string{gotLimit, gotRemaining, gotReset})
		}
		ask(time.Second, 200, "29", "2s")            // the state when the request arrived
		ask(1980*time.Millisecond, 200, "28", "3s")  // half a token was added during that second
		ask(20*time.Millisecond, 200, "28", "3.02s") // nearly one token was added after 1.98 s
		time.Sleep(time.Minute)                      // full again, at the same size
		p.times(t, 29, 0)                            // one token is left
		ask(20*time.Millisecond, 200, "0", "1m0s")   // takes the last token
		ask(0, 429, "0", "59.98s")                   // a refusal takes no token
		time.Sleep(1960 * time.Millisecond)          // 2 s after the last token was taken
		ask(time.Millisecond, 200, "0", "1m0s")      // one token was added
		require.Equal(t, 200, p.served[len(p.served)-1].Status)
	})
}

func TestProviderSendsRateLimitHeadersOnlyIfConfigured(t *testing.T) {
	for _, cfg := range []aiguardtest.ProviderConfig{{RPM: 30}, {RateLimitHeaders: true}} {
		inBubble(t, cfg, func(t *testing.T, p *simulated) {
			r, err := p.ask(t.Context(), time.Second)
			require.NoError(t, err)
			for name := range r.Header {
				require.NotContains(t, strings.ToLower(name), "ratelimit")
			}
		})
	}
}

func TestProviderWithRetryAfterRefusesEveryRequest(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{RetryAfter: 1500 * time.Millisecond}, func(t *testing.T, p *simulated) {
		for range 3 {
			start := time.Now()
			r, err := p.ask(t.Context(), time.Second)
			require.NoError(t, err)
			require.Equal(t, http.StatusTooManyRequests, r.StatusCode)
			require.Equal(t, "2", r.Header.Get("Retry-After"), "rounded up")
			require.Equal(t, 20*time.Millisecond, time.Since(start))
			time.Sleep(2 * time.Second)
		}
	})
}

func TestProviderRejectsRequestsBeyondMaxActive(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{MaxActive: 2}, func(t *testing.T, p *simulated) {
		var calls sync.WaitGroup
		calls.Go(func() { p.times(t, 2, time.Second) })
		synctest.Wait()
		r, err := p.ask(t.Context(), time.Second)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		calls.Wait()
	})
}

func TestProviderLosesItsWorkInAnOutageRefusesAndRecovers(t *testing.T) {
	cfg := aiguardtest.ProviderConfig{Capacity: 5, OutageAfter: 10 * time.Second, OutageFor: 20 * time.Second}
	inBubble(t, cfg, func(t *testing.T, p *simulated) {
		time.Sleep(9 * time.Second)
		_, err := p.ask(t.Context(), 2*time.Second)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, 10*time.Second, time.Since(p.start))
		_, err = p.ask(t.Context(), time.Second)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		time.Sleep(10 * time.Second)
		r, err := p.ask(t.Context(), time.Second)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		time.Sleep(10 * time.Second)
		require.InDelta(t, 1, p.times(t, 1, time.Second)[0].Seconds(), 1e-6)
		require.Equal(t, []int{0, 0, 503, 200}, p.statuses())
	})
}

func TestProviderStopsWorkForClientsThatLeave(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 1}, func(t *testing.T, p *simulated) {
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		var calls sync.WaitGroup
		calls.Go(func() {
			_, err := p.ask(ctx, time.Hour)
			assert.ErrorIs(t, err, context.DeadlineExceeded)
		})
		synctest.Wait()
		require.InDelta(t, 1.5, p.times(t, 1, time.Second)[0].Seconds(), 1e-6, "shared for the first second")
		calls.Wait()
		require.Equal(t, []int{0, 200}, p.statuses())
	})
}

func TestProviderReportsServedRequests(t *testing.T) {
	inBubble(t, aiguardtest.ProviderConfig{Capacity: 1}, func(t *testing.T, p *simulated) {
		time.Sleep(time.Minute)
		p.times(t, 2, 3*time.Second)
		for i, s := range p.served {
			assert.Equal(t, http.StatusOK, s.Status)
			assert.Equal(t, 3*time.Second, s.Work)
			assert.Equal(t, time.Minute, s.From.Sub(p.start))
			assert.InDelta(t, 66, s.To.Sub(p.start).Seconds(), 1e-6)
			assert.Equal(t, "m", s.Request.Model)
			assert.Equal(t, chatBody, string(s.Request.Body))
			assert.Contains(t, []int{1, 2}, s.Request.Number, i)
		}
		assert.Len(t, p.served, 2)
	})
}

func TestProviderAnswersWithoutAServer(t *testing.T) {
	for name, want := range map[string]string{chatBody: `"content":"Hello!"`, streamBody: "data: [DONE]"} {
		synctest.Test(t, func(t *testing.T) {
			c := &http.Client{Transport: aiguardtest.NewProvider(aiguardtest.ProviderConfig{})}
			start := time.Now()
			r, err := c.Post("https://provider.example/v1/chat/completions", "application/json", strings.NewReader(name))
			require.NoError(t, err)
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.NoError(t, r.Body.Close())
			assert.Equal(t, http.StatusOK, r.StatusCode)
			assert.Equal(t, int64(len(body)), r.ContentLength)
			assert.Contains(t, string(body), want)
			assert.Equal(t, time.Second, time.Since(start))
		})
	}
}

func TestProviderIsAReplyOfAServer(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		p := aiguardtest.NewProvider(aiguardtest.ProviderConfig{Capacity: 1, MaxActive: 2, RPM: 60, RateLimitHeaders: true,
			OutageAfter: time.Minute, OutageFor: time.Minute})
		s.SetDefault(p.Reply(aiguardtest.Text("Paris")))
		start := time.Now()
		var calls sync.WaitGroup
		for range 2 {
			calls.Go(func() {
				_, body, err := post(t.Context(), s, c, chatBody)
				assert.NoError(t, err)
				assert.Contains(t, body, `"content":"Paris"`)
				assert.InDelta(t, 2, time.Since(start).Seconds(), 1e-6)
			})
		}
		synctest.Wait()
		r, _, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		_, remaining, reset := limits(t, r)
		assert.Equal(t, []string{"57", "3s"}, []string{remaining, reset})
		calls.Wait()

		ctx, leave := context.WithTimeout(t.Context(), time.Second/2)
		defer leave()
		_, _, err = post(ctx, s, c, chatBody)
		require.ErrorIs(t, err, context.DeadlineExceeded)

		time.Sleep(time.Until(start.Add(59*time.Second + time.Second/2)))
		_, _, err = post(t.Context(), s, c, chatBody)
		require.Error(t, err, "the connection breaks")
		assert.Equal(t, time.Minute, time.Since(start))
	})
}
