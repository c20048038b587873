package aiguard

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
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

// slots is the capacity of a Guard: the weighted semaphore of x/sync (first in, first out; a small waiter
// does not overtake a large one), the adaptive one, or the user's Limiter, behind one bounded queue.
type slots struct {
	sem      weighted  // nil: no bound, or a custom Limiter
	adaptive *adaptive // sem, if the limit adapts
	custom   Limiter
	capacity int64
	maxQueue int64 // Off: no bound

	waiting  atomic.Int64 // calls in the queue, those waiting out a pause included
	inFlight atomic.Int64 // weight
	held     atomic.Int64 // moving average of how long a slot is held, in nanoseconds

	waitCount, waitTime atomic.Int64
}

// weighted is *semaphore.Weighted or *adaptive.
type weighted interface {
	TryAcquire(n int64) bool
	Acquire(ctx context.Context, n int64) error
	Release(n int64)
}

func newSlots(cfg *Config) *slots {
	s := &slots{capacity: cfg.MaxConcurrent, maxQueue: int64(cfg.MaxQueue), custom: cfg.Limiter}
	switch {
	case s.custom != nil || s.capacity == Off:
	case cfg.MinConcurrent > 0:
		s.adaptive = newAdaptive(cfg.MinConcurrent, cfg.MaxConcurrent)
		s.sem = s.adaptive
	default:
		s.sem = semaphore.NewWeighted(s.capacity)
	}
	return s
}

// limit is the weight that may be in flight at present.
func (s *slots) limit() int64 {
	if s.adaptive != nil {
		return s.adaptive.now()
	}
	return s.capacity
}

// fits refuses what can never be admitted.
func (s *slots) fits(weight int64) *Error {
	if s.sem != nil && weight > s.capacity {
		return &Error{Kind: ErrOverloaded, Phase: phaseWeight, Size: weight, Max: s.capacity}
	}
	return nil
}

// try takes weight if it is there for the taking.
func (s *slots) try(sl *slot, weight int64, now instant) bool {
	if s.custom != nil || s.sem != nil && !s.sem.TryAcquire(weight) {
		return false
	}
	s.taken(sl, weight, nil, now)
	return true
}

// join takes a place in the queue, which leave gives back; a full queue refuses.
func (s *slots) join() *Error {
	if n := s.waiting.Add(1); s.maxQueue != Off && n > s.maxQueue {
		s.waiting.Add(-1)
		return &Error{Kind: ErrOverloaded, Phase: phaseQueue, Size: n - 1, Max: s.maxQueue, RetryAfter: s.retryAfter()}
	}
	return nil
}

func (s *slots) leave(waited time.Duration) {
	s.waiting.Add(-1)
	s.waitCount.Add(1)
	s.waitTime.Add(int64(waited))
}

// wait takes weight when it is this call's turn. It fails with ctx's error, or with the Limiter's own.
func (s *slots) wait(ctx context.Context, sl *slot, call Call, clock *core) error {
	var release func()
	var err error
	switch {
	case s.custom != nil:
		release, err = s.custom.Acquire(ctx, call)
	case s.sem != nil:
		err = s.sem.Acquire(ctx, call.Weight)
	}
	if err == nil {
		s.taken(sl, call.Weight, release, clock.now())
	}
	return err
}

func (s *slots) taken(sl *slot, weight int64, release func(), now instant) {
	s.inFlight.Add(weight)
	sl.slots, sl.weight, sl.custom, sl.since = s, weight, release, now
	sl.held.Store(true)
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

// slot is the weight one attempt holds. The zero slot holds nothing.
type slot struct {
	slots  *slots
	weight int64
	custom func()
	since  instant
	held   atomic.Bool
}

// release gives the weight back; only the first call does anything.
func (sl *slot) release(now instant) {
	if !sl.held.CompareAndSwap(true, false) {
		return
	}
	s := sl.slots
	s.inFlight.Add(-sl.weight)
	old := s.held.Load()
	s.held.Store(old + (int64(now-sl.since)-old)/8) // an update lost to a race only ages the estimate
	if sl.custom != nil {
		sl.custom()
	}
	if s.sem != nil {
		s.sem.Release(sl.weight)
	}
}
