package provider

import (
	"math"
	"slices"
	"time"
)

// Form is the form of answer that a request asks for. Times are kept per form, because a whole answer takes far
// longer than the start of a stream.
type Form int8

// Forms.
const (
	Untimed Form = iota // not timed
	Whole               // an answer that is read whole
	Start               // a body that is returned when it starts
)

// times holds the most recent response times of one form.
type times struct {
	recent [timesKept]time.Duration // a ring
	next   int                      // index in recent
	sorted []time.Duration          // the times in recent, sorted
}

const (
	timesKept   = 128
	timesNeeded = 20 // fewer are not significant
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

// quantile returns the time that a fraction q of the requests did not exceed; 0: unknown.
func (t *times) quantile(q float64) time.Duration {
	n := len(t.sorted)
	if n < timesNeeded {
		return 0
	}
	return t.sorted[max(int(math.Ceil(q*float64(n)))-1, 0)]
}

// Late returns the time after which a request is late: Config.Quantile of the times of this form; 0: unknown. From
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

// timed records the time of a request, once. A request that ends late without an answer, for example because it was
// canceled, counts with the time until then. Otherwise the times would shrink and more and more requests would be
// late. A request that ends early without an answer does not count.
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

// Healthy reports whether the provider seems to work: no outage, no pause, and no lost request or 429 since the last
// answer.
func (r *Route) Healthy(now Instant) bool {
	return r.outage.since == 0 && r.outage.failures == 0 && now >= r.pause.until && r.pause.refusals == 0
}
