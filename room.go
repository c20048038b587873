package aiguard

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
)

const (
	// The room is a quarter of the memory limit, because decoding makes three times as much of an answer again.
	roomShare = 4
	// So much of every answer finds room: ordinary ones, and what explains a failure, do not wait for huge ones.
	roomFree = maxErrorBytes + 1<<10

	// Without a memory limit the events of all streams have this room, and one event beyond it: 50 streams of endless lines then
	// stay below 100 MB. Where the limit of one event is no more than smallEvent, that limit is bound enough.
	eventRoom  = 2 << 20
	smallEvent = 1 << 20
)

// room counts the bytes of the answers that are held in buffers, by their capacity, and bounds them: an answer that has no
// room to grow is read no further, which slows its provider down, until others have given back theirs. If they all wait
// for each other, the latest is refused; or, in a room that has something to spare, the first goes on all the same.
type room struct {
	size  int64
	spare bool

	mu      sync.Mutex
	held    int64
	extra   *hold     // the one beyond size, if spare; it never waits
	stalled int64     // of it, by answers that wait
	waiting []*waiter // in the order they came
}

type waiter struct {
	hold    *hold
	size    int64 // that it wants in all
	granted bool
	done    chan struct{}
}

func (r *room) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// hold is the share of one answer, from its first buffer until its caller has done with it.
type hold struct {
	room  *room
	bytes int64
	over  bool
}

// grow waits until buffers of size bytes in all have room, before they are made. It reports false if they will not have it,
// or not before ctx has ended. A nil hold is not counted.
func (h *hold) grow(ctx context.Context, size int64) bool {
	if h == nil {
		return true
	}
	w := h.room.ask(h, size)
	if w == nil {
		return true
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		h.room.leave(w)
	}
	return w.granted
}

// ask grants size bytes to h at once, and returns nil, or makes it wait or refuses it.
func (r *room) ask(h *hold, size int64) *waiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch more := size - h.bytes; {
	case h.over || more <= 0:
		return nil
	case size <= roomFree || more <= r.size-r.held || h == r.extra:
		r.held += more
		h.bytes = size
		return nil
	}
	w := &waiter{hold: h, size: size, done: make(chan struct{})}
	if size > r.size && !r.spare {
		close(w.done) // it could wait for ever
		return w
	}
	r.waiting = append(r.waiting, w)
	r.stalled += h.bytes
	r.settle()
	return w
}

// settle grants what has room, and refuses the latest where nobody is left who would make some.
func (r *room) settle() {
	for _, w := range slices.Clone(r.waiting) {
		more := w.size - w.hold.bytes
		fits := more <= r.size-r.held
		if fits || r.spare && r.extra == nil {
			if !fits {
				r.extra = w.hold
			}
			w.granted = true
			r.remove(w)
			r.held += more
			w.hold.bytes = w.size
		}
	}
	if n := len(r.waiting); n > 0 && r.held == r.stalled {
		r.remove(r.waiting[n-1]) // its release settles the rest
	}
}

func (r *room) remove(w *waiter) {
	r.waiting = slices.DeleteFunc(r.waiting, func(other *waiter) bool { return other == w })
	r.stalled -= w.hold.bytes
	close(w.done)
}

func (r *room) leave(w *waiter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.waiting, w) {
		r.remove(w)
	}
}

// release gives all of it back, for good; it reports false if that has been done. The end of a stream may come while it
// waits: the stream's context ends then too.
func (h *hold) release() bool {
	r := h.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.over {
		return false
	}
	h.over = true
	for _, w := range r.waiting {
		if w.hold == h {
			r.remove(w)
			break
		}
	}
	r.give(h, 0)
	return true
}

// shrink gives back all but size bytes.
func (h *hold) shrink(size int64) {
	r := h.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if !h.over && size < h.bytes {
		r.give(h, size)
	}
}

func (r *room) give(h *hold, rest int64) {
	r.held -= h.bytes - rest
	h.bytes = rest
	if h == r.extra {
		r.extra = nil
	}
	r.settle()
}

// wholeBody is an answer that was read whole, in the hands of its caller: it is held until they have read it to its end
// or closed it, which for an SDK is after decoding.
type wholeBody struct {
	hold hold
	call *call
	ctx  context.Context // the caller's

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

// Close may be called at any time and more than once. It lets go of the bytes, so that who keeps a response for its
// headers does not keep them.
func (b *wholeBody) Close() error {
	b.mu.Lock()
	b.closed, b.rest = true, nil
	b.mu.Unlock()
	b.letGo()
	return nil
}

func (b *wholeBody) letGo() {
	if b.hold.release() {
		b.call.leap(b.ctx)
	}
}
