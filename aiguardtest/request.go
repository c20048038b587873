package aiguardtest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// Request is a request that the server received. The reply, the journal and all readers of the journal share it. Do not
// change it.
type Request struct {
	Number int       // 1 for the first request since Start; the answer's X-Request-Id (Anthropic: Request-Id) is req_fake_1
	Time   time.Time // arrival of its headers
	Method string
	Path   string // without the query
	Query  url.Values
	Host   string
	Proto  string // HTTP/1.1 or HTTP/2.0
	Header http.Header
	Body   []byte // whole, or the part that arrived before the client left; at most 64 MiB

	Model  string // model requested
	Stream bool   // requests a stream

	ctx context.Context
	ex  *exchange
}

// newRequest returns a Request for hr without its body.
func newRequest(hr *http.Request) *Request {
	return &Request{
		Time:   time.Now(),
		Method: hr.Method,
		Path:   hr.URL.Path,
		Query:  hr.URL.Query(),
		Host:   hr.Host,
		Proto:  hr.Proto,
		Header: hr.Header,
		ctx:    hr.Context(),
	}
}

// Context returns the request's context. It ends when the client leaves or the server is closed. A Reply that waits
// must stop when it ends.
func (r *Request) Context() context.Context {
	if r.ctx == nil {
		return context.Background()
	}
	return r.ctx
}

// parse reads the model and the stream flag from the JSON body, unless the API has them elsewhere. Forms and broken
// JSON have neither.
func (r *Request) parse() {
	var body struct {
		Model  string `json:"model"`
		Stream *bool  `json:"stream"`
	}
	if len(r.Body) > 0 && r.Body[0] == '{' && json.Unmarshal(r.Body, &body) != nil {
		body.Model, body.Stream = "", nil
	}
	d := dialectOf(r)
	r.Model, r.Stream = body.Model, d.streams
	if d.model != "" {
		r.Model = d.model
	} else if body.Stream != nil {
		r.Stream = *body.Stream
	}
}

// exchange is the state of one request's answer. A Request made without a server has none, and all methods allow for
// that.
type exchange struct {
	conn     *conn
	onConn   int64       // number of the request on its connection, from 1
	failed   atomic.Bool // a read or write failed
	complete atomic.Bool // the current write is the last of the answer
	aborted  atomic.Bool // the reply cuts the answer short while the client is connected
}

// finishing marks the next write as the last of the answer. A client may leave after that write and before the reply
// returns. That does not count as a disconnect.
func (r *Request) finishing() {
	if r.ex != nil {
		r.ex.complete.Store(r.Context().Err() == nil)
	}
}

// unfinished undoes finishing, because the body continues.
func (r *Request) unfinished() {
	if r.ex != nil {
		r.ex.complete.Store(false)
	}
}

// aborting marks the answer as cut short by the reply. After that the client's departure does not count as a
// disconnect.
func (r *Request) aborting() {
	if r.ex != nil {
		r.ex.aborted.Store(!r.left())
	}
}

func (r *Request) isFinishing() bool { return r.ex != nil && r.ex.complete.Load() }

// left reports whether the client left before the answer was complete.
func (r *Request) left() bool {
	switch {
	case r.ex.aborted.Load(), r.ex.conn != nil && r.ex.conn.ended.Load():
		return false
	case r.ex.failed.Load():
		return true
	}
	return r.ctx.Err() != nil && !r.ex.complete.Load()
}

// recorder is the ResponseWriter of replies. It records failed writes.
type recorder struct {
	http.ResponseWriter
	ex *exchange
}

func (w *recorder) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.note(err)
	return n, err
}

func (w *recorder) Flush() { _ = w.FlushError() }

func (w *recorder) FlushError() error {
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.note(err)
	return err
}

func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) note(err error) {
	// The last two are mistakes of the reply, not of the client.
	if err != nil && !errors.Is(err, http.ErrBodyNotAllowed) && !errors.Is(err, http.ErrContentLength) {
		w.ex.failed.Store(true)
	}
}
