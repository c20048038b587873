package budget_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
)

var priced = budget.Config{Prices: map[string]budget.Price{
	"gpt-4o": {Input: 2.5 * budget.Unit, Output: 10 * budget.Unit}, "gpt-4o-mini": {Input: 0.15 * budget.Unit, Output: 0.6 * budget.Unit},
}}

// call spends used of the run.
func call(t testing.TB, b *budget.Budget, ctx context.Context, model string, used aiguard.Usage) {
	t.Helper()
	settle, err := b.Reserve(ctx, aiguard.Call{Model: model}, aiguard.Usage{Input: 1})
	require.NoError(t, err)
	settle(used)
}

func TestRunSaysWhatWasSpentAndOnWhat(t *testing.T) {
	b := newBudget(t, priced)
	ctx := budget.WithRun(t.Context(), budget.Run{Name: "research", Cost: 0.05 * budget.Unit})
	require.Zero(t, budget.Spent(t.Context()), "no run")
	for range 3 {
		call(t, b, ctx, "gpt-4o", aiguard.Usage{Input: 1000, Output: 1000})
	}
	call(t, b, ctx, "gpt-4o-mini", aiguard.Usage{Input: 100, Output: 100, Estimated: true})
	call(t, b, ctx, "gpt-4o", aiguard.Usage{}) // refused by the provider
	held, err := b.Reserve(ctx, aiguard.Call{Model: "gpt-4o"}, aiguard.Usage{Output: 1000})
	require.NoError(t, err)

	spent := budget.Spent(ctx)
	spent.Elapsed = 0
	require.Equal(t, budget.Spending{
		Calls: 4, Tokens: 6200, Cost: 37_575_000, Estimated: 1, ReservedCalls: 1, ReservedTokens: 1000, ReservedCost: 0.01 * budget.Unit,
		Models: []budget.ModelSpending{{"gpt-4o", 3, 6000, 37_500_000}, {"gpt-4o-mini", 1, 200, 75_000}},
	}, spent)

	_, err = b.Reserve(ctx, aiguard.Call{Model: "gpt-4o"}, aiguard.Usage{Output: 1000})
	e, facts := refused(t, err)
	require.EqualError(t, e, `budget: run "research": cost 0.047575 of 0.05 spent, 0.01 more asked for; gpt-4o: 3 calls, 6000 tokens, cost 0.0375; gpt-4o-mini: 1 calls, 200 tokens, cost 0.000075`)
	require.Zero(t, facts.RetryAfter)
	require.Equal(t, 403, aiguard.HTTPStatus(err))
	require.Contains(t, facts.Error(), "gpt-4o: 3 calls")
	held(aiguard.Usage{Output: 1})
	_, err = b.Reserve(ctx, aiguard.Call{Model: "gpt-4o"}, aiguard.Usage{Output: 1000})
	require.NoError(t, err)
}

func TestRunIsBoundedInCallsTokensAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(t, budget.Config{})
		try := func(ctx context.Context, n int64) (string, error) {
			settle, err := b.Reserve(ctx, gpt, aiguard.Usage{Input: n})
			if err != nil {
				e, _ := refused(t, err)
				return e.What, e
			}
			settle(aiguard.Usage{Input: n})
			return "", nil
		}
		ctx := budget.WithRun(t.Context(), budget.Run{Calls: 2, Tokens: 100, Time: time.Minute})
		what, _ := try(ctx, 60)
		require.Empty(t, what)
		what, _ = try(ctx, 41)
		require.Equal(t, "tokens", what)
		what, _ = try(ctx, 40)
		require.Empty(t, what)
		what, err := try(ctx, 0)
		require.Equal(t, "calls", what)
		require.EqualError(t, err, "budget: run: calls 2 of 2 spent, 1 more asked for; gpt-4o: 2 calls, 100 tokens")

		ctx = budget.WithRun(t.Context(), budget.Run{Time: time.Minute})
		time.Sleep(time.Minute - 1)
		what, _ = try(ctx, 1)
		require.Empty(t, what)
		time.Sleep(1 * time.Nanosecond)
		what, err = try(ctx, 1)
		require.Equal(t, "time", what)
		require.EqualError(t, err, "budget: run: time 1m0s of 1m0s spent; gpt-4o: 1 calls, 1 tokens")
		require.Equal(t, time.Minute, budget.Spent(ctx).Elapsed)
	})
}

func TestRunInsideARunSpendsFromBoth(t *testing.T) {
	b := newBudget(t, budget.Config{})
	outer := budget.WithRun(t.Context(), budget.Run{Name: "outer", Tokens: 100})
	first := budget.WithRun(outer, budget.Run{Name: "first", Tokens: 80})
	second := budget.WithRun(context.WithoutCancel(outer), budget.Run{Name: "second", Tokens: 80})
	call(t, b, first, "m", aiguard.Usage{Input: 70})
	call(t, b, second, "m", aiguard.Usage{Input: 20})
	for ctx, want := range map[context.Context]int64{outer: 90, first: 70, second: 20} {
		require.Equal(t, want, budget.Spent(ctx).Tokens)
	}
	_, err := b.Reserve(second, gpt, aiguard.Usage{Input: 11})
	e, _ := refused(t, err)
	require.Equal(t, "outer", e.Limit)
	require.EqualValues(t, 90, e.Spent)
	require.Zero(t, budget.Spent(second).ReservedTokens, "a refusal reserves nothing")
	_, err = b.Reserve(first, gpt, aiguard.Usage{Input: 11})
	e, _ = refused(t, err)
	require.Equal(t, "first", e.Limit)
}

func TestRunNeedsPricesForABoundOfCost(t *testing.T) {
	b := newBudget(t, priced)
	inner := budget.WithRun(budget.WithRun(t.Context(), budget.Run{Cost: budget.Unit}), budget.Run{})
	_, err := b.Reserve(inner, aiguard.Call{Model: "unknown"}, aiguard.Usage{Input: 1})
	require.ErrorIs(t, err, aiguard.ErrMisconfigured)
	free := budget.WithRun(t.Context(), budget.Run{Calls: 1})
	call(t, b, free, "unknown", aiguard.Usage{Input: 1})
	require.EqualValues(t, 1, budget.Spent(free).Unpriced)
}

func TestRunTellsTwentyModelsApart(t *testing.T) {
	b := newBudget(t, budget.Config{})
	ctx := budget.WithRun(t.Context(), budget.Run{})
	for i := range 100 {
		call(t, b, ctx, fmt.Sprintf("model-%02d\n%s", i, strings.Repeat("x", 1000)), aiguard.Usage{Input: 1})
	}
	models := budget.Spent(ctx).Models
	require.Len(t, models, 21)
	require.Equal(t, budget.ModelSpending{Calls: 80, Tokens: 80}, models[0])
	for _, m := range models {
		require.LessOrEqual(t, len(m.Model), 128)
	}
	full := budget.WithRun(ctx, budget.Run{Name: strings.Repeat("n\n", 1000), Calls: 1})
	call(t, b, full, "m\n"+strings.Repeat("x", 1000), aiguard.Usage{Input: 1})
	_, err := b.Reserve(full, gpt, nothing)
	e, _ := refused(t, err)
	require.Less(t, len(e.Error()), 500)
	require.NotContains(t, e.Error(), "\n")
}

// Users may choose names of models and tenants, which then reach a log.
func TestControlCharactersReachNoText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no window ends
		const hostile = "m\x1b[2J\r\nINFO all is well\x00\u202e\u2028"
		var reached budget.Reached
		b := newBudget(t, budget.Config{
			OnSoft: func(_ context.Context, r budget.Reached) { reached = r },
			Limits: []budget.Limit{{Name: "model", Cost: budget.Unit, Per: budget.Model, Window: budget.Day, Soft: 0.5}},
			Prices: map[string]budget.Price{"*": {Input: 700_000 * budget.Unit}},
		})
		ctx := budget.WithRun(t.Context(), budget.Run{Name: hostile, Calls: 2})
		call(t, b, ctx, hostile, aiguard.Usage{Input: 1})
		require.Equal(t, hostile, reached.Key)
		require.Regexp(t, `^limit "model": cost 0.7 of 1 spent, until \d{4}-`, reached.String())
		_, err := b.Reserve(ctx, aiguard.Call{Model: hostile}, aiguard.Usage{Input: 1})
		e, _ := refused(t, err)
		for _, v := range []any{budget.Spent(ctx), reached, e, err} {
			for _, verb := range []string{"%v", "%+v", "%s"} {
				require.NotRegexp(t, "[\x1b\r\n\x00\u202e\u2028]", fmt.Sprintf(verb, v))
			}
		}
	})
}

func TestMistakesInARunPanic(t *testing.T) {
	require.PanicsWithValue(t, "budget: WithRun: Run.Calls is -1; want a positive limit, or 0 for none", func() {
		budget.WithRun(t.Context(), budget.Run{Calls: -1})
	})
}
