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

// Request is what the server received. It is shared by the reply, the journal
// and everyone who reads the journal: do not change it.
type Request struct {
	Number int       // 1 for the first request since Start; the answer's X-Request-Id (Anthropic: Request-Id) is req_fake_1
	Time   time.Time // when its headers had arrived
	Method string
	Path   string // without the query
	Query  url.Values
	Host   string
	Proto  string // HTTP/1.1 or HTTP/2.0
	Header http.Header
	Body   []byte // whole, or as much as arrived before the client left; at most 64 MiB

	Model  string // that it is for
	Stream bool   // it asks for a stream

	ctx context.Context
	ex  *exchange
}

// newRequest is hr as it arrives, its body still to be read.
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

// Context returns the request's context. It is cancelled when the client
// leaves and when the server is closed; every Reply that waits must heed it.
func (r *Request) Context() context.Context {
	if r.ctx == nil {
		return context.Background()
	}
	return r.ctx
}

// parse reads the model and whether a stream is asked for: from the JSON body,
// unless the API has them elsewhere. Other bodies (forms, broken JSON) say
// neither.
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

// exchange is the state of one request's answer. A Request made by hand, for
// calling a Reply without a server, has none: all methods allow for that.
type exchange struct {
	conn     *conn
	onConn   int64       // which of the connection's requests it is, from 1
	failed   atomic.Bool // a read or write did
	complete atomic.Bool // nothing of the answer is left to send after the current write
	aborted  atomic.Bool // the reply cuts it short, with the client still there
}

// finishing says that the next write is the answer's last. A client may leave
// as soon as it has that, before the reply has returned: it missed nothing.
func (r *Request) finishing() {
	if r.ex != nil {
		r.ex.complete.Store(r.Context().Err() == nil)
	}
}

// unfinished takes finishing back: the body goes on after all.
func (r *Request) unfinished() {
	if r.ex != nil {
		r.ex.complete.Store(false)
	}
}

// aborting says that the reply is about to cut the answer short. What the
// client does after that is no longer its own decision.
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

// recorder is the ResponseWriter that replies get. It notices when the client
// no longer takes what is written.
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
