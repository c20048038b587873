package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the entry for any SDK over HTTP.

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/dialect"
)

// Caps that are the same for everybody.
const (
	maxErrorBytes  = 64 << 10 // the body of a failure status
	maxHeaderBytes = 64 << 10

	errorBodyTimeout = 5 * time.Second // for the body of a failure: its status is known already
	bytesPerToken    = 4               // of a request, before its usage is known
	drainTimeout     = 50 * time.Millisecond
	drainBytes       = 64 << 10
)

// Transport returns a RoundTripper that gives every request sent through base the bounds of g: for any SDK that takes an
// http.Client. With base nil it uses a pooled transport that g owns and closes.
//
// It knows the APIs of OpenAI (and those who speak it), Anthropic, Gemini, Bedrock, Cohere and Ollama, under any base URL.
// Their prompts are checked and their output limits lowered as Config says. Their answers in JSON are read whole before
// they are handed over, their streams at the first event that brings the answer forward, and both are judged: a cut answer
// is never a complete one. Other endpoints pass through unchanged and unjudged, within the bounds of time and size. A body
// without GetBody is kept if it has no more than 1 MiB, so that it can be read and sent again; a longer one is sent once,
// and its prompt is not checked.
//
// When the provider answers with a failure status and the guard gives up on it, RoundTrip returns that response, so that the
// SDK makes its own error of it: status and headers as they came, at most 64 KiB of the body, and "X-Should-Retry: false",
// which SDKs heed that know it. Explain, KindOf, UserMessage and HTTPStatus understand the SDK's error. Failures of the
// guard's own are *Errors: time, queue, sizes, a cut answer, an error inside a 200. Config.FailuresAsResponses makes
// responses of those too. A Middleware that replaces or wraps the error has the last word: then RoundTrip returns its error.
//
// RoundTrip retries by itself: switch the SDK's own retries off. It answers a repeat that carries the SDK's retry count from
// the failure before, and logs one warning. Close every body: until then its answer counts as held. A base of the user's
// should limit its response headers as the pooled transport does.
//
// RoundTrip keeps the contract of http.RoundTripper as http.Transport does, but for these differences:
//
//	Accept-Encoding      is left to base, so that caps count what it decompresses
//	a redirect           (301, 302, 303, 307, 308) is an error: http.Client would send prompt and key elsewhere
//	a JSON answer        is read whole before it is returned, and what follows the JSON is dropped; its Content-Length is set
//	an event stream      is returned at its first event, with whole events and without comments
//	a failure status     has at most 64 KiB of body
//	response headers     above 64 KiB, and bodies in an encoding that base does not undo, are an error
//	a request's body     that can be read only once is read before it is sent, up to 1 MiB; a larger one is sent once
//	101                  ends at StreamTimeout at the latest
//	Response.Request     is the request given to RoundTrip; for a failure a copy whose context carries the facts
func (g *Guard) Transport(base http.RoundTripper) http.RoundTripper {
	g.must("Transport")
	return &transport{guard: g, base: base, eventLines: true}
}

// HTTPClient returns an http.Client over Transport(nil), for any SDK that takes one.
func (g *Guard) HTTPClient() *http.Client { return &http.Client{Transport: g.Transport(nil)} }

type transport struct {
	guard      *Guard
	base       http.RoundTripper // nil: the guard's pool
	eventLines bool              // hand on the event: lines of a stream
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the base.
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

// RoundTrip sends req as one bounded call.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := incomplete(req); err != nil {
		return nil, err
	}
	bounded, stop := callctx.Heed(req)
	x := t.newExchange(bounded)
	x.original = req
	// go-openai's users want the error. A cache may be between the Client and this transport.
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

// do is RoundTrip with a request whose context is the caller's whole patience.
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
	if len(x.guard.cfg.Middleware) == 0 {
		return x.run(ctx)
	}
	w := &wrappedExchange{x: x}
	w.call = w
	handedOver := false
	defer func() { // a Middleware may panic, too
		if w.resp != nil && !handedOver {
			w.resp.Body.Close()
		}
	}()
	err := x.guard.wrap(ctx, x.settings.Call, &w.once)
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

// exchange is a request on its way through the transport.
type exchange struct {
	*transport
	settings settings
	call     *call // from run on
	wire     wire
	req      *http.Request
	original *http.Request // req as the caller gave it
	said     *Error        // the last refusal of the provider
	sent     bool          // the base has had the body, and closes it
	seen     bool          // GetBody has been used: some SDKs' returns the one body again and again

	endpoint   dialect.Endpoint
	judged     bool           // the endpoint's dialect judges the answer
	stream     bool           // a stream seems to be asked for
	json       bool           // a JSON answer seems to be asked for
	verdict    dialect.Stream // the memory for one
	flaw       error          // why the request must not be sent
	known      *known         // what Client told
	safe       bool           // a repeat does no work twice
	replayable bool
	responses  bool       // failures become responses
	conn       *connTrace // of this attempt: the hooks of the one before may still run
}

// closeUnsent closes the body of a request that never left, as a RoundTripper must.
func (x *exchange) closeUnsent() {
	if !x.sent && x.req.Body != nil {
		x.req.Body.Close()
	}
}

func (x *exchange) run(ctx context.Context) (*http.Response, error) {
	if x.flaw != nil {
		return nil, x.guard.refuse(ctx, &x.settings, x.flaw)
	}
	if err := x.guard.refuseIfCrowded(ctx, &x.settings); err != nil {
		return nil, err
	}
	c := x.guard.newCall(ctx, &x.settings)
	x.call = c
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
