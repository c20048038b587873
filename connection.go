package aiguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// connTrace records how far the request of an attempt got. Its hooks may run in net/http's goroutines.
type connTrace struct {
	asked, got, reused, replied atomic.Bool
	conn                        atomic.Pointer[poolConn] // nil: not from the guard's own pool
}

func (t *connTrace) ended() bool {
	c := t.conn.Load()
	return c != nil && c.ended.Load()
}

func (t *connTrace) hooks() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) { t.asked.Store(true) },
		GotConn: func(i httptrace.GotConnInfo) {
			t.got.Store(true)
			t.reused.Store(i.Reused)
			t.conn.Store(used(i.Conn))
		},
		GotFirstResponseByte: func() { t.replied.Store(true) },
	}
}

// traceKey is the context key of an httptrace.ClientTrace.
var traceKey = func() any {
	var r keyRecorder
	httptrace.ContextClientTrace(&r)
	return r.key
}()

// keyRecorder is a context that records the key of the last value asked for.
type keyRecorder struct {
	context.Context
	key any
}

func (r *keyRecorder) Value(key any) any {
	r.key = key
	return nil
}

// clientTrace returns the hooks of the attempt and of the caller. It makes them when they are asked for, because a
// base without net/http does not need them.
func (w *watch) clientTrace() *httptrace.ClientTrace {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trace == nil {
		w.trace = w.conn.hooks()
		if httptrace.ContextClientTrace(w.caller) != nil {
			httptrace.WithClientTrace(w.caller, w.trace) // adds the caller's hooks to w.trace
		}
	}
	return w.trace
}

// unanswered classifies an attempt that received no response.
func (x *exchange) unanswered(w *watch, err error) error {
	connected := w.conn.got.Load() || !w.conn.asked.Load() && !isDial(err)
	x.call.billed = connected
	if end := w.failure(err); end != nil {
		if e := ownError(w.caller, end); e != nil {
			return x.repeatable(e, connected)
		}
		return end
	}
	if own := errtree.Find[*bodyError](err); own != nil {
		x.call.billed = false
		return callersError(own.error)
	}
	ne := errtree.Find[net.Error](err)
	switch own := errtree.Find[*Error](err); {
	case own != nil: // the error of requestBody
		copied := *own
		x.call.billed = false
		return &copied
	case !w.conn.asked.Load() && !sendable(x.req.URL):
		x.call.billed = false
		return &Error{Kind: ErrMisconfigured, Phase: PhaseConnect, Err: &urlError{err, x.req.URL}, retry: neverRetry}
	case refusedBeforehand(err):
		x.call.billed = false
		return &Error{Kind: ErrMisconfigured, Phase: PhaseConnect, Err: err, retry: neverRetry}
	case ne != nil && timedOut(ne):
		e := &Error{Kind: ErrTimeout, Phase: PhaseConnect, Limit: connectLimit(&x.settings.cfg), Err: err}
		if connected { // a header limit of a custom base
			e.Phase, e.Limit = PhaseCall, x.call.since(x.call.admitted)
		}
		return x.repeatable(e, connected)
	case w.conn.replied.Load() && !isConnectionLoss(err) && !w.conn.ended(), isProtocolError(err):
		return &Error{Kind: ErrInvalidResponse, Phase: PhaseHeaders, Err: err, retry: neverRetry} // not HTTP, or over a limit
	}
	e := &Error{Kind: ErrUnavailable, Err: err}
	if !connected {
		e.Phase = PhaseConnect
	} else if w.conn.reused.Load() && !w.conn.replied.Load() {
		e.retry = retryAtOnce // the server closed a pooled connection just as we used it
	}
	return x.repeatable(e, connected)
}

// repeatable sets on e whether the request may be retried. acted is false if the provider cannot have started the
// work.
func (x *exchange) repeatable(e *Error, acted bool) *Error {
	switch {
	case !x.replayable:
		e.retry = neverRetry
	case !acted:
		e.retry = mayRetry
	case !x.safe && e.retry != mayRetry && e.Kind != ErrRateLimited:
		e.retry = neverRetry
	}
	return e
}

// sendable reports whether a URL has the scheme and host that every transport needs.
func sendable(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// urlError is the error of a base for a URL that is not sendable.
type urlError struct {
	error
	url *url.URL
}

func (e *urlError) Unwrap() error { return e.error }

// LogText names what is wrong with the URL, without its path and query, which may contain a key.
func (e *urlError) LogText() string {
	return fmt.Sprintf("the URL has the scheme %q and the host %q; want http or https, and a host", e.url.Scheme, e.url.Host)
}

// refusedBeforehand reports whether base failed before it sent the request, for example because it was refused a
// fresh token. Such an error has the response of the refusal. The errors of golang.org/x/oauth2 have this form.
func refusedBeforehand(err error) bool {
	for ; !errtree.IsNil(err); err = errors.Unwrap(err) {
		v := reflect.ValueOf(err)
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
			continue
		}
		field := v.Elem().FieldByName("Response")
		if !field.IsValid() || !field.CanInterface() {
			continue
		}
		if resp, _ := field.Interface().(*http.Response); resp != nil {
			switch resp.StatusCode {
			case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
				return true
			}
		}
	}
	return false
}

func isDial(err error) bool {
	op := errtree.Find[*net.OpError](err)
	return op != nil && op.Op == "dial" || errtree.Has[*net.DNSError](err)
}

func isConnectionLoss(err error) bool {
	if reset := errtree.Find[streamError](err); reset.StreamID != 0 {
		return reset.Code != 1 // PROTOCOL_ERROR: net/http could not parse the response
	}
	for _, loss := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, io.ErrClosedPipe, syscall.ECONNRESET, syscall.EPIPE} {
		if errtree.Is(err, loss) {
			return true
		}
	}
	return errtree.Has[*net.OpError](err)
}

// streamError has the shape that net/http accepts in errors.As for the reset of an HTTP/2 stream.
type streamError struct {
	StreamID, Code uint32
	Cause          error
}

func (e streamError) Error() string { return fmt.Sprintf("stream reset with code %d", e.Code) }

// isProtocolError reports whether net/http gave up on malformed HTTP/2, including headers over the limit. net/http
// does not export the type of that error.
func isProtocolError(err error) bool {
	for ; !errtree.IsNil(err); err = errors.Unwrap(err) {
		if t := reflect.TypeOf(err); t.Kind() == reflect.Uint32 && strings.HasSuffix(t.Name(), "ConnectionError") {
			return true
		}
	}
	return false
}
