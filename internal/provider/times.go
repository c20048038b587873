package provider

import (
	"math"
	"slices"
	"time"
)

// Form is what a request asks for. Each form has its own times: a whole answer takes far longer than the start of a
// stream.
type Form int8

// The forms.
const (
	Untimed Form = iota // its time is not counted
	Whole               // an answer that is read whole
	Start               // a body that is handed over when it starts
)

// times are the most recent times that requests of one form have taken to be answered.
type times struct {
	recent [timesKept]time.Duration // a ring
	next   int                      // in recent
	sorted []time.Duration          // those in recent
}

const (
	timesKept   = 128
	timesNeeded = 20 // fewer say too little
)

func (t *times) add(d time.Duration) {
	if len(t.sorted) == timesKept {
		i, _ := slices.BinarySearch(t.sorted, t.recent[t.next])
		t.sorted = slices.Delete(t.sorted, i, i+1)
	}
	t.recent[t.next] = d
	t.next = (t.next + 1) % timesKept
	i, _ := slices.BinarySearch(t.sorted, d)
	t.sorted = slices.Insert(t.sorted, i, d)
}

// quantile is the time that the fraction q of the requests have not exceeded; 0: not known.
func (t *times) quantile(q float64) time.Duration {
	n := len(t.sorted)
	if n < timesNeeded {
		return 0
	}
	return t.sorted[max(int(math.Ceil(q*float64(n)))-1, 0)]
}

// Late returns how long a request may take before it is late: Config.Quantile of the times of this form; 0: not known. From
// now on the request's own time counts too.
func (r *Route) Late(s *Sending, f Form) time.Duration {
	s.form = f
	return r.late(f)
}

func (r *Route) late(f Form) time.Duration {
	if t := r.times[f-1]; t != nil {
		return t.quantile(r.Quantile)
	}
	return 0
}

// timed counts the time of a request, once. One that ends late without an answer, because it was cancelled say, counts
// with the time until then: without it the times would shrink, and ever more requests be late. One that ends early says
// nothing of how long an answer takes.
func (r *Route) timed(now Instant, s *Sending, answered bool) {
	f := s.form
	if f == Untimed {
		return
	}
	s.form = Untimed
	took := time.Duration(now - s.At)
	if late := r.late(f); !answered && (late == 0 || took <= late) {
		return
	}
	t := &r.times[f-1]
	if *t == nil {
		*t = new(times)
	}
	(*t).add(took)
}

// Healthy reports whether the provider answers, as far as is known: there is no outage and no pause, and neither a lost
// request nor a 429 since the last answer.
func (r *Route) Healthy(now Instant) bool {
	return r.outage.since == 0 && r.outage.failures == 0 && now >= r.pause.until && r.pause.refusals == 0
}
