package provider

// Shared is the part of a route's state that several processes can share.
type Shared struct {
	PausedUntil Instant
	Down        bool
	ProbeAt     Instant // when the next probe may be sent, in a pause or an outage
	Spent       float64 // retry tokens taken minus those added by calls, since the route was made
}

// Shared returns the current state. Two values differ only if something happened that other processes should know.
func (r *Route) Shared() Shared {
	s := Shared{PausedUntil: r.pause.until, Spent: r.Budget.spent}
	if r.outage.since != 0 {
		s.Down, s.ProbeAt = true, r.outage.probeAt
	} else if s.PausedUntil != 0 {
		s.ProbeAt = r.pause.askAgain
	}
	return s
}

// Learn merges what other processes know. It always begins or extends a pause or an outage. It ends one only if
// mayEnd is true, because a process may not know yet what this one has seen.
func (r *Route) Learn(now Instant, s Shared, mayEnd bool) {
	switch {
	case s.Down && r.outage.since == 0:
		r.outage = outage{failures: outageAfter, since: now}
		r.outage.again(now, r.Jitter)
		r.outage.probeAt = max(r.outage.probeAt, s.ProbeAt)
		r.window.before = max(r.window.before, r.window.limit)
	case s.Down:
		r.outage.probeAt = max(r.outage.probeAt, s.ProbeAt)
	case r.outage.since != 0 && mayEnd:
		r.outage.over()
		r.window.restore()
	}
	switch {
	case s.PausedUntil > now:
		if now >= r.pause.until {
			r.pause.began, r.pause.askAgain, r.pause.probing = now, now+Instant(askAgainAfter), false
			r.window.reopen(r.window.limit, r.Config)
		}
		r.pause.until = max(r.pause.until, s.PausedUntil)
		r.pause.closed = true
		if !s.Down {
			r.pause.askAgain = max(r.pause.askAgain, s.ProbeAt)
		}
	case now < r.pause.until && mayEnd:
		r.pause.end(now)
	}
}
