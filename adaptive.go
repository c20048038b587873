package aiguard

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// adaptive is a semaphore whose size follows what the provider bears, between Config.MinConcurrent and MaxConcurrent.
//
// It starts at the most. Answers raise it by one for each full round of them, but only while it is in use; a drop (a
// 429, a 503, a time-out: see dropped) lowers it by a fraction, once for all calls that were admitted before. That is additive
// increase and multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
// Avoidance in Computer Networks", 1989; RFC 5681 is TCP's). Latency is no signal: long answers are not congestion.
//
// A drop at the least limit, with no answer since the first one, is an outage: then one call is let in every half second,
// whatever became of the one before, and the first answer restores the limit from before. An outage says nothing about
// how much the provider bears.
//
// As in x/sync's semaphore, waiters are first in, first out, and a small one does not overtake a large one. A weight
// above the present limit is admitted alone.
type adaptive struct {
	least, most float64

	mu       sync.Mutex
	limit    float64
	inFlight int64
	waiters  list.List // of *inLine

	lowered time.Time // when the limit was
	before  float64   // the limit at the first drop since the last answer; 0: there was none
	outage  bool
	probe   time.Time // in an outage: nobody is let in until then
}

type inLine struct {
	weight   int64
	admitted chan struct{}
}

const (
	decrease      = 0.7                    // as CUBIC (RFC 9438): halving leaves more of the provider idle
	probeInterval = 500 * time.Millisecond // between two calls in an outage
)

func newAdaptive(least, most int64) *adaptive {
	return &adaptive{least: float64(least), most: float64(most), limit: float64(most)}
}

func (a *adaptive) TryAcquire(weight int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waiters.Len() == 0 && a.admit(weight)
}

func (a *adaptive) Acquire(ctx context.Context, weight int64) error {
	a.mu.Lock()
	if a.waiters.Len() == 0 && a.admit(weight) {
		a.mu.Unlock()
		return nil
	}
	w := &inLine{weight, make(chan struct{})}
	place := a.waiters.PushBack(w)
	a.mu.Unlock()
	select {
	case <-w.admitted:
		return nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-w.admitted: // in the same moment
		a.inFlight -= weight
	default:
		a.waiters.Remove(place)
	}
	a.next()
	return ctx.Err()
}

func (a *adaptive) Release(weight int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.inFlight -= weight
	a.next()
}

// admit lets weight in if there is room.
func (a *adaptive) admit(weight int64) bool {
	limit := a.limit
	if a.outage {
		limit = a.before
	}
	if a.inFlight > 0 && a.inFlight+weight > int64(limit) || a.outage && time.Now().Before(a.probe) {
		return false
	}
	a.inFlight += weight
	if a.outage {
		a.pause()
	}
	return true
}

// pause lets nobody in until the next probe of an outage. Its timer is the one thing here that may outlive a call.
func (a *adaptive) pause() {
	a.probe = time.Now().Add(probeInterval)
	time.AfterFunc(probeInterval, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.next()
	})
}

// next lets in those at the front of the queue that there is room for.
func (a *adaptive) next() {
	for front := a.waiters.Front(); front != nil; front = a.waiters.Front() {
		w := front.Value.(*inLine)
		if !a.admit(w.weight) {
			return
		}
		a.waiters.Remove(front)
		close(w.admitted)
	}
}

// answered raises the limit.
func (a *adaptive) answered(weight int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.outage:
		a.limit, a.outage = a.before, false
	case a.waiters.Len() > 0 || float64(2*a.inFlight) >= a.limit:
		a.limit = min(a.limit+min(float64(weight)/a.limit, 1), a.most)
	}
	a.before = 0
	a.next()
}

// dropped lowers the limit after the failure of a call that was admitted at the time given.
func (a *adaptive) dropped(admitted time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.outage || admitted.Before(a.lowered) {
		return
	}
	a.lowered = time.Now()
	if a.before == 0 {
		a.before = a.limit
	}
	if a.limit > a.least {
		a.limit = max(a.limit*decrease, a.least)
		return
	}
	a.outage = true
	a.pause()
}

func (a *adaptive) now() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(a.limit)
}

// dropped reports whether e may mean that the provider has more to do than it can.
func dropped(e *Error) bool {
	switch e.Kind {
	case ErrRateLimited:
		return e.Phase != phasePause // that was not sent
	case ErrTimeout:
		return e.Phase != phaseTotal // which may have begun long before
	case ErrUnavailable:
		switch e.StatusCode {
		case 0:
			return e.retry != retryAtOnce
		case 408, 503, 504, 529:
			return true
		}
	}
	return false
}
