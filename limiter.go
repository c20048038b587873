package aiguard

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Limiter bounds the weight in flight, in place of the in-process limiter: one that several processes share,
// say. It must be safe for concurrent use.
//
// Acquire waits for call.Weight, or until ctx ends: then, and only then, it returns ctx's error. Any other
// error refuses the call; one without a Kind counts as ErrOverloaded. release gives the weight back at
// once and without an error; it may be called more than once and from any goroutine. The guard bounds how long
// (QueueTimeout) and how many (MaxQueue) calls wait in Acquire.
type Limiter interface {
	Acquire(ctx context.Context, call Call) (release func(), err error)
}

// slots is the capacity of a Guard, behind one bounded queue: a weighted semaphore like x/sync's, first in, first out, in
// which a small waiter does not overtake a large one; or the user's Limiter.
//
// x/sync's bounds a wait by a context alone. One of its own for each call that waits is most of what waiting costs, in
// memory as in time. Here those in line wait with their callers' contexts, and one timer serves them all: who
// came first is the first to give up.
type slots struct {
	clock
	custom   Limiter // nil: the semaphore
	capacity int64   // MaxConcurrent; Off: no bound
	maxQueue int64   // Off: no bound

	waiting             atomic.Int64 // calls in the queue, those waiting out a pause included
	held                atomic.Int64 // moving average of how long a slot is held, in nanoseconds
	waitCount, waitTime atomic.Int64

	mu       sync.Mutex
	inFlight int64       // weight
	adaptive *adaptive   // nil: the limit is the capacity
	line     inLine      // head of the ring of those that wait
	timer    *time.Timer // of the first of them to give up; nil: nobody will
	closed   bool
}

// inLine is a call's place in the line.
type inLine struct {
	weight     int64
	until      instant       // when it gives up; 0: when its context ends
	over       chan struct{} // closed when it has been decided what becomes of it:
	fate       fate
	next, prev *inLine
}

type fate int8

const (
	admitted fate = iota
	waitedTooLong
	shutOut
)

func newSlots(cfg *Config, c clock) *slots {
	s := &slots{clock: c, capacity: cfg.MaxConcurrent, maxQueue: int64(cfg.MaxQueue), custom: cfg.Limiter}
	s.line.next, s.line.prev = &s.line, &s.line
	if s.custom == nil && cfg.MinConcurrent > 0 {
		s.adaptive = &adaptive{slots: s, least: float64(cfg.MinConcurrent), most: float64(cfg.MaxConcurrent), limit: float64(cfg.MaxConcurrent)}
	}
	return s
}

// taken is the weight in flight.
func (s *slots) taken() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight
}

// limit is the weight that may be in flight at present.
func (s *slots) limit() int64 {
	if s.adaptive == nil {
		return s.capacity
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.adaptive.limit)
}

// fits refuses what can never be admitted.
func (s *slots) fits(weight int64) *Error {
	if s.custom == nil && s.capacity != Off && weight > s.capacity {
		return &Error{Kind: ErrOverloaded, Phase: phaseWeight, Size: weight, Max: s.capacity}
	}
	return nil
}

// join takes a place in the queue, which leave gives back; a full queue refuses.
func (s *slots) join() *Error {
	if n := s.waiting.Add(1); s.maxQueue != Off && n > s.maxQueue {
		s.waiting.Add(-1)
		return s.full()
	}
	return nil
}

// full is the refusal of a full queue.
func (s *slots) full() *Error {
	return &Error{Kind: ErrOverloaded, Phase: phaseQueue, Size: s.maxQueue, Max: s.maxQueue, RetryAfter: s.retryAfter()}
}

// crowded reports whether a call would find no place in the queue, and others in line before it.
func (s *slots) crowded() bool {
	if s.maxQueue == Off || s.waiting.Load() < s.maxQueue {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.empty()
}

func (s *slots) leave(waited time.Duration) {
	s.waiting.Add(-1)
	s.waitCount.Add(1)
	s.waitTime.Add(int64(waited))
}

// retryAfter estimates when the queue will have drained, from how long slots have been held of late.
func (s *slots) retryAfter() time.Duration {
	const least, most = 100 * time.Millisecond, time.Minute
	held := time.Duration(s.held.Load())
	if held == 0 {
		return time.Second // nothing has finished yet
	}
	return min(max(held*time.Duration(s.waiting.Load()+1)/time.Duration(max(s.limit(), 1)), least), most)
}

// try takes weight if it is there for the taking.
func (s *slots) try(weight int64) bool {
	if s.custom != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.empty() && s.admit(weight)
}

// acquire takes weight when it is its turn. It fails with ctx's error, with ErrOverloaded when it has waited until then (0:
// for ever), or with ErrClosed.
func (s *slots) acquire(ctx context.Context, weight int64, until instant) error {
	w := &inLine{weight: weight, until: until, over: make(chan struct{})}
	s.enter(w)
	select {
	case <-w.over:
	case <-ctx.Done():
		s.abandon(w)
		return ctx.Err()
	}
	switch w.fate {
	case waitedTooLong:
		return ErrOverloaded
	case shutOut:
		return ErrClosed
	}
	if ctx.Err() != nil { // in the same moment: nothing is begun for a caller who has left
		s.release(weight)
	}
	return ctx.Err()
}

// empty reports whether nobody is in line.
func (s *slots) empty() bool { return s.line.next == &s.line }

// ask takes weight from the user's Limiter.
func (s *slots) ask(ctx context.Context, call Call) (release func(), err error) {
	if release, err = s.custom.Acquire(ctx, call); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inFlight += call.Weight
	}
	return release, err
}

// enter goes to the end of the line.
func (s *slots) enter(w *inLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		w.end(shutOut)
		return
	}
	w.prev, w.next = s.line.prev, &s.line
	w.prev.next, s.line.prev = w, w
	s.next()
	if w.until != 0 && w.next != nil && s.timer == nil {
		s.arm(w)
	}
}

// abandon leaves the line, or gives back what was granted in the same moment.
func (s *slots) abandon(w *inLine) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case w.next != nil:
		s.remove(w)
	case w.fate == admitted:
		s.inFlight -= w.weight
	}
	s.next()
}

// end tells the waiter what becomes of it.
func (w *inLine) end(f fate) {
	w.fate = f
	close(w.over)
}

func (s *slots) remove(w *inLine) {
	w.prev.next, w.next.prev = w.next, w.prev
	w.next, w.prev = nil, nil
	if s.timer != nil && s.empty() {
		s.timer.Stop()
		s.timer = nil
	}
}

// next lets in those at the front of the line for whom there is room.
func (s *slots) next() {
	for w := s.line.next; w != &s.line && s.admit(w.weight); w = s.line.next {
		s.remove(w)
		w.end(admitted)
	}
}

// admit lets weight in if there is room.
func (s *slots) admit(weight int64) bool {
	switch {
	case s.adaptive != nil:
		if !s.adaptive.admits(weight) {
			return false
		}
	case s.capacity != Off && s.inFlight+weight > s.capacity:
		return false
	}
	s.inFlight += weight
	return true
}

// arm sets the timer for w, the first in line who will give up.
func (s *slots) arm(w *inLine) {
	s.timer = time.AfterFunc(-s.since(w.until), s.expire)
}

// expire ends the wait of those whose time is over, and sets the timer for the next.
func (s *slots) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for w := s.line.next; w != &s.line && w.until <= now; {
		due := w
		w = w.next
		if due.until != 0 {
			s.remove(due)
			due.end(waitedTooLong)
		}
	}
	s.next() // a large one may have been in the way
	if s.timer != nil {
		s.timer.Stop() // another, if this one came late
		s.timer = nil
	}
	for w := s.line.next; w != &s.line; w = w.next {
		if w.until != 0 {
			s.arm(w)
			return
		}
	}
}

// close ends the wait of all, now and in future.
func (s *slots) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for w := s.line.next; w != &s.line; w = s.line.next {
		s.remove(w)
		w.end(shutOut)
	}
}

// release gives weight back.
func (s *slots) release(weight int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight -= weight
	s.next()
}

// observe notes for how long a slot was held.
func (s *slots) observe(held time.Duration) {
	old := s.held.Load()
	s.held.Store(old + (int64(held)-old)/8) // an update lost to a race only ages the estimate
}
