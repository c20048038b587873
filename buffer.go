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

// read reads a body to its end, within the cap and the room there is.
func (x *exchange) read(w *watch, resp *http.Response, held *hold) ([]byte, error) {
	limit := x.guard.cfg.MaxResponseBytes
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

// broken is an answer whose bytes stopped with err.
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

// noRoom is an answer that others left no room for within the attempt's time. It is not asked for again: a second one
// would cost as much, and come to the same place.
func (x *exchange) noRoom(w *watch, resp *http.Response, room *room) error {
	if end := w.failure(context.Canceled); end != nil {
		if e := x.call.own(w.caller, end); e == nil || e.Kind != ErrTimeout {
			return end
		}
	}
	e := memoryError(room.bytes(), room.size)
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

// errNoRoom ends a read whose buffer would be one too many.
var errNoRoom = errors.New("aiguard: no room for the answer")

// readCapped reads r to its end, or to limit: then over is true and the rest unread. Its buffer is counted in held, and
// may have to wait there; beyond 1 MiB it grows with what comes, whatever length was announced.
func readCapped(ctx context.Context, r io.Reader, announced, limit int64, held *hold) (body []byte, over bool, err error) {
	if limit == Off {
		limit = math.MaxInt64 - 1
	}
	size := int64(512)
	if announced >= 0 {
		size = min(announced, 1<<20) + 1 // Read tells of the end in a call of its own
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

// grown is the next size of a buffer of that many bytes: in few steps, and the last one to the limit or the end that was
// announced, since each leaves its buffer to the collector; append's would leave five times the body.
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
