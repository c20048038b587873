package provider

import "time"

// Budget is a retry budget, a token bucket: each call pays in a fraction of a token, each retry takes one, so that when
// everything fails retries stay that fraction of calls. A few tokens at the start, and one every ten seconds, let a quiet
// service retry too. (Finagle's RetryBudget has the same two sources.)
type Budget struct {
	ratio  float64 // negative: no bound
	floor  float64
	tokens float64
	at     Instant
}

// How many tokens a budget holds at most, and at the start.
const (
	RouteFloor = 10
	GuardFloor = 100
)

const budgetRefill = 10 * time.Second // one token

// Init fills the budget.
func (b *Budget) Init(ratio, floor float64) { b.ratio, b.floor, b.tokens = ratio, floor, floor }

// Pay notes a call.
func (b *Budget) Pay() { b.tokens = min(b.tokens+max(b.ratio, 0), b.floor) }

// Tokens is what there is.
func (b *Budget) Tokens(now Instant) float64 {
	if b.at != 0 {
		b.tokens = min(b.tokens+float64(now-b.at)/float64(budgetRefill), b.floor)
	}
	b.at = now
	return b.tokens
}

// Has reports whether there is the token of a retry.
func (b *Budget) Has(now Instant) bool { return b.ratio < 0 || b.Tokens(now) >= 1 }

// Take takes it.
func (b *Budget) Take() {
	if b.ratio >= 0 {
		b.tokens--
	}
}
