package rttest

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// responseCases check the response.
var responseCases = []contractCase{
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
}
