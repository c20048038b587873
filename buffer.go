package aiguard

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"sync"
)

// read reads a body to its end, within its limit and the room for buffers.
func (r reply) read(held *hold) ([]byte, error) {
	limit := r.x.settings.cfg.MaxResponseBytes
	if limit != Off && r.resp.ContentLength > limit {
		return nil, r.tooLarge(PhaseResponse, limit)
	}
	body, over, err := readCapped(r.w, r.resp.Body, r.resp.ContentLength, limit, held)
	r.x.wire.answer = int64(len(body))
	switch {
	case over:
		return nil, r.tooLarge(PhaseResponse, limit)
	case err == errNoRoom:
		return nil, r.noRoom(held.room)
	case err == nil:
		return body, nil
	}
	return nil, r.stopped(err)
}

// errNoRoom ends a read because there is no room for its next buffer.
var errNoRoom = errors.New("aiguard: no room for the answer")

// readCapped reads r to its end or to limit. At the limit, over is true and the rest is unread. Its buffers count in
// held and may have to wait for room. Beyond 1 MiB a buffer grows only with the bytes received, whatever length was
// announced.
func readCapped(ctx context.Context, r io.Reader, announced, limit int64, held *hold) (body []byte, over bool, err error) {
	if limit == Off {
		limit = math.MaxInt64
	}
	limit = min(limit, math.MaxInt64-1) // leaves room for the byte that shows more
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

// wholeBody is the body of an answer that was read whole. Its bytes count as held until the caller reads it to the end
// or closes it. SDKs close the body after decoding.
type wholeBody struct {
	hold hold
	call *call
	ctx  context.Context // the caller's context

	mu     sync.Mutex
	rest   []byte
	closed bool
}

func (b *wholeBody) Read(p []byte) (int, error) {
	n, err := b.read(p)
	if err == io.EOF {
		b.letGo()
	}
	return n, err
}

func (b *wholeBody) read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return 0, http.ErrBodyReadAfterClose
	case len(b.rest) == 0:
		b.rest = nil
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close releases the bytes, so that a response kept for its headers does not keep them in memory. It may be called at
// any time and more than once.
func (b *wholeBody) Close() error {
	b.mu.Lock()
	b.closed, b.rest = true, nil
	b.mu.Unlock()
	b.letGo()
	return nil
}

func (b *wholeBody) letGo() {
	if b.hold.release() {
		b.call.checkSpike(b.ctx, b.call.wire)
	}
}
