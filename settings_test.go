package aiguard_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestSettingsOfTheContextGoBeforeWithBeforeModelsBeforeConfig(t *testing.T) {
	cfg := aiguard.Config{CallTimeout: 10 * time.Second, Models: map[string]aiguard.Call{
		"o*": {Timeout: 20 * time.Second}, "o3*": {Timeout: 40 * time.Second}, "o3-mini": {Timeout: 50 * time.Second},
	}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		for _, tc := range []struct {
			model string
			with  aiguard.Call
			ctx   context.Context
			want  time.Duration
			said  string
		}{
			{"gpt-4o", aiguard.Call{}, t.Context(), 10 * time.Second, "Config.CallTimeout"},
			{"o1", aiguard.Call{}, t.Context(), 20 * time.Second, `Config.Models["o*"].Timeout`},
			{"o3-pro", aiguard.Call{}, t.Context(), 40 * time.Second, `Config.Models["o3*"].Timeout`},
			{"o3-mini", aiguard.Call{}, t.Context(), 50 * time.Second, `Config.Models["o3-mini"].Timeout`},
			{"o3-mini-high", aiguard.Call{}, t.Context(), 40 * time.Second, `Config.Models["o3*"].Timeout`},
			{"o3-mini", aiguard.Call{Timeout: 3 * time.Second}, t.Context(), 3 * time.Second, "Call.Timeout"},
			{"o3-mini", aiguard.Call{Timeout: 3 * time.Second}, aiguard.WithCall(t.Context(), aiguard.Call{Timeout: time.Second}), time.Second, "Call.Timeout"},
		} {
			e := facts(t, askModel(tc.ctx, c.With(tc.with), tc.model), aiguard.ErrTimeout)
			require.Equal(t, tc.want, e.Limit, tc.model)
			require.Contains(t, e.Error(), tc.said)
		}
	})
}

func TestSettingsOfNestedContextsAddUp(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: "t", Weight: 2, Attempts: 2})
		ctx = aiguard.WithCall(ctx, aiguard.Call{Priority: aiguard.Critical, Weight: 3})
		require.NoError(t, askModel(ctx, c, "a"))
		require.Equal(t, aiguard.Call{Op: "chat.completions", Model: "a", Tenant: "t", Priority: aiguard.Critical, Weight: 3, Attempts: 2},
			rec.all(aiguard.EventDone)[0].Call)
	})
}

// The settings of a context are kept for the next Do made with it, which may be of another guard.
func TestOneContextServesTheDosOfSeveralGuards(t *testing.T) {
	ctx := aiguard.WithCall(t.Context(), aiguard.Call{Attempts: 1})
	root := newGuard(t, aiguard.Config{})
	guards := map[string]*aiguard.Guard{"one": root.With(aiguard.Call{Op: "one"}), "two": root.With(aiguard.Call{Op: "two"}),
		"three": newGuard(t, aiguard.Config{}).With(aiguard.Call{Op: "three"})}
	for range 3 {
		for op, g := range guards {
			e := facts(t, do(ctx, g, func(context.Context) error { return aiguard.ErrUnavailable }), aiguard.ErrUnavailable)
			require.Equal(t, op, e.Op)
			require.Equal(t, 1, e.Attempts)
		}
	}
}

func TestLimitsOfAModelReplaceThoseOfConfig(t *testing.T) {
	cfg := aiguard.Config{MaxOutputTokens: 100, Models: map[string]aiguard.Call{
		"long*":  {MaxPromptChars: 50_000, MaxOutputTokens: 900},
		"free":   {MaxPromptChars: aiguard.Off, MaxOutputTokens: aiguard.Off},
		"patent": {StreamIdleTimeout: time.Second},
	}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		create := func(model string, chars int) error {
			_, err := c.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: model, MaxTokens: 5000,
				Messages: []openai.ChatCompletionMessage{{Role: "user", Content: strings.Repeat("x", chars)}}})
			return err
		}
		require.ErrorIs(t, create("other", 20_001), aiguard.ErrPromptTooLarge)
		require.NoError(t, create("long-1", 50_000))
		require.Contains(t, string(srv.Requests()[0].Body), `"max_tokens":900`)
		require.ErrorIs(t, create("long-1", 50_001), aiguard.ErrPromptTooLarge)
		require.NoError(t, create("free", 100_000))
		require.Contains(t, string(srv.Requests()[1].Body), `"max_tokens":5000`)

		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		r := chatRequest
		r.Model = "patent"
		s, err := c.CreateChatCompletionStream(t.Context(), r)
		require.NoError(t, err)
		defer s.Close()
		_, err = recvAll(s)
		require.Equal(t, time.Second, facts(t, err, aiguard.ErrTimeout).Limit)
	})
}

func TestDefaultTotalHoldsTheLongestCall(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg  aiguard.Config
		with aiguard.Call
		want time.Duration
	}{
		"config": {aiguard.Config{CallTimeout: 5 * time.Minute}, aiguard.Call{}, 5 * time.Minute},
		"model":  {aiguard.Config{Models: map[string]aiguard.Call{"a": {Timeout: 5 * time.Minute}}}, aiguard.Call{}, 5 * time.Minute},
		"with":   {aiguard.Config{}, aiguard.Call{Timeout: 5 * time.Minute}, 5 * time.Minute},
		"own":    {aiguard.Config{TotalTimeout: time.Minute}, aiguard.Call{Timeout: 5 * time.Minute}, time.Minute},
		"call's": {aiguard.Config{}, aiguard.Call{TotalTimeout: 10 * time.Second}, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, tc.cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.Hang())
				start := time.Now()
				require.ErrorIs(t, askModel(t.Context(), c.With(tc.with), "a"), aiguard.ErrTimeout)
				took(t, start, tc.want)
			})
		})
	}
	_, err := aiguard.New(aiguard.Config{TotalTimeout: 2 * time.Minute, CallTimeout: 5 * time.Minute})
	require.ErrorContains(t, err, "Config.TotalTimeout is 2m0s; want at least CallTimeout (5m0s)")
	_, err = aiguard.New(aiguard.Config{TotalTimeout: 2 * time.Minute, Models: map[string]aiguard.Call{"o3": {Timeout: 5 * time.Minute}}})
	require.ErrorContains(t, err, `Config.Models["o3"].Timeout is 5m0s; want at most Config.TotalTimeout (2m0s)`)
}

func TestTimeThatIsLeftTravelsInAHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		g := newGuard(t, aiguard.Config{DeadlineHeader: "X-Request-Timeout"})
		client := &http.Client{Transport: g.Transport(srv.Transport())}
		left := func(ctx context.Context) float64 {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/models", nil)
			require.NoError(t, err)
			resp, err := client.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Empty(t, req.Header, "the caller's request is not changed")
			reqs := srv.Requests()
			seconds, err := strconv.ParseFloat(reqs[len(reqs)-1].Header.Get("X-Request-Timeout"), 64)
			require.NoError(t, err)
			return seconds
		}
		srv.SetDefault(aiguardtest.JSON(200, `{"object":"list","data":[]}`))
		require.InDelta(t, 30, left(t.Context()), 0.01)
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		require.InDelta(t, 7, left(ctx), 0.01)
	})
}

func TestPrioritiesHaveTheNamesOfTheEnvironment(t *testing.T) {
	for p, want := range map[aiguard.Priority]string{aiguard.Background: "background", aiguard.Normal: "normal", aiguard.Critical: "critical", 7: "Priority(7)"} {
		require.Equal(t, want, p.String())
	}
}
