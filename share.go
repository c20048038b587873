package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: what processes tell each other about routes.

import (
	"math"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard/internal/provider"
)

// RouteState is the state of a provider route that several processes can share. See Guard.RouteChanges.
type RouteState struct {
	Host, Name, Model string // the route: host and model, host and path (Name), or the Op (Name) and Model of a Do

	Pause time.Duration // time until the end of the pause that the provider asked for; 0: not paused
	Down  bool          // in an outage
	Probe time.Duration // in a pause or an outage: time until the next probe may be sent

	// Reopened is true if an attempt has ended the last pause or outage. Without it, a route that is neither paused nor
	// down only means that the sender knows of no pause and no outage.
	Reopened bool

	RetryTokens float64 // retries that the route's retry budget allows now; negative: unknown
	RetrySpent  float64 // tokens that this Guard has spent, net of those added, since its previous RouteState of the route
}

// maxRouteChange is the longest pause and the longest time until a probe that LearnRoutes accepts.
const maxRouteChange = 24 * time.Hour

// changes collects the routes to be reported by RouteChanges. It is guarded by the limiter's mutex.
type changes struct {
	more   chan struct{} // nil: nobody asks
	routes []*route
}

// sharing is what a route remembers of its last report.
type sharing struct {
	told    provider.Shared
	changed bool // in changes.routes
}

// RouteChanges returns the routes whose shared state has changed since the previous call, in no particular order, and
// a channel that receives when there are further changes. Several changes of one route are one RouteState, so a slow
// caller misses no state and needs no memory per change. The Guard records changes from the first call on. It keeps those
// of at most 2,000 routes.
//
// It is meant for one caller, which passes the states to other processes. They apply them with LearnRoutes. Module
// redisguard does both.
func (g *Guard) RouteChanges() (changed []RouteState, more <-chan struct{}) {
	g.must("RouteChanges")
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.changes
	if c.more == nil {
		c.more = make(chan struct{}, 1)
		for r := l.routes.head.next; r != &l.routes.head; r = r.next {
			r.noteChange()
		}
	}
	now := l.now()
	for _, r := range c.routes {
		changed = append(changed, r.share(now))
	}
	clear(c.routes)
	c.routes = c.routes[:0]
	return changed, c.more
}

// LearnRoutes applies what other processes know about routes, as if this Guard had learned it from its own attempts.
// A pause or an outage begins, grows, or ends if Reopened is true, and RetryTokens replaces the tokens of the route's
// retry budget. A route with a change that RouteChanges has not returned yet learns only RetryTokens, because the state
// may be older than the change. LearnRoutes emits no event, and ignores RetrySpent.
func (g *Guard) LearnRoutes(states ...RouteState) {
	g.must("LearnRoutes")
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for i := range states {
		l.learn(&states[i], now)
	}
	l.next(now).leave()
}

// noteChange notes that a route may have changed.
func (r *route) noteChange() {
	l := r.limiter
	if l.changes.more == nil || r.changed || r.state.Shared() == r.told {
		return
	}
	r.changed = true
	if c := &l.changes; len(c.routes) >= 2*maxRoutes { // nobody has read them for long
		c.routes = slices.DeleteFunc(c.routes, func(r *route) bool { return l.routes.m[r.key] != r })
	}
	l.changes.routes = append(l.changes.routes, r)
	select {
	case l.changes.more <- struct{}{}:
	default:
	}
}

// share returns the route's state for other processes.
func (r *route) share(now instant) RouteState {
	s := r.state.Shared()
	left := func(until provider.Instant) time.Duration { return max(time.Duration(instant(until)-now), 0) }
	st := RouteState{
		Host: r.key.host, Name: r.key.name, Model: r.key.model, Pause: left(s.PausedUntil), Down: s.Down,
		Reopened:    r.told.Down && !s.Down || instant(r.told.PausedUntil) > now && instant(s.PausedUntil) <= now,
		RetryTokens: r.state.Budget.Tokens(provider.Instant(now)), RetrySpent: s.Spent - r.told.Spent,
	}
	if st.Down || st.Pause > 0 {
		st.Probe = left(s.ProbeAt)
	}
	r.told, r.changed = s, false
	return st
}

func (l *limiter) learn(s *RouteState, now instant) {
	key := routeKey{cut(s.Host), cut(s.Name), cut(s.Model)}
	r := l.routes.m[key]
	if r == nil {
		if s.Pause <= 0 && !s.Down || key == (routeKey{}) {
			return
		}
		r = l.routes.of(key)
	}
	at := func(d time.Duration) provider.Instant {
		return provider.Instant(now.add(min(max(d, 0), maxRouteChange)))
	}
	known := provider.Shared{Down: s.Down, ProbeAt: at(s.Probe)}
	if s.Pause > 0 {
		known.PausedUntil = at(s.Pause)
	}
	before := r.state.DownSince()
	if !r.changed {
		r.state.Learn(provider.Instant(now), known, s.Reopened)
	}
	unshared := r.state.Shared().Spent - r.told.Spent
	if tokens := s.RetryTokens; tokens >= 0 && !math.IsInf(tokens, 1) {
		r.state.Budget.Set(provider.Instant(now), tokens-unshared)
	}
	if !r.changed {
		r.told = r.state.Shared()
	}
	r.transition(before, s.Pause > 0, now)
}
