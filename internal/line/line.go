// Package line decides who is next among the calls that wait for a slot: by priority, then fair share between tenants,
// then arrival. It is a pure data structure: it has no clock, no lock and does no I/O, so that a model can be checked
// against it. Its caller holds a lock, passes the time in, and tells each route's room.
//
// Fair share is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024,
// arXiv 2401.00588): the tenant that has received the least service goes next, and a tenant that becomes active starts
// at the level of the tenant served last, so that nobody saves up service while away.
//
// While a tenant's queue has not been empty for longer than Overload, its newest waiter goes first and its oldest gives
// up when there is no place: adaptive LIFO (Maurer, "Fail at Scale", ACM Queue 2015).
package line

// Priority orders calls. It is an index: Background calls come last.
type Priority int8

// The priorities.
const (
	Background Priority = iota
	Normal
	Critical
	priorities
)

// turn: one of this many admissions goes to the longest waiter, whatever its priority, so that nobody starves.
const turn = 10

// Line is the capacity and those who wait for it. The zero value has no capacity; set the exported fields first. T is what
// a Waiter stands for.
type Line[T any] struct {
	Capacity      int64 // weight that may be in flight; negative: no bound
	MaxBackground int64 // of it for Background calls; negative: no bound
	Overload      int64 // how long a tenant's queue is in use before its newest waiter goes first; 0: never

	inFlight   int64
	background int64 // of inFlight
	busy       []*Route[T]
	ready      [priorities]int   // waiters of routes that have room
	weight     [priorities]int64 // their weight
	virtual    float64           // the service of the tenant admitted last, before that admission
	since      int               // admissions since the longest waiter's turn
	arrivals   uint64
}

// Tenant is one tenant's share. The zero value is a tenant that has received nothing.
type Tenant[T any] struct {
	waiting int     // calls
	service float64 // received, in the caller's unit
	flows   []*flow[T]
}

// Route is a part of the line that has room of its own. The zero value has no room.
type Route[T any] struct {
	waiting        int
	room           int64
	lanes          [priorities]lane[T]
	oldest, newest *Waiter[T]
	at             int // in Line.busy
}

// Waiter is a call in line.
type Waiter[T any] struct {
	Value  T     // not used here
	Weight int64 // set before Join, and not changed after

	flow           *flow[T]
	older, newer   *Waiter[T] // in the flow
	before, behind *Waiter[T] // in the route
	arrival        uint64
}

// lane is what waits at one route with one priority.
type lane[T any] struct {
	byService heap[T] // the flow to serve next first
	byLength  heap[T] // the longest first
	length    int     // calls
	weight    int64   // theirs
}

// InFlight is the weight in flight.
func (l *Line[T]) InFlight() int64 { return l.inFlight }

// Full reports whether no weight at all is left.
func (l *Line[T]) Full() bool { return l.Capacity >= 0 && l.inFlight >= l.Capacity }

// Ready is the number of waiters whose routes have room: those who wait for a slot alone.
func (l *Line[T]) Ready() int { return l.ready[Background] + l.ready[Normal] + l.ready[Critical] }

// Busy returns the routes at which somebody waits. The caller must not keep it.
func (l *Line[T]) Busy() []*Route[T] { return l.busy }

// Waiting is the number of waiters at the route.
func (r *Route[T]) Waiting() int { return r.waiting }

// Room is the weight that the route has room for.
func (r *Route[T]) Room() int64 { return r.room }

// Waiting reports whether anybody is in line.
func (l *Line[T]) Waiting() bool { return len(l.busy) > 0 }

// Waits is the number of waiters with a priority.
func (l *Line[T]) Waits(p Priority) (n int) {
	for _, r := range l.busy {
		n += r.lanes[p].length
	}
	return n
}

// Waiting is the number of the tenant's waiters.
func (t *Tenant[T]) Waiting() int { return t.waiting }

// Oldest is the waiter at the route that came first, or nil.
func (r *Route[T]) Oldest() *Waiter[T] { return r.oldest }

// Eldest is the waiter of w's tenant, route and priority that came first.
func (w *Waiter[T]) Eldest() *Waiter[T] { return w.flow.oldest }

// Behind is the waiter at the same route that came next, or nil.
func (w *Waiter[T]) Behind() *Waiter[T] { return w.behind }

// SetRoom sets the weight that a route has room for. With none, its waiters are passed over.
func (l *Line[T]) SetRoom(r *Route[T], room int64) {
	if (r.room > 0) != (room > 0) {
		sign := 1
		if room <= 0 {
			sign = -1
		}
		for p := range r.lanes {
			l.ready[p] += sign * r.lanes[p].length
			l.weight[p] += int64(sign) * r.lanes[p].weight
		}
	}
	r.room = room
}

// Takes reports whether there is room for a newcomer, and nobody before it.
func (l *Line[T]) Takes(r *Route[T], p Priority, weight int64) bool {
	for q := p; q < priorities; q++ {
		if l.ready[q] > 0 {
			return false
		}
	}
	return weight <= r.room && l.fits(p, weight) && (l.since < turn-1 || l.Ready() == 0)
}

// Take admits a newcomer if Takes says so. cost is the service that its tenant is charged.
func (l *Line[T]) Take(r *Route[T], t *Tenant[T], p Priority, weight int64, cost float64, now int64) bool {
	if !l.Takes(r, p, weight) {
		return false
	}
	if f := t.flow(r, p); f != nil { // it has been crowded
		f.arrive(now, l.Overload)
		f.admitted()
		f.forget()
	}
	if l.Ready() > 0 {
		l.since++
	}
	l.admit(t, p, weight, cost)
	return true
}

// Join puts w at the end of the line. It reports how many of w's flow, Eldest first, have so little chance to be served
// that they should give up: see flow.depth. slots is how many calls the route may have in flight.
func (l *Line[T]) Join(w *Waiter[T], r *Route[T], t *Tenant[T], p Priority, now, slots int64) (hopeless int) {
	if t.waiting == 0 {
		t.service = max(t.service, l.virtual)
	}
	f := t.flow(r, p)
	if f == nil {
		t.sweep(now, l.Overload)
		f = &flow[T]{tenant: t, route: r, priority: p, calm: now}
		t.flows = append(t.flows, f)
	}
	f.arrive(now, l.Overload)
	l.arrivals++
	w.arrival = l.arrivals
	if r.waiting == 0 {
		r.at = len(l.busy)
		l.busy = append(l.busy, r)
	}
	r.waiting++
	if w.before = r.newest; w.before != nil {
		w.before.behind = w
	} else {
		r.oldest = w
	}
	r.newest = w
	t.waiting++
	f.push(w)
	if r.room > 0 {
		l.ready[p]++
		l.weight[p] += w.Weight
	}
	return f.hopeless(now, l.Overload, slots)
}

// Refuse notes that a newcomer was refused: it is demand that the line did not see.
func (l *Line[T]) Refuse(r *Route[T], t *Tenant[T], p Priority, now int64) {
	if f := t.flow(r, p); f != nil {
		f.arrive(now, l.Overload)
	}
}

// Leave takes w out of the line.
func (l *Line[T]) Leave(w *Waiter[T]) {
	f := w.flow
	r := f.route
	r.waiting--
	if w.before != nil {
		w.before.behind = w.behind
	} else {
		r.oldest = w.behind
	}
	if w.behind != nil {
		w.behind.before = w.before
	} else {
		r.newest = w.before
	}
	w.before, w.behind = nil, nil
	if r.waiting == 0 {
		last := len(l.busy) - 1
		l.busy[r.at] = l.busy[last]
		l.busy[r.at].at = r.at
		l.busy[last] = nil
		l.busy = l.busy[:last]
	}
	f.tenant.waiting--
	f.remove(w)
	f.forget()
	if r.room > 0 {
		l.ready[f.priority]--
		l.weight[f.priority] -= w.Weight
	}
}

// First is the waiter to be admitted next among those whose routes have room, or nil. It may have to wait for more
// room: no later waiter may overtake it, or large weights would starve.
func (l *Line[T]) First(now int64) *Waiter[T] {
	if l.since >= turn-1 {
		if w := l.longest(); w != nil {
			return w
		}
	}
	var best *Waiter[T]
	for _, r := range l.busy {
		w := r.first(now, l.Overload)
		if w != nil && w.Weight <= r.room && (best == nil || w.goesBefore(best)) {
			best = w
		}
	}
	return best
}

// longest is the waiter that came first among those whose routes have room.
func (l *Line[T]) longest() (oldest *Waiter[T]) {
	for _, r := range l.busy {
		w := r.oldest
		if r.room < w.Weight || !l.fitsBackground(w.flow.priority, w.Weight) {
			continue
		}
		if oldest == nil || w.arrival < oldest.arrival {
			oldest = w
		}
	}
	return oldest
}

// first is the waiter to be served next at the route.
func (r *Route[T]) first(now, overload int64) *Waiter[T] {
	for p := Critical; p >= Background; p-- {
		if f := r.lanes[p].byService.first(); f != nil {
			return f.next(now, overload)
		}
	}
	return nil
}

func (w *Waiter[T]) goesBefore(o *Waiter[T]) bool {
	a, b := w.flow, o.flow
	switch {
	case a.priority != b.priority:
		return a.priority > b.priority
	case a.tenant.service != b.tenant.service:
		return a.tenant.service < b.tenant.service
	}
	return w.arrival < o.arrival
}

// Admit lets in w, which First has returned, if there is room for it.
func (l *Line[T]) Admit(w *Waiter[T], cost float64) bool {
	f := w.flow
	if !l.fits(f.priority, w.Weight) {
		return false
	}
	if w == l.longest() {
		l.since = 0
	} else {
		l.since++
	}
	f.admitted()
	l.Leave(w)
	l.admit(f.tenant, f.priority, w.Weight, cost)
	return true
}

// fits reports whether there is capacity for a call.
func (l *Line[T]) fits(p Priority, weight int64) bool {
	if l.Capacity >= 0 && l.inFlight+weight > l.Capacity {
		return false
	}
	return l.fitsBackground(p, weight)
}

// fitsBackground lets a call heavier than MaxBackground in when no other Background call is in flight.
func (l *Line[T]) fitsBackground(p Priority, weight int64) bool {
	return p != Background || l.MaxBackground < 0 || l.background == 0 || l.background+weight <= l.MaxBackground
}

func (l *Line[T]) admit(t *Tenant[T], p Priority, weight int64, cost float64) {
	l.inFlight += weight
	if p == Background {
		l.background += weight
	}
	t.service = max(t.service, l.virtual)
	l.virtual = t.service
	t.charge(cost)
}

// Release gives back the weight of a call that was admitted. owed is the service that it received beyond its cost.
func (l *Line[T]) Release(t *Tenant[T], p Priority, weight int64, owed float64) {
	l.inFlight -= weight
	if p == Background {
		l.background -= weight
	}
	if owed != 0 {
		t.charge(owed)
	}
}

// charge adds to what a tenant has received.
func (t *Tenant[T]) charge(service float64) {
	t.service += service
	for _, f := range t.flows {
		if f.length > 0 {
			f.lane().byService.fix(f)
		}
	}
}

// Displaced is who gives up a place so that a newcomer at route r can have one: at the route, if that is full, or else
// among all whose routes have room. In this order: the newest waiter of the longest flow with the lowest priority below
// the newcomer's; of the longest flow with the same priority, if that stays longer than the newcomer's own; and in
// overload the oldest of its own flow. It is nil if the newcomer has to be refused.
func (l *Line[T]) Displaced(r *Route[T], t *Tenant[T], priority Priority, now int64) *Waiter[T] {
	for p := Background; p <= priority; p++ {
		longest := l.longestFlow(r, p)
		if longest == nil {
			continue
		}
		if p < priority {
			return longest.newest
		}
		own, length := t.flow(r, p), 0
		if own != nil {
			length = own.length
		}
		if longest.tenant != t && length+1 < longest.length {
			return longest.newest
		}
		if length > 0 && own.overloaded(now, l.Overload) {
			return own.oldest
		}
	}
	return nil
}

// longestFlow looks at the route alone if that has no room: it is full then, not the line.
func (l *Line[T]) longestFlow(r *Route[T], p Priority) (longest *flow[T]) {
	if r.room <= 0 {
		return r.lanes[p].byLength.first()
	}
	for _, r := range l.busy {
		if f := r.lanes[p].byLength.first(); f != nil && r.room > 0 && (longest == nil || f.length > longest.length) {
			longest = f
		}
	}
	return longest
}

// Ahead estimates the weight that is served before a newcomer: of the line, and of its own route alone.
func (l *Line[T]) Ahead(r *Route[T], t *Tenant[T], p Priority, now int64) (line, route int64) {
	position := 1
	if f := t.flow(r, p); f != nil && !f.overloaded(now, l.Overload) {
		position = f.length + 1
	}
	flows, own := 0, 0
	for _, other := range l.busy {
		if other.room > 0 {
			flows += len(other.lanes[p].byService.flows)
		}
	}
	for q := p + 1; q < priorities; q++ {
		line += l.weight[q]
		route += r.lanes[q].weight
	}
	own = len(r.lanes[p].byService.flows)
	if f := t.flow(r, p); f == nil || f.length == 0 {
		own++
		flows++
	}
	// Each flow sends at most as many calls first as this one has in line.
	if l.ready[p] > 0 {
		line += min(l.weight[p], int64(position*flows-1)*l.weight[p]/int64(l.ready[p]))
	}
	if n := r.lanes[p].length; n > 0 {
		w := r.lanes[p].weight
		route += min(w, int64(position*own-1)*w/int64(n))
	}
	return line, route
}

// Reopened tells that a route was closed to everybody for a time, by a pause. That its waiters are still there does not
// mean overload.
func (r *Route[T]) Reopened(now, closed int64) {
	for p := range r.lanes {
		for _, f := range r.lanes[p].byService.flows {
			f.calm = min(f.calm+closed, now)
			if f.demand() < calmDemand {
				f.arrived = 0
			}
		}
	}
}
