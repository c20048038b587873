// Package line orders the calls that wait for a slot: by priority, then by fair share between tenants, then by
// arrival. It is a pure data structure without clock, lock or I/O, so that a model can be checked against it. The
// caller holds a lock, passes in the time, and sets each route's room.
//
// Fair share is the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024,
// arXiv 2401.00588). The tenant that has received the least service is served next. A tenant that becomes active
// starts at the level of the tenant served last, so a tenant cannot save up service while it is idle.
//
// If a tenant's queue has not been empty for longer than Overload, its newest waiter is served first, and its oldest
// gives up when the queue is full. This is adaptive LIFO (Maurer, "Fail at Scale", ACM Queue 2015).
package line

// Priority orders calls. It is an index, and Background is the lowest.
type Priority int8

// Priorities, the lowest first.
const (
	Background Priority = iota
	Normal
	Critical
	priorities
)

// turn prevents starvation: one in turn admissions goes to the longest waiter, whatever its priority.
const turn = 10

// Line holds the capacity and the waiters. The zero value has no capacity, so set the exported fields first. T is the
// type of a Waiter's Value.
type Line[T any] struct {
	Capacity      int64 // weight that may be in flight; negative: no limit
	MaxBackground int64 // part of Capacity for Background calls; negative: no limit

	// Overload is the time for which a tenant's queue must be in use before its newest waiter is served first. 0:
	// never
	Overload int64

	inFlight   int64
	background int64 // part of inFlight
	busy       []*Route[T]
	ready      [priorities]int   // waiters whose routes have room
	weight     [priorities]int64 // weight of those waiters
	virtual    float64           // service of the tenant admitted last, before that admission
	since      int               // admissions since the longest waiter's turn
	arrivals   uint64
}

// Tenant is the state of one tenant. The zero value has received no service.
type Tenant[T any] struct {
	waiting int     // calls
	service float64 // service received, in the caller's unit
	flows   []*flow[T]
}

// Route is a part of the line with its own room. The zero value has no room.
type Route[T any] struct {
	waiting        int
	room           int64
	lanes          [priorities]lane[T]
	oldest, newest *Waiter[T]
	foremost       *Waiter[T] // oldest one above Background, which MaxBackground does not limit
	due            *Waiter[T] // its turn has come but its weight exceeds the room; no other waiter is admitted
	at             int        // position in Line.busy
}

// Waiter is a call in line.
type Waiter[T any] struct {
	Value  T     // for the caller
	Weight int64 // set before Join and then constant

	flow           *flow[T]
	older, newer   *Waiter[T] // in the flow
	before, behind *Waiter[T] // in the route
	arrival        uint64
}

// lane holds the waiters of one priority at one route.
type lane[T any] struct {
	byService heap[T] // the flow that is served next first
	byLength  heap[T] // the longest flow first
	length    int     // calls
	weight    int64   // weight of those calls
}

// InFlight returns the weight in flight.
func (l *Line[T]) InFlight() int64 { return l.inFlight }

// Full reports whether no capacity is left.
func (l *Line[T]) Full() bool { return l.Capacity >= 0 && l.inFlight >= l.Capacity }

// Ready returns the number of waiters whose routes have room, so that they only wait for a slot.
func (l *Line[T]) Ready() int { return l.ready[Background] + l.ready[Normal] + l.ready[Critical] }

// Busy returns the routes with waiters. The caller must not keep the slice.
func (l *Line[T]) Busy() []*Route[T] { return l.busy }

// Waiting returns the number of waiters at the route.
func (r *Route[T]) Waiting() int { return r.waiting }

// Room returns the weight that the route has room for.
func (r *Route[T]) Room() int64 { return r.room }

// Waiting reports whether the line has waiters.
func (l *Line[T]) Waiting() bool { return len(l.busy) > 0 }

// Waits returns the number of waiters with priority p.
func (l *Line[T]) Waits(p Priority) (n int) {
	for _, r := range l.busy {
		n += r.lanes[p].length
	}
	return n
}

// Waiting returns the number of the tenant's waiters.
func (t *Tenant[T]) Waiting() int { return t.waiting }

// Oldest returns the first waiter at the route in order of arrival, or nil.
func (r *Route[T]) Oldest() *Waiter[T] { return r.oldest }

// Eldest returns the oldest waiter with the same tenant, route and priority as w.
func (w *Waiter[T]) Eldest() *Waiter[T] { return w.flow.oldest }

// Behind returns the next waiter at the same route in order of arrival, or nil.
func (w *Waiter[T]) Behind() *Waiter[T] { return w.behind }

// SetRoom sets the weight that a route has room for. Waiters of a route without room are skipped.
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

// Takes reports whether a new call can be admitted at once: there is room, and no waiter comes before it.
func (l *Line[T]) Takes(r *Route[T], p Priority, weight int64) bool {
	for q := p; q < priorities; q++ {
		if l.ready[q] > 0 {
			return false
		}
	}
	return r.due == nil && weight <= r.room && l.fits(p, weight) && (l.since < turn-1 || l.Ready() == 0)
}

// Take admits a new call if Takes allows it. cost is the service charged to its tenant.
func (l *Line[T]) Take(r *Route[T], t *Tenant[T], p Priority, weight int64, cost float64, now int64) bool {
	if !l.Takes(r, p, weight) {
		return false
	}
	if f := t.flow(r, p); f != nil { // the flow remembers a high demand
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

// Join adds w to the end of the line. It returns how many waiters of w's flow, starting at Eldest, have so little
// chance of being served that they should give up: see flow.depth. slots is the number of calls that the route may
// have in flight.
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
	if r.foremost == nil && p > Background {
		r.foremost = w
	}
	t.waiting++
	f.push(w)
	if r.room > 0 {
		l.ready[p]++
		l.weight[p] += w.Weight
	}
	return f.hopeless(now, l.Overload, slots)
}

// Refuse counts a rejected call, because it is demand that the line does not see otherwise.
func (l *Line[T]) Refuse(r *Route[T], t *Tenant[T], p Priority, now int64) {
	if f := t.flow(r, p); f != nil {
		f.arrive(now, l.Overload)
	}
}

// Leave removes w from the line.
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
	if r.foremost == w {
		for r.foremost = w.behind; r.foremost != nil && r.foremost.flow.priority == Background; {
			r.foremost = r.foremost.behind // each waiter is passed once, because later ones are behind it
		}
	}
	if r.due == w {
		r.due = nil
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

// First returns the waiter to be admitted next, of those whose routes have room, or nil. That waiter may still need
// more capacity. No later waiter may overtake it, because large weights would starve otherwise. For the same reason a
// route admits nobody else while the waiter whose turn has come needs more room.
func (l *Line[T]) First(now int64) *Waiter[T] {
	if l.since >= turn-1 {
		if w := l.longest(); w != nil {
			if w.Weight <= w.flow.route.room {
				return w
			}
			w.flow.route.due, l.since = w, 0 // only its own route waits for it
		}
	}
	var best *Waiter[T]
	for _, r := range l.busy {
		if due := r.due; due != nil && !l.fitsBackground(due.flow.priority, due.Weight) {
			r.due = nil // other routes have used up MaxBackground
		}
		w := l.Next(r, now)
		if w != nil && w.Weight <= r.room && (best == nil || w.goesBefore(best)) {
			best = w
		}
	}
	return best
}

// longest returns the oldest waiter of those whose routes have room, or nil. It passes over waiters that must wait for
// MaxBackground.
func (l *Line[T]) longest() (oldest *Waiter[T]) {
	for _, r := range l.busy {
		w := r.oldest
		if r.room <= 0 || r.due != nil {
			continue
		}
		if !l.fitsBackground(w.flow.priority, w.Weight) {
			w = r.foremost
		}
		if w != nil && (oldest == nil || w.arrival < oldest.arrival) {
			oldest = w
		}
	}
	return oldest
}

// Next returns the waiter that is admitted next at the route once the route has room, or nil.
func (l *Line[T]) Next(r *Route[T], now int64) *Waiter[T] {
	if r.due != nil {
		return r.due
	}
	return r.first(now, l.Overload)
}

// first returns the waiter to be served next at the route.
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
	switch due := a.route.due == w; {
	case due != (b.route.due == o):
		return due
	case due: // both: by arrival
	case a.priority != b.priority:
		return a.priority > b.priority
	case a.tenant.service != b.tenant.service:
		return a.tenant.service < b.tenant.service
	}
	return w.arrival < o.arrival
}

// Admit admits w, which First has returned, if there is room for it.
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

// fitsBackground admits a call heavier than MaxBackground if no other Background call is in flight.
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

// Release returns the weight of an admitted call. owed is the service that the call received beyond its cost.
func (l *Line[T]) Release(t *Tenant[T], p Priority, weight int64, owed float64) {
	l.inFlight -= weight
	if p == Background {
		l.background -= weight
	}
	if owed != 0 {
		t.charge(owed)
	}
}

// charge adds to the service that a tenant has received.
func (t *Tenant[T]) charge(service float64) {
	t.service += service
	if service >= 0 {
		return
	}
	for _, f := range t.flows {
		if f.length > 0 {
			f.lane().byService.sooner(f)
		}
	}
}

// Displaced returns the waiter that gives up its place for a new call at route r, or nil if the new call must be
// rejected. The place is at the route if that is full, else at any route with room. The first of these candidates is
// chosen:
//
//   - the newest waiter of the longest flow with the lowest priority below the new call's
//   - the newest waiter of the longest flow with the same priority, if that flow stays longer than the new call's own
//   - in overload, the oldest waiter of the new call's own flow
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

// longestFlow considers only the route if it has no room, because then the route is full and not the line.
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

// Ahead estimates the weight that is served before a new call: in the whole line, and at its own route. background is the
// part of line that MaxBackground limits, if it limits the new call too; negative: it does not.
func (l *Line[T]) Ahead(r *Route[T], t *Tenant[T], p Priority, now int64) (line, route, background int64) {
	position := 1
	if f := t.flow(r, p); f != nil && !f.overloaded(now, l.Overload) {
		position = f.length + 1
	}
	flows, own := 0, 0
	for _, other := range l.busy {
		if other.room > 0 {
			flows += len(other.lanes[p].byService.ranked)
		}
	}
	for q := p + 1; q < priorities; q++ {
		line += l.weight[q]
		route += r.lanes[q].weight
	}
	own = len(r.lanes[p].byService.ranked)
	if f := t.flow(r, p); f == nil || f.length == 0 {
		own++
		flows++
	}
	// Each flow is served at most as many calls before this one as this flow has in line.
	same := int64(0)
	if l.ready[p] > 0 {
		same = min(l.weight[p], int64(position*flows-1)*l.weight[p]/int64(l.ready[p]))
	}
	line += same
	if background = -1; !l.fitsBackground(p, 1) {
		background = same
	}
	if n := r.lanes[p].length; n > 0 {
		w := r.lanes[p].weight
		route += min(w, int64(position*own-1)*w/int64(n))
	}
	return line, route, background
}

// Before estimates how many of the route's waiters are admitted before a new call, if only the route's room limits them.
func (l *Line[T]) Before(r *Route[T], t *Tenant[T], p Priority, now int64) (calls int) {
	for q := p + 1; q < priorities; q++ {
		calls += r.lanes[q].length
	}
	position, flows := 1, len(r.lanes[p].byService.ranked)
	if f := t.flow(r, p); f == nil || f.length == 0 {
		flows++
	} else if !f.overloaded(now, l.Overload) {
		position = f.length + 1
	}
	return calls + min(r.lanes[p].length, position*flows-1)
}

// Reopened reports that a pause had closed the route. Waiting during the pause does not count as overload.
func (r *Route[T]) Reopened(now, closed int64) {
	for p := range r.lanes {
		for _, e := range r.lanes[p].byService.ranked {
			f := e.flow
			f.calm = min(f.calm+closed, now)
			if !f.crowded() {
				f.arrived = 0
			}
		}
	}
}
