package provider

import "time"

// pause is what a 429 has asked for. Into a longer one a probe is sent once a minute: a provider that asks for an hour
// may think better of it.
type pause struct {
	began    Instant
	until    Instant
	askAgain Instant // when the next probe may be sent
	probing  bool    // one is under way
	closed   bool    // Reopened has not reported its end
	refusals int     // 429s since the last answer
}

const askAgainAfter = time.Minute

// begin pauses the route, or extends its pause.
func (p *pause) begin(now Instant, d time.Duration) {
	p.refusals++
	if d <= 0 {
		return
	}
	until := now + Instant(d)
	if until < now { // beyond the end of time
		until = 1<<63 - 1
	}
	if now >= p.until || p.probing {
		p.began, p.askAgain, p.probing = now, now+Instant(askAgainAfter), false
	}
	p.until = max(p.until, until)
	p.closed = true
}

func (p *pause) ready(now Instant) bool { return !p.probing && now >= p.askAgain }

// probe makes the request that is sent now the probe, if one is due.
func (p *pause) probe(now Instant) bool {
	if !p.ready(now) {
		return false
	}
	p.probing, p.askAgain = true, now+Instant(askAgainAfter)
	return true
}

// end ends a pause early.
func (p *pause) end(now Instant) { p.until, p.probing = now, false }

// unanswered notes the end of a probe that learned nothing: the next call may ask.
func (p *pause) unanswered(now Instant) { p.probing, p.askAgain = false, now }
