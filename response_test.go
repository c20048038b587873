package aiguard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

// post sends a chat request through g in virtual time, with headers given as name and value.
func post(ctx context.Context, t testing.TB, rt http.RoundTripper, url string, headers ...string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(`{"model":"m","messages":[]}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return rt.RoundTrip(req)
}

// guardedTransport runs f with a transport over a fake provider, in virtual time.
func guardedTransport(t *testing.T, cfg aiguard.Config, f func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server)) {
	t.Helper()
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		f(t, c.Guard(), c.Guard().Transport(base), srv)
	})
}

func TestFailureStatusIsReturnedAsTheProvidersResponse(t *testing.T) {
	for status, kind := range statusKinds {
		guardedTransport(t, aiguard.Config{}, func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.Error(status, "some_code", "Retry-After", "1", "X-Of-The-Provider", "yes"))
			resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions")
			require.NoError(t, err, "%d", status)
			require.Equal(t, status, resp.StatusCode)
			require.Equal(t, "yes", resp.Header.Get("X-Of-The-Provider"))
			require.Equal(t, "1", resp.Header.Get("Retry-After"))
			require.Equal(t, "false", resp.Header.Get("X-Should-Retry"))
			require.Equal(t, srv.URL+"/chat/completions", resp.Request.URL.String())
			require.NoError(t, resp.Request.Context().Err())
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Contains(t, string(body), aiguardtest.ProviderText, "the caller gets the provider's own error")
			require.EqualValues(t, len(body), resp.ContentLength)
			require.Equal(t, strconv.Itoa(len(body)), resp.Header.Get("Content-Length"), "the length that the provider sent")

			sdkError := fmt.Errorf("sdk: %w", &stainlessError{StatusCode: status, Response: resp})
			e := aiguard.Explain(sdkError)
			require.Equal(t, kind, e.Kind)
			require.Equal(t, "chat.completions", e.Op)
			require.Equal(t, "m", e.Model)
			require.Equal(t, srv.Count(), e.Attempts)
			require.Equal(t, kind, aiguard.KindOf(sdkError))
			require.Equal(t, aiguard.HTTPStatus(e), aiguard.HTTPStatus(sdkError))
			require.Equal(t, aiguard.UserMessage(e), aiguard.UserMessage(sdkError))
			require.EqualValues(t, 1, g.Stats().Failed)
		})
	}
}

func TestFailureBodyIsAtMost64KiB(t *testing.T) {
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Raw(400, "text/plain", strings.Repeat("x", 200_000)))
		resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions")
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Len(t, body, 64<<10)
		require.EqualValues(t, len(body), resp.ContentLength)
		require.Empty(t, resp.Header.Get("Content-Length"))
	})
}

// A Do sees the failure of a call inside it through the SDK's own error, and retries as the guard's own error would make it.
func TestDoUnderstandsAnSDKsErrorByItsResponse(t *testing.T) {
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		for status, attempts := range map[int]int{503: 3, 400: 1} {
			srv.Reset()
			srv.SetDefault(aiguardtest.Error(status, ""))
			err := do(t.Context(), g, func(ctx context.Context) error {
				resp, err := post(ctx, t, rt, srv.URL+"/chat/completions")
				require.NoError(t, err)
				return &stainlessError{StatusCode: resp.StatusCode, Response: resp}
			})
			require.Equal(t, attempts, srv.Count())
			e := facts(t, err, aiguard.KindOf(err))
			require.Equal(t, status, e.StatusCode)
			var sdk *stainlessError
			require.ErrorAs(t, err, &sdk)
		}
	})
}

func TestGuardsOwnFailuresStayErrors(t *testing.T) {
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		for name, c := range map[string]struct {
			reply aiguardtest.Reply
			kind  aiguard.Kind
		}{
			"time":         {aiguardtest.Hang(), aiguard.ErrTimeout},
			"no choices":   {aiguardtest.JSON(200, "{}"), aiguard.ErrInvalidResponse},
			"error in 200": {aiguardtest.JSON(200, `{"error":{"code":"server_error"}}`), aiguard.ErrUnavailable},
			"cut":          {aiguardtest.JSON(200, `{"choices":[`), aiguard.ErrTruncated},
			"redirect":     {aiguardtest.Redirect(302, "/elsewhere"), aiguard.ErrInvalidResponse},
		} {
			srv.SetDefault(c.reply)
			_, err := post(t.Context(), t, rt, srv.URL+"/chat/completions") //nolint:bodyclose // fails
			require.ErrorIs(t, err, c.kind, name)
		}
	})
}

func TestGuardsOwnFailuresBecomeResponsesOfTheAPI(t *testing.T) {
	cfg := aiguard.Config{FailuresAsResponses: true, Retry: aiguard.Retry{MaxAttempts: 1}}
	guardedTransport(t, cfg, func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		for name, c := range map[string]struct {
			path   string
			reply  aiguardtest.Reply
			kind   aiguard.Kind
			status int
			form   string // where the message is
		}{
			"OpenAI":      {"/v1/chat/completions", aiguardtest.Hang(), aiguard.ErrTimeout, 504, "error.message"},
			"Anthropic":   {"/v1/messages", aiguardtest.Hang(), aiguard.ErrTimeout, 504, "error.message"},
			"Gemini":      {"/v1beta/models/g:generateContent", aiguardtest.Hang(), aiguard.ErrTimeout, 504, "error.message"},
			"Ollama":      {"/api/chat", aiguardtest.Hang(), aiguard.ErrTimeout, 504, "error"},
			"truncated":   {"/v1/chat/completions", aiguardtest.JSON(200, `{"choices":[`), aiguard.ErrTruncated, 502, "error.message"},
			"rate in 200": {"/v1/chat/completions", aiguardtest.JSON(200, `{"error":{"code":"rate_limit_exceeded"}}`), aiguard.ErrRateLimited, 429, "error.message"},
		} {
			srv.SetDefault(c.reply)
			resp, err := post(t.Context(), t, rt, strings.TrimSuffix(srv.URL, "/v1")+c.path)
			require.NoError(t, err, name)
			require.Equal(t, c.status, resp.StatusCode, name)
			require.Equal(t, "false", resp.Header.Get("X-Should-Retry"))
			require.NotNil(t, resp.Request)
			var body map[string]any
			require.NoError(t, json.NewDecoder(resp.Body).Decode(&body))
			message := body["error"]
			if c.form == "error.message" {
				message = message.(map[string]any)["message"]
			}
			e := aiguard.Explain(&stainlessError{StatusCode: resp.StatusCode, Response: resp})
			require.Equal(t, c.kind, e.Kind, name)
			require.Equal(t, aiguard.UserMessage(e), message, name)
		}
		srv.SetDefault(nil)

		left, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := post(left, t, rt, srv.URL+"/chat/completions") //nolint:bodyclose // fails
		require.ErrorIs(t, err, context.Canceled, "the caller's own end is no response")

		require.NoError(t, g.Close())
		resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions")
		require.NoError(t, err)
		require.Equal(t, 503, resp.StatusCode)
		resp.Body.Close()
	})
}

func TestRefusalAsAResponseHasRetryAfter(t *testing.T) {
	cfg := aiguard.Config{FailuresAsResponses: true, MaxConcurrent: 1, MaxQueue: aiguard.Off, QueueTimeout: 1500 * time.Millisecond}
	guardedTransport(t, cfg, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(20*time.Second, aiguardtest.Text("late")))
		done := make(chan struct{})
		go func() {
			defer close(done)
			resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions")
			if err == nil {
				resp.Body.Close()
			}
		}()
		synctest.Wait()
		resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions")
		require.NoError(t, err)
		require.Equal(t, 503, resp.StatusCode)
		seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		require.NoError(t, err)
		require.Positive(t, seconds)
		resp.Body.Close()
		<-done
	})
}

// An SDK that retries by itself sends its own retry count: what the guard has given up on is not sent again.
func TestRepeatOfAnSDKIsAnsweredFromTheFailure(t *testing.T) {
	const count = "X-Stainless-Retry-Count"
	for name, c := range map[string]struct {
		reply aiguardtest.Reply
		sent  int
		kind  aiguard.Kind
	}{
		"status":    {aiguardtest.Error(401, "invalid_api_key"), 1, aiguard.ErrUnauthorized},
		"outage":    {aiguardtest.Error(503, ""), 3, aiguard.ErrUnavailable},
		"truncated": {aiguardtest.JSON(200, `{"choices":[`), 3, aiguard.ErrTruncated},
		"own":       {aiguardtest.Hang(), 1, aiguard.ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			var logged syncbuf.Buffer
			cfg := aiguard.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))}
			guardedTransport(t, cfg, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
				srv.SetDefault(c.reply)
				send := func(headers ...string) error {
					return failureOf(post(t.Context(), t, rt, srv.URL+"/chat/completions", headers...))
				}
				first := send(count, "0")
				require.ErrorIs(t, first, c.kind)
				require.Equal(t, c.sent, srv.Count())
				for n := 1; n <= 2; n++ {
					time.Sleep(time.Duration(n) * time.Second)
					again := send(count, strconv.Itoa(n))
					require.Equal(t, first.Error(), again.Error())
					require.NotSame(t, first, again)
					require.Equal(t, c.sent, srv.Count(), "repeat %d", n)
				}
			})
			require.Equal(t, 1, strings.Count(logged.String(), "WithMaxRetries(0)"), "one warning: %s", logged.String())
			require.NotContains(t, logged.String(), "messages")
		})
	}
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
		for i, headers := range [][]string{
			{count, "0"},
			{count, "0"}, // the caller's next call
			{count, "1", "Authorization", "Bearer fresh"}, // another token
		} {
			require.Error(t, failureOf(post(t.Context(), t, rt, srv.URL+"/chat/completions", headers...)))
			require.Equal(t, i+1, srv.Count(), "sent: %v", headers)
		}
		time.Sleep(2 * time.Minute)
		require.Error(t, failureOf(post(t.Context(), t, rt, srv.URL+"/chat/completions", count, "1")))
		require.Equal(t, 4, srv.Count(), "what comes much later is a new call")
	})
}

func TestRepeatsRememberedAreBounded(t *testing.T) {
	cfg := aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}
	guardedTransport(t, cfg, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(400, ""))
		for i := range 1500 {
			resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions", "X-Stainless-Retry-Count", "0", "X-Case", strconv.Itoa(i))
			require.NoError(t, err)
			resp.Body.Close()
		}
		sent := srv.Count()
		for i := range 1500 {
			resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions", "X-Stainless-Retry-Count", "1", "X-Case", strconv.Itoa(i))
			require.NoError(t, err)
			resp.Body.Close()
		}
		require.GreaterOrEqual(t, srv.Count()-sent, 1500-1024)
	})
}

func TestClientGetsErrorsThoughACacheIsBetween(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
	g := newGuard(t, aiguard.Config{})
	c := clientOf(t, aiguard.Config{}, srv.URL, &http.Client{Transport: g.Transport(nil)}) // a Transport as the base
	_, err := chat(t.Context(), c)
	facts(t, err, aiguard.ErrUnauthorized)
}

func TestMiddlewareThatWrapsTheErrorIsHeard(t *testing.T) {
	own := errors.New("own words")
	cfg := aiguard.Config{Middleware: []aiguard.Middleware{
		func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
			if err := next(ctx); err != nil {
				return fmt.Errorf("%w: %w", own, err)
			}
			return nil
		},
	}}
	guardedTransport(t, cfg, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(400, ""))
		_, err := post(t.Context(), t, rt, srv.URL+"/chat/completions") //nolint:bodyclose // fails
		require.ErrorIs(t, err, own)
	})
}

func TestHTTPClientIsBounded(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	srv.SetDefault(aiguardtest.Error(400, "context_length_exceeded"))
	g := newGuard(t, aiguard.Config{})
	resp, err := g.HTTPClient().Post(srv.URL+"/chat/completions", "application/json", bytes.NewReader([]byte(`{"model":"m"}`)))
	facts(t, failureOf(resp, err), aiguard.ErrPromptTooLarge)
	require.EqualValues(t, 1, g.Stats().Calls)
}

// While the provider is down the guard answers in its stead. What the provider said in the same call is still the response.
func TestCallThatMeetsAnOutageReturnsWhatTheProviderSaid(t *testing.T) {
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, _ *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(503, "service_unavailable"))
		for range 3 {
			resp, err := post(t.Context(), t, rt, srv.URL+"/chat/completions")
			if err != nil {
				require.Equal(t, aiguard.PhaseOutage, facts(t, err, aiguard.ErrUnavailable).Phase, "nothing was sent in this call")
				require.Zero(t, facts(t, err, aiguard.ErrUnavailable).Attempts)
				continue
			}
			require.Equal(t, 503, resp.StatusCode)
			require.Equal(t, 503, aiguard.HTTPStatus(failureOf(resp, nil)))
		}
		require.GreaterOrEqual(t, srv.Count(), 5)
	})
}

func TestDoKeepsWhatAnSDKsResponseAsksFor(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	err := do(t.Context(), g, func(context.Context) error {
		return &stainlessError{Response: &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {"7"}, "X-Request-Id": {"req_1"}}}}
	})
	e := facts(t, err, aiguard.ErrRateLimited)
	require.Equal(t, 7*time.Second, e.RetryAfter)
	require.Equal(t, "req_1", e.RequestID)
	require.Equal(t, 429, e.StatusCode)
}
