package aiguardtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// Reply is one behaviour of the server: it answers one request. Many requests may use a Reply at once. Replies compose:
// After(time.Second, Text("Hi")). A function of your own can be a Reply. If it waits, it must stop when r.Context()
// ends. To cut the connection, call panic(http.ErrAbortHandler).
type Reply func(w http.ResponseWriter, r *Request)

// ProviderText is part of the message of every Error. It stands for text that a provider writes for its customer. Users
// of the service must never see it.
const ProviderText = "PROVIDER-TEXT do not show this to users"

// JSON answers with the given status and body. headers are name, value pairs. The default Content-Type is
// application/json.
func JSON(status int, body string, headers ...string) Reply {
	if len(headers)%2 != 0 {
		panic("aiguardtest: headers must be name, value pairs")
	}
	return func(w http.ResponseWriter, r *Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		r.finishing()
		if body != "" { // some statuses allow no body
			_, _ = io.WriteString(w, body)
		}
	}
}

// Raw answers with the given status, content type and body.
func Raw(status int, contentType, body string) Reply {
	return JSON(status, body, "Content-Type", contentType)
}

// Error answers with an error in the form of the request's API. Its message contains ProviderText. code is the API's
// identifier of the error: OpenAI's code, Anthropic's type, Gemini's status or reason. Ollama has no codes. An empty
// code stands for the API's code for the status, which is null for OpenAI. headers are name, value pairs, such as
// "Retry-After", "2".
func Error(status int, code string, headers ...string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		d := dialectOf(r)
		message := fmt.Sprintf("%s (status %d, code %q)", ProviderText, status, code)
		JSON(status, d.body(d.failure(status, code, message)), headers...)(w, r)
	}
}

// Events answers with a stream of these payloads. Each payload is sent as one event in the framing of the request's
// API: for OpenAI "data: payload" and a blank line. Then the body ends. It contains a [DONE] only if the payloads do.
func Events(payloads ...string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		d := dialectOf(r)
		parts := make([]string, len(payloads))
		for i, p := range payloads {
			parts[i] = d.frame(i, p)
		}
		Bytes(parts...)(w, r)
	}
}

// Bytes answers with a stream of exactly these bytes and ends the body. Each part is sent on its own. The content type
// is that of the streams of the request's API.
func Bytes(parts ...string) Reply {
	return func(w http.ResponseWriter, r *Request) {
		startStream(w, r)
		if len(parts) == 0 {
			_ = flush(w)
		}
		for i, p := range parts {
			if i == len(parts)-1 {
				r.finishing()
			}
			if _, err := io.WriteString(w, p); err != nil {
				return
			}
			if err := flush(w); err != nil {
				return
			}
		}
	}
}

// After waits for d before next answers. During the wait it sends nothing, not even headers. If the client leaves
// first, next is not used.
func After(d time.Duration, next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		if wait(r.Context(), d) == nil {
			next(w, r)
		}
	}
}

// HeadersThen sends status 200 and the content type that the request asks for (a stream's or JSON). It waits for d,
// then lets next write the body. The status and headers of next are dropped. If the client leaves first, next is not
// used.
func HeadersThen(d time.Duration, next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		if r.Stream {
			startStream(w, r)
		} else {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusOK)
		}
		if flush(w) == nil && wait(r.Context(), d) == nil {
			next(&bodyWriter{w, http.Header{}}, r)
		}
	}
}

// Slowly waits for d before each Write of next, and sends the bytes at once. The built-in streams write one event at a
// time. Other answers write their whole body. Slowly ends when the client leaves.
func Slowly(d time.Duration, next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		next(&slowWriter{w, r, d}, r)
	}
}

// Then answers each request with the next of its replies. After the last reply it repeats that reply. Use it if the
// single script of Enqueue is not enough: for one model, or inside another reply. A Then counts all its requests, even
// across servers.
func Then(first Reply, more ...Reply) Reply {
	replies := append([]Reply{first}, more...)
	var reached atomic.Int64
	return func(w http.ResponseWriter, r *Request) {
		n := min(reached.Add(1), int64(len(replies)))
		replies[n-1](w, r)
	}
}

// FailFirst answers the first n requests with fail and all others with ok. It counts as Then does.
func FailFirst(n int, fail, ok Reply) Reply {
	var reached atomic.Int64
	return func(w http.ResponseWriter, r *Request) {
		if reached.Add(1) <= int64(n) {
			fail(w, r)
		} else {
			ok(w, r)
		}
	}
}

// wait waits for d. If ctx ends first, it returns the error of ctx.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func flush(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() }

// startStream sets the headers of a stream of the request's API.
func startStream(w http.ResponseWriter, r *Request) {
	d := dialectOf(r)
	w.Header().Set("Content-Type", d.media)
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
}

// bodyWriter drops the status and headers, because they were already sent.
type bodyWriter struct {
	http.ResponseWriter
	dropped http.Header
}

func (w *bodyWriter) Header() http.Header         { return w.dropped }
func (w *bodyWriter) WriteHeader(int)             {}
func (w *bodyWriter) Flush()                      { _ = flush(w.ResponseWriter) }
func (w *bodyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// slowWriter waits before each write and flushes after it.
type slowWriter struct {
	http.ResponseWriter
	r *Request
	d time.Duration
}

func (w *slowWriter) Write(p []byte) (int, error) {
	// finishing may be undone before the wait is over.
	last := w.r.isFinishing()
	w.r.unfinished()
	if err := wait(w.r.Context(), w.d); err != nil {
		return 0, err
	}
	if last {
		w.r.finishing()
	}
	n, err := w.ResponseWriter.Write(p)
	if err != nil || last { // the last part is sent when the reply returns
		return n, err
	}
	return n, flush(w.ResponseWriter)
}

func (w *slowWriter) Flush()                      { _ = flush(w.ResponseWriter) }
func (w *slowWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// object is a JSON object with a fixed order of fields, as names and values in turn. Providers send "type" and "id"
// first, and some clients read only those.
type object []any

func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i := 0; i < len(o); i += 2 {
		if i > 0 {
			b = append(b, ',')
		}
		for j, sep := range []byte{':', 0} {
			v, err := json.Marshal(o[i+j])
			if err != nil {
				return nil, err
			}
			b = append(b, v...)
			if sep != 0 {
				b = append(b, sep)
			}
		}
	}
	return append(b, '}'), nil
}

// encode is json.Marshal for values that cannot fail.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("aiguardtest: " + err.Error())
	}
	return string(b)
}
