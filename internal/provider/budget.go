package provider

import "time"

// Budget is a retry budget in the form of a token bucket. Each call adds a fraction of a token and each retry takes
// one, so that retries stay at that fraction of calls even when everything fails. A few initial tokens, and one more
// every ten seconds, let a quiet service retry too. Finagle's RetryBudget has the same two sources.
type Budget struct {
	ratio  float64 // negative: no limit
	floor  float64
	tokens float64
	spent  float64 // taken minus paid since Init
	at     Instant
}

// Maximum number of tokens, which is also the initial number.
const (
	RouteFloor = 10
	GuardFloor = 100
)

// BudgetRefill is the time after which a budget gets one more token.
const BudgetRefill = 10 * time.Second

// Init fills the budget.
func (b *Budget) Init(ratio, floor float64) { b.ratio, b.floor, b.tokens = ratio, floor, floor }

// SetRatio changes the fraction of a token that each call adds.
func (b *Budget) SetRatio(ratio float64) { b.ratio = ratio }

// Pay counts a call.
func (b *Budget) Pay() {
	paid := max(min(max(b.ratio, 0), b.floor-b.tokens), 0)
	b.tokens += paid
	b.spent -= paid
}

// Set replaces the number of tokens.
func (b *Budget) Set(now Instant, tokens float64) { b.tokens, b.at = min(tokens, b.floor), now }

// Tokens returns the current number of tokens.
func (b *Budget) Tokens(now Instant) float64 {
	if b.at != 0 {
		b.tokens = min(b.tokens+float64(now-b.at)/float64(BudgetRefill), b.floor)
	}
	b.at = now
	return b.tokens
}

// Has reports whether a retry is allowed.
func (b *Budget) Has(now Instant) bool { return b.ratio < 0 || b.Tokens(now) >= 1 }

// Take takes the token of a retry.
func (b *Budget) Take() {
	if b.ratio >= 0 {
		b.tokens--
		b.spent++
	}
}
