package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the line, whose turn it is.

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/line"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// limiter admits calls. It adds a lock and a clock to internal/line, which decides the order, and internal/provider,
// which tracks the routes. A call is admitted in one step when there is capacity and its route has room.
//
// A context per waiting call would dominate the memory and time of a wait. So calls wait with their callers'
// contexts, and one timer serves QueueTimeout and the reopening of routes for all of them.
type limiter struct {
	clock
	custom *userLimiter // nil: line limits the capacity

	full atomic.Bool // waiting has reached maxQueue; set with mu held

	mu       *sync.Mutex   // ring.mu; it guards all that follows
	capacity int64         // MaxConcurrent; Off: no limit
	maxQueue int           // Off: no limit
	patience time.Duration // QueueTimeout; Off: no limit
	waiting  int64         // calls that wait in line, for a route or in Config.Limiter
	waits    int64         // calls that have waited
	waitTime time.Duration
	line     line.Line[*inLine]
	routes   routes
	tenants  tenants
	budget   provider.Budget // retries of the whole guard
	held     float64         // average seconds that a slot is held; 0: unknown
	perToken float64         // the same per token of usage
	inFlight [3]int64        // weight, by priority
	refused  [3]int64        // calls, by priority
	uncalled int64           // rejected calls for which no call was made: part of Stats.Calls and Stats.Refused
	timer    *time.Timer
	due      instant // when timer fires; 0: not set
	closed   bool
	changes  changes
}

// permit is what an attempt holds: weight of the capacity, and a place on its route. Its release is idempotent and
// safe for concurrent use.
type permit struct {
	held    atomic.Bool
	nested  bool // a call inside a Do, whose slot it uses
	route   *route
	tenant  *tenant
	sending provider.Sending
	cost    float64 // charged to the tenant in advance
	release func()  // releases Config.Limiter; nil: nothing to release
}

func newLimiter(cfg *Config, c clock, mu *sync.Mutex) *limiter {
	l := &limiter{clock: c, mu: mu}
	if cfg.Limiter != nil {
		l.custom = &userLimiter{Limiter: cfg.Limiter, limiter: l}
	}
	l.routes.init(cfg, l)
	l.line.SetRoom(&l.routes.nameless.line, math.MaxInt64)
	l.line.SetRoom(&l.routes.unknown.line, math.MaxInt64)
	l.tenants.init()
	l.budget.Init(cfg.Retry.Budget, provider.GuardFloor)
	l.configure(cfg)
	return l
}

// configure sets the limits of the line.
func (l *limiter) configure(cfg *Config) {
	l.capacity, l.maxQueue, l.patience = cfg.MaxConcurrent, cfg.MaxQueue, cfg.QueueTimeout
	l.line.Capacity, l.line.MaxBackground, l.line.Overload = cfg.MaxConcurrent, cfg.MaxBackground, 0
	if l.custom != nil {
		l.line.Capacity, l.line.MaxBackground = Off, Off
	}
	if l.patience != Off {
		l.line.Overload = int64(l.patience / 3)
	}
	l.addWaiting(0)
}

// addWaiting adds n to the number of calls that wait.
func (l *limiter) addWaiting(n int64) {
	l.waiting += n
	if full := l.maxQueue != Off && l.waiting >= int64(l.maxQueue); full != l.full.Load() {
		l.full.Store(full)
	}
}

// endWait counts the end of a wait in line. A wait for Config.Limiter ends later.
func (l *limiter) endWait(c *call, now instant) {
	l.addWaiting(-1)
	if c.waits && l.custom == nil {
		l.waits++
		l.waitTime += time.Duration(now - c.place.joined)
	}
}

// fits rejects a call that can never be admitted.
func (l *limiter) fits(weight int64) *Error {
	if l.custom == nil && l.line.Capacity != Off && weight > l.line.Capacity {
		return &Error{Kind: ErrOverloaded, Phase: PhaseWeight, Size: weight, Max: l.line.Capacity, setting: "MaxConcurrent"}
	}
	return nil
}

// crowded returns an error if the call would find the queue full, else nil. It does not make a route or tenant,
// because rejecting is most of a guard's work under overload. If no call will be made for it, silently is true.
func (l *limiter) crowded(s *settings, silently bool) *Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, r, t := l.now(), l.routes.peek(s), l.tenants.peek(s.Tenant)
	if l.fits(s.Weight) != nil {
		return nil // rejected for another reason
	}
	if r.state.DownSince() != 0 || !r.full() || l.line.Displaced(&r.line, &t.line, s.Priority.line(), int64(now)) != nil {
		return nil
	}
	if silently {
		l.uncalled++
	}
	l.refused[s.Priority.line()]++
	t.refused++
	l.line.Refuse(&r.line, &t.line, s.Priority.line(), int64(now))
	return r.queueFull(s.Weight, now, t, s.Priority)
}

// full reports whether a new call would find no place: at the route if that has no room, else in line.
func (r *route) full() bool {
	l := r.limiter
	switch {
	case l.maxQueue == Off:
		return false
	case r.line.Room() <= 0:
		return r.line.Waiting()+r.lingering >= l.maxQueue
	}
	return l.line.Ready() >= l.maxQueue
}

func (r *route) queueFull(weight int64, now instant, t *tenant, p Priority) *Error {
	most := int64(r.limiter.maxQueue)
	return &Error{Kind: ErrOverloaded, Phase: PhaseQueue, Size: most, Max: most, RetryAfter: r.retryAfter(weight, now, t, p), setting: "MaxQueue"}
}

// find returns the call's route and tenant.
func (l *limiter) find(c *call, now instant) (*route, *tenant) {
	r := &l.routes.nameless
	if c.hasRoute() {
		r = l.routes.get(c.settings)
	}
	p := &c.permit
	if p.tenant == nil {
		p.tenant = l.tenants.get(c.Tenant)
	}
	p.route = r
	r.refresh(now)
	return r, p.tenant
}

// refresh updates the route's room in the line, and sets the timer if the room changes with time.
func (r *route) refresh(now instant) {
	l := r.limiter
	if r == &l.routes.nameless {
		return // it always has room
	}
	r.noteChange()
	if closed := r.state.Reopened(provider.Instant(now)); closed > 0 {
		r.line.Reopened(int64(now), int64(closed))
	}
	room, at := r.state.Room(provider.Instant(now), r.tokens)
	l.line.SetRoom(&r.line, room)
	if at != 0 && r.line.Waiting() > 0 {
		l.wake(instant(at))
	}
}

// enter admits a call if none is before it. Otherwise it puts the call in line and returns errQueue. Any other error
// rejects the call. It is a single function, because the goroutine of a waiting call keeps the stack that this
// needed.
func (l *limiter) enter(ctx context.Context, c *call, now instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || !c.ring.enlist(c) {
		return &Error{Kind: ErrClosed}
	}
	if e := l.fits(c.Weight); e != nil {
		return e
	}
	r, t := l.find(c, now)
	if e := r.closed(ctx, c, now); e != nil {
		return e
	}
	p := c.Priority.line()
	if l.line.Take(&r.line, &t.line, p, c.Weight, r.cost(c.Weight), int64(now)) {
		l.grant(c, now)
		return nil
	}
	var gone *inLine
	if r.full() {
		d := l.line.Displaced(&r.line, &t.line, p, int64(now))
		if d == nil {
			return l.refuse(r, t, p, now, r.queueFull(c.Weight, now, t, c.Priority))
		}
		gone = d.Value
	}
	if e := r.late(ctx, c, t, now); e != nil {
		return l.refuse(r, t, p, now, e)
	}
	if gone != nil {
		gone.dismiss(displaced)
	}
	w := c.newPlace()
	w.joined, w.until, w.Weight = now, c.admission(ctx, now), c.Weight
	w.patience, w.byTotal = l.patience, c.boundByTotal(now, l.patience)
	l.addWaiting(1)
	for n := l.line.Join(&w.Waiter, &r.line, &t.line, p, int64(now), r.slots()); n > 0; n-- {
		w.Eldest().Value.dismiss(hopeless)
	}
	l.next(now).leave()
	if c.permit.held.Load() {
		<-w.over
		return nil
	}
	r.refresh(now)
	if l.patience != Off {
		l.wake(now.add(l.patience))
	}
	c.waits = true
	return errQueue
}

// enterNested admits a call inside a Do at its route. The call uses the Do's slot. It must not hold the slot during a
// pause, and must not wait for a call that waits for the slot. So it fails at once, and the Do waits without its
// slot.
func (l *limiter) enterNested(c *call, now instant) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.ring.enlist(c) {
		return &Error{Kind: ErrClosed}
	}
	r, _ := l.find(c, now)
	switch state, until := r.state.State(provider.Instant(now), c.wire.expected()); state {
	case provider.Down:
		return r.down(now)
	case provider.Paused, provider.Paced:
		return r.notYet(state, time.Duration(instant(until)-now))
	}
	c.permit.nested = true
	l.grant(c, now)
	return nil
}

// grant records that the line has admitted the call.
func (l *limiter) grant(c *call, now instant) {
	p := &c.permit
	r := p.route
	first := c.attempts == 0
	if r != &l.routes.nameless {
		p.sending = r.state.Send(provider.Instant(now), c.Weight, c.wire.expected(), first)
	} else {
		p.sending = provider.Sending{At: provider.Instant(now), Weight: c.Weight}
		if first {
			r.state.Budget.Pay()
		}
	}
	if first {
		l.budget.Pay()
	}
	if !p.nested {
		p.tenant.inFlight += c.Weight
		l.inFlight[c.Priority.line()] += c.Weight
		p.cost = r.cost(c.Weight)
		p.tenant.calls++
	}
	p.held.Store(true)
	r.refresh(now)
}

// refuse counts a rejection.
func (l *limiter) refuse(r *route, t *tenant, p line.Priority, now instant, e *Error) error {
	l.refused[p]++
	t.refused++
	l.line.Refuse(&r.line, &t.line, p, int64(now))
	return e
}

// next admits the calls whose turn it is. The caller must call leave on the last one, which next returns; nil: none.
// It can do so after it has released the lock, which others are waiting for.
func (l *limiter) next(now instant) (last *inLine) {
	for !l.line.Full() {
		w := l.line.First(int64(now))
		if w == nil {
			break
		}
		c := w.Value.call
		if !l.line.Admit(w, c.permit.route.cost(c.Weight)) {
			break
		}
		l.grant(c, now)
		l.endWait(c, now)
		last.leave()
		last = w.Value
	}
	return last
}

// finish releases what an attempt holds, after it has recorded the outcome. tokens is the usage of the answer and
// more is the part of it that was not expected; 0 means unknown. After the last attempt the call leaves the ring. ok
// is false if there is nothing to release. The caller must call leave on next, the call that gets the slot; nil: none.
func (l *limiter) finish(c *call, tokens int64, more float64, last bool) (next *inLine, ok bool) {
	p := &c.permit
	if !p.held.Load() {
		return nil, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !p.held.CompareAndSwap(true, false) {
		return nil, false
	}
	if last {
		c.ring.strike(c)
	}
	now := l.now()
	if changed := p.apply(c.verdict, now); changed != noTransition {
		c.transition = changed
	}
	took := time.Duration(now - instant(p.sending.At))
	c.inFlight += took
	r := p.route
	if r != &l.routes.nameless {
		r.state.Done(provider.Instant(now), &p.sending)
	}
	r.state.Hold(took)
	if more != 0 {
		r.state.Pace.Settle(provider.Instant(now), more)
	}
	if !p.nested {
		l.release(c, took, tokens)
	}
	r.refresh(now)
	return l.next(now), true
}

// release returns the weight of a call that held it for took, and charges its tenant for what it used.
func (l *limiter) release(c *call, took time.Duration, tokens int64) {
	p, weight := &c.permit, c.permit.sending.Weight
	l.held = provider.Average(l.held, took.Seconds())
	service := took.Seconds() * float64(weight)
	if tokens > 0 {
		l.perToken = provider.Average(l.perToken, service/float64(tokens))
		service = l.perToken * float64(tokens)
	}
	priority := c.Priority.line()
	p.tenant.inFlight -= weight
	l.inFlight[priority] -= weight
	l.line.Release(&p.tenant.line, priority, weight, service-p.cost)
}

// wake sets the timer, unless it fires earlier.
func (l *limiter) wake(at instant) {
	if l.due != 0 && l.due <= at || l.closed {
		return
	}
	l.due = at
	d := max(-l.since(at), 1) // zero crashes the race detector of Go 1.26.8 in a synctest bubble if two timers are set at once
	if l.timer == nil {
		l.timer = time.AfterFunc(d, l.tick)
		return
	}
	l.timer.Reset(d)
}

// tick runs when the timer fires.
func (l *limiter) tick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(l.now())
}

// sweep ends the waits that are over, opens routes that are due, admits the calls whose turn it is, and sets the timer
// again.
func (l *limiter) sweep(now instant) {
	l.due = 0
	var next instant
	for i := len(l.line.Busy()) - 1; i >= 0; i-- { // backward, because a finished route is replaced by one already seen
		r := l.line.Busy()[i]
		w := r.Oldest()
		route := w.Value.call.permit.route
		for ; w != nil && w.Value.patience != Off; w = r.Oldest() {
			until := w.Value.joined.add(w.Value.patience)
			if until > now {
				if next == 0 || until < next {
					next = until
				}
				break
			}
			w.Value.dismiss(waitedTooLong)
		}
		route.refresh(now)
	}
	l.next(now).leave()
	if next != 0 && l.line.Waiting() {
		l.wake(next)
	}
}

// stats returns the stats of the line, the routes and the tenants.
func (l *limiter) stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Stats{
		InFlight: l.line.InFlight(), Waiting: l.waiting, MaxConcurrent: l.capacity, Limit: l.capacity,
		PausedUntil: l.routes.pausedUntil(l.now()), WaitCount: l.waits, WaitTime: l.waitTime,
		Tenants: l.tenants.stats(), Calls: l.uncalled, Refused: l.uncalled,
	}
	if limit := l.routes.limit(); limit < float64(l.capacity) {
		st.Limit = int64(limit)
	}
	for p, of := range []*PriorityStats{&st.Background, &st.Normal, &st.Critical} {
		*of = PriorityStats{InFlight: l.inFlight[p], Waiting: int64(l.line.Waits(line.Priority(p))), Refused: l.refused[p]}
	}
	return st
}

// close ends all waits, now and in future.
func (l *limiter) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	for len(l.line.Busy()) > 0 {
		l.line.Busy()[0].Oldest().Value.dismiss(shutOut)
	}
}
