package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the route, whether the provider is open.

import (
	"context"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/internal/line"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// RouteStats describes one provider route. A route is a host and a model, or a host and a path if the model is
// unknown. The route of a Do is its Op and Model.
type RouteStats struct {
	Host, Name string // Name is the model, the path, or a Do's Op and Model, cut to 128 bytes

	InFlight, Waiting int64         // weight in flight; calls that wait for the route or for a slot
	Limit             int64         // weight that may be in flight now; Off: no limit
	PausedUntil       time.Time     // end of the pause that the provider asked for; zero: none
	DownSince         time.Time     // start of the outage; zero: not down
	RetryTokens       float64       // retries that the route's budget allows now
	RequestsPerMinute float64       // rate limit from Config, the provider's headers or its 429s; 0: none
	TokensPerMinute   float64       // rate limit from Config or the provider's headers; 0: none
	Held              time.Duration // average time that a request is in flight
}

// routes holds the known routes, the most recently used first. It keeps at most maxRoutes, plus routes in use, so
// model names from users cannot grow it without bound.
type routes struct {
	limiter  *limiter
	config   provider.Config
	m        map[routeKey]*route
	head     route // head of the ring
	nameless route // for a Do without a name; it has no state
	unknown  route // stands for a route that does not exist yet
}

const (
	maxRoutes    = 1000
	maxRouteName = 128
)

type routeKey struct{ host, name, model string }

// route is the state of one route, guarded by the limiter's mutex.
type route struct {
	limiter   *limiter
	key       routeKey
	line      line.Route[*inLine]
	state     provider.Route
	tokens    float64 // expected tokens of the calls that wait
	lingering int     // Dos that wait for the end of its pause
	sharing

	next, prev *route // neighbors in the ring
}

func (rs *routes) init(cfg *Config, l *limiter) {
	rs.limiter, rs.nameless.limiter, rs.unknown.limiter = l, l, l
	rs.config = providerConfig(cfg)
	rs.m = make(map[routeKey]*route)
	rs.head.next, rs.head.prev = &rs.head, &rs.head
	rs.nameless.state = *provider.New(&provider.Config{Least: math.Inf(1), Most: math.Inf(1), Retries: cfg.Retry.Budget})
	rs.unknown.state = *provider.New(&rs.config)
}

func providerConfig(cfg *Config) provider.Config {
	p := provider.Config{
		Least: float64(cfg.MinConcurrent), Most: float64(cfg.MaxConcurrent),
		RequestsPerMinute: float64(cfg.RequestsPerMinute), TokensPerMinute: float64(cfg.TokensPerMinute),
		Retries: cfg.Retry.Budget, Jitter: jitter, Quantile: cfg.Hedge.Quantile,
	}
	if cfg.MaxConcurrent == Off || cfg.Limiter != nil {
		p.Most = math.Inf(1)
	}
	if cfg.MinConcurrent == Off {
		p.Least = p.Most
	}
	return p
}

// configure sets the limits of all routes, those that are known and those to come.
func (rs *routes) configure(cfg *Config, now instant) {
	old := rs.config
	rs.config = providerConfig(cfg)
	for _, r := range rs.m {
		r.state.Reconfigure(provider.Instant(now), &old)
	}
	rs.nameless.state.Budget.SetRatio(cfg.Retry.Budget)
	rs.unknown.state = *provider.New(&rs.config)
}

// hasRoute reports whether the call has a route: a Do without a name has none.
func (s *settings) hasRoute() bool { return s.host != "" || s.Op != "" || s.Model != "" }

// routeKey returns the key of a call's route; ok is false for a Do without a name.
func (s *settings) routeKey() (key routeKey, ok bool) {
	switch {
	case !s.hasRoute():
		return key, false
	case s.host == "":
		return routeKey{"", cut(s.Op), cut(s.Model)}, true
	case s.Model == "":
		key = routeKey{cut(s.host), cut(s.path), ""}
	default:
		key = routeKey{cut(s.host), "", cut(s.Model)}
	}
	return key, true
}

// text returns the name of a route within its host.
func (k *routeKey) text() string {
	switch {
	case k.name == "":
		return k.model
	case k.model == "":
		return k.name
	}
	return k.name + " " + k.model
}

// cut limits the length of a text kept in a map, and copies it so that the rest can be freed.
func cut(s string) string {
	if len(s) > maxRouteName {
		return strings.Clone(s[:maxRouteName])
	}
	return s
}

// get returns the call's route and makes it if necessary.
func (rs *routes) get(s *settings) *route {
	key, ok := s.routeKey()
	if !ok {
		return &rs.nameless
	}
	return rs.of(key)
}

// of returns the route with this key and makes it if necessary.
func (rs *routes) of(key routeKey) *route {
	r := rs.m[key]
	if r == nil {
		r = &route{limiter: rs.limiter, key: key, state: *provider.New(&rs.config)}
		rs.m[key] = r
		rs.evict()
	} else if rs.head.next == r {
		return r
	} else {
		r.prev.next, r.next.prev = r.next, r.prev
	}
	r.prev, r.next = &rs.head, rs.head.next
	r.prev.next, r.next.prev = r, r
	return r
}

// evict drops the least recently used routes that are not in use.
func (rs *routes) evict() {
	for r := rs.head.prev; len(rs.m) > maxRoutes && r != &rs.head; {
		old := r
		r = r.prev
		if old.state.InFlight() == 0 && old.line.Waiting() == 0 && old.lingering == 0 {
			delete(rs.m, old.key)
			old.prev.next, old.next.prev = old.next, old.prev
		}
	}
}

// peek is like get, but does not make a route, because the call may be rejected.
func (rs *routes) peek(s *settings) *route {
	if !s.hasRoute() {
		return &rs.nameless
	}
	key, _ := s.routeKey()
	if r := rs.m[key]; r != nil {
		return r
	}
	return &rs.unknown
}

// refresh updates the route's room in the line, and sets the timer if the room changes with time.
func (r *route) refresh(now instant) { r.refreshFor(now, 0) }

// refreshFor is refresh for a new call of that many tokens.
func (r *route) refreshFor(now instant, tokens float64) {
	l := r.limiter
	if r == &l.routes.nameless {
		return // it always has room
	}
	r.noteChange()
	if closed := r.state.Reopened(provider.Instant(now)); closed > 0 {
		r.line.Reopened(int64(now), int64(closed))
	}
	room, at := r.state.Room(provider.Instant(now), r.nextTokens(now, tokens))
	l.line.SetRoom(&r.line, room)
	if at != 0 && r.line.Waiting() > 0 {
		l.wake(instant(at))
	}
}

// nextTokens returns the expected tokens of the call that the route admits next: the first in line, else a new one.
func (r *route) nextTokens(now instant, ofNew float64) float64 {
	if !r.state.Pace.LimitsTokens() {
		return 0
	}
	if w := r.limiter.line.Next(&r.line, int64(now)); w != nil {
		return w.Value.call.wire.expected()
	}
	return ofNew
}

// notYet returns the error of a call that cannot wait until its route is open.
func (r *route) notYet(state provider.State, wait time.Duration) *Error {
	e := &Error{Kind: ErrRateLimited, Phase: PhasePause, RetryAfter: wait, route: r, judged: true}
	if state == provider.Paced {
		e.Phase = PhasePace
	}
	return e
}

// closed rejects a call if the route is down, or will not be open in time.
func (r *route) closed(ctx context.Context, c *call, now instant) error {
	l := r.limiter
	if r == &l.routes.nameless {
		return nil
	}
	var wait time.Duration
	if r.line.Waiting() > 0 {
		wait = r.paced(c.demand(), now, c.permit.tenant)
	}
	state, until := r.state.State(provider.Instant(now), c.wire.expected())
	switch {
	case state == provider.Down:
		return r.down(now)
	case state == provider.Paused, state == provider.Paced:
		wait = max(wait, time.Duration(instant(until)-now))
	case wait == 0:
		return nil
	default:
		state = provider.Paced // behind those that wait
	}
	if end := c.admission(ctx, now); end != 0 && now.add(wait) > end || c.planB && (state == provider.Paused || c.cfg.Retry.Patience != Off && wait > c.cfg.Retry.Patience) {
		return r.notYet(state, wait)
	}
	return nil
}

// down returns the error of a call while the route is down.
func (r *route) down(now instant) *Error {
	_, probe := r.state.State(provider.Instant(now), 0)
	return &Error{Kind: ErrUnavailable, Phase: PhaseOutage, RetryAfter: max(time.Duration(instant(probe)-now), 0), judged: true}
}

// judge updates the route with the outcome of an attempt, and reports whether the route went down or came back.
func (p *permit) judge(o provider.Outcome) (changed transition) {
	l := p.route.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	changed = p.apply(o, now)
	l.next(now).leave()
	return changed
}

// transition is a change of a route's state that is reported to operators.
type transition int8

const (
	noTransition transition = iota
	wentDown
	cameBack
)

// apply is judge with mu held.
func (p *permit) apply(o provider.Outcome, now instant) (changed transition) {
	r := p.route
	if r == &r.limiter.routes.nameless || o == (provider.Outcome{}) {
		return noTransition
	}
	before := r.state.DownSince()
	r.state.Judge(provider.Instant(now), &p.sending, o, r.line.Waiting() > 0)
	return r.transition(before, o.Limited, now)
}

// transition ends the waits that a new outage or pause makes hopeless, and reports whether the route went down or came
// back.
func (r *route) transition(before provider.Instant, paused bool, now instant) (changed transition) {
	switch after := r.state.DownSince(); {
	case before == 0 && after != 0:
		changed = wentDown
		r.dismissAll(now, routeDown)
	case before != 0 && after == 0:
		changed = cameBack
	}
	if paused {
		r.dismissAll(now, routePaused)
	}
	r.refresh(now)
	return changed
}

// dismissAll ends the wait of calls that the route cannot serve in time, and of those that have an alternative.
func (r *route) dismissAll(now instant, f fate) {
	open := instant(r.state.PausedUntil(provider.Instant(now)))
	for w := r.line.Oldest(); w != nil; {
		due := w.Value
		w = w.Behind()
		if f == routeDown || due.until != 0 && due.until < open || due.call.planB && now < open {
			due.dismiss(f)
		}
	}
}

// learnLimits updates the route with the rate limits in an answer's headers.
func (p *permit) learnLimits(h http.Header) {
	requests, tokens, ok := provider.Limits(h)
	if !ok {
		return
	}
	l := p.route.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	p.route.state.Tell(provider.Instant(now), &p.sending, requests, tokens)
	p.route.refresh(now)
	l.next(now).leave()
}

// linger counts a Do that waits, without a slot, for the paused route, which one of its calls has met. It reports
// false if that queue is full.
func (r *route) linger() bool {
	l := r.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.maxQueue != Off && r.line.Waiting()+r.lingering >= l.maxQueue {
		return false
	}
	r.lingering++
	l.addWaiting(1)
	return true
}

func (r *route) endLinger() {
	l := r.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	r.lingering--
	l.addWaiting(-1)
}

// retry takes one retry token from the budgets.
func (r *route) retry() bool {
	l := r.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	return r.takeRetry(l.now())
}

// takeRetry is retry with mu held.
func (r *route) takeRetry(now instant) bool {
	guard := &r.limiter.budget
	if !r.state.Budget.Has(provider.Instant(now)) || !guard.Has(provider.Instant(now)) {
		return false
	}
	r.state.Budget.Take()
	guard.Take()
	r.noteChange()
	return true
}

// outcome returns what the failure of an attempt says about the provider. pause is the pause after a 429.
func (s *settings) outcome(e *Error, pause time.Duration) (o provider.Outcome) {
	switch e.Kind {
	case ErrRateLimited:
		o.Limited, o.Dropped, o.Pause = true, true, pause
	case ErrTimeout:
		// TotalTimeout may have started long before the attempt. A caller's short timeout says nothing about the
		// provider.
		if e.Phase == PhaseConnect || e.Phase != PhaseTotal && !s.shorter(e.Limit) {
			o.Lost, o.Dropped = true, true
		}
	case ErrUnavailable:
		switch {
		case e.StatusCode == 0:
			o.Lost, o.Dropped = e.retry != retryAtOnce, e.retry != retryAtOnce
		case e.StatusCode >= 500:
			o.Lost = true
		default:
			o.Found = true
		}
		switch e.StatusCode {
		case 408, 503, 504, 529:
			o.Dropped = true
		}
	default:
		o.Found = e.StatusCode != 0
	}
	return o
}

// failsOver reports whether a call that has an alternative should stop waiting for this provider after e. It should if
// the route is down, or has sent more than one 429 since its last answer.
func (r *route) failsOver(e *Error) bool {
	if e.Phase == PhaseOutage || e.Phase == PhasePause {
		return true // the guard's own error, possibly about the route of a nested call
	}
	l := r.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	return r.state.DownSince() != 0 || e.Kind == ErrRateLimited && r.state.Refusals() > 1
}

// pauseAfter returns how long a 429 pauses its route: the provider's Retry-After, or else the backoff after that many
// attempts.
func (r *Retry) pauseAfter(e *Error, attempts int32) time.Duration {
	if e.RetryAfter > 0 {
		return e.RetryAfter
	}
	return r.delay(max(int(attempts), 1), 0)
}

// Routes returns the state of each route, the most recently used first. It returns at most 1,000 routes, plus those
// in use.
func (g *Guard) Routes() []RouteStats {
	g.must("Routes")
	l := g.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	all := make([]RouteStats, 0, len(l.routes.m))
	for r := l.routes.head.next; r != &l.routes.head; r = r.next {
		all = append(all, r.stats(&l.clock, now))
	}
	return all
}

func (r *route) stats(c *clock, now instant) RouteStats {
	s := &r.state
	st := RouteStats{
		Host: short(r.key.host), Name: short(r.key.text()),
		InFlight: s.InFlight(), Waiting: int64(r.line.Waiting() + r.lingering), Limit: Off,
		RetryTokens:       s.Budget.Tokens(provider.Instant(now)),
		RequestsPerMinute: s.Pace.Requests(), TokensPerMinute: s.Pace.Tokens(),
		Held: time.Duration(s.Held() * float64(time.Second)),
	}
	if limit := s.Limit(); !math.IsInf(limit, 1) {
		st.Limit = int64(limit)
	}
	if until := s.PausedUntil(provider.Instant(now)); until != 0 {
		st.PausedUntil = c.time(instant(until))
	}
	if since := s.DownSince(); since != 0 {
		st.DownSince = c.time(instant(since))
	}
	return st
}

// pausedUntil returns the latest end of the current pauses.
func (rs *routes) pausedUntil(now instant) time.Time {
	last := provider.Instant(0)
	for _, r := range rs.m {
		last = max(last, r.state.PausedUntil(provider.Instant(now)))
	}
	if last == 0 {
		return time.Time{}
	}
	return rs.limiter.time(instant(last))
}

// limit returns the sum of the routes' limits, or infinity if no route is known.
func (rs *routes) limit() (sum float64) {
	if len(rs.m) == 0 {
		return math.Inf(1)
	}
	for _, r := range rs.m {
		sum += r.state.Limit()
	}
	return sum
}
