package budget_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/budget/storetest"
)

func newBudget(t testing.TB, cfg budget.Config) *budget.Budget {
	t.Helper()
	b, err := budget.New(cfg)
	require.NoError(t, err)
	return b
}

// refused is the cause of a refusal, and its Error.
func refused(t testing.TB, err error) (*budget.Exceeded, *aiguard.Error) {
	t.Helper()
	require.ErrorIs(t, err, aiguard.ErrBudget)
	var e *budget.Exceeded
	require.ErrorAs(t, err, &e)
	return e, aiguard.Explain(err)
}

var (
	gpt     = aiguard.Call{Model: "gpt-4o"}
	ten     = aiguard.Usage{Input: 4, Output: 6}
	nothing = aiguard.Usage{}
)

func TestMemoryKeepsItsPromises(t *testing.T) {
	for _, c := range storetest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			require.NoError(t, c.Run(t.Context(), budget.NewMemory()))
			require.NoError(t, c.Run(t.Context(), new(budget.Memory)))
		})
	}
}

// A public report describes calls that spent $2.00 with a cap of $1.25. All of them checked the cap before any had paid.
func TestNoCentIsSpentTwice(t *testing.T) {
	const callers, fit = 1000, 100
	for name, tc := range map[string]struct {
		limit budget.Limit
		run   budget.Run
	}{
		"calls":         {limit: budget.Limit{Calls: fit}},
		"tokens":        {limit: budget.Limit{Tokens: 10 * fit}},
		"cost":          {limit: budget.Limit{Cost: 70_000 * fit}},
		"sliding":       {limit: budget.Limit{Tokens: 10 * fit, Sliding: true}},
		"calls of run":  {run: budget.Run{Calls: fit}},
		"tokens of run": {run: budget.Run{Tokens: 10 * fit}},
		"cost of run":   {run: budget.Run{Cost: 70_000 * fit}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // no window ends
				cfg := budget.Config{Prices: map[string]budget.Price{"gpt-*": {Input: 2.5 * budget.Unit, Output: 10 * budget.Unit}}}
				if tc.run == (budget.Run{}) {
					tc.limit.Name, tc.limit.Window = "l", budget.Month
					cfg.Limits = []budget.Limit{tc.limit}
				}
				b := newBudget(t, cfg)
				ctx := budget.WithRun(t.Context(), tc.run)
				var sent atomic.Int64
				settle := make(chan func(aiguard.Usage), callers)
				var all sync.WaitGroup
				for range callers {
					all.Go(func() {
						s, err := b.Reserve(ctx, gpt, ten)
						if err != nil {
							assert.ErrorIs(t, err, aiguard.ErrBudget)
							return
						}
						sent.Add(1)
						settle <- s
					})
				}
				all.Wait()
				require.EqualValues(t, fit, sent.Load(), "exactly what fits is sent")
				(<-settle)(nothing)
				s, err := b.Reserve(ctx, gpt, ten)
				require.NoError(t, err, "what was given back fits again")
				_, err = b.Reserve(ctx, gpt, ten)
				refused(t, err)
				s(ten)
				s(nothing) // the second time nothing happens
				_, err = b.Reserve(ctx, gpt, ten)
				refused(t, err)
			})
		})
	}
}

// Calls of random size come and go in any order, at the same time. What has been reserved and settled never exceeds the
// limit, and what is left in the end is what was settled.
func TestRandomInterleavingsNeverExceedALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no window ends
		const most = 5000
		b := newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "l", Tokens: most, Window: budget.Month}}})
		ctx := budget.WithRun(t.Context(), budget.Run{Tokens: most})
		var held, peak atomic.Int64
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				random := rand.New(rand.NewPCG(uint64(i), 1))
				for range 5 {
					n := 1 + random.Int64N(100)
					settle, err := b.Reserve(ctx, gpt, aiguard.Usage{Input: n})
					if err != nil {
						continue
					}
					now := held.Add(n)
					for p := peak.Load(); now > p && !peak.CompareAndSwap(p, now); p = peak.Load() {
					}
					used := random.Int64N(n + 1)
					held.Add(used - n)
					if used == 0 {
						settle(nothing)
					} else {
						settle(aiguard.Usage{Input: used})
					}
				}
			})
		}
		all.Wait()
		require.LessOrEqual(t, peak.Load(), int64(most))
		spent := budget.Spent(ctx)
		require.Equal(t, held.Load(), spent.Tokens)
		require.Zero(t, spent.ReservedTokens)
		require.Zero(t, spent.ReservedCalls)
		left := most - spent.Tokens
		_, err := b.Reserve(t.Context(), gpt, aiguard.Usage{Input: left + 1})
		refused(t, err)
		_, err = b.Reserve(t.Context(), gpt, aiguard.Usage{Input: left})
		require.NoError(t, err)
	})
}

// model is a limit of tokens in all and two runs, one inside the other, as simple as can be.
type model struct {
	limits, spent [3]int64 // of the limit, the outer run, the inner run
	calls         [3]int64
	most          [3]int64 // calls
}

func (m *model) reserve(depth int, n int64) bool {
	for i := range depth + 1 {
		if m.spent[i]+n > m.limits[i] || m.most[i] > 0 && m.calls[i]+1 > m.most[i] {
			return false
		}
	}
	m.add(depth, n, 1)
	return true
}

func (m *model) add(depth int, n, calls int64) {
	for i := range depth + 1 {
		m.spent[i] += n
		m.calls[i] += calls
	}
}

func TestEverySequenceIsAsTheModelSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no window ends
		for seed := range uint64(300) {
			random := rand.New(rand.NewPCG(seed, 9))
			m := model{limits: [3]int64{1000, 500, 300}, most: [3]int64{0, 30, 10}}
			b := newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "l", Tokens: m.limits[0], Window: budget.Month}}})
			outer := budget.WithRun(t.Context(), budget.Run{Tokens: m.limits[1], Calls: m.most[1]})
			inner := budget.WithRun(outer, budget.Run{Tokens: m.limits[2], Calls: m.most[2]})
			contexts := []context.Context{t.Context(), outer, inner}
			type open struct {
				depth  int
				n      int64
				settle func(aiguard.Usage)
			}
			var all []open
			for range 100 {
				if len(all) == 0 || random.IntN(2) == 0 {
					o := open{depth: random.IntN(3), n: 1 + random.Int64N(120)}
					settle, err := b.Reserve(contexts[o.depth], gpt, aiguard.Usage{Input: o.n})
					require.Equal(t, m.reserve(o.depth, o.n), err == nil, "seed %d: %v", seed, err)
					if err == nil {
						o.settle = settle
						all = append(all, o)
					}
					continue
				}
				i := random.IntN(len(all))
				o := all[i]
				all = append(all[:i], all[i+1:]...)
				switch random.IntN(3) {
				case 0:
					o.settle(nothing)
					m.add(o.depth, -o.n, -1)
				default: // an answer may be larger than was thought
					used := 1 + random.Int64N(150)
					o.settle(aiguard.Usage{Output: used})
					m.add(o.depth, used-o.n, 0)
				}
			}
			for _, o := range all {
				o.settle(nothing)
				m.add(o.depth, -o.n, -1)
			}
			for depth, ctx := range contexts[1:] {
				spent := budget.Spent(ctx)
				require.Equal(t, m.spent[depth+1], spent.Tokens)
				require.Equal(t, m.calls[depth+1], spent.Calls)
				require.Zero(t, spent.ReservedTokens)
			}
		}
	})
}

func TestRefusalSaysWhichLimitAndUntilWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which it is midnight
		b := newBudget(t, budget.Config{Limits: []budget.Limit{
			{Name: "hour", Calls: 2, Window: budget.Hour},
			{Name: "tenant and day", Tokens: 30, Per: budget.Tenant, Window: budget.Day},
			{Name: "sliding", Calls: 100, Window: budget.Minute, Sliding: true},
		}})
		acme, other := aiguard.Call{Tenant: "acme"}, aiguard.Call{Tenant: "other"}
		reserve := func(call aiguard.Call, n int64) error {
			_, err := b.Reserve(t.Context(), call, aiguard.Usage{Input: n})
			return err
		}
		time.Sleep(10 * time.Minute)
		require.NoError(t, reserve(acme, 28))
		e, facts := refused(t, reserve(acme, 3))
		require.Equal(t, budget.Exceeded{Limit: "tenant and day", Key: "acme", What: "tokens", Spent: 28, Asked: 3, Max: 30}, *e)
		require.Equal(t, 24*time.Hour-10*time.Minute, facts.RetryAfter)
		require.Equal(t, 429, aiguard.HTTPStatus(facts))
		require.Equal(t, `budget: limit "tenant and day": tokens 28 of 30 spent, 3 more asked for`, e.Error())
		require.NotContains(t, facts.Error(), "acme")
		require.Contains(t, facts.Error(), "28 of 30")

		require.NoError(t, reserve(other, 2), "another tenant has its own")
		e, facts = refused(t, reserve(other, 2))
		require.Equal(t, "hour", e.Limit)
		require.Equal(t, 50*time.Minute, facts.RetryAfter)
		e, facts = refused(t, reserve(acme, 3))
		require.Equal(t, "tenant and day", e.Limit, "the limit that lasts longest")
		require.Equal(t, 24*time.Hour-10*time.Minute, facts.RetryAfter)

		_, facts = refused(t, reserve(other, 31))
		require.Zero(t, facts.RetryAfter, "it will never fit")
		require.Equal(t, 403, aiguard.HTTPStatus(facts))

		time.Sleep(50 * time.Minute)
		require.NoError(t, reserve(other, 2), "another hour")
		time.Sleep(23 * time.Hour)
		require.NoError(t, reserve(acme, 30), "another day")
	})
}

func TestSlidingWindowMovesWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "l", Calls: 2, Window: budget.Minute, Sliding: true}}})
		reserve := func() error {
			_, err := b.Reserve(t.Context(), gpt, nothing)
			return err
		}
		require.NoError(t, reserve())
		time.Sleep(30 * time.Second)
		require.NoError(t, reserve())
		time.Sleep(29 * time.Second)
		_, facts := refused(t, reserve())
		require.Equal(t, 2*time.Second, facts.RetryAfter)
		time.Sleep(facts.RetryAfter)
		require.NoError(t, reserve())
		_, facts = refused(t, reserve())
		require.Equal(t, 30*time.Second, facts.RetryAfter)
	})
}

func TestWhatIsSettledLateCountsInItsOwnWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "l", Tokens: 100, Window: budget.Minute}}})
		settle, err := b.Reserve(t.Context(), gpt, aiguard.Usage{Input: 60})
		require.NoError(t, err)
		time.Sleep(time.Minute)
		other, err := b.Reserve(t.Context(), gpt, aiguard.Usage{Input: 100})
		require.NoError(t, err)
		settle(aiguard.Usage{Input: 90})
		other(aiguard.Usage{Input: 50})
		_, err = b.Reserve(t.Context(), gpt, aiguard.Usage{Input: 50})
		require.NoError(t, err)
		_, err = b.Reserve(t.Context(), gpt, aiguard.Usage{Input: 1})
		refused(t, err)
	})
}

func TestLimitsAreDividedByAnyKey(t *testing.T) {
	type plan struct{}
	b := newBudget(t, budget.Config{Limits: []budget.Limit{
		{Name: "model", Calls: 1, Per: budget.Model, Window: budget.Day},
		{Name: "free plan", Calls: 2, Window: budget.Day, Per: func(ctx context.Context, call aiguard.Call) (string, bool) {
			return call.Tenant, ctx.Value(plan{}) == "free"
		}},
	}})
	free := context.WithValue(t.Context(), plan{}, "free")
	limitOf := func(ctx context.Context, model string) string {
		_, err := b.Reserve(ctx, aiguard.Call{Model: model, Tenant: "acme"}, nothing)
		if err == nil {
			return ""
		}
		e, _ := refused(t, err)
		return e.Limit
	}
	require.Equal(t, "", limitOf(free, "a"))
	require.Equal(t, "model", limitOf(free, "a"))
	require.Equal(t, "", limitOf(free, "b"))
	require.Equal(t, "free plan", limitOf(free, "c"))
	require.Equal(t, "", limitOf(t.Context(), "c"), "the limit does not apply")
}

func TestModelWithoutAPriceIsRefusedOrFreeAsAsked(t *testing.T) {
	cfg := budget.Config{
		Prices: map[string]budget.Price{"gpt-4o": {Input: budget.Unit}, "gpt-4o-*": {Input: 2 * budget.Unit}, "gpt-*": {Input: 3 * budget.Unit}},
		Limits: []budget.Limit{{Name: "l", Cost: budget.Unit, Window: budget.Day}},
	}
	b := newBudget(t, cfg)
	_, err := b.Reserve(t.Context(), aiguard.Call{Model: "o3"}, ten)
	require.ErrorIs(t, err, aiguard.ErrMisconfigured)
	require.ErrorContains(t, err, `no price for model "o3"; add one to Config.Prices, or set Config.FreeUnpriced`)
	_, err = b.Reserve(t.Context(), aiguard.Call{}, ten)
	require.ErrorIs(t, err, aiguard.ErrMisconfigured, "a request that names no model")
	_, err = b.Reserve(t.Context(), aiguard.Call{Op: "Do"}, nothing)
	require.NoError(t, err, "what has neither a model nor tokens needs no price")

	for model, want := range map[string]budget.Money{"gpt-4o": 1000, "gpt-4o-mini": 2000, "gpt-3.5": 3000} {
		ctx := budget.WithRun(t.Context(), budget.Run{})
		settle, err := b.Reserve(ctx, aiguard.Call{Model: model}, aiguard.Usage{Input: 1})
		require.NoError(t, err)
		settle(aiguard.Usage{Input: 1})
		require.Equal(t, want, budget.Spent(ctx).Cost, "the longest match")
	}

	cfg.FreeUnpriced = true
	b = newBudget(t, cfg)
	ctx := budget.WithRun(t.Context(), budget.Run{Cost: 1})
	settle, err := b.Reserve(ctx, aiguard.Call{Model: "o3"}, ten)
	require.NoError(t, err)
	settle(ten)
	spent := budget.Spent(ctx)
	require.EqualValues(t, 1, spent.Unpriced, "never silently")
	require.Zero(t, spent.Cost)

	b = newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "l", Tokens: 100, Window: budget.Day}}})
	_, err = b.Reserve(t.Context(), aiguard.Call{Model: "o3"}, ten)
	require.NoError(t, err, "where cost is not limited nobody needs a price")
}

func TestSoftLimitIsToldOncePerWindowAndKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []budget.Reached
		b := newBudget(t, budget.Config{
			OnSoft: func(_ context.Context, r budget.Reached) { told = append(told, r) },
			Limits: []budget.Limit{
				{Name: "tenant", Tokens: 100, Per: budget.Tenant, Window: budget.Hour},
				{Name: "half", Calls: 4, Soft: 0.5, Window: budget.Month},
				{Name: "never", Calls: 4, Soft: budget.Off, Window: budget.Month},
			}})
		spend := func(tenant string, reserve, use int64) {
			settle, err := b.Reserve(t.Context(), aiguard.Call{Tenant: tenant}, aiguard.Usage{Input: reserve})
			require.NoError(t, err)
			settle(aiguard.Usage{Input: use})
		}
		spend("a", 90, 79)
		require.Empty(t, told, "what is only reserved is not spent")
		spend("a", 20, 1)
		require.Equal(t, []budget.Reached{
			{Limit: "tenant", Key: "a", What: "tokens", Spent: 80, Max: 100, Until: time.Now().Add(time.Hour)},
			{Limit: "half", What: "calls", Spent: 2, Max: 4, Until: told[1].Until},
		}, told)
		spend("a", 1, 1)
		require.Len(t, told, 2)
		time.Sleep(time.Hour)
		spend("a", 90, 90)
		require.Len(t, told, 3)
	})
}

// store is a Store that fails or hangs when it is told to.
type store struct {
	budget.Store
	fails, hangs atomic.Bool
}

var errStore = errors.New("connection refused")

func (s *store) Spend(ctx context.Context, charges []budget.Charge) ([]budget.Sum, bool, error) {
	switch {
	case s.fails.Load():
		return nil, false, errStore
	case s.hangs.Load():
		<-ctx.Done()
		return nil, false, ctx.Err()
	}
	return s.Store.Spend(ctx, charges)
}

func TestStoreThatFailsRefusesOrAllowsAndIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, allow := range []bool{false, true} {
			var log strings.Builder
			s := &store{Store: budget.NewMemory()}
			b := newBudget(t, budget.Config{
				Store: s, AllowWithoutStore: allow, Logger: slog.New(slog.NewTextHandler(&log, nil)),
				Limits: []budget.Limit{{Name: "l", Calls: 3, Window: budget.Day}}})
			ctx := budget.WithRun(t.Context(), budget.Run{Calls: 100})
			held, err := b.Reserve(ctx, gpt, ten)
			require.NoError(t, err)
			s.fails.Store(true)
			for i := range 3 {
				if i == 2 {
					s.fails.Store(false)
					s.hangs.Store(true)
				}
				start := time.Now()
				settle, err := b.Reserve(ctx, gpt, ten)
				require.LessOrEqual(t, time.Since(start), budget.DefaultStoreTimeout)
				if allow {
					require.NoError(t, err)
					settle(ten)
					continue
				}
				require.ErrorIs(t, err, aiguard.ErrUnavailable)
				require.Equal(t, 502, aiguard.HTTPStatus(err))
				if i < 2 {
					require.ErrorIs(t, err, errStore)
				}
			}
			held(nothing) // cannot be given back
			require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
			require.Contains(t, log.String(), `level=ERROR msg="budget: store failed" error="connection refused" calls_allowed=`+fmt.Sprint(allow))
			s.hangs.Store(false)
			for range 2 {
				_, err = b.Reserve(ctx, gpt, ten)
				require.NoError(t, err)
			}
			_, err = b.Reserve(ctx, gpt, ten)
			refused(t, err)
			require.Contains(t, log.String(), "store works again")
			require.Equal(t, 2, strings.Count(log.String(), "\n"), log.String())
			if allow {
				require.EqualValues(t, 3, budget.Spent(ctx).Calls, "a run counts without the store")
			}
			require.EqualValues(t, 2, budget.Spent(ctx).ReservedCalls, "a refusal by the store gives back what the run had reserved")
		}
	})
}

func TestStoreThatFailsNowAndThenIsLoggedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := &store{Store: budget.NewMemory()}
		b := newBudget(t, budget.Config{
			Store: s, AllowWithoutStore: true, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			Limits: []budget.Limit{{Name: "l", Calls: 1e6, Window: budget.Day}}})
		for i := range 3000 { // three seconds
			s.fails.Store(i%2 == 0)
			settle, err := b.Reserve(t.Context(), gpt, ten)
			require.NoError(t, err)
			settle(ten)
			time.Sleep(time.Millisecond)
		}
		require.LessOrEqual(t, strings.Count(log.String(), "\n"), 4)
		require.Contains(t, log.String(), "store works again")
	})
}

// panics is a Store that panics once.
type panics struct {
	budget.Store
	done bool
}

func (s *panics) Spend(ctx context.Context, charges []budget.Charge) ([]budget.Sum, bool, error) {
	if !s.done {
		s.done = true
		panic("store")
	}
	return s.Store.Spend(ctx, charges)
}

func TestPanicInAStoreKeepsNothingReserved(t *testing.T) {
	b := newBudget(t, budget.Config{
		Store: &panics{Store: budget.NewMemory()}, Limits: []budget.Limit{{Name: "l", Calls: 10, Window: budget.Day}}})
	ctx := budget.WithRun(t.Context(), budget.Run{Calls: 1})
	require.PanicsWithValue(t, "store", func() { _, _ = b.Reserve(ctx, gpt, ten) })
	require.Zero(t, budget.Spent(ctx).ReservedCalls)
	_, err := b.Reserve(ctx, gpt, ten)
	require.NoError(t, err)
}

// After a caller cancels, it must be certain whether the Store has counted the call.
func TestCallerWhoLeavesDoesNotInterruptTheStore(t *testing.T) {
	s := &store{Store: budget.NewMemory()}
	b := newBudget(t, budget.Config{Store: s, Limits: []budget.Limit{{Name: "l", Calls: 1, Window: budget.Day}}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	settle, err := b.Reserve(ctx, gpt, ten)
	require.NoError(t, err)
	settle(nothing)
	_, err = b.Reserve(t.Context(), gpt, ten)
	require.NoError(t, err)
}

func TestMistakesNameTheFieldAndWhatIsAllowed(t *testing.T) {
	day := budget.Limit{Name: "l", Calls: 1, Window: budget.Day}
	with := func(change func(*budget.Limit)) budget.Config {
		l := day
		change(&l)
		return budget.Config{Limits: []budget.Limit{l}}
	}
	for want, cfg := range map[string]budget.Config{
		`budget: Config.Limits[0]: Name is ""; want at most 64 bytes of text without a slash`:     with(func(l *budget.Limit) { l.Name = "" }),
		`budget: Config.Limits[0]: Name is "a/b"; want at most 64 bytes of text without a slash`:  with(func(l *budget.Limit) { l.Name = "a/b" }),
		`budget: Config.Limits[0]: want exactly one of Calls, Tokens and Cost`:                    with(func(l *budget.Limit) { l.Tokens = 5 }),
		`budget: Config.Limits[0]: Calls, Tokens and Cost must not be negative`:                   with(func(l *budget.Limit) { l.Calls = -1 }),
		`budget: Config.Limits[0]: Window is 0; want Minute, Hour, Day or Month`:                  with(func(l *budget.Limit) { l.Window = 0 }),
		`budget: Config.Limits[0]: Soft is 80; want a fraction up to 1, 0 for 0.8, or Off`:        with(func(l *budget.Limit) { l.Soft = 80 }),
		`budget: Config.Limits[0]: Cost is 5; want Prices to be set with it`:                      with(func(l *budget.Limit) { l.Calls, l.Cost = 0, 5*budget.Unit }),
		`budget: Config.Limits[1]: Name is "l"; want one that no other limit has`:                 {Limits: []budget.Limit{day, day}},
		`budget: Config.Store is a nil *budget.Memory; want a Store, or nil for a Memory`:         {Store: (*budget.Memory)(nil)},
		`budget: Config.StoreTimeout is -1s; want a positive duration, or 0 for the default`:      {StoreTimeout: -time.Second},
		`budget: Config.Prices: name is "a*b"; want a model's name, or a prefix that ends in "*"`: {Prices: map[string]budget.Price{"a*b": {}}},
		`budget: Config.Prices["m"] has -1; want prices from 0 to 1000000 per million tokens`:     {Prices: map[string]budget.Price{"m": {Output: -budget.Unit}}},
	} {
		_, err := budget.New(cfg)
		require.EqualError(t, err, want)
	}
}
