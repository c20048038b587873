package redisguard_test

import (
	"context"
	"log/slog"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/childtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
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
type server struct {
	addr   string
	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has exited
}

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
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s (Debian package %s)", name, name)
	}
	for range attempts {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s := &server{addr: ln.Addr().String()}
		require.NoError(t, ln.Close())
		if s.start(t, path, options...) {
			t.Cleanup(s.kill)
			return s
		}
	}
	require.FailNow(t, "the server does not start")
	return nil
}

// attempts is how often a server is started, because a connection of another process may have its port.
const attempts = 5

// start reports false if the server exits instead of responding.
func (s *server) start(t testing.TB, path string, options ...string) bool {
	t.Helper()
	_, port, err := net.SplitHostPort(s.addr)
	require.NoError(t, err)
	args := append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(), "--save", "", "--appendonly", "no",
		"--daemonize", "no"}, options...)
	s.cmd = exec.Command(path, args...)
	require.NoError(t, s.cmd.Start())
	cmd, exited := s.cmd, make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
	}()
	s.exited = exited
	c := s.client(t)
	for start := time.Now(); time.Since(start) < 30*time.Second; {
		if c.Ping(t.Context()).Err() == nil {
			return true
		}
		select {
		case <-exited:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	s.kill()
	return false
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.exited
}

// restart starts the server again, without its data.
func (s *server) restart(t testing.TB) {
	t.Helper()
	s.kill()
	for range attempts {
		if s.start(t, s.cmd.Path) {
			return
		}
	}
	require.FailNow(t, "the server does not start again")
}

// freeze stops the server without closing its connections.
func (s *server) freeze(t testing.TB) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGSTOP))
}

func (s *server) thaw(t testing.TB) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGCONT))
}

func (s *server) client(t testing.TB) *redis.Client { return newClient(t, s.addr) }

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
