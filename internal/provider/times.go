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

// recent are the most recent numbers of a kind, such as the times that requests of one form have taken to be answered.
type recent[T ~int64] struct {
	ring   [recentKept]T
	next   int // in ring
	sorted []T // those in ring
}

const (
	recentKept  = 128
	timesNeeded = 20 // fewer say too little
)

func (r *recent[T]) add(n T) {
	if len(r.sorted) == recentKept {
		i, _ := slices.BinarySearch(r.sorted, r.ring[r.next])
		r.sorted = slices.Delete(r.sorted, i, i+1)
	}
	r.ring[r.next] = n
	r.next = (r.next + 1) % recentKept
	i, _ := slices.BinarySearch(r.sorted, n)
	r.sorted = slices.Insert(r.sorted, i, n)
}

// quantile is the number that the fraction q of them do not exceed; 0: there are fewer than least.
func (r *recent[T]) quantile(q float64, least int) T {
	n := len(r.sorted)
	if n < least {
		return 0
	}
	return r.sorted[max(int(math.Ceil(q*float64(n)))-1, 0)]
}

// Late returns how long a request may take before it is late: Config.Quantile of the times of this form; 0: not known. From
// now on the request's own time counts too.
func (r *Route) Late(s *Sending, f Form) time.Duration {
	s.form = f
	return r.late(f)
}

func (r *Route) late(f Form) time.Duration {
	if t := r.times[f-1]; t != nil {
		return t.quantile(r.Quantile, timesNeeded)
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
		*t = new(recent[time.Duration])
	}
	(*t).add(took)
}

// Healthy reports whether the provider answers, as far as is known: there is no outage and no pause, and neither a lost
// request nor a 429 since the last answer.
func (r *Route) Healthy(now Instant) bool {
	return r.outage.since == 0 && r.outage.failures == 0 && now >= r.pause.until && r.pause.refusals == 0
}

// NoteOutput counts the tokens of an answer.
func (r *Route) NoteOutput(tokens int64) {
	if r.output == nil {
		r.output = new(recent[int64])
	}
	r.output.add(tokens)
}

// Output is the number of tokens that the fraction q of the last answers have not exceeded; 0: none is known.
func (r *Route) Output(q float64) int64 {
	if r.output == nil {
		return 0
	}
	return r.output.quantile(q, 1)
}
