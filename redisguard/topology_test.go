package redisguard_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/redisguard"
)

// In a cluster, a script may use the keys of one hash slot only.
func TestEachKeyIsOneHashSlotOfACluster(t *testing.T) {
	needsTime(t)
	s := startRedis(t, "--cluster-enabled", "yes")
	node := s.client(t)
	require.NoError(t, node.Do(t.Context(), "CLUSTER", "ADDSLOTSRANGE", 0, 16383).Err())
	eventually(t, func() bool { return strings.Contains(node.ClusterInfo(t.Context()).Val(), "cluster_state:ok") }, "the cluster is ready")
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{s.Addr}, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = c.Close() })

	one, two := newLimiter(t, c, redisguard.Config{Limit: 1}), newLimiter(t, c, redisguard.Config{Limit: 1})
	subscribed(t, node, "test", 2)
	release := acquire(t, one)
	got := make(chan func(), 1)
	go func() {
		release, err := two.Acquire(context.Background(), aiguard.Call{Tenant: "tenant"})
		assert.NoError(t, err)
		got <- release
	}()
	eventually(t, func() bool { return queued(t.Context(), node, "test") == 1 }, "the call waits")
	release()
	(<-got)()
	eventually(t, func() bool { return two.Stats().Messages == 1 }, "a message has told the process")
	require.True(t, one.Stats().Shared && two.Stats().Shared)

	pace, err := redisguard.NewPace(c, redisguard.PaceConfig{Key: "test", RequestsPerMinute: 100, OnFailure: redisguard.FailClosed})
	require.NoError(t, err)
	_, err = pace.Reserve(t.Context(), aiguard.Call{Model: "m"}, aiguard.Usage{})
	require.NoError(t, err)
	require.NoError(t, pace.Close())

	store, err := redisguard.NewStore(c, "test")
	require.NoError(t, err)
	now := time.Now().Unix()
	_, spent, err := store.Spend(t.Context(), []budget.Charge{
		{Key: "a", Slot: now, Since: now, Until: now + 60, Amount: 1, Max: 10},
		{Key: "b", Slot: now, Since: now, Until: now + 60, Amount: 1, Max: 10},
	})
	require.NoError(t, err)
	require.True(t, spent)
}

// After a failover the new master has the data but not the scripts.
func TestLimitSurvivesAFailover(t *testing.T) {
	needsTime(t)
	master, replica := startRedis(t), startRedis(t)
	host, port, err := net.SplitHostPort(master.Addr)
	require.NoError(t, err)
	r := replica.client(t)
	require.NoError(t, r.ReplicaOf(t.Context(), host, port).Err())
	p := newProxy(t, master.Addr)
	l := newLimiter(t, newClient(t, p.addr), redisguard.Config{Limit: 2, Lease: 6 * time.Second})
	held := acquire(t, l)
	eventually(t, func() bool { return inFlight(t.Context(), r, "test") == 1 }, "the replica has the data")

	master.Kill()
	require.NoError(t, r.ReplicaOf(t.Context(), "NO", "ONE").Err())
	p.redirect(replica.Addr)
	eventually(t, func() bool {
		acquire(t, l)()
		return l.Stats().Shared
	}, "the limit is shared again")
	eventually(t, func() bool { return inFlight(t.Context(), r, "test") == 1 }, "the call of before is counted")
	held()
	eventually(t, func() bool { return inFlight(t.Context(), r, "test") == 0 }, "all slots are back")
}

func TestGuardWaitsForRedisNoLongerThanQueueTimeout(t *testing.T) {
	s := startRedis(t)
	l := newLimiter(t, s.client(t), redisguard.Config{Limit: 5, Lease: time.Minute, Timeout: 20 * time.Second})
	g, err := aiguard.New(aiguard.Config{Limiter: l, QueueTimeout: 300 * time.Millisecond})
	require.NoError(t, err)
	defer func() { require.NoError(t, g.Close()) }()
	do := func(f func()) error {
		_, err := aiguard.Do(t.Context(), g, func(context.Context) (int, error) { f(); return 0, nil })
		return err
	}
	begun, frozen, running := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { running <- do(func() { close(begun); <-frozen }) }()
	<-begun
	s.Freeze(t)
	start := time.Now()
	err = do(func() {})
	require.ErrorIs(t, err, aiguard.ErrOverloaded)
	assert.Less(t, time.Since(start), 2*time.Second)
	assert.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond)
	close(frozen)
	require.NoError(t, <-running, "a call that runs does not notice")
	s.Thaw(t)
}
