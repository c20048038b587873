package line

import "math"

// flow is the queue of one tenant at one route with one priority.
type flow[T any] struct {
	tenant   *Tenant[T]
	route    *Route[T]
	priority Priority

	oldest, newest *Waiter[T]
	length         int
	at             [orders]int // positions in the heaps of its lane

	calm    int64   // when its queue was last empty without too much demand
	last    int64   // time of the last arrival
	arrived int     // calls that arrived since the last admission
	crowd   float64 // moving average of ln(1+arrived) over admissions
	seen    float64 // total weight of the admissions in crowd: 0 at first, near 1 after many
}

const (
	calm      = math.Ln2 // crowd at a demand of 1.5: an empty queue is calm if fewer calls arrive per admission
	hope      = 0.03     // a waiter with a lower chance of being served should give up
	crowdSpan = 32       // admissions over which the demand is averaged
)

// flow returns the tenant's flow at r with priority p, or nil.
func (t *Tenant[T]) flow(r *Route[T], p Priority) *flow[T] {
	for _, f := range t.flows {
		if f.route == r && f.priority == p {
			return f
		}
	}
	return nil
}

func (f *flow[T]) lane() *lane[T] { return &f.route.lanes[f.priority] }

// demand returns the number of arrivals per admission, once there were many admissions. It is a geometric mean, so a
// single burst, such as a batch submitted at once, does not count as a steady stream. For random arrivals the
// geometric mean is two thirds of the arithmetic mean, which the factor corrects.
func (f *flow[T]) demand() float64 { return 1.5 * math.Expm1(f.crowd) }

// crowded reports whether calls arrive faster than they are admitted. It compares logarithms, because demand takes
// longer than the rest of an admission.
func (f *flow[T]) crowded() bool { return f.crowd >= calm }

// pressing is crowded, judged by the admissions so far.
func (f *flow[T]) pressing() bool { return f.crowd >= calm*f.seen }

// arrive counts a call, whether it has to wait or not.
func (f *flow[T]) arrive(now, overload int64) {
	if f.length == 0 {
		if !f.crowded() {
			f.calm = now
		} else if now-f.last > overload {
			f.calm, f.crowd, f.seen, f.arrived = now, 0, 0, 0
		}
	}
	f.last = now
	f.arrived++
}

// admitted counts an admission.
func (f *flow[T]) admitted() {
	f.crowd += (math.Log1p(float64(f.arrived)) - f.crowd) / crowdSpan
	f.seen += (1 - f.seen) / crowdSpan
	f.arrived = 0
}

// overloaded reports whether the queue has been in use for so long that waiting in order would make every answer
// late.
func (f *flow[T]) overloaded(now, overload int64) bool {
	return overload > 0 && now-f.calm > overload && f.pressing()
}

// next returns the waiter of the flow that is served next.
func (f *flow[T]) next(now, overload int64) *Waiter[T] {
	if f.overloaded(now, overload) {
		return f.newest
	}
	return f.oldest
}

// hopeless returns the number of waiters that should give up now.
func (f *flow[T]) hopeless(now, overload, slots int64) int {
	if !f.overloaded(now, overload) {
		return 0
	}
	return max(f.length-f.depth(slots), 0)
}

// depth returns how many waiters have a chance while the newest is served first. If d calls arrive per admission, a
// waiter behind k newer ones is ever served with probability d^-k (the gambler's ruin; Feller, "An Introduction to
// Probability Theory", vol. 1, XIV.2). At least half as many waiters as slots are kept, because slots may become free
// together.
func (f *flow[T]) depth(slots int64) int {
	if !f.crowded() {
		return math.MaxInt
	}
	d := f.demand()
	return max(int(math.Ceil(math.Log(1/hope)/math.Log(d))), int(slots+1)/2)
}

func (f *flow[T]) push(w *Waiter[T]) {
	w.flow = f
	if w.older = f.newest; w.older != nil {
		w.older.newer = w
	} else {
		f.oldest = w
	}
	f.newest = w
	f.length++
	n := f.lane()
	n.length++
	n.weight += w.Weight
	if f.length == 1 {
		n.byService.push(f, byService)
		n.byLength.push(f, byLength)
		return
	}
	n.byLength.sooner(f)
}

func (f *flow[T]) remove(w *Waiter[T]) {
	if w.older != nil {
		w.older.newer = w.newer
	} else {
		f.oldest = w.newer
	}
	if w.newer != nil {
		w.newer.older = w.older
	} else {
		f.newest = w.older
	}
	w.older, w.newer = nil, nil
	f.length--
	n := f.lane()
	n.length--
	n.weight -= w.Weight
	if f.length == 0 {
		n.byService.remove(f)
		n.byLength.remove(f)
	}
}

// forget removes an empty flow without a history worth keeping.
func (f *flow[T]) forget() {
	if f.length > 0 || f.crowded() {
		return
	}
	flows := f.tenant.flows
	for i := range flows {
		if flows[i] == f {
			last := len(flows) - 1
			flows[i], flows[last] = flows[last], nil
			f.tenant.flows = flows[:last]
			return
		}
	}
}

// sweep removes flows that have been empty for long.
func (t *Tenant[T]) sweep(now, overload int64) {
	kept := t.flows[:0]
	for _, f := range t.flows {
		if f.length > 0 || now-f.last <= overload {
			kept = append(kept, f)
		}
	}
	clear(t.flows[len(kept):])
	t.flows = kept
}
