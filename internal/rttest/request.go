package rttest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
)

// requestCases check what is sent.
var requestCases = []contractCase{
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
		req.URL.Host = "127.0.0.1:1" // no listener
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

	{"Expect: 100-continue holds the body back", true, func(b *bench) {
		b.serve(func(w http.ResponseWriter, r *http.Request) { // responds without reading the body
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
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
