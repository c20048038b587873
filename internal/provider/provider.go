// Package provider tracks the state of one provider route: its pause, its outage, its rate limits, its adaptive limit
// and its retry budget. It is a pure state machine without clock, lock or I/O, so that a model can be checked against
// it. The caller holds a lock and passes in the time.
//
// For each request, Room reports whether it may be sent, Send records that it was sent, Judge records its outcome,
// and Done records its end.
package provider

import (
	"math"
	"time"
)

// Instant is a time in nanoseconds on the caller's monotonic clock. It is never 0.
type Instant int64

// Config configures all routes of a guard.
type Config struct {
	// Least and Most are the bounds of the limit, in weight in flight. Most may be infinite. If both are equal the
	// limit does not adapt.
	Least, Most float64

	RequestsPerMinute float64 // 0: no configured limit
	TokensPerMinute   float64
	Retries           float64                           // retry tokens that each call adds; negative: no limit
	Quantile          float64                           // quantile of a route's times after which a request is late
	Jitter            func(time.Duration) time.Duration // returns a random duration from 0 to its argument
}

// Route is the state of one route. Make it with New.
type Route struct {
	*Config
	window window
	outage outage
	pause  pause
	Pace   Pace
	Budget Budget
	times  times
	Output Sizes // tokens of answers

	sent int64 // number of requests so far
	held float64
}

// Sending is one request in flight.
type Sending struct {
	At     Instant
	Weight int64
	Probe  bool // during a pause or an outage
	form   Form
	done   bool
	beside int32   // requests in flight when it was sent
	number int64   // number of the request
	tokens float64 // tokens sent so far, including its own
	own    float32 // tokens of the request

	besideTokens float32 // of the requests in flight when it was sent
}

// Outcome is what a request says about its provider. The zero Outcome says nothing: the caller canceled, or the
// request was never sent.
type Outcome struct {
	Answered bool          // with a valid answer
	Found    bool          // the provider responded, possibly with an error
	Lost     bool          // the provider was not reached: connection failure, connect timeout, 5xx
	Dropped  bool          // the provider may be overloaded
	Limited  bool          // 429
	Pause    time.Duration // pause that the 429 asks for
}

// New returns a route without history.
func New(cfg *Config) *Route {
	r := &Route{Config: cfg}
	r.window.limit, r.window.threshold = cfg.Most, cfg.Most
	r.Pace.configure(0, cfg)
	r.Budget.Init(cfg.Retries, RouteFloor)
	return r
}

// Reconfigure applies a change of the route's Config. old is the Config before the change. The route keeps what it has
// learned about its provider.
func (r *Route) Reconfigure(now Instant, old *Config) {
	r.window.reconfigure(old, r.Config)
	r.Pace.configure(now, r.Config)
	r.Budget.SetRatio(r.Retries)
}

// State is the reason why a route accepts no request.
type State int8

// States. If several apply, the first one in this list is reported.
const (
	Down State = iota
	Paused
	Paced
	Full
	Open
)

// State returns the route's state for a request of that many tokens, and when that state ends; 0: unknown.
func (r *Route) State(now Instant, tokens float64) (State, Instant) {
	if r.outage.since != 0 {
		if r.outage.ready(now) {
			return Open, 0
		}
		return Down, r.outage.probeAt
	}
	if now < r.pause.until {
		if r.pause.ready(now) {
			return Open, 0
		}
		return Paused, r.pause.until
	}
	if at := r.Pace.next(now, tokens); at > now && !r.Pace.mayAsk(now, tokens) {
		return Paced, at
	}
	if r.window.room() <= 0 {
		return Full, 0
	}
	return Open, 0
}

// Room returns the weight that may be sent now. If it is 0 for a limited time, at is when to ask again.
func (r *Route) Room(now Instant, tokens float64) (room int64, at Instant) {
	switch state, until := r.State(now, tokens); state {
	case Down:
		return 0, until
	case Paused:
		if !r.pause.probing && r.pause.askAgain < until {
			until = r.pause.askAgain
		}
		return 0, until
	case Paced:
		return 0, r.Pace.ask(now, until, tokens)
	case Full:
		return 0, 0
	}
	if r.outage.since != 0 || now < r.pause.until {
		return math.MaxInt64, 0 // the probe, whatever its weight
	}
	return r.window.room(), 0
}

// Send records a request that Room has allowed or that cannot wait. first is true for the first attempt of a call,
// which adds to the retry budget.
func (r *Route) Send(now Instant, weight int64, tokens float64, first bool) Sending {
	s := Sending{At: now, Weight: weight}
	switch {
	case r.outage.since != 0:
		s.Probe = r.outage.probe(now)
	case now < r.pause.until:
		s.Probe = r.pause.probe(now)
	}
	r.sent++
	r.window.inFlight += weight
	s.beside, s.besideTokens, s.own = int32(r.Pace.flying), float32(r.Pace.flyingTokens), float32(tokens)
	s.tokens = r.Pace.send(now, tokens)
	s.number = r.sent
	if first {
		r.Budget.Pay()
	}
	return s
}

// Judge records the outcome of a request. busy is true if other calls wait for the route.
func (r *Route) Judge(now Instant, s *Sending, o Outcome, busy bool) {
	if o.Answered || o.Found || o.Limited {
		// An answer to a request sent before the outage shows that the provider was overloaded, not down.
		if since := r.outage.over(); since != 0 && s.At >= since {
			r.window.restore()
		}
	}
	if o.Dropped {
		r.window.drop(now, s.At, o.Limited, r.Config)
	}
	switch {
	case o.Lost:
		if r.outage.lost(now, time.Duration(now-s.At), r.Jitter) {
			r.window.before = max(r.window.before, r.window.limit)
		} else if s.Probe && r.outage.since != 0 {
			s.Probe = false
			r.outage.probes--
			r.outage.again(now, r.Jitter)
		}
	case o.Limited:
		if now >= r.pause.until { // the first of those that were in flight together
			r.Pace.learned.refused(now)
		}
		r.pause.begin(now, o.Pause)
		s.Probe = false // the pause goes on; the probe has its result
		r.window.reopen(r.window.limit, r.Config)
	case o.Answered:
		r.timed(now, s, true)
		if now < r.pause.until && s.At > r.pause.began {
			r.pause.end(now)
		}
		r.pause.refusals = 0
		r.Pace.learned.answered(now)
		r.window.answered(now, s.Weight, busy, r.Config)
	}
}

// Done records the end of a request. It may be called more than once.
func (r *Route) Done(now Instant, s *Sending) {
	if s.done {
		return
	}
	s.done = true
	r.Pace.landed(float64(s.own))
	r.timed(now, s, false)
	r.window.inFlight -= s.Weight
	if s.Probe { // the probe has no result
		if r.outage.since != 0 {
			r.outage.unanswered(now)
		} else {
			r.pause.unanswered(now)
		}
	}
}

// Reopened returns how long a pause that has ended closed the route, once per pause; 0: no such pause.
func (r *Route) Reopened(now Instant) (closed time.Duration) {
	if r.pause.closed && now >= r.pause.until {
		r.pause.closed = false
		closed = time.Duration(r.pause.until - r.pause.began)
	}
	return closed
}

// Hold records how long a request was in flight.
func (r *Route) Hold(d time.Duration) { r.held = Average(r.held, d.Seconds()) }

// Held returns the average time that a request is in flight, in seconds; 0: unknown.
func (r *Route) Held() float64 { return r.held }

// Average returns a moving average over about the last eight values; an old value of 0 means none. It caps an
// outlier, such as a stream that nobody closed, at four times the average.
func Average(old, value float64) float64 {
	if old == 0 {
		return value
	}
	return old + (min(value, 4*old)-old)/8
}

// Limit returns the weight that may be in flight; infinite: no limit.
func (r *Route) Limit() float64 { return r.window.limit }

// InFlight returns the weight in flight.
func (r *Route) InFlight() int64 { return r.window.inFlight }

// PausedUntil returns the end of the current pause; 0: not paused.
func (r *Route) PausedUntil(now Instant) Instant {
	if now < r.pause.until {
		return r.pause.until
	}
	return 0
}

// DownSince returns the start of the current outage; 0: none.
func (r *Route) DownSince() Instant { return r.outage.since }

// Refusals returns the number of 429s since the last answer.
func (r *Route) Refusals() int { return r.pause.refusals }
