package sdktest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// provider is a server with configurable behaviour.
type provider struct {
	url   string
	count atomic.Int64
	reply atomic.Pointer[http.HandlerFunc]
}

func newProvider(t *testing.T, reply http.HandlerFunc) *provider {
	t.Helper()
	p := &provider{}
	p.reply.Store(&reply)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.count.Add(1)
		(*p.reply.Load())(w, r)
	}))
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

// asks reports whether a request asks for a stream, in any API.
func asks(r *http.Request) bool {
	body, _ := io.ReadAll(r.Body)
	return strings.Contains(r.URL.Path, "streamGenerateContent") || strings.Contains(strings.ReplaceAll(string(body), " ", ""), `"stream":true`)
}

func (a api) good(w http.ResponseWriter, r *http.Request) {
	if !asks(r) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, a.answer)
		return
	}
	a.send(w, len(a.events))
}

// send sends the first n events of a stream.
func (a api) send(w http.ResponseWriter, n int) {
	w.Header().Set("Content-Type", a.media)
	for _, e := range a.events[:n] {
		_, _ = io.WriteString(w, e)
		_ = http.NewResponseController(w).Flush()
	}
}

// cut sends two events, then breaks the connection.
func (a api) cut(w http.ResponseWriter, r *http.Request) {
	asks(r)
	a.send(w, 2)
	panic(http.ErrAbortHandler)
}

func (a api) fail(status int) http.HandlerFunc {
	body := a.errorBody
	if strings.Contains(body, "%d") {
		body = fmt.Sprintf(body, status)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		asks(r)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Request-Id", "req_1")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) {
	asks(r)
	<-r.Context().Done()
}
