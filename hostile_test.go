package aiguard_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/linear"
)

// What a user of a service can put into a request must cost no more for each byte when there are more of them. The limits of
// prompts are off: they would spare the work.
func TestWorkForARequestGrowsWithItsBytes(t *testing.T) {
	g := newGuard(t, aiguard.Config{MaxPromptChars: aiguard.Off, MaxOutputTokens: 100, Retry: aiguard.Retry{MaxAttempts: 1}})
	rt := g.Transport(roundTripper(func(req *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, req.Body)
		return &http.Response{StatusCode: http.StatusNoContent, Request: req, Header: http.Header{}, Body: http.NoBody}, nil
	}))
	nested := func(open, end string) func(int) string {
		return func(size int) string {
			n := size / (len(open) + len(end))
			return `{"model":"m","messages":[{"role":"user","content":` + strings.Repeat(open, n) + "1" + strings.Repeat(end, n) + `}]}`
		}
	}
	many := func(unit string) func(int) string {
		return func(size int) string {
			return `{"model":"m","messages":[` + strings.Repeat(unit+",", size/len(unit)) + unit + `]}`
		}
	}
	for name, body := range map[string]func(size int) string{
		"model":         func(size int) string { return `{"model":"` + strings.Repeat("m", size) + `","messages":[]}` },
		"escaped model": func(size int) string { return `{"model":"` + strings.Repeat(`\u006d`, size/6) + `","messages":[]}` },
		"models":        func(size int) string { return `{` + strings.Repeat(`"model":"m",`, size/12) + `"messages":[]}` },
		"text": func(size int) string {
			return `{"model":"m","messages":[{"content":"` + strings.Repeat("x", size) + `"}]}`
		},
		"escaped text": func(size int) string {
			return `{"model":"m","messages":[{"content":"` + strings.Repeat(`\n`, size/2) + `"}]}`
		},
		"messages":       many(`{"role":"user","content":"x"}`),
		"empty messages": many(`{}`),
		"nested arrays":  nested("[", "]"),
		"nested objects": nested(`{"a":`, "}"),
		"nested data":    nested(`{"data":`, "}"),
		"open arrays":    func(size int) string { return `{"model":"m","messages":` + strings.Repeat("[", size) },
		"output limits": func(size int) string {
			return `{"model":"m",` + strings.Repeat(`"max_tokens":999,`, size/17) + `"messages":[]}`
		},
		"long number": func(size int) string {
			return `{"model":"m","max_tokens":` + strings.Repeat("9", size) + `,"messages":[]}`
		},
		"stream, then not": func(size int) string {
			return `{` + strings.Repeat(`"stream":true,"stream":false,`, size/29) + `"model":"m"}`
		},
		"spaces":  func(size int) string { return strings.Repeat(" ", size) + `{"model":"m","messages":[]}` },
		"no JSON": func(size int) string { return strings.Repeat("\x00", size) },
	} {
		for _, path := range []string{"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/v2/chat", "/api/chat", "/model/m/converse"} {
			t.Run(name+path, func(t *testing.T) {
				linear.Check(t, 40, func(size int) (int, func()) {
					text := body(size)
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example"+path, strings.NewReader(text))
					require.NoError(t, err)
					req.Header.Set("Content-Type", "application/json")
					return len(text), func() {
						if resp, err := rt.RoundTrip(req); err == nil {
							resp.Body.Close()
						}
					}
				})
			})
		}
	}
}

// The path and the headers of a request, which a proxy may take from its own client, likewise.
func TestWorkForPathAndHeadersGrowsWithTheirBytes(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	rt := g.Transport(roundTripper(func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusNoContent, Request: req, Header: http.Header{}, Body: http.NoBody}, nil
	}))
	for name, request := range map[string]func(size int) (path, header, value string){
		"model in the path": func(size int) (string, string, string) {
			return "/v1beta/models/" + strings.Repeat("m", size) + ":generateContent", "", ""
		},
		"slashes": func(size int) (string, string, string) {
			return strings.Repeat("/v1", size/3) + "/chat/completions", "", ""
		},
		"deployments": func(size int) (string, string, string) {
			return strings.Repeat("/deployments/m", size/14) + "/chat/completions", "", ""
		},
		"query": func(size int) (string, string, string) {
			return "/v1/models?" + strings.Repeat("stream=true&", size/12), "", ""
		},
		"Accept": func(size int) (string, string, string) {
			return "/v1/chat/completions", "Accept", strings.Repeat("text/event-stream;q=0,", size/22)
		},
		"empty ranges": func(size int) (string, string, string) {
			return "/v1/chat/completions", "Accept", strings.Repeat(",", size)
		},
		"Content-Type": func(size int) (string, string, string) {
			return "/v1/images/edits", "Content-Type", "multipart/form-data; " + strings.Repeat("a=b; ", size/5)
		},
		"count of SDK's repeat": func(size int) (string, string, string) {
			return "/v1/chat/completions", "X-Stainless-Retry-Count", strings.Repeat("1", size)
		},
	} {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 40, func(size int) (int, func()) {
				path, header, value := request(size)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example"+path, strings.NewReader("{}"))
				require.NoError(t, err)
				if header != "" {
					req.Header.Set(header, value)
				}
				return size, func() {
					if resp, err := rt.RoundTrip(req); err == nil {
						resp.Body.Close()
					}
				}
			})
		})
	}
}

// A user of a service chooses its model and perhaps its tenant: of as many as there may be, what is kept is bounded.
func TestWhatIsKeptOfCallersNamesIsBounded(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	c := g.Client(openai.ClientConfig{BaseURL: "http://provider.example/v1", HTTPClient: doer{roundTripper(func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusTooManyRequests, Request: req, Header: http.Header{"Retry-After": {"3600"}}, Body: http.NoBody}, nil
	})}})
	long := strings.Repeat("x", 4<<10)
	name := func(i int) string { return time.Duration(i).String() + long }
	call := func(i int) {
		ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: name(i)[:256]})
		require.Error(t, askModel(ctx, c, name(i)))
	}
	for i := range 2000 {
		call(i)
	}
	before := liveHeap()
	for i := range 8000 {
		call(2000 + i)
	}
	require.Less(t, liveHeap(), before+8<<20, "what is kept of 10,000 models and tenants is no more than of 2,000")
	require.LessOrEqual(t, len(g.Routes()), 1100)
}
