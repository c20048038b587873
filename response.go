package aiguard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// This file decides what RoundTrip returns for a call that failed: the provider's response, a response of the guard's own,
// or an error. It also completes the responses of a base that keeps less of RoundTripper's contract than net/http does.

// refusal is a failure status as the provider sent it.
type refusal struct {
	resp *http.Response // its body is closed
	body []byte
}

// outcome is what RoundTrip returns for a call that ended with err.
func (x *exchange) outcome(ctx context.Context, err error) (*http.Response, error) {
	e, ok := err.(*Error)
	if !ok || !x.responses || ctx.Err() != nil && err == context.Cause(ctx) {
		return nil, err
	}
	if e.Phase == phaseOutage && x.said != nil { // the guard has answered in the stead of the provider, which said this before
		copied := *e
		e = &copied
		e.StatusCode, e.RequestID, e.Err, e.refusal = x.said.StatusCode, x.said.RequestID, x.said.Err, x.said.refusal
	}
	var resp *http.Response
	switch {
	case e.refusal != nil:
		resp = e.refusal.response(x.req.Method)
	case x.guard.cfg.FailuresAsResponses:
		resp = x.ownFailure(e)
	default:
		return nil, err
	}
	if e.RetryAfter > 0 && resp.Header.Get("Retry-After") == "" {
		resp.Header.Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	resp.Header.Set("X-Should-Retry", "false")
	resp.Request = x.original
	return callctx.WithFacts(resp, e), nil
}

// response returns the provider's response with what was read of its body. A caller may change it.
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

// ownFailure puts a failure of the guard's own into the error form of the endpoint.
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

// incomplete refuses a request that net/http refuses too, and closes its body.
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

// mended completes the response of a base as http.Client would, and refuses none at all.
func mended(base http.RoundTripper, resp *http.Response) error {
	switch {
	case resp == nil:
		return &Error{Kind: ErrInvalidResponse, Phase: phaseHeaders, retry: neverAsk,
			Err: fmt.Errorf("aiguard: RoundTripper %T returned neither a response nor an error", base)}
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	if resp.Header == nil {
		resp.Header = http.Header{}
	}
	return nil
}

// bodiless reports whether a response has no body because of its status or the request's method. A 204 that should have been
// an answer is left to judge.
func (x *exchange) bodiless(resp *http.Response) bool {
	if resp.StatusCode >= 400 {
		return false
	}
	switch {
	case x.req.Method == http.MethodHead:
		return resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified
	case resp.StatusCode == http.StatusNotModified:
		return x.req.Method == http.MethodGet
	}
	return resp.StatusCode == http.StatusNoContent && !x.endpoint.Known()
}
