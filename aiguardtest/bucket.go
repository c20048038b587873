package aiguardtest

import (
	"math"
	"net/http"
	"strconv"
	"time"
)

// bucket is a token bucket. The zero value is unlimited.
type bucket struct {
	size, perMinute float64
	tokens          float64
	filled          time.Time // time to which tokens refers
}

// newBucket returns a full bucket.
func newBucket(size, perMinute float64, now time.Time) bucket {
	return bucket{size: size, perMinute: perMinute, tokens: size, filled: now}
}

// take takes a token. If there is none, it returns the time until the next one.
func (b *bucket) take(now time.Time) (wait time.Duration) {
	if b.perMinute <= 0 {
		return 0
	}
	b.tokens = min(b.tokens+now.Sub(b.filled).Minutes()*b.perMinute, b.size)
	b.filled = now
	if b.tokens < 1 {
		return b.refill(1 - b.tokens)
	}
	b.tokens--
	return 0
}

// refill returns the time until that many tokens have been added.
func (b *bucket) refill(tokens float64) time.Duration {
	return time.Duration(tokens / b.perMinute * float64(time.Minute))
}

// header describes the bucket as OpenAI does: its size, its whole tokens, and the time until it is full, as a Go
// duration in milliseconds.
func (b *bucket) header() http.Header {
	reset := time.Duration(math.Ceil(b.refill(b.size-b.tokens).Seconds()*1000)) * time.Millisecond
	h := make(http.Header, 3)
	h.Set("X-Ratelimit-Limit-Requests", strconv.Itoa(int(b.size)))
	h.Set("X-Ratelimit-Remaining-Requests", strconv.Itoa(int(b.tokens)))
	h.Set("X-Ratelimit-Reset-Requests", reset.String())
	return h
}
