package aiguard

import "time"

// adaptive is a limit that follows what the provider bears, between Config.MinConcurrent and MaxConcurrent.
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
// A weight above the present limit is admitted alone. The mutex of its slots guards it.
type adaptive struct {
	slots       *slots
	least, most float64
	limit       float64

	lowered instant // when the limit was
	before  float64 // the limit at the first drop since the last answer; 0: there was none
	outage  bool
	probe   instant // in an outage: nobody is let in until then
}

const (
	decrease      = 0.7                    // as CUBIC (RFC 9438): halving leaves more of the provider idle
	probeInterval = 500 * time.Millisecond // between two calls in an outage
)

// admits reports whether there is room for weight, which then is taken.
func (a *adaptive) admits(weight int64) bool {
	limit := a.limit
	if a.outage {
		limit = a.before
	}
	if n := a.slots.inFlight; n > 0 && n+weight > int64(limit) || a.outage && a.slots.now() < a.probe {
		return false
	}
	if a.outage {
		a.pause()
	}
	return true
}

// pause lets nobody in until the next probe of an outage. Its timer may outlive the calls.
func (a *adaptive) pause() {
	s := a.slots
	a.probe = s.now().add(probeInterval)
	time.AfterFunc(probeInterval, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.next()
	})
}

// answered raises the limit.
func (a *adaptive) answered(weight int64) {
	a.slots.mu.Lock()
	defer a.slots.mu.Unlock()
	switch {
	case a.outage:
		a.limit, a.outage = a.before, false
	case !a.slots.empty() || float64(2*a.slots.inFlight) >= a.limit:
		a.limit = min(a.limit+min(float64(weight)/a.limit, 1), a.most)
	}
	a.before = 0
	a.slots.next()
}

// dropped lowers the limit after the failure of a call that was admitted at the time given.
func (a *adaptive) dropped(admitted instant) {
	a.slots.mu.Lock()
	defer a.slots.mu.Unlock()
	if a.outage || admitted < a.lowered {
		return
	}
	a.lowered = a.slots.now()
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
