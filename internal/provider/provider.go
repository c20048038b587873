// Package provider is what a guard knows of one provider route: its pause, its outage, its pace, the limit that adapts
// and its retry budget. It is a pure state machine over instants: it has no clock, no lock and does no I/O, so that a
// model can be checked against it. Its caller holds a lock and passes the time in.
//
// The order of a request: Room says whether it may be sent, Send notes that it was, Judge what became of it, and Done
// that it is over.
package provider

import (
	"math"
	"time"
)

// Instant is a moment in nanoseconds on the caller's monotonic clock, never 0.
type Instant int64

// Config is the same for all routes of a guard.
type Config struct {
	Least, Most       float64 // of the limit: weight in flight. Most may be infinite; if they are equal the limit does not adapt
	RequestsPerMinute float64 // 0: no bound of our own
	TokensPerMinute   float64
	Retries           float64                           // retry tokens that each call pays in; negative: no bound
	Quantile          float64                           // the quantile of a route's times after which a request is late
	Jitter            func(time.Duration) time.Duration // a random duration from 0 to its argument
}

// Route is the state of one route. Make it with New.
type Route struct {
	*Config
	window window
	outage outage
	pause  pause
	pace   pace
	Budget Budget
	times  [2]*recent[time.Duration] // by form; nil: none
	output *recent[int64]            // tokens of answers; nil: none

	sent int64 // requests so far
	held float64
}

// Sending is one request on its way.
type Sending struct {
	At     Instant
	Weight int64
	Probe  bool // into a pause or an outage
	form   Form
	done   bool
	number int64   // of the request
	tokens float64 // sent by then, its own included
	own    float64 // tokens
}

// Outcome is what a request says about its provider. The zero Outcome says nothing: the caller left, or the request was
// never sent.
type Outcome struct {
	Answered bool          // with what was asked for
	Found    bool          // the provider reacted, be it with a refusal
	Lost     bool          // no provider was found: a connection failure, its time-out, a 5xx
	Dropped  bool          // it may have more to do than it can
	Limited  bool          // a 429
	Pause    time.Duration // that the 429 asks for
}

// New returns a route of which nothing is known.
func New(cfg *Config) *Route {
	r := &Route{Config: cfg}
	r.window.limit, r.window.threshold = cfg.Most, cfg.Most
	r.pace.configure(cfg)
	r.Budget.Init(cfg.Retries, RouteFloor)
	return r
}

// State says why a route takes no request.
type State int8

// The states, the most telling one first if several apply.
const (
	Down State = iota
	Paused
	Paced
	Full
	Open
)

// State is the route's state for a request of so many tokens, and when that ends; 0: nobody knows.
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
	if at := r.pace.next(now, tokens); at > now {
		return Paced, at
	}
	if r.window.room() <= 0 {
		return Full, 0
	}
	return Open, 0
}

// Room is the weight that may be sent now. If it is 0 for a time, at is when to look again.
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
		return 0, until
	case Full:
		return 0, 0
	}
	if r.outage.since != 0 || now < r.pause.until {
		return math.MaxInt64, 0 // the probe, whatever its weight
	}
	return r.window.room(), 0
}

// Send notes a request, which Room has allowed or which cannot wait. first is true for the first attempt of a call: it
// pays into the retry budget.
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
	s.own, s.tokens = tokens, r.pace.send(now, tokens)
	s.number = r.sent
	if first {
		r.Budget.Pay()
	}
	return s
}

// Judge notes what became of a request. busy says that others wait for the route.
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
		if now >= r.pause.until { // the first of those that were on their way together
			r.pace.learned.refused(now)
		}
		r.pause.begin(now, o.Pause)
		s.Probe = false // it has learned that the pause goes on
		r.window.reopen(r.window.limit, r.Config)
	case o.Answered:
		r.timed(now, s, true)
		if now < r.pause.until && s.At > r.pause.began {
			r.pause.end(now)
		}
		r.pause.refusals = 0
		r.pace.learned.answered(now)
		r.window.answered(now, s.Weight, busy, r.Config)
	}
}

// Done notes that a request is over. It may be called more than once.
func (r *Route) Done(now Instant, s *Sending) {
	if s.done {
		return
	}
	s.done = true
	r.pace.landed(s.own)
	r.timed(now, s, false)
	r.window.inFlight -= s.Weight
	if s.Probe { // nothing was learned
		if r.outage.since != 0 {
			r.outage.unanswered(now)
		} else {
			r.pause.unanswered(now)
		}
	}
}

// Reopened returns how long the route was closed to everybody by a pause that has ended, once; 0: by none.
func (r *Route) Reopened(now Instant) (closed time.Duration) {
	if r.pause.closed && now >= r.pause.until {
		r.pause.closed = false
		closed = time.Duration(r.pause.until - r.pause.began)
	}
	return closed
}

// Hold notes for how long a request was in flight.
func (r *Route) Hold(d time.Duration) { r.held = Average(r.held, d.Seconds()) }

// Held is the average time that a request is in flight, in seconds; 0: none has been.
func (r *Route) Held() float64 { return r.held }

// Average is a moving average of about the last eight values; 0: there are none. One that is far out of line, such as a
// stream that nobody closed, counts as four times the average: it says little about the next.
func Average(old, value float64) float64 {
	if old == 0 {
		return value
	}
	return old + (min(value, 4*old)-old)/8
}

// Limit is the weight that may be in flight; infinite: no bound.
func (r *Route) Limit() float64 { return r.window.limit }

// InFlight is the weight in flight.
func (r *Route) InFlight() int64 { return r.window.inFlight }

// PausedUntil is when the pause ends that a provider has asked for; 0: there is none.
func (r *Route) PausedUntil(now Instant) Instant {
	if now < r.pause.until {
		return r.pause.until
	}
	return 0
}

// DownSince is when an outage began; 0: there is none.
func (r *Route) DownSince() Instant { return r.outage.since }

// Refusals is how many 429s have come since the last answer.
func (r *Route) Refusals() int { return r.pause.refusals }

// Quiet reports whether the route has nothing to say that a new one would not.
func (r *Route) Quiet(now Instant) bool {
	return r.window.inFlight == 0 && r.outage.since == 0 && now >= r.pause.until && r.outage.failures == 0 && r.window.limit >= r.Most
}
