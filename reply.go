package aiguard

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// reply is the provider's response to an attempt. This file has the errors for what can be wrong with it.
type reply struct {
	x    *exchange
	w    *watch
	resp *http.Response
}

func (r reply) errorOf(k Kind) *Error {
	return &Error{Kind: k, StatusCode: r.resp.StatusCode, RequestID: requestID(r.resp.Header)}
}

func (r reply) invalid() *Error {
	e := r.errorOf(ErrInvalidResponse)
	if media := mediaType(r.resp.Header); media != "" {
		e.Err = contentType(media)
	}
	return r.x.repeatable(e, true)
}

// broken returns the error for an answer whose bytes stopped with err.
func (r reply) broken(err error) *Error {
	kind := ErrTruncated
	if errtree.Is(err, gzip.ErrHeader) || errtree.Is(err, gzip.ErrChecksum) || errtree.Has[flate.CorruptInputError](err) {
		kind = ErrInvalidResponse
	}
	e := r.errorOf(kind)
	e.Err = err
	return r.x.repeatable(e, true)
}

func (r reply) tooLarge(phase string, limit int64) *Error {
	e := r.errorOf(ErrResponseTooLarge)
	e.Phase, e.Max = phase, limit
	switch phase {
	case PhaseResponse:
		e.setting = "MaxResponseBytes"
	case PhaseEvent:
		e.setting = "MaxEventBytes"
	}
	return e
}

// noRoom returns the error for an answer that got no room for its buffers within the attempt's time. It is not
// retried, because a retry would cost as much and would meet the same limit.
func (r reply) noRoom(room *room) error {
	if end := r.w.failure(context.Canceled); end != nil {
		if e := ownError(r.w.caller, end); e == nil || e.Kind != ErrTimeout {
			return end
		}
	}
	e := memoryError(room.use())
	e.StatusCode, e.RequestID = r.resp.StatusCode, requestID(r.resp.Header)
	return e
}

// failed returns the error for a failure that a provider reports inside a success status.
func (r reply) failed(f dialect.Failure, nameless Kind) *Error {
	e := r.errorOf(kindOfProvider(0, f, nameless))
	e.Err = providerCause(r.resp.StatusCode, f, true, nil)
	e.RetryAfter = f.RetryAfter
	return r.x.repeatable(e, true)
}

// stopped returns the cause of err, with which the provider's bytes stopped: the limit that expired, the caller's
// cancellation, or a truncated answer.
func (r reply) stopped(err error) error {
	end := r.w.failure(err)
	if end == nil {
		return r.broken(err)
	}
	if e := ownError(r.w.caller, end); e != nil {
		e.RequestID = requestID(r.resp.Header)
		return r.x.repeatable(e, true)
	}
	return end // the caller's error, which may be shared
}

func requestID(h http.Header) string {
	for _, name := range [...]string{"X-Request-Id", "Request-Id", "Apim-Request-Id"} {
		if id := identifier(h.Get(name)); id != "" {
			return id
		}
	}
	return ""
}

// timeLeft returns d, or the time left for the attempt if that is less.
func (r reply) timeLeft(d time.Duration) time.Duration {
	if end, _ := r.x.call.attemptDeadline(PhaseErrorBody); end != 0 {
		return max(min(d, -r.x.call.since(end)), 0)
	}
	return d
}
