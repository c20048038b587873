package httpguard_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

const providerWords = "PROVIDER WORDS about sk-secret"

// failures are errors of every kind, with the expected response of Error.
var failures = []struct {
	name       string
	err        error
	status     int
	code       string
	retryAfter string
}{
	{"timeout", &aiguard.Error{Kind: aiguard.ErrTimeout, Phase: "call", Limit: 30 * time.Second}, 504, "timeout", "10"},
	{"overloaded", &aiguard.Error{Kind: aiguard.ErrOverloaded, RetryAfter: 1200 * time.Millisecond}, 503, "overloaded", "2"},
	{"closed", aiguard.ErrClosed, 503, "closed", "10"},
	{"prompt too large", &aiguard.Error{Kind: aiguard.ErrPromptTooLarge, Size: 30_000, Max: 20_000}, 413, "prompt_too_large", ""},
	{"response too large", aiguard.ErrResponseTooLarge, 502, "response_too_large", ""},
	{"truncated", aiguard.ErrTruncated, 502, "truncated", ""},
	{"rate limited", &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: 30 * time.Second}, 429, "rate_limited", "30"},
	{"raw 429", &openai.APIError{HTTPStatusCode: 429, Message: providerWords}, 429, "rate_limited", "10"},
	{"quota", aiguard.ErrQuota, 503, "quota_exceeded", ""},
	{"an absurd delay", &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: math.MaxInt64}, 429, "rate_limited", "9223372037"},
	{"budget of a window", &aiguard.Error{Kind: aiguard.ErrBudget, RetryAfter: 90 * time.Minute}, 429, "budget_exceeded", "5400"},
	{"budget of a run", &aiguard.Error{Kind: aiguard.ErrBudget}, 403, "budget_exceeded", ""},
	{"unavailable", &aiguard.Error{Kind: aiguard.ErrUnavailable, StatusCode: 500, RetryAfter: time.Second}, 502, "unavailable", "1"},
	{"provider's 503", &aiguard.Error{Kind: aiguard.ErrUnavailable, StatusCode: 503}, 503, "unavailable", "10"},
	{"unauthorized", aiguard.ErrUnauthorized, 502, "unauthorized", ""},
	{"misconfigured", aiguard.ErrMisconfigured, 500, "misconfigured", ""},
	{"rejected", &openai.APIError{HTTPStatusCode: 400, Message: providerWords}, 400, "rejected", ""},
	{"content policy", &openai.APIError{HTTPStatusCode: 400, Code: "content_filter", Message: providerWords}, 422, "rejected", ""},
	{"invalid response", aiguard.ErrInvalidResponse, 502, "invalid_response", ""},
	{"body too large", fmt.Errorf(providerWords+": %w", &http.MaxBytesError{Limit: 1 << 20}), 413, "request_too_large", ""},
	{"deadline", context.DeadlineExceeded, 504, "timeout", "10"},
	{"cancelled", context.Canceled, 499, "cancelled", ""},
	{"unknown", errors.New(providerWords), 500, "internal", ""},
	{"joined", errors.Join(&aiguard.Error{Kind: aiguard.ErrTimeout, Err: errors.New(providerWords)}, io.EOF), 504, "timeout", "10"},
}

func answerTo(t *testing.T, method, accept string, err error, headers ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, "/ask?q=secret", nil)
	r.Header.Set("Accept", accept)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	httpguard.Error(w, r, err)
	return w.Result()
}

func bodyOf(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(b)
}

// mayPass says of each failure whether the same request may succeed later.
func mayPass(status int, code string) bool {
	switch status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return false
	}
	return code != "quota_exceeded" && code != "unauthorized" && code != "misconfigured" && code != "response_too_large"
}

func TestErrorHandlesEveryKind(t *testing.T) {
	for _, f := range failures {
		for form, accept := range map[string]string{"html": browser, "json": "application/json"} {
			for _, method := range []string{"GET", "POST"} {
				t.Run(f.name+"/"+form+"/"+method, func(t *testing.T) {
					resp := answerTo(t, method, accept, f.err)
					body := bodyOf(t, resp)
					assert.Equal(t, f.status, resp.StatusCode)
					assert.Equal(t, f.retryAfter, resp.Header.Get("Retry-After"))
					assert.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
					assert.Equal(t, "Accept", resp.Header.Get("Vary"))
					assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
					assert.Equal(t, strconv.Itoa(len(body)), resp.Header.Get("Content-Length"))
					id := resp.Header.Get("X-Request-Id")
					assert.Len(t, id, 26)
					assert.Contains(t, body, id)
					assert.NotContains(t, body, "PROVIDER")
					assert.NotContains(t, body, "secret")

					if form == "html" {
						assert.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
						checkPage(t, resp, body)
						assert.Equal(t, f.retryAfter != "", strings.Contains(body, `role="timer"`), "a countdown if there is a time")
						repeatable := method == "GET" && mayPass(f.status, f.code)
						assert.Equal(t, repeatable, strings.Contains(body, ">Try again<"), "only what may pass later has a link to repeat it")
						assert.LessOrEqual(t, strings.Count(strings.ToLower(body), ">try again<"), 1)
						return
					}
					assert.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
					var p map[string]any
					require.NoError(t, json.Unmarshal([]byte(body), &p))
					want := map[string]any{"type": "about:blank", "title": p["title"], "status": float64(f.status), "code": f.code,
						"detail": p["detail"], "request_id": id}
					if f.retryAfter != "" {
						seconds, err := strconv.ParseInt(f.retryAfter, 10, 64)
						require.NoError(t, err)
						want["retry_after"] = float64(seconds)
					}
					assert.Equal(t, want, p)
					assert.NotEmpty(t, p["title"])
					if f.code != "request_too_large" {
						assert.Equal(t, aiguard.UserMessage(f.err), p["detail"])
					}
				})
			}
		}
	}
}

// checkPage checks that a page is well-formed, has no external references, and allows its own style and script.
func checkPage(t *testing.T, resp *http.Response, body string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(body))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	elements, ids := map[string]int{}, map[string]bool{}
	var nonces, labels []string
	var lang string
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		start, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		elements[start.Name.Local]++
		for _, a := range start.Attr {
			switch a.Name.Local {
			case "nonce":
				nonces = append(nonces, a.Value)
			case "id":
				assert.False(t, ids[a.Value], "id %s twice", a.Value)
				ids[a.Value] = true
			case "aria-labelledby":
				labels = append(labels, a.Value)
			case "lang":
				lang = a.Value
			case "src", "srcset", "action", "style", "onclick":
				t.Errorf("attribute %s: %s", a.Name.Local, a.Value)
			case "href":
				assert.Empty(t, a.Value, "the page links only to itself")
			}
		}
	}
	assert.Equal(t, "en", lang)
	for _, name := range []string{"html", "head", "title", "body", "main", "h1", "style", "script", "footer"} {
		assert.Equal(t, 1, elements[name], name)
	}
	for _, id := range labels {
		assert.True(t, ids[id], "label %s", id)
	}
	assert.Zero(t, elements["link"]+elements["img"]+elements["iframe"])
	for _, part := range []string{"//cdn", "http:", "https:", "url(", "@import", "http-equiv", "<no value>", "transition", "animation"} {
		assert.NotContains(t, body, part)
	}
	for _, part := range []string{"prefers-color-scheme: dark", ":focus-visible", "width=device-width"} {
		assert.Contains(t, body, part)
	}
	require.Len(t, nonces, 2)
	require.Equal(t, nonces[0], nonces[1])
	require.NotEmpty(t, nonces[0])
	csp := resp.Header.Get("Content-Security-Policy")
	assert.Contains(t, csp, "default-src 'none'")
	assert.Contains(t, csp, "script-src 'nonce-"+nonces[0]+"';")
	assert.NotContains(t, csp, "unsafe")
}

func TestPageHasTitleMessageAndRetry(t *testing.T) {
	titles := map[string]string{}
	title := regexp.MustCompile(`<title>(.*)</title>`)
	for _, f := range failures {
		m := title.FindStringSubmatch(bodyOf(t, answerTo(t, "GET", browser, f.err)))
		require.NotNil(t, m, f.name)
		titles[f.name] = m[1]
	}
	assert.Equal(t, "We are very busy right now", titles["overloaded"])
	assert.Equal(t, "We will be right back", titles["closed"])
	assert.Equal(t, "Not available right now", titles["quota"])
	assert.Equal(t, "That took too long", titles["timeout"])
	assert.Equal(t, "That is too much at once", titles["body too large"])
	assert.Equal(t, "Too many requests right now", titles["rate limited"])
	assert.Equal(t, "The AI service has a problem", titles["unavailable"])
	assert.Equal(t, "Something went wrong", titles["unknown"])
}

func TestNonceIsNewForEachPage(t *testing.T) {
	a, b := answerTo(t, "GET", browser, aiguard.ErrClosed), answerTo(t, "GET", browser, aiguard.ErrClosed)
	assert.NotEqual(t, a.Header.Get("Content-Security-Policy"), b.Header.Get("Content-Security-Policy"))
}

func TestResponseFormIsNegotiated(t *testing.T) {
	for accept, html := range map[string]bool{
		"":                                    false,
		"*/*":                                 false,
		browser:                               true,
		"text/html":                           true,
		"TEXT/HTML":                           true,
		"text/*":                              true,
		"text/html;level=1":                   true,
		"application/json":                    false,
		"application/*":                       false,
		"application/problem+json, text/html": false,
		"text/html, application/json":         false,
		"text/html, application/json;q=0.9":   true,
		"text/html;q=0.5, application/json;q=0.4, */*;q=0.1":    true,
		"text/html;q=0.5, application/problem+json; q=0.6":      false,
		"text/html ; q=0.5, */*;q=0.6":                          false,
		"text/html;q=0, */*":                                    false,
		"text/html;q=0":                                         false,
		"*/*;q=0.8, text/html":                                  true,
		"text/*;q=0.9, text/html;q=0.1, application/json;q=0.5": false,
		"text/html;q=nonsense":                                  false,
		"text/html;q=7":                                         false,
		"text/html;q=NaN":                                       false,
		",;,text/html;,":                                        true,
		"image/png":                                             false,
	} {
		resp := answerTo(t, "GET", accept, aiguard.ErrClosed)
		assert.Equal(t, html, strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html"), "Accept: %s", accept)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header["Accept"] = []string{"application/json;q=0.5", "text/html"}
	w := httptest.NewRecorder()
	httpguard.Error(w, r, aiguard.ErrClosed)
	assert.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"), "several header lines")
}

func TestHeadHasNoBody(t *testing.T) {
	for _, accept := range []string{browser, ""} {
		resp := answerTo(t, "HEAD", accept, aiguard.ErrClosed)
		assert.Empty(t, bodyOf(t, resp))
		assert.NotEqual(t, "0", resp.Header.Get("Content-Length"))
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	}
}

func TestOnlyValidRequestIDsAreReused(t *testing.T) {
	for id, sane := range map[string]bool{
		"3f2a-77.B_c": true, strings.Repeat("x", 128): true,
		"": false, strings.Repeat("x", 129): false, "<script>": false, "a b": false, "a\tb": false, "ä": false,
	} {
		resp := answerTo(t, "GET", "", aiguard.ErrClosed, "X-Request-Id", id)
		assert.Equal(t, sane, resp.Header.Get("X-Request-Id") == id, "%q", id)
		assert.NotEmpty(t, resp.Header.Get("X-Request-Id"))
	}
	w := httptest.NewRecorder()
	w.Header().Set("X-Request-Id", "ours")
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("X-Request-Id", "theirs")
	httpguard.Error(w, r, aiguard.ErrClosed)
	assert.Equal(t, []string{"ours"}, w.Header().Values("X-Request-Id"), "the service's own request ID takes precedence")
}

func TestErrorRemovesHeadersOfTheOriginalResponse(t *testing.T) {
	w := httptest.NewRecorder()
	w.Header().Set("Content-Encoding", "gzip")
	w.Header().Set("Content-Length", "7")
	w.Header().Set("Etag", `"x"`)
	w.Header().Set("Vary", "Origin")
	httpguard.Error(w, httptest.NewRequest("GET", "/", nil), aiguard.ErrClosed)
	assert.Empty(t, w.Header().Get("Content-Encoding"))
	assert.Empty(t, w.Header().Get("Etag"))
	assert.Equal(t, strconv.Itoa(w.Body.Len()), w.Header().Get("Content-Length"))
	assert.Equal(t, []string{"Origin", "Accept"}, w.Header().Values("Vary"))
}

func TestNilErrorPanics(t *testing.T) {
	assert.PanicsWithValue(t, "httpguard: Error: nil error", func() {
		httpguard.Error(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), nil)
	})
}

func TestPageIsReplaceable(t *testing.T) {
	own := template.Must(template.New("own").Parse(`<p>{{.Status}} {{.Code}} {{.RequestID}} {{.RetryAfter}}</p><script nonce="{{.Nonce}}"></script>`))
	failing := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { httpguard.Error(w, r, aiguard.ErrQuota) })
	for name, c := range map[string]struct {
		guard aiguard.Config
		want  string
	}{
		"from Limit":              {aiguard.Config{MemoryLimit: 1}, "<p>503 overloaded id-1 10</p>"},
		"from Error in a handler": {aiguard.Config{}, "<p>503 quota_exceeded id-1 0</p>"},
	} {
		for _, timeout := range []time.Duration{0, aiguard.Off} {
			t.Run(name, func(t *testing.T) {
				r := httptest.NewRequest("GET", "/", nil)
				r.Header.Set("Accept", browser)
				r.Header.Set("X-Request-Id", "id-1")
				w := httptest.NewRecorder()
				limited(t, newGuard(t, c.guard), failing, httpguard.Config{Page: own, Timeout: timeout}).ServeHTTP(w, r)
				assert.Contains(t, w.Body.String(), c.want)
				nonce := regexp.MustCompile(`nonce="(\w+)"`).FindStringSubmatch(w.Body.String())
				require.NotNil(t, nonce)
				assert.Contains(t, w.Header().Get("Content-Security-Policy"), "'nonce-"+nonce[1]+"'")
			})
		}
	}
}

func TestBuiltInPageReplacesAFailingPage(t *testing.T) {
	broken := template.Must(template.New("broken").Parse(`half a page {{.NoSuchField}}`))
	var logged bytes.Buffer
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Accept", browser)
	w := httptest.NewRecorder()
	cfg := httpguard.Config{Page: broken, Logger: slog.New(slog.NewTextHandler(&logged, nil))}
	limited(t, newGuard(t, aiguard.Config{MemoryLimit: 1}), ok, cfg).ServeHTTP(w, r)
	assert.NotContains(t, w.Body.String(), "half a page")
	checkPage(t, w.Result(), w.Body.String())
	assert.Contains(t, logged.String(), "Config.Page failed")
}

func TestLogHasOnlyTheRequestIDAndSafeFacts(t *testing.T) {
	for _, f := range failures {
		var logged bytes.Buffer
		failing := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { httpguard.Error(w, r, f.err) })
		cfg := httpguard.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))}
		mux := http.NewServeMux()
		mux.Handle("GET /ask", limited(t, newGuard(t, aiguard.Config{}), failing, cfg))
		r := httptest.NewRequest("GET", "/ask?q=secret", nil)
		r.Header.Set("X-Request-Id", "id-1")
		mux.ServeHTTP(httptest.NewRecorder(), r)
		line := logged.String()
		assert.Equal(t, 1, strings.Count(line, "\n"), line)
		assert.Contains(t, line, "request_id=id-1")
		assert.Contains(t, line, `route="GET /ask"`)
		assert.Contains(t, line, "status="+strconv.Itoa(f.status))
		if k := aiguard.KindOf(f.err); k != "" {
			assert.Contains(t, line, "kind="+string(k))
		}
		assert.NotContains(t, line, "PROVIDER")
		assert.NotContains(t, line, "secret")
	}
}

func TestLogOfAStormOfErrorResponsesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged syncbuf.Buffer
		failing := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			httpguard.Error(w, r, &aiguard.Error{Kind: aiguard.Kind(r.URL.Query().Get("kind"))})
		})
		h := limited(t, newGuard(t, aiguard.Config{}), failing, httpguard.Config{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		send := func(kind aiguard.Kind) {
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/ask?kind="+string(kind), nil))
		}
		for range 100 {
			send(aiguard.ErrOverloaded)
		}
		send(aiguard.ErrTimeout)
		assert.Equal(t, 4, strings.Count(logged.String(), "error response sent"), "three and one of another code")
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Contains(t, logged.String(), `"httpguard: similar lines suppressed" line="httpguard: error response sent" status=503 code=overloaded route="" suppressed=97`)
		send(aiguard.ErrOverloaded)
		assert.Equal(t, 5, strings.Count(logged.String(), "\"httpguard: error response sent\" request_id"), "a new second")
	})
}

func TestErrorResponseShowsNoSecret(t *testing.T) {
	const secret = "SECRET"
	cause := fmt.Errorf("answering %s: %w", secret, &openai.APIError{Code: secret + " key", Type: secret + " type", Message: secret, HTTPStatusCode: 400})
	for _, kind := range []aiguard.Kind{
		aiguard.ErrTimeout, aiguard.ErrOverloaded, aiguard.ErrClosed, aiguard.ErrPromptTooLarge, aiguard.ErrResponseTooLarge,
		aiguard.ErrTruncated, aiguard.ErrRateLimited, aiguard.ErrQuota, aiguard.ErrBudget, aiguard.ErrUnavailable, aiguard.ErrUnauthorized,
		aiguard.ErrRejected, aiguard.ErrInvalidResponse, "",
	} {
		e := &aiguard.Error{Kind: kind, Op: secret, Model: secret, Phase: secret, RequestID: secret, Err: cause}
		for _, err := range []error{e, fmt.Errorf("%s: %w", secret, e), errors.Join(errors.New(secret), e)} {
			for _, accept := range []string{browser, "application/json"} {
				resp := answerTo(t, "POST", accept, err)
				assert.NotContains(t, bodyOf(t, resp), secret, "%s as %s", kind, accept)
				for name, values := range resp.Header {
					assert.NotContains(t, strings.Join(values, " "), secret, name)
				}
			}
		}
	}
}
