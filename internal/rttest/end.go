package rttest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// endCases check how an exchange ends: by its context, its Timeout or Close.
var endCases = []contractCase{
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

// stall sends a part of an answer and then nothing until the client disconnects.
func stall(part string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, part)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
}
