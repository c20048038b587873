package aiguard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
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

// askModel makes a chat with a model.
func askModel(ctx context.Context, c *aiguard.Client, model string) error {
	r := chatRequest
	r.Model = model
	_, err := c.CreateChatCompletion(ctx, r)
	return err
}

// byModel answers each model in its own way; others say hello.
func byModel(replies map[string]aiguardtest.Reply) func(*aiguardtest.Request) aiguardtest.Reply {
	return func(r *aiguardtest.Request) aiguardtest.Reply {
		if reply := replies[r.Model]; reply != nil {
			return reply
		}
		return aiguardtest.Text("Hello!")
	}
}

func routeOf(t *testing.T, g *aiguard.Guard, name string) aiguard.RouteStats {
	t.Helper()
	for _, r := range g.Routes() {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("no route %q in %v", name, g.Routes())
	return aiguard.RouteStats{}
}

func retryAfter(seconds int) aiguardtest.Reply {
	return aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", strconv.Itoa(seconds))
}

func TestPauseThatDoesNotFitIsToldAtOnceWithTheTrueTime(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(retryAfter(300))
		start := time.Now()
		first := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
		require.Equal(t, 5*time.Minute, first.RetryAfter)
		for i := 1; i <= 5; i++ {
			time.Sleep(10 * time.Second)
			now := time.Now()
			e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
			require.Equal(t, "pause", e.Phase)
			require.Equal(t, 5*time.Minute-time.Duration(i)*10*time.Second, e.RetryAfter)
			_, err := aiguard.Do(t.Context(), c.Guard(), func(ctx context.Context) (string, error) { return "", askModel(ctx, c, "a") })
			require.Equal(t, e.RetryAfter, facts(t, err, aiguard.ErrRateLimited).RetryAfter, "inside a Do")
			took(t, now, 0)
		}
		require.Equal(t, 1, srv.Count())
		require.Equal(t, start.Add(5*time.Minute), routeOf(t, c.Guard(), "a").PausedUntil)
		time.Sleep(10 * time.Second)
		require.Equal(t, 5*time.Minute, facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited).RetryAfter)
		require.Equal(t, 2, srv.Count(), "a probe a minute")
		time.Sleep(time.Minute)
		srv.SetDefault(nil)
		require.NoError(t, askModel(t.Context(), c, "a"), "a probe that is answered ends the pause")
		require.NoError(t, askModel(t.Context(), c, "a"))
	})
}

func TestAbsurdPauseIsNeverSleptOn(t *testing.T) {
	for _, seconds := range []string{"86400", "1000000000", "9000000000"} {
		inVirtualTime(t, aiguard.Config{TotalTimeout: aiguard.Off}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", seconds))
			start := time.Now()
			e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
			n, err := strconv.ParseInt(seconds, 10, 64)
			require.NoError(t, err)
			require.Equal(t, time.Duration(n)*time.Second, e.RetryAfter)
			facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
			took(t, start, 0)
			require.Equal(t, 1, srv.Count())
		})
	}
}

func TestQueueTimeoutBoundsTheWaitForAPause(t *testing.T) {
	for _, total := range []time.Duration{0, aiguard.Off} {
		cfg := aiguard.Config{QueueTimeout: time.Second, TotalTimeout: total, Retry: aiguard.Retry{MaxAttempts: 1}}
		inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.Enqueue(retryAfter(30))
			require.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
			start := time.Now()
			e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
			took(t, start, 0)
			require.Equal(t, 30*time.Second, e.RetryAfter)
			time.Sleep(29*time.Second + 500*time.Millisecond)
			require.NoError(t, askModel(t.Context(), c, "a"), "this one fits")
		})
	}
}

func TestCallsThatWaitForARouteHoldNoPlaceInLine(t *testing.T) {
	cfg := aiguard.Config{MaxQueue: 10, Retry: aiguard.Retry{MaxAttempts: 1}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(retryAfter(20))
		require.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() { assert.NoError(t, askModel(t.Context(), c, "a")) })
		}
		synctest.Wait()
		require.EqualValues(t, 10, routeOf(t, c.Guard(), "a").Waiting)
		e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrOverloaded)
		require.EqualValues(t, 10, e.Size, "its own queue is full")
		start := time.Now()
		for range 15 {
			calls.Go(func() { assert.NoError(t, askModel(t.Context(), c, "b")) })
		}
		time.Sleep(3500 * time.Millisecond)
		require.Zero(t, routeOf(t, c.Guard(), "b").Waiting)
		calls.Wait()
		require.GreaterOrEqual(t, time.Since(start), 19*time.Second)
	})
}

func TestRetryBudgetsAreOfTheirRoutes(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(byModel(map[string]aiguardtest.Reply{"a": aiguardtest.Error(408, ""), "b": aiguardtest.Error(408, "")}))
		count := func(model string) int {
			before := srv.Count()
			require.ErrorIs(t, askModel(t.Context(), c, model), aiguard.ErrUnavailable)
			return srv.Count() - before
		}
		for range 8 {
			count("a")
		}
		require.Less(t, count("a"), 3, "used up")
		require.Equal(t, 3, count("b"))

		long := strings.Repeat("x", 20_001)
		for range 200 {
			_, err := c.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: "a",
				Messages: []openai.ChatCompletionMessage{{Role: "user", Content: long}}})
			require.ErrorIs(t, err, aiguard.ErrPromptTooLarge)
		}
		require.Less(t, count("a"), 3, "what was not sent pays nothing")
	})
}

func TestCallPaysIntoItsRetryBudgetOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1, MaxDelay: 1}}).With(aiguard.Call{Op: "work"})
		for range 2 {
			facts(t, do(t.Context(), g, func(context.Context) error {
				return &aiguard.Error{Kind: aiguard.ErrInvalidResponse, StatusCode: 200}
			}), aiguard.ErrInvalidResponse)
		}
		require.InDelta(t, 6.1, routeOf(t, g, "work").RetryTokens, 1e-6, "10 at first, 2 taken by each call, 0.1 paid by the second")
	})
}

func TestRetriesOfAllRoutesTogetherAreBounded(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: time.Millisecond, MaxDelay: time.Millisecond}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(408, ""))
		for i := range 500 {
			require.ErrorIs(t, askModel(t.Context(), c, fmt.Sprint("model-", i)), aiguard.ErrUnavailable)
		}
		require.LessOrEqual(t, srv.Count()-500, 100+50+1)
	})
}

func TestModelInThePathIsTheRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
		client := &http.Client{Transport: g.Transport(srv.Transport())}
		post := func(path string) error {
			resp, err := client.Post("http://provider"+path, "application/json", strings.NewReader(`{"x":1}`))
			if err == nil {
				defer resp.Body.Close()
				if resp.StatusCode == 429 {
					err = aiguard.ErrRateLimited
				}
			}
			return err
		}
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if strings.Contains(r.Path, "/A") {
				return retryAfter(300)
			}
			return aiguardtest.JSON(200, `{}`)
		})
		for _, path := range []string{"/v1beta/models/%s:generateContent", "/openai/deployments/%s/embeddings", "/model/%s/invoke"} {
			require.ErrorIs(t, post(fmt.Sprintf(path, "A")), aiguard.ErrRateLimited)
			start := time.Now()
			require.NotErrorIs(t, post(fmt.Sprintf(path, "B")), aiguard.ErrRateLimited, path)
			took(t, start, 0)
		}
	})
}

func TestRoutesAreBoundedWhateverModelsUsersName(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(retryAfter(600))
		require.ErrorIs(t, askModel(t.Context(), c, "paused"), aiguard.ErrRateLimited)
		for i := range 1100 {
			require.NoError(t, askModel(t.Context(), c, strings.Repeat("m", 300)[:100+i%150]+strconv.Itoa(i)))
			if i%100 == 0 {
				require.ErrorIs(t, askModel(t.Context(), c, "paused"), aiguard.ErrRateLimited, "in use")
			}
		}
		routes := c.Guard().Routes()
		require.LessOrEqual(t, len(routes), 1000)
		for _, r := range routes {
			require.LessOrEqual(t, len(r.Name), 128)
		}
	})
}

func TestOutageTakesItsRouteDownUntilAProbeIsAnswered(t *testing.T) {
	rec := &recorder{}
	cfg := aiguard.Config{OnEvent: rec.OnEvent, Retry: aiguard.Retry{MaxAttempts: 1}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		down := true
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if down && r.Model == "a" {
				return aiguardtest.Error(500, "")
			}
			return aiguardtest.Text("Hello!")
		})
		for range 5 {
			require.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrUnavailable)
		}
		require.Equal(t, 5, srv.Count())
		require.Len(t, rec.all(aiguard.EventDown), 1)
		require.False(t, routeOf(t, c.Guard(), "a").DownSince.IsZero())
		e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrUnavailable)
		require.Equal(t, "outage", e.Phase)
		require.Zero(t, e.Attempts)
		require.Positive(t, e.RetryAfter)
		require.NoError(t, askModel(t.Context(), c, "b"), "another route")

		before := srv.Count()
		for range 1000 { // ten seconds, a call each 10 ms
			time.Sleep(10 * time.Millisecond)
			require.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrUnavailable)
		}
		require.LessOrEqual(t, srv.Count()-before, 20)
		require.GreaterOrEqual(t, srv.Count()-before, 15)

		down = false
		time.Sleep(time.Second)
		require.NoError(t, askModel(t.Context(), c, "a"))
		require.Len(t, rec.all(aiguard.EventUp), 1)
		require.True(t, routeOf(t, c.Guard(), "a").DownSince.IsZero())
		for range 3 {
			require.NoError(t, askModel(t.Context(), c, "a"))
		}
		require.EqualValues(t, 5, routeOf(t, c.Guard(), "a").Limit, "an outage says nothing of the capacity")
	})
}

func TestWhatSaysNothingOfTheProviderIsNoOutage(t *testing.T) {
	for name, tc := range map[string]struct {
		reply aiguardtest.Reply
		call  aiguard.Call
	}{
		"refusal":             {aiguardtest.Error(400, ""), aiguard.Call{}},
		"own short timeout":   {aiguardtest.Hang(), aiguard.Call{Timeout: 50 * time.Millisecond}},
		"rate limit":          {retryAfter(0), aiguard.Call{}},
		"request timeout":     {aiguardtest.Error(408, ""), aiguard.Call{}},
		"answer not complete": {aiguardtest.Cut(20, aiguardtest.Text("Hello!")), aiguard.Call{}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := aiguard.Config{MaxConcurrent: 20, Retry: aiguard.Retry{MaxAttempts: 1, BaseDelay: 1, MaxDelay: 1}}
			inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				for range 20 {
					time.Sleep(time.Second)
					require.Error(t, askModel(t.Context(), c.With(tc.call), "a"))
				}
				require.True(t, routeOf(t, c.Guard(), "a").DownSince.IsZero())
				if name == "own short timeout" {
					require.EqualValues(t, 20, routeOf(t, c.Guard(), "a").Limit)
				}
			})
		})
	}
}

// A caller that gives the provider little time learns nothing of the provider, whatever holds the time.
func TestTimeThatTheCallerSetsIsNoOutage(t *testing.T) {
	const little = 50 * time.Millisecond
	ask := func(call aiguard.Call) func(context.Context, *aiguard.Client) error {
		return func(ctx context.Context, c *aiguard.Client) error { return askModel(ctx, c.With(call), "a") }
	}
	for name, tc := range map[string]struct {
		cfg     aiguard.Config
		ask     func(context.Context, *aiguard.Client) error
		unasked bool // ends by what the provider may be held to
	}{
		"CallTimeout":         {ask: ask(aiguard.Call{}), unasked: true},
		"Config.TotalTimeout": {cfg: aiguard.Config{TotalTimeout: little}, ask: ask(aiguard.Call{})},
		"Call.TotalTimeout":   {ask: ask(aiguard.Call{TotalTimeout: little})},
		"Call.Timeout":        {ask: ask(aiguard.Call{Timeout: little})},
		"what an earlier attempt leaves of the total": {
			cfg: aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 2, Timeouts: true, Budget: aiguard.Off}},
			ask: ask(aiguard.Call{Timeout: aiguard.DefaultCallTimeout - time.Second, TotalTimeout: aiguard.DefaultCallTimeout + time.Second})},
		"WithCall": {ask: func(ctx context.Context, c *aiguard.Client) error {
			return askModel(aiguard.WithCall(ctx, aiguard.Call{TotalTimeout: little}), c, "a")
		}},
		"Call.TotalTimeout of a stream": {ask: func(ctx context.Context, c *aiguard.Client) error {
			r := chatRequest
			r.Model = "a"
			_, err := c.With(aiguard.Call{TotalTimeout: little}).CreateChatCompletionStream(ctx, r)
			return err
		}},
		"the context's deadline": {ask: func(ctx context.Context, c *aiguard.Client) error {
			ctx, cancel := context.WithTimeout(ctx, little)
			defer cancel()
			return askModel(ctx, c, "a")
		}},
		"a Do that has done other work": {ask: func(ctx context.Context, c *aiguard.Client) error {
			return do(ctx, c.Guard(), func(ctx context.Context) error {
				sleep(ctx, aiguard.DefaultCallTimeout-little)
				return askModel(ctx, c, "a")
			})
		}},
		"the total of a Do": {ask: func(ctx context.Context, c *aiguard.Client) error {
			return do(ctx, c.Guard().With(aiguard.Call{TotalTimeout: little}), func(ctx context.Context) error { return askModel(ctx, c, "a") })
		}},
		"a task that has done other work": {cfg: aiguard.Config{TaskTimeout: time.Minute}, ask: func(ctx context.Context, c *aiguard.Client) error {
			return c.Guard().RunTask(ctx, func(ctx context.Context) error {
				sleep(ctx, time.Minute-little)
				return askModel(ctx, c, "a")
			})
		}},
		"a share of Fallback": {ask: func(ctx context.Context, c *aiguard.Client) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			first := func(ctx context.Context) (int, error) { return 0, askModel(ctx, c, "a") }
			_, err := aiguard.Fallback(ctx, first, first)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.cfg.Retry.MaxAttempts == 0 {
				tc.cfg.Retry.MaxAttempts = 1
			}
			inVirtualTime(t, tc.cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.Hang())
				for range 10 {
					require.Error(t, tc.ask(t.Context(), c))
				}
				require.Equal(t, tc.unasked, !routeOf(t, c.Guard(), "a").DownSince.IsZero())
			})
		})
	}
}

// One caller's bad requests must not keep the others out: whoever comes next is the probe.
func TestProbeIsTheNextCallThatComes(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(500, ""))
		for range 5 {
			_ = askModel(t.Context(), c, "a")
		}
		time.Sleep(time.Second)
		srv.SetDefault(aiguardtest.Error(400, ""))
		require.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrRejected, "the probe's own fault")
		srv.SetDefault(nil)
		require.NoError(t, askModel(t.Context(), c, "a"), "but somebody is there")

		srv.SetDefault(aiguardtest.Error(500, ""))
		for range 5 {
			_ = askModel(t.Context(), c, "a")
		}
		time.Sleep(time.Second)
		srv.SetDefault(aiguardtest.Hang())
		ctx, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer leave()
		require.ErrorIs(t, askModel(ctx, c, "a"), context.DeadlineExceeded, "the probe's caller leaves")
		srv.SetDefault(nil)
		require.NoError(t, askModel(t.Context(), c, "a"), "the next one is the probe")
	})
}

func TestAnswerInsideADoThatFailsForItsOwnReasonEndsAnOutage(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(500, ""))
		for range 5 {
			_ = askModel(t.Context(), c, "a")
		}
		time.Sleep(time.Second)
		srv.SetDefault(nil)
		own := errors.New("of its own")
		require.ErrorIs(t, do(t.Context(), c.Guard(), func(ctx context.Context) error {
			assert.NoError(t, askModel(ctx, c, "a"))
			return own
		}), own)
		require.True(t, routeOf(t, c.Guard(), "a").DownSince.IsZero())
	})
}

func TestWaitersOfARouteThatGoesDownAreToldAtOnce(t *testing.T) {
	cfg := aiguard.Config{MaxConcurrent: 5, Retry: aiguard.Retry{MaxAttempts: 1}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Error(500, "")))
		start := time.Now()
		var calls sync.WaitGroup
		for range 50 {
			calls.Go(func() { assert.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrUnavailable) })
		}
		calls.Wait()
		took(t, start, 2*time.Second) // four were admitted before the fifth failed
		require.LessOrEqual(t, srv.Count(), 9)
	})
}

func TestPaceOfTheProvidersHeadersIsKept(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 50}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		// Ten at once, then one a second.
		tokens, at := 10., time.Now()
		var mu sync.Mutex
		var refused int
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			tokens, at = min(tokens+now.Sub(at).Seconds(), 10), now
			if tokens < 1-1e-6 {
				refused++
				return retryAfter(1)
			}
			tokens--
			header := []string{
				"X-Ratelimit-Limit-Requests", "60", "X-Ratelimit-Remaining-Requests", strconv.Itoa(int(tokens)),
				"X-Ratelimit-Reset-Requests", time.Duration((10 - tokens) * float64(time.Second)).String(),
			}
			return aiguardtest.After(time.Second, aiguardtest.JSON(200, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`, header...))
		})
		require.NoError(t, askModel(t.Context(), c, "a"))
		start := time.Now()
		var calls sync.WaitGroup
		for range 30 {
			calls.Go(func() { assert.NoError(t, askModel(t.Context(), c, "a")) })
		}
		calls.Wait()
		require.Zero(t, refused)
		require.LessOrEqual(t, time.Since(start), 23*time.Second)
		require.EqualValues(t, 60, routeOf(t, c.Guard(), "a").RequestsPerMinute)
	})
}

func TestRouteIsTriedOnceAMinuteAgainstTheHeadersOfAnAnswer(t *testing.T) {
	for name, header := range map[string][]string{
		"requests": {"X-Ratelimit-Limit-Requests", "60", "X-Ratelimit-Remaining-Requests", "0", "X-Ratelimit-Reset-Requests", "8760h"},
		"tokens":   {"X-Ratelimit-Limit-Tokens", "60000", "X-Ratelimit-Remaining-Tokens", "0", "X-Ratelimit-Reset-Tokens", "8760h"},
		"date":     {"Anthropic-Ratelimit-Requests-Limit", "60", "Anthropic-Ratelimit-Requests-Remaining", "0", "Anthropic-Ratelimit-Requests-Reset", "9999-12-31T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.JSON(200, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`, header...))
				require.NoError(t, askModel(t.Context(), c, "a"))
				for range 3 {
					for range 5 {
						e := facts(t, askModel(t.Context(), c, "a"), aiguard.ErrRateLimited)
						require.Equal(t, aiguard.PhasePace, e.Phase)
						require.Greater(t, e.RetryAfter, time.Hour)
					}
					time.Sleep(time.Minute)
					require.NoError(t, askModel(t.Context(), c, "a"))
				}
				require.Equal(t, 4, srv.Count())
			})
		})
	}
}

func TestConfiguredPaceIsKeptPerRoute(t *testing.T) {
	inVirtualTime(t, aiguard.Config{RequestsPerMinute: 60}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		start := time.Now()
		var calls sync.WaitGroup
		for range 20 {
			calls.Go(func() { assert.NoError(t, askModel(t.Context(), c, "a")) })
		}
		calls.Wait()
		took(t, start, 14*time.Second) // six at once, and then one a second
		require.NoError(t, askModel(t.Context(), c, "b"))
		took(t, start, 14*time.Second)

		for range 6 {
			go func() { _ = askModel(t.Context(), c, "b") }()
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		e := facts(t, askModel(ctx, c, "b"), aiguard.ErrRateLimited)
		require.Equal(t, "pace", e.Phase)
		require.Positive(t, e.RetryAfter)
		time.Sleep(time.Minute)
	})
}

// told is an answer with what is left of a limit of 60,000 tokens per minute.
func told(left int) aiguardtest.Reply {
	return aiguardtest.JSON(200, `{"object":"chat.completion","usage":{"prompt_tokens":4000},"choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`,
		"X-Ratelimit-Limit-Tokens", "60000", "X-Ratelimit-Remaining-Tokens", strconv.Itoa(left),
		"X-Ratelimit-Reset-Tokens", (time.Duration(60000-left) * time.Millisecond).String())
}

// ofTokens makes a chat of about so many tokens.
func ofTokens(ctx context.Context, c *aiguard.Client, n int) error {
	r := chatRequest
	r.Messages = []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: strings.Repeat("word", n)}}
	_, err := c.CreateChatCompletion(ctx, r)
	return err
}

func TestRequestLargerThanTheTokensLeftWaitsForThem(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(told(1000))
		require.NoError(t, ofTokens(t.Context(), c, 100))
		start := time.Now()
		require.NoError(t, ofTokens(t.Context(), c, 500))
		took(t, start, 0)
		require.NoError(t, ofTokens(t.Context(), c, 4000))
		require.InDelta(t, 3, time.Since(start).Seconds(), 0.1, "a thousand a second")

		var calls sync.WaitGroup
		calls.Go(func() { assert.NoError(t, ofTokens(t.Context(), c, 4000)) })
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		calls.Go(func() { assert.ErrorIs(t, ofTokens(ctx, c, 4000), context.Canceled) })
		synctest.Wait()
		calls.Go(func() { assert.NoError(t, ofTokens(t.Context(), c, 100)) })
		synctest.Wait()
		leave()
		start = time.Now()
		calls.Wait()
		require.Less(t, time.Since(start), 5*time.Second)
	})
}

// Whoever leaves, the next one is judged by its own size.
func TestSmallRequestBehindALargeOneThatLeavesIsSentAtOnce(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(told(1000))
		require.NoError(t, ofTokens(t.Context(), c, 100))
		var calls sync.WaitGroup
		ctx, leave := context.WithCancel(t.Context())
		calls.Go(func() { assert.ErrorIs(t, ofTokens(ctx, c, 4000), context.Canceled) })
		synctest.Wait()
		calls.Go(func() { assert.NoError(t, ofTokens(t.Context(), c, 100)) })
		synctest.Wait()
		require.EqualValues(t, 2, routeOf(t, c.Guard(), chatRequest.Model).Waiting)
		start := time.Now()
		leave()
		calls.Wait()
		took(t, start, 0)
	})
}

// The time that a refused call is told is true: then there are tokens for it.
func TestCallThatTheTokensPerMinuteDoNotReachInTimeIsRefusedAtOnce(t *testing.T) {
	inVirtualTime(t, aiguard.Config{TokensPerMinute: 60_000, MaxConcurrent: 50}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(told(60_000))
		var calls sync.WaitGroup
		var refused int
		for range 30 {
			start, done := time.Now(), make(chan error, 1)
			calls.Go(func() { done <- ofTokens(t.Context(), c, 4100) })
			synctest.Wait()
			select {
			case err := <-done:
				if err == nil {
					continue
				}
				e := facts(t, err, aiguard.ErrRateLimited)
				took(t, start, 0)
				if refused++; refused == 1 {
					calls.Go(func() {
						time.Sleep(e.RetryAfter)
						assert.NoError(t, ofTokens(t.Context(), c, 4100))
						took(t, start, e.RetryAfter.Round(time.Millisecond))
					})
				}
			default: // waits
				calls.Go(func() { assert.NoError(t, <-done) })
			}
		}
		calls.Wait()
		require.Greater(t, refused, 20)
	})
}

// A call that goes before those that wait is not refused for their number: one of a higher priority, or of a light tenant.
func TestCallIsNotRefusedForThoseBehindItInAPacedLine(t *testing.T) {
	for name, cfg := range map[string]aiguard.Config{"requests": {RequestsPerMinute: 60}, "tokens": {TokensPerMinute: 6000}} {
		for who, call := range map[string]aiguard.Call{"critical": {Tenant: "heavy", Priority: aiguard.Critical}, "light": {Tenant: "light"}} {
			t.Run(name+" "+who, func(t *testing.T) {
				cfg.MaxConcurrent = 50
				inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
					srv.SetDefault(aiguardtest.After(100*time.Millisecond, aiguardtest.JSON(200,
						`{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`)))
					var calls sync.WaitGroup
					for range 40 { // some of them are refused
						calls.Go(func() { _ = ofTokens(as(t.Context(), "heavy"), c, 80) })
						synctest.Wait()
					}
					require.Greater(t, routeOf(t, c.Guard(), chatRequest.Model).Waiting, int64(10))
					start := time.Now()
					require.NoError(t, ofTokens(aiguard.WithCall(t.Context(), call), c, 80))
					require.LessOrEqual(t, time.Since(start), 3*time.Second)
					calls.Wait()
				})
			})
		}
	}
}

// The size of an image does not determine its tokens. If this image counted as text, its request would exceed the whole
// limit.
func TestImagesDoNotCountAsTextInThePace(t *testing.T) {
	image := chatRequest
	image.Messages = []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, MultiContent: []openai.ChatMessagePart{
		{Type: openai.ChatMessagePartTypeText, Text: "What is this?"},
		{Type: openai.ChatMessagePartTypeImageURL, ImageURL: &openai.ChatMessageImageURL{URL: "data:image/png;base64," + strings.Repeat("A", 1<<20)}},
	}}}
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(told(1000))
		start := time.Now()
		for range 3 {
			_, err := c.CreateChatCompletion(t.Context(), image)
			require.NoError(t, err)
		}
		raw, err := json.Marshal(image)
		require.NoError(t, err)
		hc := &http.Client{Transport: c.Guard().Transport(srv.Transport())}
		resp, err := hc.Post(srv.URL+"/chat/completions", "application/json", bytes.NewReader(raw))
		require.NoError(t, err)
		require.Equal(t, 200, resp.StatusCode)
		resp.Body.Close()
		took(t, start, 0)
	})
}
