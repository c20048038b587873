package aiguard

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math"
	"net/http"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// read reads a body to its end, within its limit and the room for buffers.
func (x *exchange) read(w *watch, resp *http.Response, held *hold) ([]byte, error) {
	limit := x.settings.cfg.MaxResponseBytes
	if limit != Off && resp.ContentLength > limit {
		return nil, x.tooLarge(resp, PhaseResponse, limit)
	}
	body, over, err := readCapped(w, resp.Body, resp.ContentLength, limit, held)
	x.wire.answer = int64(len(body))
	switch {
	case over:
		return nil, x.tooLarge(resp, PhaseResponse, limit)
	case err == errNoRoom:
		return nil, x.noRoom(w, resp, held.room)
	case err == nil:
		return body, nil
	}
	if end := w.failure(err); end != nil {
		if e := x.call.own(w.caller, end); e != nil {
			return nil, x.repeatable(e, true)
		}
		return nil, end
	}
	return nil, x.broken(resp, err)
}

// broken returns the error for an answer whose bytes stopped with err.
func (x *exchange) broken(resp *http.Response, err error) *Error {
	kind := ErrTruncated
	if errtree.Is(err, gzip.ErrHeader) || errtree.Is(err, gzip.ErrChecksum) || errtree.Has[flate.CorruptInputError](err) {
		kind = ErrInvalidResponse
	}
	e := x.errorOf(resp, kind)
	e.Err = err
	return x.repeatable(e, true)
}

func (x *exchange) tooLarge(resp *http.Response, phase string, limit int64) *Error {
	e := x.errorOf(resp, ErrResponseTooLarge)
	e.Phase, e.Max = phase, limit
	return e
}

// noRoom returns the error for an answer that got no room for its buffers within the attempt's time. It is not
// retried, because a retry would cost as much and would meet the same limit.
func (x *exchange) noRoom(w *watch, resp *http.Response, room *room) error {
	if end := w.failure(context.Canceled); end != nil {
		if e := x.call.own(w.caller, end); e == nil || e.Kind != ErrTimeout {
			return end
		}
	}
	e := memoryError(room.use())
	e.StatusCode, e.RequestID = resp.StatusCode, requestID(resp.Header)
	return e
}

func (x *exchange) invalid(resp *http.Response) *Error {
	e := x.errorOf(resp, ErrInvalidResponse)
	if media := mediaType(resp.Header); media != "" {
		e.Err = contentType(media)
	}
	return x.repeatable(e, true)
}

// errNoRoom ends a read because there is no room for its next buffer.
var errNoRoom = errors.New("aiguard: no room for the answer")

// readCapped reads r to its end or to limit. At the limit, over is true and the rest is unread. Its buffers count in
// held and may have to wait for room. Beyond 1 MiB a buffer grows only with the bytes received, whatever length was
// announced.
func readCapped(ctx context.Context, r io.Reader, announced, limit int64, held *hold) (body []byte, over bool, err error) {
	if limit == Off {
		limit = math.MaxInt64 - 1
	}
	size := int64(512)
	if announced >= 0 {
		size = min(announced, 1<<20) + 1 // Read reports the end in a separate call
	}
	for {
		if len(body) == cap(body) {
			if !held.grow(ctx, size) {
				return body, false, errNoRoom
			}
			body = append(make([]byte, 0, size), body...)
			size = grown(size, announced, limit)
		}
		n, err := r.Read(body[len(body):min(int64(cap(body)), limit+1)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return body[:limit], true, nil
		case err == io.EOF:
			return body, false, nil
		case err != nil:
			return body, false, err
		}
	}
}

// grown returns the next size of a buffer of size bytes. It takes few steps, because each step leaves a buffer for
// the garbage collector. The last step goes to the limit or the announced end. append would leave buffers of five
// times the body.
func grown(size, announced, limit int64) int64 {
	if announced > size && announced <= 8*size {
		return min(announced+512, limit+1)
	}
	if size < 1<<20 {
		size *= 8
	} else {
		size *= 2
	}
	if size > limit/2 {
		size = limit + 1
	}
	return size
}
