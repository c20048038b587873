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

// recent holds the most recent numbers of one kind, such as the response times of one form.
type recent[T ~int64] struct {
	ring   [recentKept]T
	next   int // index in ring
	sorted []T // the numbers in ring, sorted
}

const (
	recentKept  = 128
	timesNeeded = 20 // fewer are not significant
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

// quantile returns the number that a fraction q of them did not exceed; 0: fewer than least are known.
func (r *recent[T]) quantile(q float64, least int) T {
	n := len(r.sorted)
	if n < least {
		return 0
	}
	return r.sorted[max(int(math.Ceil(q*float64(n)))-1, 0)]
}

// times holds the response times of each form.
type times [2]*recent[time.Duration] // by form; nil: none

func (t *times) add(f Form, took time.Duration) {
	of := &t[f-1]
	if *of == nil {
		*of = new(recent[time.Duration])
	}
	(*of).add(took)
}

// late returns the quantile q of the times of this form; 0: unknown.
func (t *times) late(f Form, q float64) time.Duration {
	if of := t[f-1]; of != nil {
		return of.quantile(q, timesNeeded)
	}
	return 0
}

// Late returns the time after which a request is late: Config.Quantile of the times of this form; 0: unknown. From
// now on the request's own time counts too.
func (r *Route) Late(s *Sending, f Form) time.Duration {
	s.form = f
	return r.times.late(f, r.Quantile)
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
	if late := r.times.late(f, r.Quantile); !answered && (late == 0 || took <= late) {
		return
	}
	r.times.add(f, took)
}

// Healthy reports whether the provider seems to work: no outage, no pause, and no lost request or 429 since the last
// answer.
func (r *Route) Healthy(now Instant) bool {
	return r.outage.since == 0 && r.outage.failures == 0 && now >= r.pause.until && r.pause.refusals == 0
}

// Sizes holds the sizes of the last answers, in tokens.
type Sizes struct{ recent *recent[int64] } // nil: none

// Add records the tokens of an answer.
func (s *Sizes) Add(tokens int64) {
	if s.recent == nil {
		s.recent = new(recent[int64])
	}
	s.recent.add(tokens)
}

// Quantile returns the number of tokens that a fraction q of the last answers did not exceed; 0: unknown.
func (s *Sizes) Quantile(q float64) int64 {
	if s.recent == nil {
		return 0
	}
	return s.recent.quantile(q, 1)
}
