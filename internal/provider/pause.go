package provider

import "time"

// pause is the pause that a 429 has asked for. During a long pause one probe per minute is sent, because a provider
// that asks for an hour may accept requests earlier.
type pause struct {
	began    Instant
	until    Instant
	askAgain Instant // when the next probe may be sent
	probing  bool    // a probe is in flight
	closed   bool    // Reopened has not yet reported its end
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
	if until < now { // overflow
		until = 1<<63 - 1
	}
	if now >= p.until || p.probing {
		p.began, p.askAgain, p.probing = now, now+Instant(askAgainAfter), false
	}
	p.until = max(p.until, until)
	p.closed = true
}

func (p *pause) ready(now Instant) bool { return !p.probing && now >= p.askAgain }

// probe reports whether a probe is due, and counts the request that is sent now as that probe.
func (p *pause) probe(now Instant) bool {
	if !p.ready(now) {
		return false
	}
	p.probing, p.askAgain = true, now+Instant(askAgainAfter)
	return true
}

// end ends a pause early.
func (p *pause) end(now Instant) { p.until, p.probing = now, false }

// unanswered records a probe without a result, so that the next call becomes a probe.
func (p *pause) unanswered(now Instant) { p.probing, p.askAgain = false, now }
