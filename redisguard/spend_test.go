package redisguard_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/budget/storetest"
	"github.com/aiguard-go/aiguard/redisguard"
)

func newStore(t *testing.T, s *server, key string) *redisguard.Store {
	t.Helper()
	store, err := redisguard.NewStore(s.client(t), key)
	require.NoError(t, err)
	return store
}

func TestStoreKeepsThePromisesOfABudgetStore(t *testing.T) {
	onEach(t, func(t *testing.T, s *server) {
		for _, c := range storetest.Checks() {
			t.Run(c.Name, func(t *testing.T) { require.NoError(t, c.Run(t.Context(), newStore(t, s, c.Name))) })
		}
	})
}

func TestProcessesShareTheWindowsOfABudget(t *testing.T) {
	s := startRedis(t)
	one, two := newStore(t, s, "k"), newStore(t, s, "k")
	now := time.Now().Unix()
	charge := []budget.Charge{{Key: "tenant", Slot: now, Since: now, Until: now + 60, Amount: 6, Max: 10}}
	_, spent, err := one.Spend(t.Context(), charge)
	require.NoError(t, err)
	require.True(t, spent)
	sums, spent, err := two.Spend(t.Context(), charge)
	require.NoError(t, err)
	require.False(t, spent)
	require.Equal(t, []budget.Sum{{Spent: 6, Oldest: now}}, sums)

	left, err := s.client(t).TTL(t.Context(), "aiguard:{k}:spent:tenant").Result()
	require.NoError(t, err)
	require.InDelta(t, (time.Hour + time.Minute).Seconds(), left.Seconds(), 10, "what is over expires")
	require.NoError(t, s.client(t).ScriptFlush(t.Context()).Err())
	_, spent, err = two.Spend(t.Context(), []budget.Charge{{Key: "tenant", Slot: now, Since: now, Until: now + 60, Amount: 1, Max: math.MaxInt64}})
	require.NoError(t, err)
	require.True(t, spent)
}

func TestStoreReportsAServerThatIsGone(t *testing.T) {
	needsTime(t)
	s := startRedis(t)
	store := newStore(t, s, "k")
	s.Kill()
	_, _, err := store.Spend(t.Context(), []budget.Charge{{Key: "a", Amount: 1, Max: 10}})
	require.ErrorContains(t, err, "redisguard: spend")
}
