package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: one attempt over HTTP.

import (
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// attempt sends the request once and reads the answer, or opens the stream. When it returns, the slot is free, and on
// success the call is over. A stream that is returned keeps both.
func (x *exchange) attempt(ctx context.Context) (_ *http.Response, err error) {
	phase := PhaseCall
	if x.stream {
		phase = PhaseFirstEvent
	}
	w := &x.first
	if w.call != nil { // the context of an earlier attempt may still be in use
		w = new(watch)
	}
	w.begin(ctx, &x.call, phase)
	handedOver := false
	defer func() {
		if !handedOver {
			w.stop()
			if err != nil { // after a panic err is nil; whole has judged a complete answer itself
				x.call.judge(ctx, err)
			}
			x.call.free()
		}
	}()
	req, err := x.request(w)
	if err != nil {
		return nil, err
	}
	x.sent, x.call.billed = true, true
	x.wire.prompt, x.wire.answer = max(req.ContentLength, 0), 0
	resp, err := x.roundTripper().RoundTrip(req)
	if err == nil {
		err = mended(x.roundTripper(), resp)
	} else if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
	if err != nil {
		return nil, x.unanswered(w, err)
	}
	r := reply{x, w, resp}
	body := resp.Body
	defer func() {
		if !handedOver {
			body.Close()
		}
	}()
	x.call.billed = billable(resp.StatusCode)
	x.call.permit.learnLimits(resp.Header)
	switch {
	case resp.StatusCode == http.StatusSwitchingProtocols:
		if err := r.upgrade(); err != nil {
			return nil, err
		}
		handedOver = true
		return resp, nil
	case resp.StatusCode < 200, resp.StatusCode >= 400:
		return nil, r.refusal()
	case r.bodiless():
		x.call.judge(ctx, nil)
		x.call.succeed(ctx)
		resp.Body = http.NoBody
		return resp, nil
	case resp.StatusCode >= 300, headerSize(resp.Header) > maxHeaderBytes, !decoded(resp):
		e := r.errorOf(ErrInvalidResponse)
		e.Phase, e.retry = PhaseHeaders, neverRetry
		return nil, e
	}
	if r.isWhole() {
		return r.whole()
	}
	s := newStream(r)
	defer func() {
		if !handedOver {
			s.held.release()
		}
	}()
	switch err := s.open(); err {
	case nil:
		handedOver = true
		return resp, nil
	case errNoStream:
		s.held.release()
		return r.whole()
	default:
		return nil, err
	}
}

// request returns the request for this attempt, with its own body.
func (x *exchange) request(w *watch) (*http.Request, error) {
	req := &w.req
	*req = *x.req.WithContext(w)
	if x.req.GetBody != nil && (x.sent || x.seen) {
		x.closeUnsent()
		body, err := x.req.GetBody()
		if err != nil {
			return nil, callersError(err)
		}
		req.Body = body
	}
	unknown := req.ContentLength <= 0 // net/http treats 0 as unknown
	if (unknown || req.GetBody == nil) && req.Body != nil && req.Body != http.NoBody {
		req.Body = &requestBody{ReadCloser: req.Body, limit: x.settings.cfg.MaxRequestBytes}
	}
	var more callctx.Headers
	if len(x.settings.cfg.Middleware) > 0 { // only a Middleware can have put it into the context
		more = callctx.HeadersOf(w.caller)
	}
	if name := x.settings.cfg.DeadlineHeader; name != "" || more != nil || !x.keepsRequests() || field(req.Header, "Accept-Encoding") != "" {
		// Each attempt gets its own URL and header, because a base may modify its request although a RoundTripper
		// must not.
		url := *req.URL
		req.URL, req.Header = &url, ownHeader(req.Header)
		delete(req.Header, "Accept-Encoding")
		if name != "" {
			if left, ok := w.left(); ok {
				req.Header.Set(name, strconv.FormatFloat(max(left.Seconds(), 0), 'f', 3, 64))
			}
		}
		if more != nil {
			more.AddHeaders(req.Header)
		}
	}
	return req, nil
}

// ownHeader returns a copy of h that can be changed with Set, Add and Del. It costs half of h.Clone, because the copy
// shares the slices of values, which these methods replace.
func ownHeader(h http.Header) http.Header {
	own := maps.Clone(h)
	for name, values := range own {
		if len(values) < cap(values) {
			own[name] = slices.Clip(values) // else Add would write behind them
		}
	}
	return own
}

// keepsRequests reports whether the base is known not to modify requests.
func (t *transport) keepsRequests() bool {
	switch t.base.(type) {
	case nil, *http.Transport:
		return true
	}
	return false
}

// requestBody limits a body of unknown length, and marks the errors of reading the caller's body.
type requestBody struct {
	io.ReadCloser
	read, limit int64
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.read += int64(n); b.limit != Off && b.read > b.limit {
		return 0, requestTooLarge(b.read, b.limit)
	}
	if err != nil && err != io.EOF {
		err = &bodyError{err}
	}
	return n, err
}

// bodyError is an error of reading the caller's body.
type bodyError struct{ error }

func (e *bodyError) Unwrap() error { return e.error }

// callersError returns an error of the caller's body unchanged, because it says nothing about the provider. An *Error
// is about another call, such as a stream that is sent on. It stays wrapped so that nobody takes it for this call's.
func callersError(err error) error {
	if _, ok := err.(*Error); ok {
		return &bodyError{err}
	}
	return err
}

func requestTooLarge(size, limit int64) *Error {
	return &Error{Kind: ErrPromptTooLarge, Phase: PhaseRequest, Size: size, Max: limit, setting: "MaxRequestBytes"}
}

// openBody returns the response's body if it is a stream.
func openBody(resp *http.Response) (*stream, bool) {
	if resp == nil {
		return nil, false
	}
	switch body := resp.Body.(type) {
	case *stream:
		return body, true
	case *upgraded:
		return body.stream, true
	}
	return nil, false
}
