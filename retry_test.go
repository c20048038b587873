package aiguard_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestPassingFailuresAreRetriedAndLastingOnesAreNot(t *testing.T) {
	again := map[string]bool{}
	for _, tc := range []struct {
		name  string
		reply aiguardtest.Reply
		kind  aiguard.Kind
		again bool
	}{
		{"429", aiguardtest.Error(429, "rate_limit_exceeded"), aiguard.ErrRateLimited, true},
		{"429 slow_down", aiguardtest.Error(429, "slow_down"), aiguard.ErrRateLimited, true},
		{"503 slow_down", aiguardtest.Error(503, "slow_down"), aiguard.ErrRateLimited, true},
		{"quota", aiguardtest.Error(429, "insufficient_quota"), aiguard.ErrQuota, false},
		{"billing", aiguardtest.Error(429, "billing_not_active"), aiguard.ErrQuota, false},
		{"spend limit", aiguardtest.Error(429, "project_spend_limit_exceeded"), aiguard.ErrQuota, false},
		{"credit", aiguardtest.Error(429, "credit_balance_exhausted"), aiguard.ErrQuota, false},
		{"context", aiguardtest.Error(400, "context_length_exceeded"), aiguard.ErrPromptTooLarge, false},
		{"policy", aiguardtest.Error(400, "content_policy_violation"), aiguard.ErrRejected, false},
		{"400", aiguardtest.Error(400, ""), aiguard.ErrRejected, false},
		{"401", aiguardtest.Error(401, "invalid_api_key"), aiguard.ErrUnauthorized, false},
		{"403", aiguardtest.Error(403, ""), aiguard.ErrUnauthorized, false},
		{"404", aiguardtest.Error(404, "model_not_found"), aiguard.ErrMisconfigured, false},
		{"404 without a code", aiguardtest.Error(404, ""), aiguard.ErrMisconfigured, false},
		{"402", aiguardtest.Error(402, ""), aiguard.ErrQuota, false},
		{"413", aiguardtest.Raw(413, "text/html", "<h1>Too large</h1>"), aiguard.ErrPromptTooLarge, false},
		{"408", aiguardtest.Error(408, ""), aiguard.ErrUnavailable, true},
		{"409", aiguardtest.Error(409, ""), aiguard.ErrUnavailable, true},
		{"500", aiguardtest.Error(500, "server_error"), aiguard.ErrUnavailable, true},
		{"500 text", aiguardtest.JSON(500, `{"error":"out of cheese"}`), aiguard.ErrUnavailable, true},
		{"502 HTML", aiguardtest.Raw(502, "text/html", "<h1>Bad Gateway</h1>"), aiguard.ErrUnavailable, true},
		{"503", aiguardtest.Error(503, ""), aiguard.ErrUnavailable, true},
		{"529", aiguardtest.Error(529, "overloaded_error"), aiguard.ErrUnavailable, true},
		{"500 should not", aiguardtest.Error(500, "", "X-Should-Retry", "false"), aiguard.ErrUnavailable, false},
		{"200 error", aiguardtest.JSON(200, `{"error":{"message":"x","type":"server_error","code":null}}`), aiguard.ErrUnavailable, true},
		{"200 numeric code", aiguardtest.JSON(200, `{"error":{"message":"x","code":401}}`), aiguard.ErrUnauthorized, false},
		{"200 quota", aiguardtest.JSON(200, `{"error":{"message":"x","code":"insufficient_quota"}}`), aiguard.ErrQuota, false},
		{"200 nameless", aiguardtest.JSON(200, `{"error":{"message":"x"}}`), aiguard.ErrInvalidResponse, true},
		{"200 HTML", aiguardtest.Raw(200, "text/html", "<h1>Log in</h1>"), aiguard.ErrInvalidResponse, true},
		{"200 wrong type", aiguardtest.Raw(200, "image/png", `{"choices":[{}]}`), aiguard.ErrInvalidResponse, true},
		{"200 empty", aiguardtest.JSON(200, ""), aiguard.ErrInvalidResponse, true},
		{"204", aiguardtest.Raw(204, "application/json", ""), aiguard.ErrInvalidResponse, true},
		{"200 null", aiguardtest.JSON(200, "null"), aiguard.ErrInvalidResponse, true},
		{"200 no choices", aiguardtest.JSON(200, "{}"), aiguard.ErrInvalidResponse, true},
		{"200 empty choices", aiguardtest.JSON(200, `{"choices":[]}`), aiguard.ErrInvalidResponse, true},
		{"200 garbage", aiguardtest.JSON(200, `{"choices":[}`), aiguard.ErrInvalidResponse, true},
		{"200 cut JSON", aiguardtest.JSON(200, `{"choices":[{"index":0,`), aiguard.ErrTruncated, true},
		{"200 cut body", aiguardtest.Cut(20, aiguardtest.Text("Hello!")), aiguard.ErrTruncated, true},
		{"200 stream", aiguardtest.Events(`{"choices":[]}`, "[DONE]"), aiguard.ErrInvalidResponse, true},
		{"redirect", aiguardtest.JSON(307, "", "Location", "http://127.0.0.1:1/"), aiguard.ErrInvalidResponse, false},
		{"closed", aiguardtest.Drop(), aiguard.ErrUnavailable, true},
	} {
		again[tc.name] = tc.again
		t.Run(tc.name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				_, err := chat(t.Context(), c)
				e := facts(t, err, tc.kind)
				want := 1
				if tc.again {
					want = 3
				}
				require.Equal(t, want, srv.Count())
				require.Equal(t, want, e.Attempts)
				require.NotContains(t, err.Error(), aiguardtest.ProviderText)
				require.NotContains(t, aiguard.UserMessage(err), aiguardtest.ProviderText)
				require.EqualValues(t, 1, c.Guard().Stats().Failed)

				srv.Reset() // the same once, then well
				srv.SetDefault(aiguardtest.Text("Hello!"))
				srv.Enqueue(tc.reply)
				text, err := chat(t.Context(), c)
				if tc.again {
					require.NoError(t, err)
					require.Equal(t, "Hello!", text)
				} else {
					require.ErrorIs(t, err, tc.kind)
				}
			})
		})
	}
}

func TestTimeoutsAreRetriedOnlyIfAsked(t *testing.T) {
	for _, ask := range []bool{false, true} {
		inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{Timeouts: ask}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.Hang())
			_, err := chat(t.Context(), c)
			e := facts(t, err, aiguard.ErrTimeout)
			if ask {
				require.Equal(t, 3, srv.Count())
				require.Equal(t, 90*time.Second, e.InFlight)
			} else {
				require.Equal(t, 1, srv.Count())
			}
		})
	}
}

func TestAttemptsOfOneCallMayBeFewer(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(503, ""))
		_, err := chat(t.Context(), c.With(aiguard.Call{Attempts: 1}))
		require.Equal(t, 1, facts(t, err, aiguard.ErrUnavailable).Attempts)
		_, err = chat(t.Context(), c.With(aiguard.Call{Attempts: 2}))
		require.Equal(t, 2, facts(t, err, aiguard.ErrUnavailable).Attempts)
		require.Equal(t, 3, srv.Count())
	})
}

func TestBackoffGrowsWithJitterAboveAFloor(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 6, MaxDelay: 4 * time.Second}, TotalTimeout: aiguard.Off}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.Error(503, ""))
			_, err := chat(t.Context(), c)
			facts(t, err, aiguard.ErrUnavailable)
			reqs := srv.Requests()
			require.Len(t, reqs, 6)
			for i, full := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 4 * time.Second} {
				d := reqs[i+1].Time.Sub(reqs[i].Time)
				require.GreaterOrEqual(t, d, full/2)
				require.LessOrEqual(t, d, full)
				seen[d] = true
			}
		})
	}
	require.Greater(t, len(seen), 90, "jittered")
}

func TestRetryAfterIsHonouredInAllItsForms(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		least, most time.Duration // until the second request
	}{
		{"Retry-After", "7", 7 * time.Second, 8750 * time.Millisecond},
		{"Retry-After", "1.5", 1500 * time.Millisecond, 1875 * time.Millisecond},
		{"Retry-After-Ms", "2500", 2500 * time.Millisecond, 3125 * time.Millisecond},
		{"X-Ms-Retry-After-Ms", "2500", 2500 * time.Millisecond, 3125 * time.Millisecond},
		{"Retry-After", "date", 20 * time.Second, 25 * time.Second},
		// nonsense: our own backoff
		{"Retry-After", "-5", 250 * time.Millisecond, 500 * time.Millisecond},
		{"Retry-After", "NaN", 250 * time.Millisecond, 500 * time.Millisecond},
		{"Retry-After", "Inf", 250 * time.Millisecond, 500 * time.Millisecond},
		{"Retry-After", "1e300", 250 * time.Millisecond, 500 * time.Millisecond},
		{"Retry-After", "soon", 250 * time.Millisecond, 500 * time.Millisecond},
		{"Retry-After", "Mon, 01 Jan 1990 00:00:00 GMT", 250 * time.Millisecond, 500 * time.Millisecond},
	} {
		for _, status := range []int{429, 503} {
			t.Run(tc.name+" "+tc.value+" "+strconv.Itoa(status), func(t *testing.T) {
				inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
					value := tc.value
					if value == "date" {
						value = time.Now().Add(20 * time.Second).UTC().Format(http.TimeFormat)
					}
					srv.Enqueue(aiguardtest.Error(status, "", tc.name, value))
					_, err := chat(t.Context(), c)
					require.NoError(t, err)
					reqs := srv.Requests()
					require.Len(t, reqs, 2)
					d := reqs[1].Time.Sub(reqs[0].Time)
					require.GreaterOrEqual(t, d, tc.least)
					require.LessOrEqual(t, d, tc.most)
				})
			})
		}
	}
}

func TestWaitThatCannotFitIsRefusedNow(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for _, value := range []string{"180", "1000000000"} {
			srv.Enqueue(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", value))
			start := time.Now()
			_, err := chat(t.Context(), c)
			took(t, start, 0)
			e := facts(t, err, aiguard.ErrRateLimited)
			secs, _ := strconv.Atoi(value)
			require.Equal(t, time.Duration(secs)*time.Second, e.RetryAfter)
			require.Equal(t, 429, e.StatusCode)
			time.Sleep(2 * time.Minute) // out of the pause
		}
		srv.Enqueue(aiguardtest.Error(503, "", "Retry-After", "10"))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, err := chat(ctx, c)
		took(t, start, 0)
		require.Equal(t, 10*time.Second, facts(t, err, aiguard.ErrUnavailable).RetryAfter, "not the caller's deadline exceeded, 5 s later")
	})
}

func TestTotalBoundsAttemptsAndBackoffTogether(t *testing.T) {
	inVirtualTime(t, aiguard.Config{TotalTimeout: 40 * time.Second, Retry: aiguard.Retry{Timeouts: true}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		start := time.Now()
		_, err := chat(t.Context(), c)
		took(t, start, 40*time.Second)
		e := facts(t, err, aiguard.ErrTimeout)
		require.Equal(t, "total", e.Phase)
		require.Equal(t, 40*time.Second, e.Limit)
		require.Equal(t, 2, e.Attempts)
	})
}

func TestErrorCarriesTheLastRealFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 1})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := do(t.Context(), g, func(context.Context) error { return &openai.APIError{HTTPStatusCode: 500} })
			e := facts(t, err, aiguard.ErrUnavailable)
			require.Equal(t, 500, e.StatusCode, "not that it found no place to try again")
			require.Equal(t, 1, e.Attempts)
		})
		synctest.Wait() // it backs off; meanwhile slot and queue fill up
		for range 2 {
			wg.Go(func() {
				require.NoError(t, do(t.Context(), g, func(ctx context.Context) error { return sleep(ctx, 3*time.Second) }))
			})
		}
		wg.Wait()
	})
}

func TestCallerThatLeavesEndsTheBackoff(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(503, "", "Retry-After", "20"))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := chat(ctx, c)
		took(t, start, time.Second)
		require.Equal(t, context.Canceled, err)
		require.Equal(t, 1, srv.Count())
	})
}

func TestRetryBudgetBoundsAnOutage(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxQueue: aiguard.Off}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(408, "")) // no outage: a provider is there
		const callers, each = 100, 20
		var wg sync.WaitGroup
		start := time.Now()
		for range callers {
			wg.Go(func() {
				for range each {
					_, err := chat(t.Context(), c)
					facts(t, err, aiguard.ErrUnavailable)
				}
			})
		}
		wg.Wait()
		calls := callers * each
		most := calls + calls/10 + 10 + int(time.Since(start)/(10*time.Second)) + 1
		require.LessOrEqual(t, srv.Count(), most)
		require.Greater(t, srv.Count(), calls+calls/20, "some are retried")
		require.EqualValues(t, srv.Count()-calls, c.Guard().Stats().Retries)
	})
}

func TestRetryBudgetComesBack(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		fail := func() int {
			srv.Reset()
			srv.SetDefault(aiguardtest.Error(408, ""))
			_, err := chat(t.Context(), c)
			facts(t, err, aiguard.ErrUnavailable)
			return srv.Count()
		}
		for range 20 {
			fail()
		}
		require.Equal(t, 1, fail(), "used up")
		time.Sleep(time.Minute)
		require.Equal(t, 3, fail(), "a quiet service may retry again")
		srv.SetDefault(nil)
		for range 100 {
			_, err := chat(t.Context(), c)
			require.NoError(t, err)
		}
		for range 5 {
			require.Equal(t, 3, fail(), "a busy healthy one, at once")
		}
	})
}

func Test429PausesItsRouteForEverybody(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "20"))
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
		synctest.Wait()
		require.Equal(t, start.Add(20*time.Second), c.Guard().Stats().PausedUntil)
		require.Len(t, rec.all(aiguard.EventPaused), 1)
		for range 10 {
			wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
		}
		other := chatRequest
		other.Model = "another"
		_, err := c.CreateChatCompletion(t.Context(), other)
		require.NoError(t, err, "another model is another route")
		took(t, start, 0)

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = chat(ctx, c)
		e := facts(t, err, aiguard.ErrRateLimited)
		require.Equal(t, "pause", e.Phase, "cannot wait that long: refused now")
		require.Equal(t, 20*time.Second, e.RetryAfter)
		took(t, start, 0)

		wg.Wait()
		for _, r := range srv.Requests()[2:] {
			require.GreaterOrEqual(t, r.Time.Sub(start), 20*time.Second)
		}
		require.True(t, c.Guard().Stats().PausedUntil.IsZero())
	})
}

func TestPauseHoldsForCallsThatAlreadyQueue(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 2, QueueTimeout: time.Minute}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		refuse := aiguardtest.After(time.Second, aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "20"))
		srv.Enqueue(refuse, refuse)
		start := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
			synctest.Wait()
		}
		wg.Wait()
		require.Equal(t, 22, srv.Count())
		for _, r := range srv.Requests()[2:] {
			require.GreaterOrEqual(t, r.Time.Sub(start), 21*time.Second)
		}
	})
}

func TestRouteReopensGradually(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 64}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "10"))
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
		start := time.Now()
		_, err := chat(t.Context(), c.With(aiguard.Call{Attempts: 1})) // whose own retry would come with jitter
		require.ErrorIs(t, err, aiguard.ErrRateLimited)
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
			synctest.Wait()
		}
		wg.Wait()
		perSecond := map[int]int{}
		for _, r := range srv.Requests()[1:] {
			perSecond[int(r.Time.Sub(start)/time.Second)]++
		}
		require.Equal(t, 22, perSecond[10], "half of 64 lowered to 44.8")
		require.Equal(t, 38, perSecond[11], "one more for each answer, up to 44")
	})
}

func TestRouteStaysClosedIfTheProbeIsRefused(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		refuse := aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "10")
		srv.Enqueue(refuse, refuse)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
			synctest.Wait()
		}
		start := srv.Requests()[0].Time
		wg.Wait()
		reqs := srv.Requests()
		require.GreaterOrEqual(t, reqs[1].Time.Sub(start), 10*time.Second)
		require.GreaterOrEqual(t, reqs[2].Time.Sub(start), 20*time.Second, "one request asked for all of them")
	})
}

func TestStateCreatingRequestsAreRetriedOnlyIfNothingCanHaveHappened(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reply aiguardtest.Reply
		times int
	}{
		{"429", aiguardtest.Error(429, ""), 2},
		{"503", aiguardtest.Error(503, ""), 2},
		{"500", aiguardtest.Error(500, ""), 1},
		{"closed", aiguardtest.Drop(), 1},
		{"cut", aiguardtest.Cut(10, aiguardtest.JSON(200, `{"id":"thread_1","object":"thread"}`)), 1},
		{"HTML", aiguardtest.Raw(200, "text/html", "<p>"), 1},
		{"500 should", aiguardtest.Error(500, "", "X-Should-Retry", "true"), 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.JSON(200, `{"id":"thread_1","object":"thread"}`))
				srv.Enqueue(tc.reply)
				_, err := c.CreateThread(t.Context(), openai.ThreadRequest{})
				require.Equal(t, tc.times, srv.Count())
				if tc.times == 2 {
					require.NoError(t, err)
				} else {
					require.NotEmpty(t, aiguard.KindOf(err))
				}

				for name, store := range map[string]*bool{"stored": new(true), "stored for want of a word": nil} {
					for way, ask := range map[string]func(context.Context, openai.CreateResponseRequest) error{
						"Client": func(ctx context.Context, r openai.CreateResponseRequest) error {
							_, err := c.CreateResponse(ctx, r)
							return err
						},
						"Transport": func(ctx context.Context, r openai.CreateResponseRequest) error {
							oc := openai.DefaultConfig("sk-secret-key")
							oc.BaseURL, oc.HTTPClient = srv.URL, &http.Client{Transport: c.Guard().Transport(srv.Transport())}
							_, err := openai.NewClientWithConfig(oc).CreateResponse(ctx, r)
							return err
						},
					} {
						srv.Reset()
						srv.SetDefault(aiguardtest.Text("ok"))
						srv.Enqueue(tc.reply)
						_ = ask(t.Context(), openai.CreateResponseRequest{Model: "m", Input: "x", Store: store})
						require.Equal(t, tc.times, srv.Count(), "%s, %s", name, way)
					}
				}
				srv.Reset()
				srv.SetDefault(aiguardtest.Text("ok"))
				srv.Enqueue(tc.reply)
				_, err = c.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: "m", Input: "x", Store: new(false)})
				require.NoError(t, err)
				require.Equal(t, 2, srv.Count(), "one that is not stored is inference")

				// The same through Do, which must not repeat what the transport would not.
				srv.Reset()
				srv.SetDefault(aiguardtest.JSON(200, `{"id":"thread_1","object":"thread"}`))
				srv.Enqueue(tc.reply)
				_ = do(t.Context(), c.Guard(), func(ctx context.Context) error {
					_, err := c.CreateThread(ctx, openai.ThreadRequest{})
					return err
				})
				require.Equal(t, tc.times, srv.Count())
			})
		})
	}
}

func TestNothingIsRetriedAfterDelivery(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Cut(300, aiguardtest.TextN("Hello, hello, hello!", 5)))
		text, err := streamChat(t.Context(), c)
		facts(t, err, aiguard.ErrTruncated)
		require.NotEmpty(t, text)
		require.Equal(t, 1, srv.Count())
	})
}

func TestRefusedConnectionIsRetriedWhateverTheRequest(t *testing.T) {
	srv := aiguardtest.Start()
	url := srv.URL
	srv.Close()
	rec := &recorder{}
	g := newGuard(t, aiguard.Config{OnEvent: rec.OnEvent, Retry: aiguard.Retry{BaseDelay: time.Millisecond}})
	oc := openai.DefaultConfig("k")
	oc.BaseURL = url
	c := g.Client(oc)
	_, err := c.CreateThread(t.Context(), openai.ThreadRequest{})
	e := facts(t, err, aiguard.ErrUnavailable)
	require.Equal(t, 3, e.Attempts)
	require.Equal(t, "connect", e.Phase)
	require.Equal(t, http.StatusBadGateway, aiguard.HTTPStatus(err))
	require.Len(t, rec.all(aiguard.EventRetry), 2)
	require.Contains(t, err.Error(), "refused")
}

func TestDoRetriesWhatItUnderstands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		for err, want := range map[error]int{
			&openai.APIError{HTTPStatusCode: 429}:                             3,
			&openai.APIError{HTTPStatusCode: 429, Code: "insufficient_quota"}: 1,
			&openai.RequestError{HTTPStatusCode: 502}:                         3,
			&aiguard.Error{Kind: aiguard.ErrTruncated}:                        3,
			&aiguard.Error{Kind: aiguard.ErrOverloaded}:                       1,
			errors.New("mine"):                                                1,
			context.DeadlineExceeded:                                          1, // of a context fn made itself
		} {
			n := 0
			_ = do(t.Context(), g, func(context.Context) error { n++; return err })
			require.Equal(t, want, n, "%v", err)
			time.Sleep(5 * time.Minute)
		}
	})
}

// Nothing was sent to the paused route, but fn has run: its other calls would be repeated without limit.
func TestPauseThatACallInsideADoMeetsCostsAnAttempt(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 2}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "20"))
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
		synctest.Wait()
		ask := func(ctx context.Context) (string, error) { return chat(ctx, c) }
		_, err := aiguard.Do(t.Context(), c.Guard().With(aiguard.Call{Attempts: 1}), ask)
		require.Equal(t, "pause", facts(t, err, aiguard.ErrRateLimited).Phase)
		took(t, start, 0)
		for range 5 {
			wg.Go(func() {
				text, err := aiguard.Do(t.Context(), c.Guard(), ask)
				require.NoError(t, err)
				require.Equal(t, "Hello!", text)
			})
		}
		synctest.Wait()
		require.Zero(t, c.Guard().Stats().InFlight, "nobody holds a slot meanwhile")
		require.EqualValues(t, 5, c.Guard().Stats().Waiting)
		wg.Wait()
		require.Less(t, time.Since(start), 40*time.Second)
		for _, r := range srv.Requests()[1:] {
			require.GreaterOrEqual(t, r.Time.Sub(start), 20*time.Second)
		}

		srv.Enqueue(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "25"))
		wg.Go(func() { _, err := chat(t.Context(), c); require.NoError(t, err) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		now := time.Now()
		_, err = aiguard.Do(ctx, c.Guard(), ask)
		require.Equal(t, "pause", facts(t, err, aiguard.ErrRateLimited).Phase)
		took(t, now, 0)
		wg.Wait()
	})
}

func TestGoodTimesSaveUpNoRetriesForAnOutage(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for range 500 {
			_, err := chat(t.Context(), c)
			require.NoError(t, err)
		}
		srv.SetDefault(aiguardtest.Error(500, "server_error"))
		start := time.Now()
		const calls = 50
		for range calls {
			_, err := chat(t.Context(), c)
			facts(t, err, aiguard.ErrUnavailable)
		}
		most := 10 + calls/10 + int(time.Since(start)/(10*time.Second)) + 1
		require.LessOrEqual(t, c.Guard().Stats().Retries, int64(most))
	})
}

func TestCallersThatWereToldToWaitDoNotComeBackTogether(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 8}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if r.Number <= 8 {
				return aiguardtest.Error(408, "", "Retry-After", "10")
			}
			return aiguardtest.Text("Hello!")
		})
		start := time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		}
		wg.Wait()
		back := map[time.Duration]bool{}
		for _, r := range srv.Requests()[8:] {
			after := r.Time.Sub(start)
			require.GreaterOrEqual(t, after, 10*time.Second)
			require.LessOrEqual(t, after, 12500*time.Millisecond)
			back[after] = true
		}
		require.Greater(t, len(back), 4, "nearly each at a moment of its own")
	})
}

func TestRetryOfARequestSendsItsBodyAgain(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(503, ""), aiguardtest.Drop())
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		reqs := srv.Requests()
		require.Len(t, reqs, 3)
		for _, r := range reqs {
			require.NotEmpty(t, r.Body)
			require.Equal(t, string(reqs[0].Body), string(r.Body))
		}
	})
}
