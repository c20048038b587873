package redisguard_test

import (
	"context"
	"log/slog"
	"os/exec"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/childtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/redistest"
	"github.com/aiguard-go/aiguard/redisguard"
)

// TestMain runs the child process if the environment requests it. Otherwise it runs the tests and fails if a
// goroutine leaks.
func TestMain(m *testing.M) {
	logging.Disable() // go-redis logs every connection that these tests break
	childtest.Main(order.obey)
	leaktest.Main(m, "go-redis")
}

// needsTime skips a test that waits for leases and timeouts of real servers.
func needsTime(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the leases and timeouts of real servers")
	}
}

// server is a Redis or Valkey server that the test has started.
type server struct{ *redistest.Server }

// onEach runs f in parallel with each kind of server. It skips those that are not installed.
func onEach(t *testing.T, f func(t *testing.T, s *server)) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		t.Run(name, func(t *testing.T) { f(t, startServer(t, name)) })
	}
}

// startRedis starts any of the servers.
func startRedis(t testing.TB, options ...string) *server {
	t.Helper()
	name := "redis-server"
	if _, err := exec.LookPath(name); err != nil {
		name = "valkey-server"
	}
	return startServer(t, name, options...)
}

func startServer(t testing.TB, name string, options ...string) *server {
	t.Helper()
	return &server{redistest.Start(t, name, options...)}
}

func (s *server) client(t testing.TB) *redis.Client { return newClient(t, s.Addr) }

func newClient(t testing.TB, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newLimiter returns a limiter of a process of its own. The test fails if slots are left at its end.
func newLimiter(t testing.TB, c redis.UniversalClient, cfg redisguard.Config) *redisguard.Limiter {
	t.Helper()
	if cfg.Key == "" {
		cfg.Key = "test"
	}
	if cfg.Timeout == 0 && cfg.Lease == 0 {
		cfg.Timeout = redisguard.DefaultLease / 3 // the machine may be slow
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l, err := redisguard.New(c, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		st := l.Stats()
		require.Zero(t, st.InFlight, "slots left behind")
		require.Zero(t, st.Waiting, "waiters left behind")
		_ = l.Close()
	})
	return l
}

// eventually waits for a condition that another process or goroutine brings about.
func eventually(t testing.TB, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, 5*time.Millisecond, what)
}

// inFlight returns the weight that Redis counts for a key.
func inFlight(ctx context.Context, c *redis.Client, key string) int64 {
	n, _ := c.HGet(ctx, "aiguard:{"+key+"}:held", "u").Int64()
	return n
}

// subscribed waits until so many processes get messages for a key.
func subscribed(t testing.TB, c *redis.Client, key string, processes int64) {
	t.Helper()
	channel := "aiguard:{" + key + "}:held"
	eventually(t, func() bool { return c.PubSubNumSub(t.Context(), channel).Val()[channel] == processes }, "the processes listen")
}

// queued returns the number of calls that wait in Redis for a key.
func queued(ctx context.Context, c *redis.Client, key string) int64 {
	return c.ZCard(ctx, "aiguard:{"+key+"}:queue").Val()
}
