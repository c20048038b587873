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

// RouteStats is what is known of one provider route: a host and model, or a host and path where no model is known; of a
// Do, its Op and Model.
type RouteStats struct {
	Host, Name string // Name is the model, the path, or a Do's Op and Model; cut to 128 bytes

	InFlight, Waiting int64     // weight in flight; calls that wait, for the route or for a slot
	Limit             int64     // weight that may be in flight at present; Off: no bound
	PausedUntil       time.Time // a provider has asked for a pause until then; zero: none
	DownSince         time.Time // the provider is not there; zero: it is
	RetryTokens       float64   // retries that the route's budget allows now
	RequestsPerMinute float64   // the pace, from Config or from what the provider's headers say; 0: none is known
	TokensPerMinute   float64
	Held              time.Duration // average time that a request is in flight
}

// routes are the routes that are known, the one used last first. There are maxRoutes at most, and beyond those only
// routes that are in use: what users put into model names does not grow it.
type routes struct {
	limiter  *limiter
	config   provider.Config
	m        map[routeKey]*route
	head     route // of the ring
	nameless route // of a Do that has no name: nothing is ever known of it
	unknown  route // stands for one that has not been made
}

const (
	maxRoutes    = 1000
	maxRouteName = 128
)

type routeKey struct{ host, name, model string }

// route is what is known of one. The mutex of the limiter guards it.
type route struct {
	limiter   *limiter
	key       routeKey
	line      line.Route[*inLine]
	state     provider.Route
	tokens    float64 // average of a request
	lingering int     // Dos that wait for its pause

	next, prev *route // in the ring
}

func (rs *routes) init(cfg *Config, l *limiter) {
	rs.limiter = l
	rs.config = provider.Config{
		Least: float64(cfg.MinConcurrent), Most: float64(cfg.MaxConcurrent),
		RequestsPerMinute: float64(cfg.RequestsPerMinute), TokensPerMinute: float64(cfg.TokensPerMinute),
		Retries: cfg.Retry.Budget, Jitter: jitter, Quantile: cfg.Hedge.Quantile,
	}
	if cfg.MaxConcurrent == Off || cfg.Limiter != nil {
		rs.config.Most = math.Inf(1)
	}
	if cfg.MinConcurrent == Off {
		rs.config.Least = rs.config.Most
	}
	rs.m = make(map[routeKey]*route)
	rs.head.next, rs.head.prev = &rs.head, &rs.head
	rs.nameless.state = *provider.New(&provider.Config{Least: math.Inf(1), Most: math.Inf(1), Retries: cfg.Retry.Budget})
	rs.unknown.state = *provider.New(&rs.config)
}

// routeKey names the route of a call; ok is false for a Do without a name.
func (s *settings) routeKey() (key routeKey, ok bool) {
	switch {
	case s.host == "" && s.Op == "" && s.Model == "":
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

// text is the name of a route within its host.
func (k *routeKey) text() string {
	switch {
	case k.name == "":
		return k.model
	case k.model == "":
		return k.name
	}
	return k.name + " " + k.model
}

// cut bounds what a map keeps of a text, in length and in memory.
func cut(s string) string {
	if len(s) > maxRouteName {
		return strings.Clone(s[:maxRouteName])
	}
	return s
}

// get returns the call's route, which is made if it is not known.
func (rs *routes) get(s *settings) *route {
	key, ok := s.routeKey()
	if !ok {
		return &rs.nameless
	}
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

// evict drops the routes used least recently that are not in use.
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

// peek is get for a call that may be refused: nothing is made of it.
func (rs *routes) peek(s *settings) *route {
	key, ok := s.routeKey()
	if !ok {
		return &rs.nameless
	}
	if r := rs.m[key]; r != nil {
		return r
	}
	return &rs.unknown
}

// notYet is what a call gets that cannot wait until its route is open.
func (r *route) notYet(state provider.State, wait time.Duration) *Error {
	e := &Error{Kind: ErrRateLimited, Phase: PhasePause, RetryAfter: wait, route: r, judged: true}
	if state == provider.Paced {
		e.Phase = PhasePace
	}
	return e
}

// closedRoute refuses a call whose route is down, or will not be open in time.
func (l *limiter) closedRoute(ctx context.Context, c *call, r *route, now instant) error {
	if r == &l.routes.nameless {
		return nil
	}
	state, until := r.state.State(provider.Instant(now), c.tokens())
	switch state {
	case provider.Down:
		return l.down(r, now)
	case provider.Paused, provider.Paced:
		wait := time.Duration(instant(until) - now)
		if end := c.admission(ctx, now); end != 0 && instant(until) > end || c.planB && (state == provider.Paused || l.planB != Off && wait > l.planB) {
			return r.notYet(state, wait)
		}
	}
	return nil
}

// down is what the guard answers in the stead of a provider that is not there.
func (l *limiter) down(r *route, now instant) *Error {
	_, probe := r.state.State(provider.Instant(now), 0)
	return &Error{Kind: ErrUnavailable, Phase: PhaseOutage, RetryAfter: max(time.Duration(instant(probe)-now), 0), judged: true}
}

// judge notes what the attempt says about its provider, and reports whether the route has gone down or come back.
func (l *limiter) judge(p *permit, o provider.Outcome) (turned turn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	turned = l.apply(p, o, now)
	l.next(now)
	return turned
}

// turn is a change of a route that operators want to hear of.
type turn int8

const (
	noTurn turn = iota
	wentDown
	cameBack
)

func (l *limiter) apply(p *permit, o provider.Outcome, now instant) (turned turn) {
	r := p.route
	if r == &l.routes.nameless || o == (provider.Outcome{}) {
		return noTurn
	}
	before := r.state.DownSince()
	r.state.Judge(provider.Instant(now), &p.sending, o, r.line.Waiting() > 0)
	switch after := r.state.DownSince(); {
	case before == 0 && after != 0:
		turned = wentDown
		l.dismissAll(r, now, routeDown)
	case before != 0 && after == 0:
		turned = cameBack
	}
	if o.Limited {
		l.dismissAll(r, now, routePaused)
	}
	l.refresh(r, now)
	return turned
}

// dismissAll ends the wait at a route of those who would wait for it in vain.
func (l *limiter) dismissAll(r *route, now instant, f fate) {
	open := instant(r.state.PausedUntil(provider.Instant(now)))
	for w := r.line.Oldest(); w != nil; {
		due := w
		w = w.Behind()
		if f == routeDown || due.Value.until != 0 && due.Value.until < open {
			l.dismiss(due.Value, f)
		}
	}
}

// tell notes what an answer's headers say of the provider's rate limits.
func (l *limiter) tell(p *permit, h http.Header) {
	requests, tokens, ok := provider.Limits(h)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	p.route.state.Tell(provider.Instant(now), &p.sending, requests, tokens)
	l.refresh(p.route, now)
	l.next(now)
}

// linger counts a Do that waits, without a slot, for the pause of a route that a call inside it has met. It reports false
// if as many wait there as may.
func (l *limiter) linger(r *route) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.maxQueue != Off && r.line.Waiting()+r.lingering >= l.maxQueue {
		return false
	}
	r.lingering++
	l.waiting.Add(1)
	return true
}

func (l *limiter) endLinger(r *route) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.lingering--
	l.waiting.Add(-1)
}

// retry takes the token of a retry.
func (l *limiter) retry(r *route) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.takeRetry(r, l.now())
}

func (l *limiter) takeRetry(r *route, now instant) bool {
	if !r.state.Budget.Has(provider.Instant(now)) || !l.budget.Has(provider.Instant(now)) {
		return false
	}
	r.state.Budget.Take()
	l.budget.Take()
	return true
}

// outcome is what the end of an attempt says about its provider.
func (c *call) outcome(ctx context.Context, err error) (o provider.Outcome) {
	if err == nil {
		return provider.Outcome{Answered: true, Found: true}
	}
	e := c.own(ctx, err)
	if e == nil || e.judged {
		return o // the caller left, fn failed for a reason of its own, or a call inside has told its own route
	}
	switch e.Kind {
	case ErrRateLimited:
		o.Limited, o.Dropped, o.Pause = true, true, c.pauseAfter(e)
	case ErrTimeout:
		// The total may have begun long before. A caller's own short timeout says nothing of the provider.
		if e.Phase == PhaseConnect || e.Phase != PhaseTotal && !c.shorter(e.Limit) {
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

// hopelessNow reports whether a call that has an alternative should not wait for this provider after e: it is down, or has
// refused more than once since it last answered.
func (c *call) hopelessNow(e *Error) bool {
	if e.Phase == PhaseOutage || e.Phase == PhasePause {
		return true // said by the guard, perhaps of the route of a call inside
	}
	l := c.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &c.permit.route.state
	return s.DownSince() != 0 || e.Kind == ErrRateLimited && s.Refusals() > 1
}

// pauseAfter is how long a 429 keeps everybody off its route: as long as the provider asks, or else as the call itself
// backs off.
func (c *call) pauseAfter(e *Error) time.Duration {
	if e.RetryAfter > 0 {
		return e.RetryAfter
	}
	return c.cfg.Retry.delay(max(int(c.attempts), 1), 0)
}

// Routes returns what is known of each provider route, the one used last first: 1,000 at most, and those in use.
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
		RequestsPerMinute: s.RequestsPace(), TokensPerMinute: s.TokensPace(),
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

// pausedUntil is the latest end of a pause under way.
func (l *limiter) pausedUntil() time.Time {
	now, last := provider.Instant(l.now()), provider.Instant(0)
	for _, r := range l.routes.m {
		last = max(last, r.state.PausedUntil(now))
	}
	if last == 0 {
		return time.Time{}
	}
	return l.time(instant(last))
}

// limit is what all routes together may have in flight; infinite if no route is known.
func (rs *routes) limit() (sum float64) {
	if len(rs.m) == 0 {
		return math.Inf(1)
	}
	for _, r := range rs.m {
		sum += r.state.Limit()
	}
	return sum
}
