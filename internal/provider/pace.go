package provider

import (
	"math"
	"time"
)

// Pace spaces requests to stay within a rate limit for requests or tokens per minute. The limit comes from the
// guard's configuration or from the provider's headers. A request over the limit waits.
type Pace struct {
	requests, tokens         bucket // from the configuration
	toldRequests, toldTokens bucket // from headers
	learned                  learned
	sent                     Instant // when the last request was sent
	sentTokens               float64
	flying, flyingTokens     float64 // unanswered requests, and their tokens
}

// bucket is a token bucket. The zero bucket has no limit.
type bucket struct {
	rate   float64 // per nanosecond
	size   float64
	level  float64
	at     Instant
	number int64 // number of the request whose answer last updated the bucket
}

// burst is the fraction of a minute's allowance that may be used at once, because providers enforce a limit per
// minute in shorter intervals.
const burst = 0.1

func (p *Pace) configure(now Instant, cfg *Config) {
	p.requests.limit(now, cfg.RequestsPerMinute)
	p.tokens.limit(now, cfg.TokensPerMinute)
}

// limit sets the limit per minute. A bucket that has a limit already keeps the fraction of its burst that is left, so
// that a change does not allow a second burst.
func (b *bucket) limit(now Instant, n float64) {
	old := *b
	if *b = (bucket{}); n <= 0 {
		return
	}
	size := max(n*burst, 1)
	*b = bucket{rate: n / float64(time.Minute), size: size, level: size}
	if old.size != 0 {
		b.level, b.at = old.levelAt(now)*size/old.size, now
	}
}

// levelAt returns the level at a time.
func (b *bucket) levelAt(now Instant) float64 {
	return min(b.level+float64(now-b.at)*b.rate, b.size)
}

// next returns when n can be taken.
func (b *bucket) next(now Instant, n float64) Instant {
	if b.size == 0 {
		return now
	}
	short := min(n, b.size) - b.levelAt(now)
	if short <= 1e-9 {
		return now
	}
	return now + Instant(math.Ceil(min(short/b.rate, float64(24*time.Hour))))
}

func (b *bucket) take(now Instant, n float64) {
	if b.size == 0 {
		return
	}
	b.level, b.at = b.levelAt(now)-n, now
}

// next returns when a request of that many tokens may be sent.
func (p *Pace) next(now Instant, tokens float64) Instant {
	return max(p.own(now, tokens), p.toldRequests.next(now, 1), p.toldTokens.next(now, tokens))
}

// own is next without what headers say.
func (p *Pace) own(now Instant, tokens float64) Instant {
	return max(p.requests.next(now, 1), p.tokens.next(now, tokens), p.learned.next(now, 1))
}

// mayAsk reports whether a request may be sent although the headers say that it cannot pass. That is one request per
// minute, as in a pause, because the headers may be wrong by hours, and only another answer corrects them.
func (p *Pace) mayAsk(now Instant, tokens float64) bool {
	return now >= p.sent+Instant(askAgainAfter) && p.own(now, tokens) <= now
}

// ask returns until, or the time when mayAsk allows a request if that is earlier.
func (p *Pace) ask(now, until Instant, tokens float64) Instant {
	return min(until, p.own(max(now, p.sent+Instant(askAgainAfter)), tokens))
}

// send counts a request and returns the tokens sent so far.
func (p *Pace) send(now Instant, tokens float64) float64 {
	p.sent = now
	p.requests.take(now, 1)
	p.tokens.take(now, tokens)
	p.toldRequests.take(now, 1)
	p.toldTokens.take(now, tokens)
	p.learned.take(now, 1)
	p.sentTokens += tokens
	p.flying++
	p.flyingTokens += float64(float32(tokens)) // as landed takes off
	return p.sentTokens
}

// unsent gives back what a request took.
func (p *Pace) unsent(now Instant, tokens float64) {
	p.requests.take(now, -1)
	p.tokens.take(now, -tokens)
	p.toldRequests.take(now, -1)
	p.toldTokens.take(now, -tokens)
	p.learned.take(now, -1)
}

// landed counts the end of a request of that many tokens.
func (p *Pace) landed(tokens float64) {
	p.flying--
	p.flyingTokens -= tokens
}

// learned is a request rate learned from 429s without headers. The rate at which the provider answered between two
// 429s becomes the limit. The limit grows slowly, because the provider's may have been raised too.
//
// A provider may also send 429s for another reason: at random, or because of other clients' requests. Each such 429
// would lower the rate further. So a rate far below an early one is taken as a sign of this case. Then the limit is
// dropped, and no rate is learned for a while.
type learned struct {
	bucket
	since   Instant // start of the count; 0: no 429 yet
	answers float64
	early   float64 // the lowest of the first rates, which may include a burst that the provider had allowed
	rates   int
	low     int     // rates in a row that were too low
	mute    Instant // no rate is learned until then
}

const (
	learnAnswers = 10               // fewer are not significant
	learnWithin  = 20 * time.Second // over a longer time the rate may reflect demand instead of the limit
	learnedEarly = 4                // number of early rates
	learnedLeast = 0.6              // fraction of the early rate
	learnedLow   = 3                // number of low rates in a row that is too many
	learnedRaise = 0.005            // per second
	learnedBurst = time.Second
	learnedFor   = 5 * time.Minute // the rate is forgotten after this time without a 429
)

func (l *learned) refused(now Instant) {
	span := time.Duration(now - l.since)
	if l.since == 0 || now < l.mute || span > learnWithin {
		l.count(now)
		return
	}
	if l.answers < learnAnswers {
		return
	}
	rate := l.answers / float64(span)
	if l.rates++; l.rates == 1 || l.rates <= learnedEarly && rate < l.early {
		l.early = rate
	}
	if least := learnedLeast * l.early; rate >= least {
		l.low = 0
	} else if rate = least; l.low == learnedLow {
		*l = learned{mute: now + Instant(learnedFor)}
		return
	} else {
		l.low++
	}
	l.bucket = bucket{rate: rate, size: max(rate*float64(learnedBurst), 1), at: now}
	l.count(now)
}

// count starts a new count.
func (l *learned) count(now Instant) { l.since, l.answers = now, 0 }

func (l *learned) answered(now Instant) {
	l.answers++
	if l.rate == 0 {
		return
	}
	if time.Duration(now-l.since) > learnedFor {
		*l = learned{}
		return
	}
	l.level, l.at = l.levelAt(now), now
	l.rate *= 1 + learnedRaise/(l.rate*float64(time.Second)) // rate is also the number of answers per second
}

// Told is one rate limit from an answer's headers. A negative number is unknown.
type Told struct {
	Limit, Remaining float64
	Reset            time.Duration // time until Remaining equals Limit again
}

// Unknown is a Told without information.
var Unknown = Told{-1, -1, -1}

// Tell updates the pace with the headers of the answer to s. The headers describe the moment when the provider
// counted s. So Tell subtracts what was sent since then and adds what was refilled.
func (r *Route) Tell(now Instant, s *Sending, requests, tokens Told) {
	p := &r.Pace
	p.toldRequests.told(now, s, requests, float64(r.sent-s.number), float64(s.beside))
	p.toldTokens.told(now, s, tokens, p.sentTokens-s.tokens, float64(s.besideTokens))
}

// told corrects the bucket. Requests in flight may have overtaken s or been overtaken by it, so it is unknown whether
// the provider has counted them. Within these bounds the bucket keeps its own count.
func (b *bucket) told(now Instant, s *Sending, t Told, sentSince, beside float64) {
	if t.Limit <= 0 || t.Remaining < 0 || s.number < b.number {
		return
	}
	rate := t.Limit / float64(time.Minute)
	size := t.Limit
	if t.Reset > 0 {
		// The limit may be per day, or refilled other than once per minute.
		if used := t.Limit - t.Remaining; used > 0 {
			rate = min(rate, used/float64(t.Reset))
		}
		size = min(size, t.Remaining+rate*float64(t.Reset))
	}
	most := t.Remaining - sentSince + rate*float64(now-s.At)
	level := most
	if b.size != 0 {
		level = min(max(b.levelAt(now), most-beside), most)
	}
	*b = bucket{rate: rate, size: max(size, 1), at: now, number: s.number}
	b.level = min(level, b.size)
}

// Settle corrects the estimate of a request's tokens. An answer may report any number of tokens, so it takes at most the
// amount of a minute.
func (p *Pace) Settle(now Instant, more float64) {
	p.tokens.take(now, min(more, p.tokens.rate*float64(time.Minute)))
}

// Requests returns the lowest known limit of requests per minute; 0: none is known.
func (p *Pace) Requests() float64 {
	return perMinute(slowest(slowest(p.requests.rate, p.toldRequests.rate), p.learned.rate))
}

// LimitsTokens reports whether a limit of tokens is known.
func (p *Pace) LimitsTokens() bool { return p.tokens.size != 0 || p.toldTokens.size != 0 }

// Tokens returns the lowest known limit of tokens per minute; 0: none is known.
func (p *Pace) Tokens() float64 {
	return perMinute(slowest(p.tokens.rate, p.toldTokens.rate))
}

func slowest(a, b float64) float64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// perMinute converts a rate for display.
func perMinute(rate float64) float64 { return math.Round(rate*float64(time.Minute)*100) / 100 }
