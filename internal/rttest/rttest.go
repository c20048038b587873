// Package rttest checks that a RoundTripper keeps the contract of http.RoundTripper as http.Transport keeps it. It runs over
// real sockets.
package rttest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options are the differences that a RoundTripper documents.
type Options struct {
	MaxHeaderBytes int  // response headers above are an error; 0: net/http's 10 MB
	NoRedirects    bool // a redirect is an error
	ReadsBodies    bool // a request's body may be read before it is sent
	// Path and Body are those of a POST that the RoundTripper treats in its own way, and Answer is a JSON answer to it.
	Path, Body, Answer string
}

// patience is how long a case waits for what must happen at once.
const patience = 5 * time.Second

// T is what a case needs of a *testing.T: a package that ships must not import testing.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(func())
	Context() context.Context
}

// Case checks one part of the contract on the RoundTripper that wrap makes of a base.
type Case struct {
	Name string
	Run  func(t T, wrap func(base http.RoundTripper) http.RoundTripper)
}

// Cases returns the cases over an http.Transport.
func Cases(o Options) (all []Case) {
	for _, c := range cases {
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

// bench is one case's server and RoundTripper.
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

// answer sends a good answer.
func (b *bench) answer(w http.ResponseWriter) {
	if b.special {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, b.o.Answer)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.WriteString(w, "plain bytes\n\n")
}

// request is a POST whose body notes its Close.
func (b *bench) request(ctx context.Context) (*http.Request, *body) {
	content := b.o.Body
	if !b.special {
		content = `{"any":"thing"}`
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url, nil)
	b.must(err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer key") // without one a cache does not take part
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

// eventually waits for what another goroutine does.
func (b *bench) eventually(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	b.Errorf("not within %v: %s", patience, what)
}

// send sends req and checks what holds for each pair of results.
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

var cases = []struct {
	name    string
	special bool // also for the RoundTripper's own kind of request
	run     func(*bench)
}{
	{"the request is not changed and its body is closed", true, func(b *bench) {
		fail := func(status int) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }
		}
		for name, h := range map[string]http.HandlerFunc{
			"answer":      *b.handler.Load(),
			"refused":     fail(400),
			"unavailable": fail(501),
			"broken": func(w http.ResponseWriter, r *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					conn.Close()
				}
			},
		} {
			b.serve(h)
			req, body := b.request(b.Context())
			before := snap(req)
			resp, err := b.send(req)
			if err == nil {
				b.read(resp)
			}
			b.check(reflect.DeepEqual(before, snap(req)), "%s: changed from %+v to %+v", name, before, snap(req))
			b.eventually(name+": body closed", body.closed.Load)
		}
		req, body := b.request(b.Context())
		req.URL.Host = "127.0.0.1:1" // nobody listens there
		_, err := b.send(req)
		b.check(err != nil, "connected to port 1")
		b.eventually("refused connection: body closed", body.closed.Load)
	}},

	{"the body of a request that is not sent is closed", true, func(b *bench) {
		ctx, cancel := context.WithCancel(b.Context())
		cancel()
		req, body := b.request(ctx)
		_, err := b.send(req)
		b.check(errors.Is(err, context.Canceled), "got %v", err)
		b.eventually("body closed", body.closed.Load)

		req, body = b.request(b.Context())
		req.URL = nil
		_, err = b.rt.RoundTrip(req)
		b.check(err != nil, "sent without a URL")
		b.eventually("no URL: body closed", body.closed.Load)

		req, body = b.request(b.Context())
		req.Header = nil
		_, err = b.rt.RoundTrip(req)
		b.check(err != nil, "sent without a Header")
		b.eventually("no Header: body closed", body.closed.Load)
	}},

	{"the context ends the wait for an answer", true, func(b *bench) {
		for name, end := range map[string]func(context.Context) (context.Context, context.CancelFunc, error){
			"cancel": func(ctx context.Context) (context.Context, context.CancelFunc, error) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(50*time.Millisecond, cancel)
				return ctx, cancel, context.Canceled
			},
			"deadline": func(ctx context.Context) (context.Context, context.CancelFunc, error) {
				ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
				return ctx, cancel, context.DeadlineExceeded
			},
		} {
			left := make(chan struct{})
			b.serve(func(w http.ResponseWriter, r *http.Request) {
				defer close(left)
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			})
			ctx, cancel, want := end(b.Context())
			req, body := b.request(ctx)
			b.within(name, func() {
				_, err := b.send(req)
				b.check(errors.Is(err, want), "%s: got %v", name, err)
				<-left
			})
			b.eventually("body closed", body.closed.Load)
			cancel()
		}
	}},

	{"the context ends a body that is being read", false, func(b *bench) {
		b.serve(stall("partial"))
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		req, _ := b.request(ctx)
		b.within("end of the body", func() {
			resp, err := b.send(req)
			b.must(err)
			time.AfterFunc(50*time.Millisecond, cancel)
			_, err = io.ReadAll(resp.Body)
			b.check(errors.Is(err, context.Canceled), "got %v", err)
			b.must(resp.Body.Close())
		})
	}},

	{"the Cancel channel ends the wait for an answer", true, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		req, body := b.request(b.Context())
		cancel := make(chan struct{})
		req.Cancel = cancel
		time.AfterFunc(50*time.Millisecond, func() { close(cancel) })
		b.within("end", func() {
			_, err := b.send(req)
			b.check(err != nil, "an answer")
		})
		b.eventually("body closed", body.closed.Load)
	}},

	{"the Timeout of an http.Client is always the same error", true, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		client := &http.Client{Transport: b.rt, Timeout: 20 * time.Millisecond}
		for range 20 {
			req, _ := b.request(b.Context())
			_, err := client.Do(req) //nolint:bodyclose // fails
			var timeout net.Error
			b.check(errors.Is(err, context.DeadlineExceeded) && errors.As(err, &timeout) && timeout.Timeout(), "got %v", err)
		}
	}},

	{"HEAD keeps the length of what it does not send", false, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(100<<20))
			w.Header().Set("Content-Type", "application/json")
		})
		req, err := http.NewRequestWithContext(b.Context(), http.MethodHead, b.url, nil)
		b.must(err)
		req.Header.Set("Accept", "application/json")
		resp, err := b.send(req)
		b.must(err)
		b.check(resp.ContentLength == 100<<20, "ContentLength %d", resp.ContentLength)
		b.check(resp.Header.Get("Content-Length") == strconv.Itoa(100<<20), "header %q", resp.Header.Get("Content-Length"))
		b.check(b.read(resp) == "", "a body")

		b.serve(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "300")
			w.WriteHeader(http.StatusNotFound)
		})
		req, err = http.NewRequestWithContext(b.Context(), http.MethodHead, b.url, nil)
		b.must(err)
		resp, err = b.send(req)
		b.must(err)
		b.check(resp.StatusCode == 404 && resp.ContentLength == 300, "%d, ContentLength %d", resp.StatusCode, resp.ContentLength)
		b.check(b.read(resp) == "", "a body")
	}},

	{"204 and 304 have no body", false, func(b *bench) {
		for _, status := range []int{204, 304} {
			b.serve(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Etag", `"x"`)
				w.WriteHeader(status)
			})
			for _, accept := range []string{"", "application/json"} {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, b.url, nil)
				b.must(err)
				req.Header.Set("If-None-Match", `"x"`)
				req.Header.Set("Accept", accept)
				resp, err := b.send(req)
				b.must(err)
				b.check(resp.StatusCode == status, "status %d", resp.StatusCode)
				b.check(resp.Header.Get("Etag") == `"x"`, "no Etag")
				b.check(b.read(resp) == "", "a body")
			}
		}
	}},

	{"a failure status is a response", true, func(b *bench) {
		for _, status := range []int{400, 401, 404, 418, 501} {
			b.serve(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Mine", "yes")
				w.WriteHeader(status)
				_, _ = io.WriteString(w, `{"error":{"message":"no"}}`)
			})
			req, _ := b.request(b.Context())
			resp, err := b.send(req)
			b.must(err)
			b.check(resp.StatusCode == status && resp.Header.Get("X-Mine") == "yes", "%d %v", resp.StatusCode, resp.Header)
			b.check(resp.Status == fmt.Sprintf("%d %s", status, http.StatusText(status)), "Status %q", resp.Status)
			b.check(b.read(resp) == `{"error":{"message":"no"}}`, "another body")
		}
	}},

	{"informational responses reach the trace", false, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			b.answer(w)
		})
		var seen []int
		ctx := httptrace.WithClientTrace(b.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				seen = append(seen, code)
				return nil
			},
		})
		req, _ := b.request(ctx)
		resp, err := b.send(req)
		b.must(err)
		b.check(resp.StatusCode == 200, "status %d", resp.StatusCode)
		b.read(resp)
		b.check(slices.Equal(seen, []int{103}), "seen %v", seen)
	}},

	{"101 hands over the connection", false, func(b *bench) {
		gone := make(chan struct{})
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			defer close(gone)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello\n")
			for {
				line, err := rw.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, line)
			}
		})
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, b.url, nil)
		b.must(err)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := b.send(req)
		b.must(err)
		b.check(resp.StatusCode == http.StatusSwitchingProtocols, "status %d", resp.StatusCode)
		conn, ok := resp.Body.(io.ReadWriteCloser)
		if !ok {
			b.Fatalf("%T is no ReadWriteCloser", resp.Body)
		}
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		b.check(line == "hello\n" && err == nil, "got %q, %v", line, err)
		_, err = io.WriteString(conn, "echo\n")
		b.must(err)
		line, err = r.ReadString('\n')
		b.check(line == "echo\n" && err == nil, "got %q, %v", line, err)
		b.must(conn.Close())
		b.within("the server sees the end", func() { <-gone })
	}},

	{"trailers are there after the body", false, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			b.answer(w)
			w.Header().Set("X-Sum", "42")
		})
		for _, accept := range []string{"", "application/json"} {
			if accept != "" {
				b.serve(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Trailer", "X-Sum")
					w.Header().Set("Content-Type", "application/json")
					_, _ = io.WriteString(w, `{"a":1}`)
					w.Header().Set("X-Sum", "42")
				})
			}
			req, _ := b.request(b.Context())
			req.Header.Set("Accept", accept)
			resp, err := b.send(req)
			b.must(err)
			b.read(resp)
			b.check(resp.Trailer.Get("X-Sum") == "42", "Trailer %v", resp.Trailer)
		}
	}},

	{"Expect: 100-continue holds the body back", true, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) { // refuses without reading
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusExpectationFailed)
		})
		req, body := b.request(b.Context())
		req.Header.Set("Expect", "100-continue")
		var reads atomic.Int64
		body.Reader = io.TeeReader(body.Reader, writerFunc(func(p []byte) (int, error) { return int(reads.Add(int64(len(p)))), nil }))
		req.GetBody = nil
		resp, err := b.send(req)
		b.must(err)
		b.check(resp.StatusCode == http.StatusExpectationFailed, "status %d", resp.StatusCode)
		b.read(resp)
		b.eventually("body closed", body.closed.Load)
		if !b.special && !b.o.ReadsBodies {
			b.check(reads.Load() == 0, "%d bytes were sent", reads.Load())
		}

		b.serve(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // sends 100 Continue
			b.answer(w)
		})
		req, _ = b.request(b.Context())
		req.Header.Set("Expect", "100-continue")
		resp, err = b.send(req)
		b.must(err)
		b.check(resp.StatusCode == 200, "status %d", resp.StatusCode)
		b.read(resp)
	}},

	{"a request may have no body", false, func(b *bench) {
		for _, body := range []io.ReadCloser{nil, http.NoBody} {
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
				req, err := http.NewRequestWithContext(b.Context(), method, b.url, nil)
				b.must(err)
				req.Body = body
				resp, err := b.send(req)
				b.must(err)
				b.check(b.read(resp) == "plain bytes\n\n", "another body")
			}
		}
	}},

	{"a body of unknown length arrives whole", false, func(b *bench) {
		content := strings.Repeat("0123456789", 100_000)
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			got, err := io.ReadAll(r.Body)
			if err != nil || string(got) != content || r.ContentLength != -1 {
				w.WriteHeader(400)
				return
			}
			b.answer(w)
		})
		req, body := b.request(b.Context())
		body.Reader, req.GetBody, req.ContentLength = strings.NewReader(content), nil, -1
		resp, err := b.send(req)
		b.must(err)
		b.check(resp.StatusCode == 200, "status %d", resp.StatusCode)
		b.read(resp)
	}},

	{"Content-Length stays with a body that is not changed", true, func(b *bench) {
		req, _ := b.request(b.Context())
		resp, err := b.send(req)
		b.must(err)
		text := b.read(resp)
		b.check(resp.ContentLength == int64(len(text)), "ContentLength %d of %d", resp.ContentLength, len(text))
		b.check(resp.Header.Get("Content-Length") == strconv.Itoa(len(text)), "header %q", resp.Header.Get("Content-Length"))
	}},

	{"large headers arrive", true, func(b *bench) {
		large := strings.Repeat("x", 40<<10)
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Large", r.Header.Get("X-Large"))
			b.answer(w)
		})
		req, _ := b.request(b.Context())
		req.Header.Set("X-Large", large)
		resp, err := b.send(req)
		b.must(err)
		b.check(resp.Header.Get("X-Large") == large, "cut to %d bytes", len(resp.Header.Get("X-Large")))
		b.read(resp)

		req, _ = b.request(b.Context())
		req.Header.Set("X-Large", strings.Repeat("x", 200<<10))
		resp, err = b.send(req)
		if limited := b.o.MaxHeaderBytes > 0; limited != (err != nil) {
			b.Errorf("200 KiB of headers: %v", err)
		}
		if err == nil {
			b.read(resp)
		}
	}},

	{"a redirect is not followed", false, func(b *bench) {
		var followed atomic.Bool
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/elsewhere" {
				followed.Store(true)
			}
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		})
		req, _ := b.request(b.Context())
		resp, err := b.send(req)
		b.check(b.o.NoRedirects == (err != nil), "got %v", err)
		if err == nil {
			b.check(resp.StatusCode == http.StatusTemporaryRedirect, "status %d", resp.StatusCode)
			b.read(resp)
		}
		b.check(!followed.Load(), "followed")
	}},

	{"Close may come at any time, more than once and from another goroutine", true, func(b *bench) {
		handler := stall("partial")
		if b.special {
			handler = *b.handler.Load() // an answer that is read whole cannot be stalled
		}
		b.serve(handler)
		req, _ := b.request(b.Context())
		resp, err := b.send(req)
		b.must(err)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, resp.Body) })
		for range 4 {
			wg.Go(func() { _ = resp.Body.Close() })
		}
		b.within("all return", wg.Wait)
		_, err = resp.Body.Read(make([]byte, 1))
		b.check(err != nil, "read after Close")
	}},

	{"closing the body early lets the server know", false, func(b *bench) {
		left := make(chan struct{})
		b.serve(func(w http.ResponseWriter, r *http.Request) {
			defer close(left)
			stall("partial")(w, r)
		})
		req, _ := b.request(b.Context())
		resp, err := b.send(req)
		b.must(err)
		b.must(resp.Body.Close())
		b.within("the server sees it", func() { <-left })
	}},

	{"CloseIdleConnections closes idle connections", true, func(b *bench) {
		req, _ := b.request(b.Context())
		resp, err := b.send(req)
		b.must(err)
		b.read(resp)
		b.check(b.conns.Load() == 1, "%d connections", b.conns.Load())
		(&http.Client{Transport: b.rt}).CloseIdleConnections()
		b.eventually("no connection left", func() bool { return b.conns.Load() == 0 })
	}},

	{"many goroutines may use it", true, func(b *bench) {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				req, _ := b.request(ctx)
				if i%4 == 0 {
					cancel()
				}
				resp, err := b.rt.RoundTrip(req)
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		}
		b.within("all return", wg.Wait)
	}},
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// stall sends a part of an answer and nothing more until the client has left.
func stall(part string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, part)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
}

// BaseCases returns the cases over bases that keep less of the contract than http.Transport: a RoundTripper made of one neither
// panics nor breaks its own. The requests are POSTs of body to path.
func BaseCases(path, body string) (all []Case) {
	for _, c := range bases {
		all = append(all, Case{c.name, func(t T, wrap func(http.RoundTripper) http.RoundTripper) {
			b := &bench{T: t, o: Options{Body: body}, special: true, path: path, url: "http://provider.example" + path}
			b.rt = wrap(roundTripper(c.trip))
			for range 2 {
				req, reqBody := b.request(t.Context())
				before := snap(req)
				resp, err := b.send(req)
				if c.fails != (err != nil) {
					t.Fatalf("got %v", err)
				}
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					b.must(resp.Body.Close())
				}
				b.check(reflect.DeepEqual(before, snap(req)), "changed from %+v to %+v", before, snap(req))
				b.eventually("body closed", reqBody.closed.Load)
			}
		}})
	}
	return all
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// bases are such RoundTrippers.
var bases = []struct {
	name  string
	fails bool
	trip  func(*http.Request) (*http.Response, error)
}{
	{"nil Response", true, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return nil, nil //nolint:nilnil // that is the case
	}},
	{"nil Body", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200, Header: http.Header{}, Request: req}, nil
	}},
	{"nil Header", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader([]byte("x"))), ContentLength: -1}, nil
	}},
	{"nothing but a status", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200}, nil
	}},
	{"nothing but a failure status", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 404}, nil
	}},
	{"a response and an error", true, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		return &http.Response{StatusCode: 200, Body: http.NoBody}, errors.New("broken")
	}},
	{"edits its request", false, func(req *http.Request) (*http.Response, error) {
		req.Body.Close()
		if len(req.Header.Values("X-Signature")) > 0 || req.URL.RawQuery != "" {
			return nil, errors.New("signed twice")
		}
		req.Header.Add("X-Signature", "s")
		req.URL.RawQuery = "signed=1"
		return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
	}},
}
