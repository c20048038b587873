package cacheguard_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

const (
	certain       = `{"model":"m","temperature":0,"messages":[{"role":"user","content":"Hi"}]}`
	certainStream = `{"model":"m","temperature":0,"stream":true,"messages":[{"role":"user","content":"Hi"}]}`
	dice          = `{"model":"m","messages":[{"role":"user","content":"Hi"}]}`
)

// world is a cache in front of a guard and a fake provider.
type world struct {
	cache *cacheguard.Transport
	guard *aiguard.Guard
	srv   *aiguardtest.Server
}

func newWorld(t testing.TB, srv *aiguardtest.Server, cfg cacheguard.Config) *world {
	t.Helper()
	return newGuardedWorld(t, srv, cfg, aiguard.Config{})
}

func newGuardedWorld(t testing.TB, srv *aiguardtest.Server, cfg cacheguard.Config, gcfg aiguard.Config) *world {
	t.Helper()
	g, err := aiguard.New(gcfg)
	require.NoError(t, err)
	base := srv.Transport()
	cache, err := cacheguard.New(g.Transport(base), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, cache.Close())
		require.Zero(t, cache.Stats().InFlight)
		require.Zero(t, g.Stats().InFlight, "leaked slots")
		require.NoError(t, g.Close())
		base.CloseIdleConnections()
	})
	return &world{cache, g, srv}
}

// inVirtualTime runs f in a synctest bubble with an in-memory fake provider.
func inVirtualTime(t *testing.T, cfg cacheguard.Config, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t, newWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cfg))
	})
}

// newRequest returns a POST with an API key, unless headers (name, value pairs) set another credential.
func newRequest(ctx context.Context, url, body string, headers ...string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sk-one")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

// open sends a request to the endpoint as an SDK does.
func (w *world) open(ctx context.Context, endpoint, body string, headers ...string) (*http.Response, error) {
	base := w.srv.URL
	if strings.HasPrefix(endpoint, "/openai/") { // Azure
		base = strings.TrimSuffix(base, "/v1")
	}
	client := &http.Client{Transport: w.cache}
	return client.Do(newRequest(ctx, base+endpoint, body, headers...))
}

// answer is the response that a caller gets.
type answer struct {
	source string // value of Header
	body   string
	header http.Header
	length int64 // Content-Length
	err    error
}

func (w *world) chat(ctx context.Context, body string, headers ...string) answer {
	return w.ask(ctx, "/chat/completions", body, headers...)
}

func (w *world) ask(ctx context.Context, endpoint, body string, headers ...string) answer {
	return read(w.open(ctx, endpoint, body, headers...))
}

// read reads a response to its end.
func read(resp *http.Response, err error) answer {
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if e, ok := callctx.Facts(resp).(*aiguard.Error); ok { // facts of a guard's failure
		err = e
	}
	return answer{resp.Header.Get(cacheguard.Header), string(body), resp.Header, resp.ContentLength, err}
}

// sources calls ask n times in sequence and returns the sources. All answers must be equal.
func (w *world) sources(t *testing.T, n int, ask func() answer) (sources []string) {
	t.Helper()
	first := ""
	for range n {
		a := ask()
		require.NoError(t, a.err)
		sources = append(sources, a.source)
		if first == "" {
			first = a.body
		}
		require.Equal(t, first, a.body)
		w.settle(t)
	}
	return sources
}

// settle waits until all requests, lookups and writes have ended. In a bubble, synctest.Wait is enough.
func (w *world) settle(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return w.cache.Stats().InFlight == 0 }, 5*time.Second, time.Millisecond)
}

// all runs n concurrent callers and returns their answers.
func all(n int, ask func(i int) answer) []answer {
	answers := make([]answer, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { answers[i] = ask(i) })
	}
	wg.Wait()
	return answers
}

// roundTripper is a next that is not a guard.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// reply returns a response with status 200.
func reply(contentType string, body io.Reader) *http.Response {
	rc, ok := body.(io.ReadCloser)
	if !ok {
		rc = io.NopCloser(body)
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {contentType}}, Body: rc, ContentLength: -1}
}

func newTransport(t testing.TB, next http.RoundTripper, cfg cacheguard.Config) *cacheguard.Transport {
	t.Helper()
	cache, err := cacheguard.New(next, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close()) })
	return cache
}
