package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the entry for any SDK over HTTP.

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// Limits that are not configurable.
const (
	maxErrorBytes  = 64 << 10 // body of a failure response
	maxHeaderBytes = 64 << 10

	errorBodyTimeout = 5 * time.Second // time to read the body of a failure response, whose status is already known
	bytesPerToken    = 4               // estimate for a request before its usage is known
	drainTimeout     = 50 * time.Millisecond
	drainBytes       = 64 << 10
)

// Transport returns a RoundTripper that applies the limits of g to every request sent through base. Use it with any
// SDK that accepts an http.Client. If base is nil, requests use a connection pool that g owns and closes.
//
// Transport recognizes the APIs of OpenAI and compatible servers, Anthropic, Gemini, Bedrock, Cohere and Ollama,
// under any base URL. For these APIs it checks prompts and lowers output limits as Config says. It reads a JSON
// answer whole before it returns. It returns a stream at the first event with content. It checks both for
// completeness, so a truncated answer never looks complete. Other endpoints pass through unchanged and unchecked,
// within the limits of time and size. A request body without GetBody is buffered up to 1 MiB so that it can be
// checked and resent. A larger body is sent once and its prompt is not checked.
//
// If the provider answers with a failure status and the Guard gives up, RoundTrip returns that response, so that the
// SDK can build its own error. Status and headers are unchanged, the body is cut to 64 KiB, and the header
// "X-Should-Retry: false" is added for SDKs that support it. Explain, KindOf, UserMessage and HTTPStatus understand
// the SDK's error. The Guard's own failures are *Errors: timeouts, queue, sizes, a truncated answer, an error inside
// a 200. Config.FailuresAsResponses turns these into responses too. If a Middleware replaces or wraps the error,
// RoundTrip returns the Middleware's error.
//
// Switch off the SDK's own retries, because RoundTrip retries itself. If a request carries the SDK's retry count,
// RoundTrip answers it with the previous failure and logs one warning. Close every response body: its answer counts
// as buffered until then. A custom base should limit the size of response headers, as the Guard's pool does.
//
// RoundTrip follows the contract of http.RoundTripper as http.Transport does, with these differences:
//
//	Accept-Encoding      is left to base, so that size limits count decompressed bytes
//	a redirect           (301, 302, 303, 307, 308) is an error, because http.Client would send prompt and key elsewhere
//	a JSON answer        is read whole before it is returned; bytes after the JSON are dropped and Content-Length is set
//	an event stream      is returned at its first event, in whole events and without comments
//	a failure status     has at most 64 KiB of body
//	response headers     above 64 KiB, and bodies in an encoding that base does not decode, are an error
//	a request body       that can be read only once is buffered up to 1 MiB before sending; a larger one is sent once
//	101                  ends at StreamTimeout at the latest
//	Response.Request     is the request given to RoundTrip; for a failure, a copy whose context carries the facts
func (g *Guard) Transport(base http.RoundTripper) http.RoundTripper {
	g.must("Transport")
	return &transport{guard: g, base: base, eventLines: true}
}

// HTTPClient returns an http.Client that uses Transport(nil), for any SDK that accepts one.
func (g *Guard) HTTPClient() *http.Client { return &http.Client{Transport: g.Transport(nil)} }

type transport struct {
	guard      *Guard
	base       http.RoundTripper // nil: the guard's pool
	eventLines bool              // keep the event: lines of a stream
}

// CloseIdleConnections closes the idle connections of the base. http.Client.CloseIdleConnections calls it.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.roundTripper().(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func (t *transport) roundTripper() http.RoundTripper {
	if t.base != nil {
		return t.base
	}
	return t.guard.pool
}

// RoundTrip sends req as one guarded call.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := incomplete(req); err != nil {
		return nil, err
	}
	bounded, stop := callctx.Heed(req)
	x := &exchange{original: req}
	x.init(t, bounded)
	// Users of go-openai get errors, not responses. A cache may sit between the Client and this transport.
	x.responses = t.eventLines && req.Context().Value(knownKey{}) == nil
	defer x.closeUnsent()
	resp, err := x.do(bounded.Context())
	if body, ok := openBody(resp); ok {
		context.AfterFunc(body.w, stop)
	} else {
		stop()
	}
	return resp, err
}

// do is RoundTrip for a request whose context includes every deadline of the caller.
func (x *exchange) do(ctx context.Context) (*http.Response, error) {
	if e := x.repeated(ctx); e != nil {
		return x.outcome(ctx, e)
	}
	resp, err := x.wrapped(ctx)
	if err == nil {
		resp.Request = x.original
		return resp, nil
	}
	if e, ok := err.(*Error); ok && ctx.Err() == nil {
		x.remember(e)
	}
	return x.outcome(ctx, err)
}

// wrapped runs the call inside the middleware.
func (x *exchange) wrapped(ctx context.Context) (*http.Response, error) {
	if err := x.prepare(ctx); err != nil {
		return nil, err
	}
	if len(x.settings.cfg.Middleware) == 0 {
		return x.run(ctx)
	}
	w := &wrappedExchange{x: x}
	w.call = w
	handedOver := false
	defer func() { // a Middleware may panic
		if w.resp != nil && !handedOver {
			w.resp.Body.Close()
		}
	}()
	err := x.settings.wrap(ctx, &w.once)
	if err == nil && w.resp == nil {
		err = errors.New("aiguard: a Middleware returned nil without an answer")
	}
	if err != nil {
		return nil, err
	}
	handedOver = true
	return w.resp, nil
}

// wrappedExchange is an exchange inside the middleware.
type wrappedExchange struct {
	once
	x    *exchange
	resp *http.Response
}

func (w *wrappedExchange) run(ctx context.Context) (err error) {
	w.resp, err = w.x.run(ctx)
	return err
}

// exchange is the state of one request in the transport.
type exchange struct {
	outgoing
	call     call // begun by run
	wire     wire
	original *http.Request // as the caller passed it
	refused  *Error        // last error response of the provider

	responses bool // return failures as responses

	// Most requests need one attempt and one answer, which are part of the exchange to save allocations.
	first watch     // of the first attempt
	whole wholeBody // of the answer
}

func (x *exchange) run(ctx context.Context) (*http.Response, error) {
	if x.flaw != nil {
		return nil, x.guard.refuse(ctx, &x.settings, x.flaw)
	}
	if err := x.guard.refuseIfCrowded(ctx, &x.settings); err != nil {
		return nil, err
	}
	c := &x.call
	c.init(ctx, x.guard.core, &x.settings)
	x.wire.estimate = x.cost
	if x.known != nil && c.cfg.Budget == nil && c.cfg.OnEvent != nil {
		x.wire.unread = &x.outgoing
	}
	c.wire = &x.wire
	if c.trail != nil {
		c.trail.endpoint = x.endpoint.Op()
	}
	c.wire.tokens = max(float64(x.req.ContentLength), 0) / bytesPerToken
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	defer c.end(ctx)
	if limit := c.cfg.MaxRequestBytes; limit != Off && x.req.ContentLength > limit {
		return nil, c.finish(ctx, requestTooLarge(x.req.ContentLength, limit))
	}
	for {
		err := c.enter(ctx)
		if err == errQueue {
			err = c.queue(ctx)
		}
		if err == nil {
			var resp *http.Response
			if resp, err = x.send(ctx); err == nil {
				return resp, nil
			}
		}
		if err := c.again(ctx, err); err != nil {
			return nil, err
		}
	}
}
