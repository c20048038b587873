// Package rttest checks that a RoundTripper follows the contract of http.RoundTripper as http.Transport does. It uses
// real sockets.
package rttest

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Options are the differences that a RoundTripper documents.
type Options struct {
	MaxHeaderBytes int  // larger response headers are an error; 0: net/http's 10 MB
	NoRedirects    bool // a redirect is an error
	ReadsBodies    bool // a request's body may be read before it is sent
	// Path and Body describe a POST that the RoundTripper handles specially, and Answer is a JSON answer to it.
	Path, Body, Answer string
}

// patience is how long a case waits for something that should happen at once.
const patience = 5 * time.Second

// T is the part of *testing.T that a case needs. This package does not import testing, because it ships with the
// library.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
}

// Case checks one part of the contract, on the RoundTripper that wrap makes from a base.
type Case struct {
	Name string
	Run  func(t T, wrap func(base http.RoundTripper) http.RoundTripper)
}

// contractCase is a case over an http.Transport.
type contractCase struct {
	name    string
	special bool // also for requests that the RoundTripper handles specially
	run     func(*bench)
}

// Cases returns the cases that run over an http.Transport.
func Cases(o Options) (all []Case) {
	for _, c := range slices.Concat(requestCases, responseCases, endCases) {
		add := func(name, path string, special bool) {
			all = append(all, Case{name, func(t T, wrap func(http.RoundTripper) http.RoundTripper) {
				b := &bench{T: t, o: o, path: path, special: special}
				b.start(wrap)
				c.run(b)
			}})
		}
		add(c.name, "/v1/files/f/content", false)
		if c.special && o.Path != "" {
			add(c.name+", "+o.Path, o.Path, true)
		}
	}
	return all
}

// bench is the server and the RoundTripper of one case.
type bench struct {
	T
	o       Options
	path    string
	special bool
	rt      http.RoundTripper
	url     string
	handler atomic.Pointer[http.HandlerFunc]
	conns   atomic.Int64 // open at the server
}

func (b *bench) start(wrap func(http.RoundTripper) http.RoundTripper) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*b.handler.Load())(w, r) }))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			b.conns.Add(1)
		case http.StateClosed, http.StateHijacked:
			b.conns.Add(-1)
		}
	}
	srv.Start()
	base := &http.Transport{ExpectContinueTimeout: patience}
	b.Cleanup(func() {
		base.CloseIdleConnections()
		srv.Close()
	})
	b.url = srv.URL + b.path
	b.rt = wrap(base)
	b.serve(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		b.answer(w)
	})
}

func (b *bench) serve(h http.HandlerFunc) { b.handler.Store(&h) }

// answer sends a valid answer.
func (b *bench) answer(w http.ResponseWriter) {
	if b.special {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, b.o.Answer)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.WriteString(w, "plain bytes\n\n")
}

// request returns a POST whose body records its Close.
func (b *bench) request(ctx context.Context) (*http.Request, *body) {
	content := b.o.Body
	if !b.special {
		content = `{"any":"thing"}`
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url, nil)
	b.must(err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer key") // a cache ignores requests without a key
	req.Header["X-Twice"] = []string{"a", "b"}
	closing := &body{Reader: strings.NewReader(content)}
	req.Body, req.ContentLength = closing, int64(len(content))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
	return req, closing
}

type body struct {
	io.Reader
	closed atomic.Bool
}

func (b *body) Close() error {
	b.closed.Store(true)
	return nil
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatalf("%v", err)
	}
}

func (b *bench) check(ok bool, format string, args ...any) {
	b.Helper()
	if !ok {
		b.Errorf(format, args...)
	}
}

// eventually waits until another goroutine has made ok true.
func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	b.Errorf("not within %v: %s", patience, what)
}

// send sends req and checks what must hold for every result.
func (b *bench) send(req *http.Request) (*http.Response, error) {
	b.Helper()
	resp, err := b.rt.RoundTrip(req)
	switch {
	case err != nil:
		b.check(resp == nil, "a response besides the error %v", err)
	case resp == nil:
		b.Fatalf("neither response nor error")
	default:
		b.check(resp.Body != nil && resp.Header != nil, "nil Body or Header")
		b.check(resp.Request != nil && resp.Request.URL.String() == req.URL.String() && resp.Request.Method == req.Method,
			"Response.Request is not the request: %+v", resp.Request)
	}
	return resp, err
}

func (b *bench) read(resp *http.Response) string {
	b.Helper()
	text, err := io.ReadAll(resp.Body)
	b.must(err)
	b.must(resp.Body.Close())
	return string(text)
}

// within fails the case unless f returns in time.
func (b *bench) within(what string, f func()) {
	b.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		b.Fatalf("not within %v: %s", patience, what)
	}
}

type snapshot struct {
	method, url, host, proto string
	length                   int64
	header                   http.Header
	body                     io.ReadCloser
	ctx                      context.Context
}

func snap(req *http.Request) snapshot {
	return snapshot{req.Method, req.URL.String(), req.Host, req.Proto, req.ContentLength, maps.Clone(req.Header), req.Body, req.Context()}
}
