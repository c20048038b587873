package sqlstore_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/budget/storetest"
)

// spenders is a budget.Store whose calls go in turn to stores that share a database, as those of several processes would.
type spenders struct {
	stores []budget.Store
	n      atomic.Int64
}

func (s *spenders) Spend(ctx context.Context, charges []budget.Charge) ([]budget.Sum, bool, error) {
	return s.stores[int(s.n.Add(1))%len(s.stores)].Spend(ctx, charges)
}

func TestStoresThatShareADatabaseKeepThePromisesOfABudgetTogether(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		first, second := openStore(t, d), openStore(t, d)
		for _, c := range storetest.Checks() {
			t.Run(c.Name, func(t *testing.T) {
				_, err := first.DB().ExecContext(t.Context(), "DELETE FROM aiguard_spent")
				require.NoError(t, err)
				require.NoError(t, c.Run(t.Context(), &spenders{stores: []budget.Store{first, second}}))
			})
		}
	})
}

func newBudget(t *testing.T, s budget.Store) *budget.Budget {
	t.Helper()
	b, err := budget.New(budget.Config{Store: s, StoreTimeout: time.Minute, Limits: []budget.Limit{
		{Name: "calls", Calls: 10, Window: budget.Month, Sliding: true}, // no window ends while a test runs
		{Name: "tokens", Tokens: 1000, Per: budget.Tenant, Window: budget.Month, Sliding: true},
	}})
	require.NoError(t, err)
	return b
}

func TestRestartForgetsNothingThatWasSpent(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		call := aiguard.Call{Tenant: "acme"}
		s, closeStore, err := d.open(t.Context())
		require.NoError(t, err)
		b := newBudget(t, s)
		settle, err := b.Reserve(t.Context(), call, aiguard.Usage{Input: 900})
		require.NoError(t, err)
		settle(aiguard.Usage{Input: 700})
		_, err = b.Reserve(t.Context(), call, aiguard.Usage{Input: 100}) // under way when the process ends
		require.NoError(t, err)
		require.NoError(t, closeStore())

		b = newBudget(t, openStore(t, d))
		_, err = b.Reserve(t.Context(), call, aiguard.Usage{Input: 201})
		require.ErrorIs(t, err, aiguard.ErrBudget)
		require.ErrorContains(t, err, "800 of 1000")
		_, err = b.Reserve(t.Context(), call, aiguard.Usage{Input: 200})
		require.NoError(t, err)
	})
}

func TestProcessesSpendNoCallTwice(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		budgets := []*budget.Budget{newBudget(t, openStore(t, d)), newBudget(t, openStore(t, d))}
		var sent atomic.Int64
		atOnce(t, 40, func(i int) error {
			settle, err := budgets[i%2].Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{Input: 50})
			if aiguard.KindOf(err) == aiguard.ErrBudget {
				return nil
			}
			if err == nil {
				sent.Add(1)
				settle(aiguard.Usage{Input: 60})
			}
			return err
		})
		require.EqualValues(t, 10, sent.Load())
		_, err := budgets[0].Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
		require.ErrorIs(t, err, aiguard.ErrBudget)
	})
}

func TestDeleteSpentRemovesWindowsThatAreOver(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		now := time.Now().Unix()
		const over = 1500
		for i := range int64(3) {
			_, _, err := s.Spend(t.Context(), []budget.Charge{{Key: "a", Slot: now + i, Since: now, Until: now + 10*i, Amount: 1 + i, Max: 100}})
			require.NoError(t, err)
		}
		_, err := s.DB().ExecContext(t.Context(), `INSERT INTO aiguard_spent (counter, slot, over_at, amount) WITH RECURSIVE n (i) AS
			(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) SELECT 'b', i, 5, 1 FROM n`, over)
		require.NoError(t, err)
		deleted, err := s.DeleteSpent(t.Context(), time.Unix(now+10, 0))
		require.NoError(t, err)
		require.EqualValues(t, over+1, deleted)
		sums, _, err := s.Spend(t.Context(), []budget.Charge{{Key: "a", Since: now}})
		require.NoError(t, err)
		require.Equal(t, []budget.Sum{{Spent: 5, Oldest: now + 1}}, sums)
	})
}

func TestSpendLeavesReadOnlySessions(t *testing.T) {
	s := openStore(t, newPostgres(t))
	conn, err := s.DB().Conn(t.Context())
	require.NoError(t, err)
	_, err = conn.ExecContext(t.Context(), "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	_, spent, err := s.Spend(t.Context(), []budget.Charge{{Key: "a", Slot: 1, Since: 1, Until: 2, Amount: 1, Max: 1}})
	require.NoError(t, err)
	require.True(t, spent)
}

func TestSpendSaysWhatFailed(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s, closeStore, err := d.open(t.Context())
		require.NoError(t, err)
		defer func() { _ = closeStore() }()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, spent, err := s.Spend(ctx, []budget.Charge{{Key: "a", Slot: 1, Since: 1, Until: 2, Amount: 1, Max: 1}})
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "sqlstore: spend: ")
		require.False(t, spent)
	})
}
