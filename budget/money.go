package budget

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"github.com/aiguard-go/aiguard"
)

// Money is an amount in billionths of the unit of any one currency. Multiply by Unit to write one:
//
//	var price budget.Money = 2.50 * budget.Unit
type Money int64

// Unit is one unit of the currency. As an untyped constant it makes exact amounts of decimal fractions.
const Unit = 1e9

// maxPrice and maxLimit are far above any real price or limit.
const (
	maxPrice = 1e6 * Unit
	maxLimit = 1e9 * Unit
)

// ParseMoney reads a decimal number such as "2.50", with at most nine digits after the point.
func ParseMoney(s string) (Money, error) {
	whole, fraction, _ := strings.Cut(s, ".")
	negative := strings.HasPrefix(whole, "-")
	digits := strings.TrimPrefix(whole, "-") + fraction + strings.Repeat("0", max(9-len(fraction), 0))
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || len(fraction) > 9 || strings.Trim(whole, "-") == "" || strings.HasSuffix(s, ".") {
		return 0, fmt.Errorf("budget: %q is not an amount; want a number such as 2.50, with at most nine digits after the point", clip(s, 40))
	}
	if negative {
		return -Money(n), nil
	}
	return Money(n), nil
}

// String returns the amount as a decimal number without trailing zeros: "2.5".
func (m Money) String() string {
	if m == 0 {
		return "0"
	}
	sign, n := "", uint64(m)
	if m < 0 {
		sign, n = "-", -n
	}
	text := fmt.Sprintf("%s%d.%09d", sign, n/Unit, n%Unit)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}

// Price is the price of a million tokens of a model.
type Price struct {
	Input       Money // of the prompt
	CachedInput Money // of the part of the prompt that the provider reads from its cache. Default Input
	CacheWrite  Money // of the part of the prompt that the provider writes to its cache. Default Input
	Output      Money // of the answer, including reasoning
}

// perPrice is the number of tokens that a Price is for.
const perPrice = 1_000_000

// maxTokens is more than any call uses. It limits what an answer can report.
const maxTokens = 1_000_000_000_000

// maxCost bounds the cost of one call, so that sums of many do not overflow.
const maxCost = 1e6 * Unit

// cost returns the cost of u, rounded up to a billionth.
func (p *Price) cost(u aiguard.Usage) Money {
	read, write := min(u.CacheRead, u.Input), u.CacheWrite
	write = min(write, u.Input-read)
	var sum uint128
	sum.add(u.Input-read-write, p.Input)
	sum.add(read, or(p.CachedInput, p.Input))
	sum.add(write, or(p.CacheWrite, p.Input))
	sum.add(u.Output, p.Output)
	return sum.divideUp(perPrice)
}

func or(m, other Money) Money {
	if m == 0 {
		return other
	}
	return m
}

// sane returns u with each number limited to 0 to maxTokens.
func sane(u aiguard.Usage) aiguard.Usage {
	for _, n := range []*int64{&u.Input, &u.Output, &u.CacheRead, &u.CacheWrite, &u.Reasoning} {
		*n = min(max(*n, 0), maxTokens)
	}
	return u
}

type uint128 struct{ hi, lo uint64 }

func (s *uint128) add(tokens int64, price Money) {
	hi, lo := bits.Mul64(uint64(tokens), uint64(price))
	var carry uint64
	s.lo, carry = bits.Add64(s.lo, lo, 0)
	s.hi, _ = bits.Add64(s.hi, hi, carry)
}

func (s *uint128) divideUp(by uint64) Money {
	if s.hi >= by {
		return maxCost
	}
	n, rest := bits.Div64(s.hi, s.lo, by)
	if rest > 0 && n < math.MaxUint64 {
		n++
	}
	return Money(min(n, maxCost))
}
