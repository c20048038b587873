// Package httpguard limits the HTTP routes that call a model through an aiguard.Guard. It also writes error responses
// for people and programs, and serves health probes.
//
//	limit, err := httpguard.Limit(guard, httpguard.Config{})
//	mux.Handle("POST /ask", limit(http.HandlerFunc(ask)))
//	mux.Handle("GET /livez", httpguard.Livez())
//	mux.Handle("GET /readyz", ready) // ready, err := httpguard.Readyz(guard, httpguard.HealthConfig{})
//
// In a handler, Error writes the response for any error:
//
//	resp, err := client.CreateChatCompletion(r.Context(), req)
//	if err != nil {
//		httpguard.Error(w, r, err)
//		return
//	}
//
// Most programs need only Limit and Error.
package httpguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"math"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/storm"
)

// The defaults of Config.
const (
	DefaultTimeout           = 55 * time.Second // below the usual 60 s of proxies
	DefaultConcurrencyFactor = 4                // times the guard's MaxConcurrent
	DefaultMaxQueue          = 50
	DefaultQueueTimeout      = 5 * time.Second
	DefaultMaxBodyBytes      = 1 << 20
)

// LastWord is the extra time that a handler has to finish a response it started before its time limit. A handler can
// use it to send a last server-sent event with the reason.
const LastWord = time.Second

// TimeoutHeader is the request header in which a client states how long it waits for the whole response. The value is
// in seconds, such as 20 or 1.5, or a duration, such as 1500ms. The header can only shorten the request's time limit.
// With Timeout Off the header only sets the deadline of the handler's context. A value that is not a positive
// duration is ignored.
const TimeoutHeader = "X-Request-Timeout"

// Config configures Limit. The zero value is valid. In each field, zero means the default and aiguard.Off (-1) means
// no limit.
type Config struct {
	// Timeout limits a whole request, from its arrival and including the queue. Each successful Flush by the handler
	// restarts the timeout, so that a streamed response in progress is not cut. Default 55s.
	//
	// The http.Server's WriteTimeout must be longer. Otherwise the server closes the connection before the client
	// gets an error response.
	Timeout time.Duration

	// StreamTimeout limits a whole request with a streamed response. A Flush does not extend this limit. It is never
	// shorter than Timeout. Default: the guard's StreamTimeout.
	StreamTimeout time.Duration

	// MaxConcurrent is the number of requests handled at once. Default: 4 times the guard's MaxConcurrent, or no
	// limit if the guard has none.
	MaxConcurrent int

	MaxQueue     int           // requests that may wait; further requests are rejected at once. Default 50
	QueueTimeout time.Duration // longest wait in the queue. Default 5s
	MaxBodyBytes int64         // size of a request body. Default 1 MiB

	// Page replaces the HTML page of error responses, including those that Error writes in the handler. Limit
	// executes Page with a Problem. If Page fails, the built-in page is sent. Style and script elements need
	// nonce="{{.Nonce}}". Images, fonts and style sheets may come from the same origin. Default: the built-in page.
	Page *template.Template

	// Logger logs error responses, with their request ID and facts, and handlers that ignored their time limit. Of
	// responses with the same status, code and route it logs three per second, and how many others there were. It never
	// gets a URL, a prompt, an answer or a key. Default: no logging.
	Logger *slog.Logger
}

// Limit returns middleware that limits the requests to the handlers it wraps. These handlers share one concurrency
// limit and one queue. Call Limit again for a route with its own limits.
//
// A request over a limit gets the response that Error writes. Limit rejects a request at once if its Content-Length
// is too large, the guard is draining, the guard is over its memory limit, or the queue is full. Otherwise the
// request fails when its time limit ends.
//
// Each handler runs in its own goroutine. Its client therefore gets a response at the time limit even if the handler
// ignores its context:
//
//   - If the handler has written nothing, the client gets 504 at the limit. Later writes of the handler fail. The
//     request counts toward MaxConcurrent until the handler returns.
//   - If the handler has started its response, the response is aborted, at the latest LastWord after the limit.
//     HTTP/1 clients see the connection close early, and HTTP/2 clients see a stream reset. This holds even if the
//     handler returns within LastWord, so that no client takes a truncated response for a complete one. What the
//     handler writes within LastWord is still sent, even without a Flush.
//   - Each Flush by a streaming handler extends the limit, up to StreamTimeout.
//   - A hijacked connection belongs to the handler. At the limit only its context ends.
//
// The handler's context ends at the limit. Its cause is then an *aiguard.Error of kind ErrTimeout. The context also
// ends when the client disconnects. In HTTP/1, net/http notices this only after the request body was read. Reading
// more than MaxBodyBytes from a body of unknown length fails with an *http.MaxBytesError, for which Error responds
// with 413. http.Server.Shutdown does not wait for a handler that runs longer than its request.
//
// The handler's ResponseWriter does not buffer. It implements http.Flusher, http.Hijacker and all methods that
// http.ResponseController uses. It has no Unwrap method, because Unwrap would bypass its lock. A panic in the handler
// is raised again in the request's goroutine as an error. The text of that error has the original stack, and Unwrap
// returns the panic value if that is an error. http.ErrAbortHandler is raised unchanged.
//
// With Timeout Off the handler runs in the request's goroutine, with the server's own ResponseWriter.
//
// Defaults that come from the guard's settings are read once, so a later Guard.Update does not change them.
//
// Limit returns an error that names each invalid field of cfg, its value and what is allowed. The middleware panics
// if the handler is nil.
func Limit(g *aiguard.Guard, cfg Config) (func(http.Handler) http.Handler, error) {
	if g == nil {
		return nil, errors.New("httpguard: Limit: nil Guard; make it with aiguard.New")
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	limits := g.Config()
	cfg.setDefaults(&limits)
	places, sent := newPlaces(cfg.MaxConcurrent, cfg.MaxQueue, cfg.QueueTimeout), new(storm.Limit[sentKey])
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("httpguard: Limit: nil handler")
		}
		return &handler{guard: g, next: next, cfg: cfg, places: places, sent: sent}
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

// setDefaults replaces the zero fields of c. Some defaults come from the guard's settings.
func (c *Config) setDefaults(limits *aiguard.Config) {
	capacity := limits.MaxConcurrent
	if capacity != aiguard.Off {
		capacity = min(capacity, math.MaxInt/DefaultConcurrencyFactor) * DefaultConcurrencyFactor
	}
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.StreamTimeout = cmp.Or(c.StreamTimeout, limits.StreamTimeout)
	c.MaxConcurrent = cmp.Or(c.MaxConcurrent, int(capacity))
	c.MaxQueue = cmp.Or(c.MaxQueue, DefaultMaxQueue)
	c.QueueTimeout = cmp.Or(c.QueueTimeout, DefaultQueueTimeout)
	c.MaxBodyBytes = cmp.Or(c.MaxBodyBytes, DefaultMaxBodyBytes)
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
}

// handler limits the requests to next.
type handler struct {
	guard  *aiguard.Guard
	next   http.Handler
	cfg    Config
	places *places
	sent   *storm.Limit[sentKey]
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := newExchange(w, r)
	x.page, x.log, x.sent = h.cfg.Page, h.cfg.Logger, h.sent
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
		// The nil ResponseWriter keeps MaxBytesReader from using w after ServeHTTP has returned. The error response
		// closes the connection instead.
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

// admit rejects requests that cannot or must not start now. Otherwise it takes a slot, which leave releases.
func (h *handler) admit(ctx context.Context, r *http.Request, x *exchange) error {
	if bound := h.cfg.MaxBodyBytes; bound != aiguard.Off && r.ContentLength > bound {
		return &http.MaxBytesError{Limit: bound}
	}
	switch st := h.guard.Stats(); {
	case st.Draining:
		return &aiguard.Error{Kind: aiguard.ErrClosed, Op: x.route}
	case st.OverMemory:
		return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: x.route, Phase: aiguard.PhaseMemory, Size: st.HeapBytes, Max: st.MemoryLimit}
	}
	return h.places.enter(ctx, x.route)
}

// leave releases the slot and removes the files of a parsed form. The server removes such files only for its own
// request, and r is a copy.
func (h *handler) leave(r *http.Request, entered time.Time) {
	h.places.leave(time.Since(entered))
	if r.MultipartForm != nil {
		_ = r.MultipartForm.RemoveAll()
	}
}
