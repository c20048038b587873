package httpguard_test

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/pipe"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func newGuard(t testing.TB, cfg aiguard.Config) *aiguard.Guard {
	t.Helper()
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g
}

// limited wraps next in its own Limit.
func limited(t testing.TB, g *aiguard.Guard, next http.Handler, cfg httpguard.Config) http.Handler {
	t.Helper()
	limit, err := httpguard.Limit(g, cfg)
	require.NoError(t, err)
	return limit(next)
}

// site is an in-memory server in virtual time that speaks one protocol.
type site struct {
	client *http.Client
	log    *syncbuf.Buffer // ErrorLog of the http.Server
}

// eachProtocol runs f in a synctest bubble for HTTP/1.1 and for HTTP/2. serve starts a site.
func eachProtocol(t *testing.T, f func(t *testing.T, serve func(http.Handler) *site)) {
	t.Helper()
	for name, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f(t, func(h http.Handler) *site { return serve(t, h, http2) })
			})
		})
	}
}

func serve(t *testing.T, h http.Handler, http2 bool) *site {
	t.Helper()
	s := &site{log: &syncbuf.Buffer{}}
	tr, stop := pipe.Serve(&http.Server{Handler: h, ErrorLog: log.New(s.log, "", 0)}, http2)
	t.Cleanup(stop)
	s.client = &http.Client{Transport: tr}
	return s
}

// reply is a response as the client sees it.
type reply struct {
	*http.Response
	body string
	err  error // from the request or from reading the body
	took time.Duration
}

func (s *site) do(ctx context.Context, method, accept string, body io.Reader) reply {
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, method, "http://site/ask", body)
	if err != nil {
		return reply{err: err}
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return reply{err: err, took: time.Since(start)}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp, string(b), err, time.Since(start)}
}

func (s *site) get(t *testing.T) reply {
	t.Helper()
	return s.do(t.Context(), http.MethodGet, "", nil)
}

// async runs f in a goroutine and returns a channel with its result.
func async[T any](f func() T) <-chan T {
	c := make(chan T, 1)
	go func() { c <- f() }()
	return c
}

const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"

// problemOf checks that r is a complete error response for an API client, and returns its Problem.
func problemOf(t *testing.T, r reply, status int, code string) httpguard.Problem {
	t.Helper()
	require.NoError(t, r.err)
	require.Equal(t, status, r.StatusCode)
	require.Equal(t, "application/problem+json", r.Header.Get("Content-Type"))
	var p httpguard.Problem
	require.NoError(t, json.Unmarshal([]byte(r.body), &p))
	assert.Equal(t, status, p.Status)
	assert.Equal(t, code, p.Code)
	assert.Equal(t, r.Header.Get("X-Request-Id"), p.RequestID)
	assert.NotEmpty(t, p.RequestID)
	return p
}

// ok is a handler that responds at once.
var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })

// stuck is a handler that ignores its context until it is released, and then writes.
type stuck struct {
	entered chan struct{}
	release chan struct{}
	wrote   chan error
}

func newStuck() *stuck {
	return &stuck{make(chan struct{}, 100), make(chan struct{}), make(chan error, 100)}
}

func (s *stuck) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.entered <- struct{}{}
	<-s.release
	w.Header().Set("X-Late", "yes")
	_, err := w.Write([]byte("too late"))
	s.wrote <- err
}
