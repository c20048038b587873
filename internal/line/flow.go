package line

import "math"

// flow is what one tenant has waiting at one route with one priority.
type flow[T any] struct {
	tenant   *Tenant[T]
	route    *Route[T]
	priority Priority

	oldest, newest *Waiter[T]
	length         int
	at             [2]int // in the heaps of its lane

	calm    int64   // when its queue was last empty, with no more demand than is served
	last    int64   // the last arrival
	arrived int     // calls since the last admission
	crowd   float64 // moving average of ln(1+arrived), over admissions
	seen    float64 // the weight of the admissions in it: 0 at first, near to 1 after many
}

const (
	calmDemand = 1.5  // arrivals for each admission below which an empty queue is calm
	hope       = 0.03 // a waiter whose chance to be served is less should give up
	crowdSpan  = 32   // admissions over which the demand is averaged
)

// flow finds the tenant's flow; nil: it has none.
func (t *Tenant[T]) flow(r *Route[T], p Priority) *flow[T] {
	for _, f := range t.flows {
		if f.route == r && f.priority == p {
			return f
		}
	}
	return nil
}

func (f *flow[T]) lane() *lane[T] { return &f.route.lanes[f.priority] }

// demand is the number of calls that arrive for each one that is admitted, once many have been. It is a geometric mean, so
// that one burst, a batch that is submitted at once, is not taken for a steady stream; calls that come at random have a
// geometric mean of two thirds of the arithmetic one.
func (f *flow[T]) demand() float64 { return 1.5 * math.Expm1(f.crowd) }

// pressing reports whether more calls seem to arrive than are admitted, from as many admissions as there were.
func (f *flow[T]) pressing() bool {
	return f.seen == 0 || 1.5*math.Expm1(f.crowd/f.seen) >= calmDemand
}

// arrive notes a call, which may wait or not.
func (f *flow[T]) arrive(now, overload int64) {
	if f.length == 0 {
		if f.demand() < calmDemand {
			f.calm = now
		} else if now-f.last > overload {
			f.calm, f.crowd, f.seen, f.arrived = now, 0, 0, 0
		}
	}
	f.last = now
	f.arrived++
}

// admitted notes that one of its calls was let in.
func (f *flow[T]) admitted() {
	f.crowd += (math.Log1p(float64(f.arrived)) - f.crowd) / crowdSpan
	f.seen += (1 - f.seen) / crowdSpan
	f.arrived = 0
}

// overloaded reports whether the queue has been in use for so long that waiting in turn would make every answer late.
func (f *flow[T]) overloaded(now, overload int64) bool {
	return overload > 0 && now-f.calm > overload && f.pressing()
}

// next is the waiter of the flow to be served next.
func (f *flow[T]) next(now, overload int64) *Waiter[T] {
	if f.overloaded(now, overload) {
		return f.newest
	}
	return f.oldest
}

// hopeless is the number of waiters that should give up now.
func (f *flow[T]) hopeless(now, overload, slots int64) int {
	if !f.overloaded(now, overload) {
		return 0
	}
	return max(f.length-f.depth(slots), 0)
}

// depth is how many waiters have hope while the newest goes first. If d calls arrive for each one that is admitted, one
// with k newer ones before it is ever served with probability d^-k (the gambler's ruin; Feller, "An Introduction to
// Probability Theory", vol. 1, XIV.2). Half as many waiters as slots are kept in any case: slots may become free together.
func (f *flow[T]) depth(slots int64) int {
	d := f.demand()
	if d < calmDemand {
		return math.MaxInt
	}
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
		n.byService.push(f, 0)
		n.byLength.push(f, 1)
		return
	}
	n.byLength.fix(f)
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
		return
	}
	n.byService.fix(f) // the oldest waiter decides between equals
	n.byLength.fix(f)
}

// forget drops a flow that nobody waits in and nothing is to be remembered of.
func (f *flow[T]) forget() {
	if f.length > 0 || f.demand() >= calmDemand {
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

// sweep drops what is remembered of flows that have been empty for long.
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
