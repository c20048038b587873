package aiguard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

// printed returns every form in which a program may print v.
func printed(v any) map[string]string {
	forms := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		forms[verb] = fmt.Sprintf(verb, v)
	}
	delete(forms, "%x") // nobody reads a secret in there, but it must not panic
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Error("m", "v", v)
	forms["slog text"] = strings.TrimSuffix(out.String(), "\n")
	out.Reset()
	slog.New(slog.NewJSONHandler(&out, nil)).Error("m", "v", v)
	forms["slog JSON"] = strings.TrimSuffix(out.String(), "\n")
	b, err := json.Marshal(v)
	forms["JSON"] = fmt.Sprint(string(b), err)
	if e, ok := v.(error); ok {
		forms["Error()"] = e.Error()
		forms["wrapped"] = fmt.Errorf("service: %w", e).Error()
	}
	return forms
}

func TestKindPrintsTheSameEverywhere(t *testing.T) {
	for _, k := range kindTable {
		forms := printed(k.kind)
		assert.Equal(t, k.name, forms["%v"])
		assert.Equal(t, k.name, forms["%s"])
		assert.Equal(t, k.name, forms["Error()"])
		assert.Equal(t, `"`+k.name+`"<nil>`, forms["JSON"])
		assert.True(t, strings.HasSuffix(forms["slog text"], " v="+k.name), forms["slog text"])
		assert.Contains(t, forms["slog JSON"], `"v":"`+k.name+`"`)
	}
}

// plant returns e with the secret in every field that can hold text.
func plant(e aiguard.Error, marker string) aiguard.Error {
	e.RequestID = marker
	return e
}

func TestNoFormOfPrintingShowsASecret(t *testing.T) {
	check := func(name string, v any) {
		for form, text := range printed(v) {
			assert.NotContains(t, text, secret, "%s of %s", form, name)
			assert.NotContains(t, text, "sk-proj", "%s of %s", form, name)
			assert.False(t, strings.ContainsAny(text, "\r\n\x1b"), "%s of %s has control characters", form, name)
		}
	}
	for name, err := range tellTale() {
		check("Event of "+name, aiguard.Event{Type: aiguard.EventDone, Err: err})
		check("Event in a pointer of "+name, &aiguard.Event{Type: aiguard.EventDone, Err: err})
		e, ok := err.(*aiguard.Error)
		if !ok {
			continue // its words are not ours
		}
		planted := plant(*e, secret+" \"key\"\nsecond line")
		check(name, err)
		check("planted "+name, &planted)
		check("copy of "+name, planted) // go vet does not warn of a copied Error
		check("Explain of "+name, aiguard.Explain(fmt.Errorf("%s: %w", secret, err)))
		check("struct with "+name, struct{ Err error }{err})
	}
	for _, cause := range []error{errors.New(secret), &url.Error{Op: "Post", URL: "http://x?key=" + secret, Err: context.Canceled}} {
		check("Event of the caller's own error", aiguard.Event{Type: aiguard.EventDone, Err: cause})
	}
}

func TestControlCharactersReachNoText(t *testing.T) {
	const hostile = "gpt\x1b[2J\r\nINFO all is well\x00\u202e\u2028"
	e := &aiguard.Error{Kind: aiguard.Kind(hostile), Op: hostile, Model: hostile, Phase: hostile, RequestID: hostile,
		Err: &net.OpError{Op: hostile, Net: hostile, Err: &net.DNSError{Name: hostile}}}
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	require.Error(t, do(t.Context(), g.With(aiguard.Call{Op: hostile, Model: hostile, Tenant: hostile}), func(context.Context) error { return aiguard.ErrUnavailable }))
	require.NotEmpty(t, g.Routes())
	require.NotEmpty(t, g.Stats().Tenants)
	event := aiguard.Event{Type: hostile, Call: aiguard.Call{Op: hostile, Model: hostile, Tenant: hostile}, Err: e}
	for _, v := range []any{e, *e, event, &event, g.Routes(), g.Stats(), g.Inspect()} {
		for form, text := range printed(v) {
			if form == "%q" || form == "%#v" || form == "JSON" || form == "slog JSON" {
				continue // quoted
			}
			assert.False(t, strings.ContainsAny(text, "\x1b\r\n\x00\u202e\u2028"), "%s: %q", form, text)
		}
	}
}

// Every fault that aiguardtest plays, as a program sees it: in the error, in the events, in the log of all levels, and on
// the debug page.
func TestNoFaultShowsASecretInAnyForm(t *testing.T) {
	const prompt, key = "PROMPT-SECRET", "sk-secret-key"
	for _, f := range aiguardtest.Faults() {
		t.Run(f.String(), func(t *testing.T) {
			if strings.Contains(f.String(), "huge") || strings.Contains(f.String(), "many-headers") {
				t.Skip("size makes no difference to what is printed")
			}
			t.Parallel()
			srv := aiguardtest.NewServer(t)
			srv.Play(f)
			var text, lines syncbuf.Buffer
			all := &slog.HandlerOptions{Level: slog.LevelDebug}
			rec := &recorder{}
			c := newClient(t, srv, aiguard.Config{
				CallTimeout: 200 * time.Millisecond, StreamIdleTimeout: 200 * time.Millisecond, StreamTimeout: 400 * time.Millisecond, TotalTimeout: 2 * time.Second,
				MaxResponseBytes: 1 << 20, Retry: aiguard.Retry{MaxAttempts: 2, BaseDelay: time.Millisecond}, OnEvent: rec.OnEvent,
				Logger: slog.New(both{slog.NewTextHandler(&text, all), slog.NewJSONHandler(&lines, all)}),
			})
			debug, err := httpguard.Debug(c.Guard(), func(*http.Request) bool { return true })
			require.NoError(t, err)
			page := func(accept string) string {
				r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
				r.Header.Set("Accept", accept)
				debug.ServeHTTP(w, r)
				return w.Body.String()
			}
			page("application/json") // from now on failures are recorded
			request := openai.ChatCompletionRequest{Model: "m", Messages: []openai.ChatCompletionMessage{{Role: "user", Content: prompt}}}
			_, chatErr := c.CreateChatCompletion(t.Context(), request)
			s, streamErr := c.CreateChatCompletionStream(t.Context(), request)
			if streamErr == nil {
				_, streamErr = recvAll(s)
				s.Close()
			}
			check := func(what, form, text string) {
				for _, planted := range []string{aiguardtest.ProviderText, prompt, key} {
					assert.NotContains(t, text, planted, "%s of %s", form, what)
				}
			}
			for _, err := range []error{chatErr, streamErr} {
				if e := aiguard.Explain(err); e != nil {
					for form, text := range printed(e) {
						check("error", form, text)
					}
				}
				check("user message", "text", aiguard.UserMessage(err))
			}
			rec.mu.Lock()
			events := slices.Clone(rec.events)
			rec.mu.Unlock()
			for _, ev := range events {
				for form, text := range printed(ev) {
					check("event", form, text)
				}
			}
			for form, text := range printed(c.Guard().Stats()) {
				check("stats", form, text)
			}
			for form, text := range printed(c) {
				check("client", form, text)
			}
			for _, form := range []string{"application/json", "text/html"} {
				check("debug page", form, page(form))
			}
			if chatErr != nil {
				require.Contains(t, page("application/json"), `"kind":`, "the failure is on the page")
			}
			check("log", "text", text.String())
			check("log", "JSON", lines.String())
		})
	}
}

// both sends each record to two handlers.
type both [2]slog.Handler

func (b both) Enabled(context.Context, slog.Level) bool { return true }

func (b both) Handle(ctx context.Context, r slog.Record) error {
	return errors.Join(b[0].Handle(ctx, r), b[1].Handle(ctx, r))
}

func (b both) WithAttrs(attrs []slog.Attr) slog.Handler {
	return both{b[0].WithAttrs(attrs), b[1].WithAttrs(attrs)}
}

func (b both) WithGroup(name string) slog.Handler {
	return both{b[0].WithGroup(name), b[1].WithGroup(name)}
}

func TestErrorTextKeepsGoOpenAIsPhrase(t *testing.T) {
	require.Contains(t, (&aiguard.Error{Kind: aiguard.ErrRateLimited, StatusCode: 429}).Error(), "status code: 429")
}

// stainlessError has the shape of the error types of openai-go and anthropic-sdk-go.
type stainlessError struct {
	Code, Message, Param, Type string
	StatusCode                 int
	Request                    *http.Request
	Response                   *http.Response
}

func (e *stainlessError) Error() string { return "SDK: " + e.Message } // panics if e is nil

// genaiError has the shape of genai's error type, a value.
type genaiError struct {
	Code            int
	Message, Status string
	Details         []map[string]any
}

func (e genaiError) Error() string { return e.Message }

// ollamaError has the shape of the error type of Ollama's client.
type ollamaError struct {
	StatusCode           int
	Status, ErrorMessage string
}

func (e ollamaError) Error() string { return e.ErrorMessage }

// forkError has the shape of the error type of a fork of go-openai.
type forkError struct {
	Code           any
	Message, Type  string
	HTTPStatusCode int
}

func (e *forkError) Error() string { return e.Message }

func TestErrorsOfOtherSDKsAreClassifiedByTheirShape(t *testing.T) {
	response := func(status int, header ...string) *http.Response {
		h := http.Header{}
		for i := 0; i < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h}
	}
	for name, c := range map[string]struct {
		err  error
		kind aiguard.Kind
	}{
		"status":              {&stainlessError{StatusCode: 503, Response: response(503)}, aiguard.ErrUnavailable},
		"code before status":  {&stainlessError{StatusCode: 429, Code: "insufficient_quota", Response: response(429)}, aiguard.ErrQuota},
		"type":                {&stainlessError{Type: "rate_limit_error", Response: response(429)}, aiguard.ErrRateLimited},
		"no response":         {&stainlessError{StatusCode: 503}, ""},
		"genai":               {genaiError{Code: 429, Status: "RESOURCE_EXHAUSTED", Message: secret}, aiguard.ErrRateLimited},
		"genai, pointer":      {&genaiError{Code: 503, Status: "UNAVAILABLE"}, aiguard.ErrUnavailable},
		"genai, not a status": {genaiError{Code: 7}, ""},
		"fork of go-openai":   {&forkError{HTTPStatusCode: 429, Code: "insufficient_quota", Message: secret}, aiguard.ErrQuota},
		"Ollama":              {ollamaError{StatusCode: 500, Status: "500 Internal Server Error"}, aiguard.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			for _, err := range []error{c.err, fmt.Errorf("service: %w", c.err), errors.Join(errors.New("x"), c.err)} {
				require.Equal(t, c.kind, aiguard.KindOf(err))
				e := aiguard.Explain(err)
				if c.kind == "" {
					require.Nil(t, e)
					continue
				}
				require.Equal(t, c.kind, e.Kind)
				require.GreaterOrEqual(t, e.StatusCode, 429)
				require.Equal(t, err, e.Err)
				for form, text := range printed(e) {
					require.NotContains(t, text, secret, form)
				}
			}
		})
	}
	e := aiguard.Explain(&stainlessError{Response: response(429, "Retry-After", "7", "X-Request-Id", "req_1")})
	require.Equal(t, 7*time.Second, e.RetryAfter)
	require.Equal(t, "req_1", e.RequestID)
	policy := &stainlessError{Code: "content_filter", Response: response(400)}
	require.Equal(t, 422, aiguard.HTTPStatus(policy))
	require.Equal(t, 503, aiguard.HTTPStatus(&stainlessError{Response: response(503)}), "a provider's own 503")
}

// Where an API has no code for a failure, the words of its error tell, as they do on the wire.
func TestErrorsOfOtherSDKsAreClassifiedByTheirWordsToo(t *testing.T) {
	const tooLong = "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576). " + secret
	reason := []map[string]any{{"@type": "x"}, {"reason": "API_KEY_INVALID"}}
	for name, c := range map[string]struct {
		err  error
		kind aiguard.Kind
	}{
		"genai":           {genaiError{Code: 400, Status: "INVALID_ARGUMENT", Message: tooLong}, aiguard.ErrPromptTooLarge},
		"genai, a reason": {genaiError{Code: 400, Status: "INVALID_ARGUMENT", Message: secret, Details: reason}, aiguard.ErrUnauthorized},
		"Ollama":          {ollamaError{StatusCode: 400, ErrorMessage: "the input length exceeds the context length"}, aiguard.ErrPromptTooLarge},
		"openai-go": {&stainlessError{StatusCode: 400, Type: "BadRequestError", Message: "This model's maximum context length is 4096 tokens.",
			Response: &http.Response{StatusCode: 400}}, aiguard.ErrPromptTooLarge},
		"fork of go-openai": {&forkError{HTTPStatusCode: 402, Code: "invalid_request_error", Message: "Insufficient Balance"}, aiguard.ErrQuota},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.kind, aiguard.KindOf(c.err))
			for form, text := range printed(aiguard.Explain(c.err)) {
				require.NotContains(t, text, secret, form)
			}
		})
	}
	wait := []map[string]any{{"retryDelay": "soon"}, {"retryDelay": "30s"}}
	require.Equal(t, 30*time.Second, aiguard.Explain(genaiError{Code: 429, Status: "RESOURCE_EXHAUSTED", Details: wait}).RetryAfter)
}

func TestErrorTextTellsOperatorsWhatCameAndFromWhere(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for words, reply := range map[string]aiguardtest.Reply{
			"status code: 200":                         aiguardtest.Raw(200, "text/html", "<h1>Sign in</h1>"),
			"content type text/html":                   aiguardtest.Raw(200, "text/html; charset=utf-8", "<h1>Sign in</h1>"),
			"content type not printable":               aiguardtest.Raw(200, "text/SECRET_words", "x"),
			"redirects are not followed":               aiguardtest.Redirect(302, "/login"),
			"JSON that does not match the API's types": aiguardtest.JSON(200, `{"choices":[{"index":"zero"}]}`),
		} {
			srv.SetDefault(reply)
			_, err := chat(t.Context(), c)
			require.ErrorContains(t, facts(t, err, aiguard.ErrInvalidResponse), words)
			require.NotContains(t, err.Error(), "secret")
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := ln.Addr().String()
	require.NoError(t, ln.Close())
	_, err = chat(t.Context(), clientOf(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, "http://"+addr, nil))
	require.ErrorContains(t, err, "dial tcp "+addr+": connection refused")
	require.Equal(t, addr, facts(t, err, aiguard.ErrUnavailable).Host)
	require.ErrorContains(t, err, "host "+addr)
}
