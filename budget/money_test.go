package budget

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

func TestMoneyIsReadAndPrintedExactly(t *testing.T) {
	for text, want := range map[string]Money{
		"0": 0, "2.50": 2.5 * Unit, "0.075": 75_000_000, "0.000000001": 1, "-1.25": -1.25 * Unit, "1000000": 1e6 * Unit, "007": 7 * Unit,
	} {
		got, err := ParseMoney(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseMoney(got.String())
		require.NoError(t, err)
		require.Equal(t, want, again)
	}
	require.Equal(t, "2.5 -0.075 0 12", strings.Join([]string{Money(2.5 * Unit).String(), Money(-75_000_000).String(), Money(0).String(), Money(12 * Unit).String()}, " "))
	require.Equal(t, "-9223372036.854775808", Money(math.MinInt64).String())
	for _, text := range []string{"", ".", "-", "1.", ".5", "1.0000000001", "1,5", "$1", "1e9", "1.-5", "--1", "+1", "1 ", "9999999999999"} {
		_, err := ParseMoney(text)
		require.ErrorContains(t, err, "2.50", text)
	}
}

func FuzzMoneyComesBack(f *testing.F) {
	f.Add("2.50")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseMoney(text)
		if err != nil {
			return
		}
		again, err := ParseMoney(m.String())
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}

func TestCostIsExactAndRoundedUp(t *testing.T) {
	p := Price{Input: 2.5 * Unit, CachedInput: 1.25 * Unit, CacheWrite: 3.75 * Unit, Output: 10 * Unit}
	require.EqualValues(t, 12.5*Unit, p.cost(aiguard.Usage{Input: 1e6, Output: 1e6}))
	require.EqualValues(t, 1.25*Unit, p.cost(aiguard.Usage{Input: 1e6, CacheRead: 1e6}))
	require.EqualValues(t, 3.75*Unit, p.cost(aiguard.Usage{Input: 1e6, CacheWrite: 1e6}))
	require.EqualValues(t, 2500, p.cost(aiguard.Usage{Input: 1}))
	tiny := Price{Input: 0.0375 * Unit}
	require.EqualValues(t, 38, tiny.cost(aiguard.Usage{Input: 1}), "37.5 billionths")
	require.EqualValues(t, 75, tiny.cost(aiguard.Usage{Input: 2}))
	require.EqualValues(t, 75, tiny.cost(aiguard.Usage{Input: 2, CacheRead: 1}), "cached input costs as much without a price of its own")

	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		p := Price{Input: Money(random.Int64N(maxPrice)), CachedInput: Money(1 + random.Int64N(maxPrice)), CacheWrite: Money(1 + random.Int64N(maxPrice)), Output: Money(random.Int64N(maxPrice))}
		most := int64(1) << random.IntN(40)
		u := aiguard.Usage{Input: random.Int64N(most), Output: random.Int64N(most)}
		u.CacheRead = random.Int64N(u.Input + 1)
		u.CacheWrite = random.Int64N(u.Input - u.CacheRead + 1)
		sum := new(big.Int)
		for _, part := range [][2]int64{{u.Input - u.CacheRead - u.CacheWrite, int64(p.Input)}, {u.CacheRead, int64(p.CachedInput)},
			{u.CacheWrite, int64(p.CacheWrite)}, {u.Output, int64(p.Output)}} {
			sum.Add(sum, new(big.Int).Mul(big.NewInt(part[0]), big.NewInt(part[1])))
		}
		sum.Add(sum, big.NewInt(perPrice-1)).Div(sum, big.NewInt(perPrice))
		if limit := big.NewInt(maxCost); sum.Cmp(limit) > 0 {
			sum = limit
		}
		require.Equal(t, sum.Int64(), int64(p.cost(u)), "%+v %+v", p, u)
	}
}

// An answer may say anything of its usage.
func TestAbsurdUsageIsBounded(t *testing.T) {
	p := Price{Input: maxPrice, Output: maxPrice}
	for _, n := range []int64{math.MinInt64, -1, math.MaxInt64} {
		u := sane(aiguard.Usage{Input: n, Output: n, CacheRead: n, CacheWrite: n})
		c := p.cost(u)
		require.GreaterOrEqual(t, c, Money(0))
		require.LessOrEqual(t, c, Money(maxCost))
		if n < 0 {
			require.Zero(t, c)
		} else {
			require.EqualValues(t, maxCost, c)
		}
	}
	require.Zero(t, p.cost(sane(aiguard.Usage{CacheRead: 100, CacheWrite: 100})), "of no input")
}
