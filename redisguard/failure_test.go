package redisguard_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/redisguard"
)

// record collects what is logged.
type record struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *record) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *record) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func (l *record) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

const away, again = "Redis does not answer", "Redis answers again"

func acquire(t *testing.T, l *redisguard.Limiter) func() {
	t.Helper()
	release, err := l.Acquire(within(t, 20*time.Second), aiguard.Call{Weight: 1})
	require.NoError(t, err)
	return release
}

func TestCallsWithoutRedis(t *testing.T) {
	needsTime(t)
	for name, hurt := range map[string]func(t *testing.T, s *server) (mend func()){
		"frozen": func(t *testing.T, s *server) func() {
			s.Freeze(t)
			return func() { s.Thaw(t) }
		},
		"gone": func(t *testing.T, s *server) func() {
			s.Kill()
			return func() { s.Restart(t) }
		},
		"full": func(t *testing.T, s *server) func() {
			c := s.client(t)
			require.NoError(t, c.ConfigSet(t.Context(), "maxmemory", "1").Err())
			return func() { require.NoError(t, c.ConfigSet(t.Context(), "maxmemory", "0").Err()) }
		},
	} {
		t.Run("KeepShare/"+name, func(t *testing.T) {
			s := startRedis(t)
			var lg record
			cfg := redisguard.Config{Limit: 6, Lease: 6 * time.Second, Timeout: 2 * time.Second, Logger: lg.logger()}
			one := newLimiter(t, s.client(t), cfg)
			cfg.Logger = nil
			two := newLimiter(t, s.client(t), cfg)
			eventually(t, func() bool { return one.Stats().Members == 2 && two.Stats().Members == 2 }, "both are members")
			acquire(t, one)()
			held := acquire(t, one)
			mend := hurt(t, s)

			start := time.Now()
			second := acquire(t, one)
			assert.Less(t, time.Since(start), 4*time.Second, "the first call waits for Redis as long as Timeout")
			start = time.Now()
			third := acquire(t, one)
			assert.Less(t, time.Since(start), 500*time.Millisecond, "the others do not")
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, err := one.Acquire(ctx, aiguard.Call{})
			require.ErrorIs(t, err, context.DeadlineExceeded, "the share is 3, with the call that Redis has admitted")
			held()
			fourth := acquire(t, one)
			assert.False(t, one.Stats().Shared)
			eventually(t, func() bool { return lg.count(away) == 1 }, "it is logged")

			mend()
			eventually(t, func() bool { return one.Stats().Shared && two.Stats().Shared }, "it is back by itself")
			c := s.client(t)
			eventually(t, func() bool { return inFlight(t.Context(), c, "test") == 3 }, "Redis knows what was admitted without it")
			assert.Equal(t, 1, lg.count(again))
			for _, release := range []func(){second, third, fourth} {
				release()
			}
			eventually(t, func() bool { return inFlight(t.Context(), c, "test") == 0 }, "all slots are back")
		})
		t.Run("FailClosed/"+name, func(t *testing.T) {
			s := startRedis(t)
			var lg record
			l := newLimiter(t, s.client(t), redisguard.Config{Limit: 1, Lease: 6 * time.Second, Timeout: 2 * time.Second, Logger: lg.logger(), OnFailure: redisguard.FailClosed})
			held := acquire(t, l)
			waiter := make(chan error, 1)
			go func() {
				_, err := l.Acquire(context.Background(), aiguard.Call{})
				waiter <- err
			}()
			eventually(t, func() bool { return l.Stats().Waiting == 1 }, "a call waits")
			mend := hurt(t, s)
			require.ErrorIs(t, <-waiter, aiguard.ErrOverloaded, "a call that waits is rejected too")
			start := time.Now()
			_, err := l.Acquire(t.Context(), aiguard.Call{})
			require.ErrorIs(t, err, aiguard.ErrOverloaded)
			require.Positive(t, aiguard.Explain(err).RetryAfter)
			assert.Less(t, time.Since(start), 500*time.Millisecond)
			held() // a call in flight does not notice
			mend()
			eventually(t, func() bool { return l.Stats().Shared }, "it is back by itself")
			acquire(t, l)()
			eventually(t, func() bool { return lg.count(again) > 0 }, "it is logged")
			assert.Equal(t, 1, lg.count(away), "%s", &lg.buf)
			assert.Equal(t, 1, lg.count(again))
		})
	}
}

func TestWaitForRedisEndsWithTheCallersContext(t *testing.T) {
	s := startRedis(t)
	l := newLimiter(t, s.client(t), redisguard.Config{Limit: 1, Lease: time.Minute, Timeout: 20 * time.Second})
	acquire(t, l)()
	s.Freeze(t)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := l.Acquire(ctx, aiguard.Call{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(start), time.Second)
	s.Thaw(t)
	c := s.client(t)
	eventually(t, func() bool { return inFlight(t.Context(), c, "test") == 0 }, "a slot that nobody uses is given back")
}

func TestCanceledCallerDoesNotWaitForRedis(t *testing.T) {
	s := startRedis(t)
	c := s.client(t)
	const timeout = 20 * time.Second
	l := newLimiter(t, c, redisguard.Config{Limit: 1, Lease: time.Minute, Timeout: timeout})
	pace := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 1, Timeout: timeout})
	free := func() bool { return inFlight(t.Context(), c, "test") == 0 }
	acquire(t, l)()
	eventually(t, free, "the slot is free")
	before := l.Stats().Commands
	canceled := func(wait func(context.Context) error) {
		s.Freeze(t)
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		require.ErrorIs(t, wait(ctx), context.Canceled)
		require.Less(t, time.Since(start), timeout/4)
		s.Thaw(t)
	}
	canceled(func(ctx context.Context) error {
		_, err := l.Acquire(ctx, aiguard.Call{})
		return err
	})
	start := time.Now()
	eventually(t, func() bool { return l.Stats().Commands >= before+2 && free() }, "a slot that was granted too late is given back")
	require.Less(t, time.Since(start), timeout/4, "before the next sync")
	canceled(func(ctx context.Context) error {
		_, err := pace.Reserve(ctx, aiguard.Call{}, aiguard.Usage{})
		return err
	})
	eventually(t, func() bool {
		_, err := pace.Reserve(within(t, time.Second), aiguard.Call{}, aiguard.Usage{})
		return err == nil
	}, "a turn that was granted too late is given back")
}

func TestGrantReachesAWaiterWhoseMessageWasLost(t *testing.T) {
	s := startRedis(t)
	c := s.client(t)
	one, two := newLimiter(t, c, redisguard.Config{Limit: 1}), newLimiter(t, s.client(t), redisguard.Config{Limit: 1})
	free := acquire(t, one)
	got := make(chan func(), 1)
	go func() {
		release, err := two.Acquire(context.Background(), aiguard.Call{})
		assert.NoError(t, err)
		got <- release
	}()
	eventually(t, func() bool { return two.Stats().Waiting == 1 }, "the call waits")
	// Without its subscription the process gets no message.
	require.NoError(t, c.Do(t.Context(), "ACL", "SETUSER", "default", "resetchannels").Err())
	free()
	select {
	case release := <-got:
		release()
	case <-time.After(5 * time.Second):
		t.Fatal("the poll did not find the slot")
	}
	require.NoError(t, c.Do(t.Context(), "ACL", "SETUSER", "default", "allchannels").Err())
}

func TestSlotsOfADeadProcessComeBackAtTheEndOfItsLease(t *testing.T) {
	needsTime(t)
	s := startRedis(t)
	p := newProxy(t, s.Addr)
	const lease = 6 * time.Second
	dead := newLimiter(t, newClient(t, p.addr), redisguard.Config{Limit: 2, Lease: lease})
	other := newLimiter(t, s.client(t), redisguard.Config{Limit: 2, Lease: lease, Timeout: lease / 3})
	first, second := acquire(t, dead), acquire(t, dead)
	p.setCut(true)
	start := time.Now()
	release := acquire(t, other)
	took := time.Since(start)
	t.Logf("a slot of the dead process came back after %v, with a lease of %v", took, lease)
	assert.Less(t, took, lease+3*time.Second)
	assert.Greater(t, took, lease/2)
	p.setCut(false)
	// It is not dead after all: Redis counts its calls again, and nobody else gets their slots.
	eventually(t, func() bool { return dead.Stats().Shared && inFlight(t.Context(), s.client(t), "test") == 3 }, "it is counted again")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := other.Acquire(ctx, aiguard.Call{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	first()
	second()
	release()
}

func TestSlotsOfADeadProcessComeBackWhateverTheLeasesOfOthers(t *testing.T) {
	needsTime(t)
	s := startRedis(t)
	p := newProxy(t, s.Addr)
	long := newLimiter(t, s.client(t), redisguard.Config{Limit: 1, Lease: 2 * time.Minute, Timeout: 5 * time.Second})
	acquire(t, long)()
	dead := newLimiter(t, newClient(t, p.addr), redisguard.Config{Limit: 1, Lease: 6 * time.Second, Timeout: 2 * time.Second})
	held := acquire(t, dead)
	p.setCut(true)
	acquire(t, long)()
	held()
}

func TestLossOfDataAdmitsNobodyUntilAllProcessesHaveReported(t *testing.T) {
	needsTime(t)
	s := startRedis(t)
	c := s.client(t)
	cfg := redisguard.Config{Limit: 2, Lease: 30 * time.Second, Timeout: 5 * time.Second}
	two := newLimiter(t, s.client(t), cfg)
	second := acquire(t, two)
	one := newLimiter(t, s.client(t), cfg)
	eventually(t, func() bool { return one.Stats().Members == 2 }, "it knows the other")
	first := acquire(t, one)
	require.NoError(t, c.FlushAll(t.Context()).Err())
	start := time.Now()
	_, err := one.Acquire(within(t, 2*time.Second), aiguard.Call{})
	require.ErrorIs(t, err, context.DeadlineExceeded, "the slot of the other process is still in use")
	eventually(t, func() bool { return inFlight(t.Context(), c, "test") == 2 }, "Redis knows what is held")
	require.Less(t, time.Since(start), 6*time.Second, "all are asked to report; otherwise they would do so every 10 s")
	first()
	acquire(t, one)()
	second()
}

func TestCloseRejectsCallsAndGivesSlotsBack(t *testing.T) {
	s := startRedis(t)
	c := s.client(t)
	l, err := redisguard.New(c, redisguard.Config{Key: "test", Limit: 1})
	require.NoError(t, err)
	release := acquire(t, l)
	waiter := make(chan error, 1)
	go func() {
		_, err := l.Acquire(context.Background(), aiguard.Call{})
		waiter <- err
	}()
	eventually(t, func() bool { return l.Stats().Waiting == 1 }, "a call waits")
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-waiter, aiguard.ErrClosed)
	_, err = l.Acquire(t.Context(), aiguard.Call{})
	require.ErrorIs(t, err, aiguard.ErrClosed)
	release()
	require.Zero(t, inFlight(t.Context(), c, "test"))
	acquire(t, newLimiter(t, c, redisguard.Config{Limit: 1}))()
}

func TestProcessThatHasNeverSeenRedisHasOneSlot(t *testing.T) {
	needsTime(t)
	l := newLimiter(t, newClient(t, "127.0.0.1:1"), redisguard.Config{Limit: 20, Lease: 3 * time.Second})
	release := acquire(t, l)
	_, err := l.Acquire(within(t, 50*time.Millisecond), aiguard.Call{})
	require.ErrorIs(t, err, context.DeadlineExceeded, "there may be 20 such processes")
	release()
	acquire(t, l)()
}

func TestMistakesAreReportedByNew(t *testing.T) {
	good := newClient(t, "127.0.0.1:1")
	deaf := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer deaf.Close()
	var none *redis.Client
	for want, f := range map[string]func() error{
		"ContextTimeoutEnabled": func() error { _, err := redisguard.New(deaf, redisguard.Config{Key: "k", Limit: 1}); return err },
		"client is nil":         func() error { _, err := redisguard.New(none, redisguard.Config{Key: "k", Limit: 1}); return err },
		"guard is nil": func() error {
			_, err := redisguard.ShareRoutes(good, nil, redisguard.RoutesConfig{Key: "k"})
			return err
		},
		"RoutesConfig.Timeout is 1ns": func() error {
			_, err := redisguard.ShareRoutes(good, new(aiguard.Guard), redisguard.RoutesConfig{Key: "k", Timeout: 1})
			return err
		},
		"the client is nil":    func() error { _, err := redisguard.New(nil, redisguard.Config{Key: "k", Limit: 1}); return err },
		"Config.Key":           func() error { _, err := redisguard.New(good, redisguard.Config{Limit: 1}); return err },
		`Config.Key is "a{b}"`: func() error { _, err := redisguard.New(good, redisguard.Config{Key: "a{b}", Limit: 1}); return err },
		"Config.Limit is 0":    func() error { _, err := redisguard.New(good, redisguard.Config{Key: "k"}); return err },
		"Config.Lease is 1ms": func() error {
			_, err := redisguard.New(good, redisguard.Config{Key: "k", Limit: 1, Lease: time.Millisecond})
			return err
		},
		"Config.Timeout is 1m0s": func() error {
			_, err := redisguard.New(good, redisguard.Config{Key: "k", Limit: 1, Timeout: time.Minute})
			return err
		},
		"Config.MaxBackground is -2": func() error {
			_, err := redisguard.New(good, redisguard.Config{Key: "k", Limit: 1, MaxBackground: -2})
			return err
		},
		"Config.OnFailure is 7": func() error {
			_, err := redisguard.New(good, redisguard.Config{Key: "k", Limit: 1, OnFailure: 7})
			return err
		},
	} {
		require.ErrorContains(t, f(), want)
	}
}

func TestNewDoesNotWaitForRedis(t *testing.T) {
	s := startRedis(t)
	s.Freeze(t)
	start := time.Now()
	l := newLimiter(t, s.client(t), redisguard.Config{Limit: 1})
	g, err := aiguard.New(aiguard.Config{Limiter: l})
	require.NoError(t, err)
	r, err := redisguard.ShareRoutes(s.client(t), g, redisguard.RoutesConfig{Key: "test"})
	require.NoError(t, err)
	p := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 1, Timeout: time.Second})
	require.Less(t, time.Since(start), time.Second)
	s.Thaw(t)
	require.NoError(t, r.Close())
	require.NoError(t, g.Close())
	require.NoError(t, p.Close())
}
