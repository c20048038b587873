package sdktest

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func newGuard(t *testing.T, cfg aiguard.Config) *aiguard.Guard {
	t.Helper()
	if cfg.Retry.BaseDelay == 0 {
		cfg.Retry.BaseDelay = time.Millisecond
	}
	cfg.Retry.Budget = aiguard.Off
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.Zero(t, g.Stats().InFlight)
		require.NoError(t, g.Close())
	})
	return g
}

// bare is a client without a guard.
func bare(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func each(t *testing.T, f func(t *testing.T, s sdk)) {
	t.Helper()
	for name, s := range sdks {
		t.Run(name, func(t *testing.T) { f(t, s) })
	}
}

func (s sdk) calls() map[string]func(context.Context, conn) (string, error) {
	return map[string]func(context.Context, conn) (string, error){"chat": s.chat, "stream": s.stream}
}

func TestAnswersAndStreamsArriveWhole(t *testing.T) {
	each(t, func(t *testing.T, s sdk) {
		p := newProvider(t, s.api.good)
		g := newGuard(t, aiguard.Config{})
		for kind, call := range s.calls() {
			for who, hc := range map[string]*http.Client{"bare": bare(t), "guarded": g.HTTPClient()} {
				text, err := call(t.Context(), conn{http: hc, url: p.url})
				require.NoError(t, err, "%s %s", who, kind)
				require.Equal(t, "Hello there", text, "%s %s", who, kind)
			}
		}
		require.EqualValues(t, len(s.calls()), g.Stats().Succeeded)
		require.EqualValues(t, 2*len(s.calls()), p.count.Load())
	})
}

func TestTheSDKsOwnErrorArrives(t *testing.T) {
	kinds := map[int]aiguard.Kind{400: aiguard.ErrRejected, 401: aiguard.ErrUnauthorized, 429: aiguard.ErrRateLimited, 503: aiguard.ErrUnavailable}
	each(t, func(t *testing.T, s sdk) {
		for status, kind := range kinds {
			p := newProvider(t, s.api.fail(status))
			g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxDelay: time.Millisecond}})
			for name, call := range s.calls() {
				_, bareErr := call(t.Context(), conn{http: bare(t), url: p.url})
				before := p.count.Load()
				_, err := call(t.Context(), conn{http: g.HTTPClient(), url: p.url})
				require.Equal(t, status, s.own(bareErr), "%s, bare: %v", name, bareErr)
				require.Equal(t, status, s.own(err), "%s: %v", name, err)
				require.NotContains(t, aiguard.UserMessage(err), "PROVIDER WORDS")
				if s.swallows {
					continue // the SDK keeps only the text
				}
				require.Equal(t, kind, aiguard.KindOf(err), "%s: %d", name, status)
				require.Equal(t, kind, aiguard.KindOf(bareErr), "%s, bare: %d", name, status)
				e := aiguard.Explain(err)
				require.Equal(t, status, e.StatusCode)
				if s.carries {
					require.EqualValues(t, p.count.Load()-before, e.Attempts)
					require.Equal(t, "req_1", e.RequestID)
				}
			}
		}
	})
}

func TestTimeoutsAreReportedByTheGuard(t *testing.T) {
	each(t, func(t *testing.T, s sdk) {
		p := newProvider(t, hang)
		g := newGuard(t, aiguard.Config{CallTimeout: 50 * time.Millisecond})
		asResponse := newGuard(t, aiguard.Config{CallTimeout: 50 * time.Millisecond, FailuresAsResponses: true})
		for name, call := range s.calls() {
			_, err := call(t.Context(), conn{http: g.HTTPClient(), url: p.url})
			require.Error(t, err)
			if !s.swallows {
				require.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(err), "%s: %v", name, err)
				require.ErrorIs(t, err, aiguard.ErrTimeout)
			}
			_, err = call(t.Context(), conn{http: asResponse.HTTPClient(), url: p.url})
			require.Equal(t, http.StatusGatewayTimeout, s.own(err), "%s as a response: %v", name, err)
			if s.carries {
				require.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(err))
				require.Equal(t, aiguard.PhaseCall, strings.Replace(aiguard.Explain(err).Phase, aiguard.PhaseFirstEvent, aiguard.PhaseCall, 1))
			}
			require.Contains(t, err.Error()+aiguard.UserMessage(err), "took too long", "the SDK reads the message")
		}
		require.EqualValues(t, len(s.calls()), g.Stats().Timeouts)
	})
}

func TestCallersCancellationIsReturned(t *testing.T) {
	each(t, func(t *testing.T, s sdk) {
		g := newGuard(t, aiguard.Config{})
		for name, call := range s.calls() {
			ctx, cancel := context.WithCancel(t.Context())
			p := newProvider(t, func(w http.ResponseWriter, r *http.Request) {
				asks(r)
				cancel()
				<-r.Context().Done()
			})
			_, err := call(ctx, conn{http: g.HTTPClient(), url: p.url})
			require.Error(t, err)
			if !s.swallows {
				require.ErrorIs(t, err, context.Canceled, name)
				require.Empty(t, aiguard.KindOf(err), name)
			}
			require.EqualValues(t, 1, p.count.Load())
		}
		require.Zero(t, g.Stats().Failed)
	})
}

func TestCutStreamIsNotAnAnswer(t *testing.T) {
	each(t, func(t *testing.T, s sdk) {
		p := newProvider(t, s.api.cut)
		g := newGuard(t, aiguard.Config{})
		_, err := s.stream(t.Context(), conn{http: g.HTTPClient(), url: p.url})
		require.EqualValues(t, 1, g.Stats().Failed, "the guard counts the failure")
		require.Error(t, err)
		if s.deaf {
			require.EqualError(t, err, aiguard.UserMessage(&aiguard.Error{Kind: aiguard.ErrTruncated}))
		} else if !s.swallows {
			require.Equal(t, aiguard.ErrTruncated, aiguard.KindOf(err), "%v", err)
		}
		require.EqualValues(t, 1, p.count.Load(), "a stream is not retried after an event reached the caller")
	})
}

// With the SDK's own retries enabled, the provider gets no more requests than from the guard alone. For a status it
// gets no more than from the SDK alone.
func TestRetriesDoNotMultiply(t *testing.T) {
	each(t, func(t *testing.T, s sdk) {
		if !s.retries {
			return
		}
		truncated := func(w http.ResponseWriter, r *http.Request) {
			asks(r)
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(s.api.answer[:40]))
		}
		for name, c := range map[string]struct {
			reply http.HandlerFunc
			sent  int64
		}{
			"400": {s.api.fail(400), 1}, "401": {s.api.fail(401), 1}, "404": {s.api.fail(404), 1},
			"503": {s.api.fail(503), 3}, "truncated": {truncated, 3}, "hang": {hang, 1},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				var logged syncbuf.Buffer
				p := newProvider(t, c.reply)
				g := newGuard(t, aiguard.Config{CallTimeout: 100 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
				_, err := s.chat(t.Context(), conn{http: g.HTTPClient(), url: p.url, retries: true})
				require.Error(t, err)
				require.NotEmpty(t, aiguard.KindOf(err))
				require.Equal(t, c.sent, p.count.Load())
				require.LessOrEqual(t, strings.Count(logged.String(), "option.WithMaxRetries(0)"), 1)
				if errors.Is(err, aiguard.ErrTimeout) {
					require.Contains(t, logged.String(), "option.WithMaxRetries(0)")
				}
			})
		}
	})
}

// A middleware of the SDK that refreshes a token gets the 401, as without a guard.
func TestMiddlewareOfTheSDKSeesTheStatus(t *testing.T) {
	p := newProvider(t, nil)
	reply := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer fresh" {
			openaiAPI.fail(http.StatusUnauthorized)(w, r)
			return
		}
		openaiAPI.good(w, r)
	})
	p.reply.Store(&reply)
	client := openai.NewClient(openaioption.WithBaseURL(p.url+"/v1"), openaioption.WithAPIKey("stale"),
		openaioption.WithHTTPClient(newGuard(t, aiguard.Config{}).HTTPClient()),
		openaioption.WithMiddleware(func(req *http.Request, next openaioption.MiddlewareNext) (*http.Response, error) {
			resp, err := next(req)
			if err != nil || resp.StatusCode != http.StatusUnauthorized {
				return resp, err
			}
			resp.Body.Close()
			again := req.Clone(req.Context())
			again.Header.Set("Authorization", "Bearer fresh")
			if again.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
			return next(again)
		}))
	r, err := client.Chat.Completions.New(t.Context(), openaiParams())
	require.NoError(t, err)
	require.Equal(t, "Hello there", r.Choices[0].Message.Content)
	require.EqualValues(t, 2, p.count.Load())
}
