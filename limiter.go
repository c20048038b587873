package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the line, whose turn it is.

import (
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
	c.permit.route.tokens -= c.wire.expected()
	if c.waits && l.custom == nil {
		l.waits++
		l.waitTime += time.Duration(now - c.place.joined)
	}
}

// pay counts a call at its first attempt, in the retry budgets and for its tenant.
func (l *limiter) pay(c *call) {
	if c.attempts > 0 {
		return
	}
	p := &c.permit
	p.route.state.Budget.Pay()
	l.budget.Pay()
	if !p.nested {
		p.tenant.calls++
	}
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
	r := p.route
	if r != &l.routes.nameless {
		r.state.Done(provider.Instant(now), &p.sending)
	}
	service := 0.
	if c.admitted != 0 {
		c.inFlight += took
		r.state.Hold(took)
		if !p.nested {
			service = l.service(c, took, tokens)
		}
	} else { // not sent: Config.Limiter has refused the call, or its caller has left
		r.state.Unsent(provider.Instant(now), &p.sending)
	}
	if more != 0 {
		r.state.Pace.Settle(provider.Instant(now), more)
	}
	if !p.nested {
		l.release(c, service)
	}
	r.refresh(now)
	return l.next(now), true
}

// maxUsageFactor limits the ratio between the service measured in tokens and the slot seconds. An answer may report any
// number of tokens, and after an absurd one its tenant would wait behind all others.
const maxUsageFactor = 64

// service returns what a call has received that held its weight for took, in slot seconds.
func (l *limiter) service(c *call, took time.Duration, tokens int64) float64 {
	l.held = provider.Average(l.held, took.Seconds())
	seconds := took.Seconds() * float64(c.permit.sending.Weight)
	if tokens <= 0 {
		return seconds
	}
	l.perToken = provider.Average(l.perToken, seconds/float64(tokens))
	return min(max(l.perToken*float64(tokens), seconds/maxUsageFactor), seconds*maxUsageFactor)
}

// release returns the weight of a call, and charges its tenant for the service.
func (l *limiter) release(c *call, service float64) {
	p, priority := &c.permit, c.Priority.line()
	weight := p.sending.Weight
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
