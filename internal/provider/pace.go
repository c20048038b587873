package provider

import (
	"math"
	"time"
)

// pace spaces requests where a limit of requests or tokens a minute is known: from the guard's configuration, or from
// what the provider's headers say. A request that would not pass waits for its turn.
type pace struct {
	requests, tokens         bucket // of the configuration
	toldRequests, toldTokens bucket // by headers
	learned                  learned
	sentTokens               float64
	flying, flyingTokens     float64 // requests that are not answered yet, and their tokens
}

// bucket is a token bucket. The zero bucket has no bound.
type bucket struct {
	rate   float64 // a nanosecond
	size   float64
	level  float64
	at     Instant
	number int64 // of the request whose answer described the bucket last
}

// burst is how much of a minute's allowance may be used at once. Providers enforce a limit a minute in shorter spans.
const burst = 0.1

func (p *pace) configure(cfg *Config) {
	p.requests = minutely(cfg.RequestsPerMinute)
	p.tokens = minutely(cfg.TokensPerMinute)
}

func minutely(n float64) bucket {
	if n <= 0 {
		return bucket{}
	}
	size := max(n*burst, 1)
	return bucket{rate: n / float64(time.Minute), size: size, level: size}
}

// levelAt is the level at a time.
func (b *bucket) levelAt(now Instant) float64 {
	return min(b.level+float64(now-b.at)*b.rate, b.size)
}

// next is when n can be taken.
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

// next is when a request of so many tokens may be sent.
func (p *pace) next(now Instant, tokens float64) Instant {
	return max(p.requests.next(now, 1), p.tokens.next(now, tokens), p.toldRequests.next(now, 1), p.toldTokens.next(now, tokens),
		p.learned.next(now, 1))
}

// send notes a request and returns the tokens sent so far.
func (p *pace) send(now Instant, tokens float64) float64 {
	p.requests.take(now, 1)
	p.tokens.take(now, tokens)
	p.toldRequests.take(now, 1)
	p.toldTokens.take(now, tokens)
	p.learned.take(now, 1)
	p.sentTokens += tokens
	p.flying++
	p.flyingTokens += tokens
	return p.sentTokens
}

// landed notes the end of a request of so many tokens.
func (p *pace) landed(tokens float64) {
	p.flying--
	p.flyingTokens -= tokens
}

// learned is a rate of requests that is found out from 429s without headers. Between 429s the provider has taken as many
// requests as it lets in: that rate is kept to, and raised slowly, since the limit may have been raised too.
//
// A provider may refuse for another reason, at random or because of others' requests, and would be asked less and less. So
// a rate far below an early one is taken for such a case: the pace is dropped, and none is learned for a while.
type learned struct {
	bucket
	since   Instant // of the count; 0: there was no 429
	answers float64
	early   float64 // the lowest of the first rates, which may have used up what the provider had saved
	rates   int
	low     int     // rates in a row that were too low
	mute    Instant // nothing is learned until then
}

const (
	learnAnswers = 10               // fewer say nothing
	learnWithin  = 20 * time.Second // a longer span may tell how much was asked for, and not how much was allowed
	learnedEarly = 4                // rates
	learnedLeast = 0.6              // of the early rate
	learnedLow   = 3                // such rates in a row are too many
	learnedRaise = 0.005            // a second
	learnedBurst = time.Second
	learnedFor   = 5 * time.Minute // without another 429 the rate is forgotten
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
	l.rate *= 1 + learnedRaise/(l.rate*float64(time.Second)) // there are as many answers a second
}

// Told is what an answer's headers say of one limit. A negative number is not known.
type Told struct {
	Limit, Remaining float64
	Reset            time.Duration // until all of Limit is there again
}

// Unknown is what is told where nothing is.
var Unknown = Told{-1, -1, -1}

// Tell notes what the headers of the answer to s say. What they say was true when the provider counted s: what was sent
// since is taken off, and what has been refilled since is added.
func (r *Route) Tell(now Instant, s *Sending, requests, tokens Told) {
	p := &r.pace
	p.toldRequests.told(now, s, requests, float64(r.sent-s.number), p.flying)
	p.toldTokens.told(now, s, tokens, p.sentTokens-s.tokens, p.flyingTokens)
}

// told corrects the bucket. What is in flight may have overtaken s or have been overtaken by it, so that nobody knows
// whether the provider has counted it: within these bounds the bucket keeps to its own count.
func (b *bucket) told(now Instant, s *Sending, t Told, sentSince, flying float64) {
	if t.Limit <= 0 || t.Remaining < 0 || s.number < b.number {
		return
	}
	rate := t.Limit / float64(time.Minute)
	size := t.Limit
	if t.Reset > 0 {
		// The limit may be one of a day, or be refilled in another way than once a minute.
		if used := t.Limit - t.Remaining; used > 0 {
			rate = min(rate, used/float64(t.Reset))
		}
		size = min(size, t.Remaining+rate*float64(t.Reset))
	}
	most := t.Remaining - sentSince + rate*float64(now-s.At)
	level := most
	if b.size != 0 {
		level = min(max(b.levelAt(now), most-flying), most)
	}
	*b = bucket{rate: rate, size: max(size, 1), at: now, number: s.number}
	b.level = min(level, b.size)
}

// Settle corrects the estimate of the tokens that a request takes.
func (r *Route) Settle(now Instant, more float64) {
	r.pace.tokens.take(now, more)
}

// RequestsPace is the requests a minute to which the route is kept, the least of those that are known; 0: none is.
func (r *Route) RequestsPace() float64 {
	return perMinute(slowest(slowest(r.pace.requests.rate, r.pace.toldRequests.rate), r.pace.learned.rate))
}

// TokensPace is the same of tokens.
func (r *Route) TokensPace() float64 {
	return perMinute(slowest(r.pace.tokens.rate, r.pace.toldTokens.rate))
}

func slowest(a, b float64) float64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// perMinute is a rate for people.
func perMinute(rate float64) float64 { return math.Round(rate*float64(time.Minute)*100) / 100 }
