// Package httpguard is the web edge of an aiguard.Guard: limits on the routes that call a model, error answers that
// people and programs understand, and health probes.
//
//	limit, err := httpguard.Limit(guard, httpguard.Config{})
//	mux.Handle("POST /ask", limit(http.HandlerFunc(ask)))
//	mux.Handle("GET /livez", httpguard.Livez())
//	mux.Handle("GET /readyz", ready) // ready, err := httpguard.Readyz(guard, httpguard.HealthConfig{})
//
// In a handler, Error answers for whatever went wrong:
//
//	resp, err := client.CreateChatCompletion(r.Context(), req)
//	if err != nil {
//		httpguard.Error(w, r, err)
//		return
//	}
//
// Most programs need Limit and Error alone.
package httpguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard"
)

// The defaults of Config.
const (
	DefaultTimeout           = 55 * time.Second // below the usual 60 s of proxies
	DefaultConcurrencyFactor = 4                // Config.MaxConcurrent is this many times the guard's
	DefaultMaxQueue          = 50
	DefaultQueueTimeout      = 5 * time.Second
	DefaultMaxBodyBytes      = 1 << 20
)

// LastWord is how much longer than its time limit a handler may write that had begun its answer: time for a last
// server-sent event that says what happened.
const LastWord = time.Second

// TimeoutHeader is the request header in which a client says how long it will wait for the whole answer: in seconds, such
// as 20 or 1.5, or as a duration, such as 1500ms. It only shortens a request's time limit, also with Timeout Off, where
// it ends the handler's context alone. A value that is not a positive duration is ignored.
const TimeoutHeader = "X-Request-Timeout"

// Config configures Limit. The zero value is valid. In each field zero means the default stated there, aiguard.Off (-1)
// no such bound.
type Config struct {
	// Timeout is for a whole request, from its arrival, the queue included. Each Flush of the handler that succeeds gives a
	// streamed answer as much time again, so that it is not cut while it makes progress. 55s
	//
	// An http.Server's WriteTimeout has to be longer, or it cuts the answer that tells the client.
	Timeout time.Duration

	// StreamTimeout is for a whole request whose answer is streamed. With Timeout here too, no progress extends that. The
	// guard's StreamTimeout
	StreamTimeout time.Duration

	// MaxConcurrent is how many requests are handled at once. 4 times the guard's; none where the guard has none
	MaxConcurrent int

	MaxQueue     int           // requests waiting to be handled; more are refused at once. 50
	QueueTimeout time.Duration // waiting to be handled. 5s
	MaxBodyBytes int64         // of a request. 1 MiB

	// Page replaces the HTML page of error answers, those of Error in the handler included. It is executed with a
	// Problem; if it fails the built-in page is sent. Its style and script elements need nonce="{{.Nonce}}"; images,
	// fonts and style sheets may come from the same origin. The built-in page
	Page *template.Template

	// Logger gets the error answers, with request id and facts, and handlers that ignored their time limit; never a
	// URL, a prompt, an answer or a key. Silent
	Logger *slog.Logger
}

// Limit returns middleware that bounds the requests of the handlers given to it. The handlers share one concurrency limit and
// its queue: call Limit again for a route with limits of its own. A request over a limit is answered as Error does: at once if its body is announced as too large, the guard is draining or
// over its memory limit, or the queue is full; else when its time is over.
//
// The handler runs in a goroutine of its own, so that a client gets its answer at Timeout even from a handler that
// ignores its context:
//
//   - If the handler has written nothing, the client gets 504 at that moment. Nothing that the handler writes
//     later is sent, and its place in MaxConcurrent stays taken until it returns.
//   - If it has begun its answer, that answer is never completed: HTTP/1 clients see the connection end too early,
//     HTTP/2 clients a reset of the stream, at the latest LastWord after the limit, even if the handler ends its answer
//     itself in that time. So nobody takes a half answer for a whole one, and an event stream can say why it ends: what it
//     writes then is sent, flushed or not.
//   - A handler that streams, which is one that flushes, moves the limit with each Flush, up to StreamTimeout.
//   - A hijacked connection belongs to the handler; only its context ends.
//
// The handler's context ends at that limit with an *aiguard.Error of kind ErrTimeout as its cause, and when the client
// leaves, which net/http notices in HTTP/1 once the request's body was read. Reading a body of unknown length beyond
// MaxBodyBytes fails with an *http.MaxBytesError, for which Error answers 413. http.Server.Shutdown does not wait for
// a handler that has outlived its request.
//
// The handler's ResponseWriter streams: it buffers nothing, is an http.Flusher and http.Hijacker, and has all that
// http.ResponseController asks for. It has no Unwrap, which would lead around its lock. A panic of the handler goes on
// in the request's goroutine, as an error with the stack of its origin in its text and, if it was one, the original
// inside; http.ErrAbortHandler goes on unchanged.
//
// With Timeout Off none of this is needed: the handler runs in the request's goroutine, with the server's ResponseWriter.
//
// The error names each field of cfg that is out of range, its value and what is allowed. The middleware panics if it is given
// a nil handler.
func Limit(g *aiguard.Guard, cfg Config) (func(http.Handler) http.Handler, error) {
	if g == nil {
		return nil, errors.New("httpguard: Limit: nil Guard; make it with aiguard.New")
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	limits := g.Config()
	cfg.setDefaults(&limits)
	places := newPlaces(cfg.MaxConcurrent, cfg.MaxQueue, cfg.QueueTimeout)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("httpguard: Limit: nil handler")
		}
		return &handler{guard: g, next: next, cfg: cfg, places: places}
	}, nil
}

func (c *Config) validate() error {
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("httpguard: Config.%s is %v; want a positive %s, 0 for the default, or aiguard.Off",
				field, value, want))
		}
	}
	check(c.Timeout >= aiguard.Off, "Timeout", c.Timeout, "duration")
	check(c.StreamTimeout >= aiguard.Off, "StreamTimeout", c.StreamTimeout, "duration")
	check(c.MaxConcurrent >= aiguard.Off, "MaxConcurrent", c.MaxConcurrent, "number")
	check(c.MaxQueue >= aiguard.Off, "MaxQueue", c.MaxQueue, "number")
	check(c.QueueTimeout >= aiguard.Off, "QueueTimeout", c.QueueTimeout, "duration")
	check(c.MaxBodyBytes >= aiguard.Off, "MaxBodyBytes", c.MaxBodyBytes, "number")
	return errors.Join(errs...)
}

// setDefaults takes some from the guard's settings.
func (c *Config) setDefaults(limits *aiguard.Config) {
	capacity := limits.MaxConcurrent
	if capacity != aiguard.Off {
		capacity *= DefaultConcurrencyFactor
	}
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.StreamTimeout = cmp.Or(c.StreamTimeout, limits.StreamTimeout)
	c.MaxConcurrent = cmp.Or(c.MaxConcurrent, int(capacity))
	c.MaxQueue = cmp.Or(c.MaxQueue, DefaultMaxQueue)
	c.QueueTimeout = cmp.Or(c.QueueTimeout, DefaultQueueTimeout)
	c.MaxBodyBytes = cmp.Or(c.MaxBodyBytes, DefaultMaxBodyBytes)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// handler bounds the requests of next.
type handler struct {
	guard  *aiguard.Guard
	next   http.Handler
	cfg    Config
	places *places
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := newExchange(w, r)
	x.page, x.log = h.cfg.Page, h.cfg.Logger
	r = r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x))
	var limit *limit
	waiting := r.Context()
	if waits := patience(r, h.cfg.Timeout); h.cfg.Timeout != aiguard.Off || waits > 0 {
		limit = newLimit(&h.cfg, x.route, waits)
		var cancel context.CancelFunc
		waiting, cancel = context.WithDeadlineCause(waiting, limit.at, limit.err)
		defer cancel()
	}
	if err := h.admit(waiting, r, x); err != nil {
		x.limitRest(w)
		x.answerWith(w, err)
		return
	}
	if h.cfg.MaxBodyBytes != aiguard.Off {
		// Without w, which it would use when ServeHTTP may have returned; Error closes the connection in its place.
		r.Body = http.MaxBytesReader(nil, r.Body, h.cfg.MaxBodyBytes)
	}
	if h.cfg.Timeout == aiguard.Off {
		r = r.WithContext(waiting)
		defer h.leave(r, time.Now())
		h.next.ServeHTTP(w, r)
		return
	}
	h.runWithin(limit, w, r, x)
}

// admit refuses what must not or cannot begin now, and else takes a place, for leave to give back.
func (h *handler) admit(ctx context.Context, r *http.Request, x *exchange) error {
	if bound := h.cfg.MaxBodyBytes; bound != aiguard.Off && r.ContentLength > bound {
		return &http.MaxBytesError{Limit: bound}
	}
	switch st := h.guard.Stats(); {
	case st.Draining:
		return &aiguard.Error{Kind: aiguard.ErrClosed, Op: x.route}
	case st.OverMemory:
		return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: x.route, Phase: "memory", Size: st.HeapBytes, Max: st.MemoryLimit}
	}
	return h.places.enter(ctx, x.route)
}

// leave ends what admit and the handler have begun. The server removes the files of a form only if it was parsed in the
// request that it made, of which r is a copy.
func (h *handler) leave(r *http.Request, entered time.Time) {
	h.places.leave(time.Since(entered))
	if r.MultipartForm != nil {
		_ = r.MultipartForm.RemoveAll()
	}
}
