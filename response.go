package aiguard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// This file decides what RoundTrip returns for a failed call: the provider's response, a response made by the guard,
// or an error. It also completes responses of a base that does not follow the whole contract of http.RoundTripper.

// refusal is a failure response as the provider sent it.
type refusal struct {
	resp *http.Response // its body is closed
	body []byte
}

// outcome returns what RoundTrip returns for a call that ended with err.
func (x *exchange) outcome(ctx context.Context, err error) (*http.Response, error) {
	e, ok := err.(*Error)
	if !ok || !x.responses || ctx.Err() != nil && err == context.Cause(ctx) {
		return nil, err
	}
	if e.Phase == PhaseOutage && x.refused != nil { // the route is down, and the provider has already refused this call
		copied := *e
		e = &copied
		e.StatusCode, e.RequestID, e.Err, e.refusal = x.refused.StatusCode, x.refused.RequestID, x.refused.Err, x.refused.refusal
	}
	var resp *http.Response
	switch {
	case e.refusal != nil:
		resp = e.refusal.response(x.req.Method)
	case x.settings.cfg.FailuresAsResponses:
		resp = x.ownFailure(e)
	default:
		return nil, err
	}
	if e.RetryAfter > 0 && resp.Header.Get("Retry-After") == "" {
		resp.Header.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(e.RetryAfter.Seconds())), 10))
	}
	resp.Header.Set("X-Should-Retry", "false")
	resp.Request = x.original
	return callctx.WithFacts(resp, e), nil
}

// response returns the provider's response with the part of its body that was read. The caller may modify it.
func (r *refusal) response(method string) *http.Response {
	resp := *r.resp
	resp.Header = resp.Header.Clone()
	resp.Body = io.NopCloser(bytes.NewReader(r.body))
	if method != http.MethodHead && resp.ContentLength != int64(len(r.body)) {
		resp.ContentLength = int64(len(r.body))
		resp.TransferEncoding = nil
		resp.Header.Del("Content-Length")
	}
	return &resp
}

// ownFailure returns a failure of the guard as a response in the error format of the endpoint.
func (x *exchange) ownFailure(e *Error) *http.Response {
	status := HTTPStatus(e)
	body := x.endpoint.ErrorBody(status, string(e.Kind), UserMessage(e))
	header := http.Header{"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(body))}}
	resp := &http.Response{Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1",
		ProtoMajor: 1, ProtoMinor: 1, Header: header, ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body))}
	if x.req.Method == http.MethodHead {
		resp.Body = http.NoBody
	}
	return resp
}

// incomplete rejects a request that net/http would also reject, and closes its body.
func incomplete(req *http.Request) (err error) {
	switch {
	case req.URL == nil:
		err = errors.New("aiguard: nil Request.URL")
	case req.Header == nil:
		err = errors.New("aiguard: nil Request.Header")
	default:
		return nil
	}
	if req.Body != nil {
		req.Body.Close()
	}
	return err
}

// mended completes the response of a base as http.Client would, and rejects a nil response.
func mended(base http.RoundTripper, resp *http.Response) error {
	switch {
	case resp == nil:
		return &Error{Kind: ErrInvalidResponse, Phase: PhaseHeaders, retry: neverRetry,
			Err: fmt.Errorf("aiguard: RoundTripper %T returned neither a response nor an error", base)}
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	return nil
}

// bodiless reports whether a response has no body because of its status or the request's method. It returns false for
// a 204 that should have been an answer, which judge rejects.
func (r reply) bodiless() bool {
	if r.resp.StatusCode >= 400 {
		return false
	}
	switch {
	case r.x.req.Method == http.MethodHead:
		return r.resp.StatusCode < 300 || r.resp.StatusCode == http.StatusNotModified
	case r.resp.StatusCode == http.StatusNotModified:
		return r.x.req.Method == http.MethodGet
	}
	return r.resp.StatusCode == http.StatusNoContent && !r.x.endpoint.Known()
}

// refusal classifies a failure response. Its body may explain the failure, but must not delay it.
func (r reply) refusal() error {
	var body []byte
	var over bool
	if r.w.limit(r.timeLeft(errorBodyTimeout), timeBound{phase: PhaseErrorBody}) == nil {
		held := hold{room: &r.x.guard.memory.room}
		defer held.release()
		body, over, _ = readCapped(r.w, r.resp.Body, r.resp.ContentLength, maxErrorBytes, &held)
	}
	if r.w.caller.Err() != nil {
		return callctx.Err(r.w.caller)
	}
	f, said := dialect.Failure{}, false
	if end, err := jsonscan.Check(body, dialect.MaxShape); err == nil {
		f, said = dialect.Refusal(body[:end])
	}
	if exception, _, _ := strings.Cut(r.resp.Header.Get("X-Amzn-Errortype"), ":"); f.InnerCode == "" {
		f.InnerCode = exception
	}
	e := r.errorOf(kindOfProvider(r.resp.StatusCode, f, ErrUnavailable))
	if r.resp.StatusCode == http.StatusNotFound && !r.x.endpoint.Known() && e.Kind == ErrMisconfigured && dialect.Classify(r.resp.StatusCode, f) == "" {
		e.Kind = ErrRejected // what was asked for does not exist
	}
	if e.RetryAfter = retryAfter(r.resp.Header, provider.Now(r.resp.Header)); e.RetryAfter == 0 {
		e.RetryAfter = f.RetryAfter
	}
	e.Err = providerCause(r.resp.StatusCode, f, said, body)
	if over && r.resp.Uncompressed { // a compressed error of this size is an attack
		e.Kind, e.Phase, e.Max = ErrResponseTooLarge, PhaseErrorBody, maxErrorBytes
	} else if r.resp.StatusCode >= 400 {
		e.refusal = &refusal{r.resp, body}
		r.x.refused = e
	}
	switch r.resp.StatusCode {
	case http.StatusServiceUnavailable, 529: // turned away before any work was done
		e.retry = onlyIf(e.Kind == ErrUnavailable, mayRetry)
	}
	switch r.resp.Header.Get("X-Should-Retry") {
	case "true":
		e.retry = onlyIf(e.Kind == ErrUnavailable || e.Kind == ErrRateLimited, mayRetry)
	case "false":
		e.retry = neverRetry
	}
	return r.x.repeatable(e, true)
}

func onlyIf(ok bool, v retryRule) retryRule {
	if ok {
		return v
	}
	return byKind
}

// decoded reports whether the body has plain bytes, which size limits can count. A base decompresses only what it
// asked for.
func decoded(resp *http.Response) bool {
	e := field(resp.Header, "Content-Encoding")
	return e == "" || strings.EqualFold(e, "identity") || strings.EqualFold(e, "none")
}

// field returns the first value of a header. Unlike Header.Get it needs the canonical form of the name, and does not
// check that.
func field(h http.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

func headerSize(h http.Header) (n int) {
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return n
}
