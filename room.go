package aiguard

import (
	"context"
	"slices"
	"sync"
)

const (
	// Decoding an answer takes another three times its size, so the room is a quarter of the memory limit.
	roomShare = 4
	// Each answer gets this much room without waiting, so ordinary answers and error bodies do not wait for huge ones.
	roomFree = maxErrorBytes + 1<<10

	// Without a memory limit, the events of all streams share this room, plus one event beyond it. 50 streams of
	// endless lines then stay below 100 MB. If the limit of one event is at most smallEvent, that limit is enough and
	// the events are not counted.
	eventRoom  = 2 << 20
	smallEvent = 1 << 20
)

// room limits the total capacity in bytes of the buffers that hold answers. Reading of an answer stops until the room
// has space for it, which slows down its provider. If all answers wait for each other, the latest is rejected. If the
// room has spare memory, the first continues instead.
type room struct {
	size  int64
	spare bool

	mu      sync.Mutex
	held    int64
	extra   *hold     // the answer that may exceed size if spare is set; it never waits
	stalled int64     // part of held that belongs to waiting answers
	waiting []*waiter // in order of arrival
}

type waiter struct {
	hold    *hold
	size    int64 // total size requested
	granted bool
	done    chan struct{}
}

func (r *room) bytes() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held
}

// resize changes the size. Answers that are over it already keep what they hold.
func (r *room) resize(size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.size = size
	for _, w := range slices.Clone(r.waiting) {
		if w.size > size && !r.spare {
			r.remove(w) // it could wait forever
		}
	}
	r.grant()
}

// use returns the bytes held and the size.
func (r *room) use() (held, size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.held, r.size
}

// hold is the share of one answer in the room, from its first buffer until the caller is done with it.
type hold struct {
	room  *room
	bytes int64
	over  bool
}

// grow waits until there is room for buffers of size bytes in total. Call it before allocating them. It reports false
// if the room is refused or ctx ends first. A nil hold is not counted.
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

// ask grants size bytes to h and returns nil, or returns a waiter, which it may already have rejected.
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
		close(w.done) // otherwise it could wait forever
		return w
	}
	r.waiting = append(r.waiting, w)
	r.stalled += h.bytes
	r.grant()
	return w
}

// grant grants the requests that fit. If only waiting answers are left, it rejects the latest.
func (r *room) grant() {
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
		r.remove(r.waiting[n-1]) // its release may grant the others
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

// release returns all bytes of the hold for good. It reports false if they were already released. It may be called
// while a stream waits for room, because the stream's context ends as well.
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

// shrink releases all but size bytes.
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
	r.grant()
}
