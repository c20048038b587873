package redisguard_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/redisguard"
)

const (
	limit     = 8
	processes = 4
	callsEach = 200
	lease     = 6 * time.Second
	answerIn  = 50 * time.Millisecond
)

// fleet is a provider and processes that share a limit.
type fleet struct {
	redis    *server
	client   *redis.Client
	provider *aiguardtest.Server
	proxy    *proxy // between the first process and Redis
	children []*process
}

func startFleet(t *testing.T, cfg redisguard.Config) *fleet {
	f := &fleet{redis: startRedis(t), provider: aiguardtest.NewServer(t)}
	f.client = f.redis.client(t)
	f.provider.SetDefault(aiguardtest.After(answerIn, aiguardtest.Text("Hello!")))
	f.proxy = newProxy(t, f.redis.Addr)
	for i := range processes {
		addr := f.redis.Addr
		if i == 0 {
			addr = f.proxy.addr
		}
		f.children = append(f.children, startChild(t, order{Redis: addr, Provider: f.provider.URL, Calls: callsEach, Callers: 12,
			Config: cfg}))
	}
	eventually(t, func() bool { return f.provider.Count() > 40 && f.members(t) == len(f.children) }, "all processes work")
	return f
}

// members returns the number of processes that Redis knows.
func (f *fleet) members(t *testing.T) int {
	n, _ := f.client.HGet(t.Context(), "aiguard:{test}:held", "c").Int()
	return n
}

// observe measures how long more than the limit is in flight at the provider, until stop is called.
func (f *fleet) observe() (stop func() (over time.Duration)) {
	ctx, cancel := context.WithCancel(context.Background())
	var over time.Duration
	var done sync.WaitGroup
	done.Go(func() {
		last := time.Now()
		for ctx.Err() == nil {
			time.Sleep(time.Millisecond)
			now := time.Now()
			if f.provider.Active() > limit {
				over += now.Sub(last)
			}
			last = now
		}
	})
	return func() time.Duration {
		cancel()
		done.Wait()
		return over
	}
}

// A disturbance happens while 4 processes make 200 calls each. most is the greatest weight in flight at the provider.
func TestProcessesStayWithinTheSharedLimit(t *testing.T) {
	const share = limit / processes
	for _, d := range []struct {
		name    string
		disturb func(t *testing.T, f *fleet)
		most    int
		lost    bool // the calls of the first process
		alone   int  // processes that lose Redis for a while
	}{
		{name: "undisturbed", disturb: func(*testing.T, *fleet) {}, most: limit},
		{name: "SCRIPT FLUSH", most: limit, disturb: func(t *testing.T, f *fleet) {
			c := f.redis.client(t)
			for range 50 {
				require.NoError(t, c.ScriptFlush(t.Context()).Err())
				time.Sleep(20 * time.Millisecond)
			}
		}},
		{name: "kill -9 of a process", most: limit, lost: true, disturb: func(t *testing.T, f *fleet) {
			require.NoError(t, f.children[0].cmd.Process.Kill())
			killed := time.Now()
			eventually(t, func() bool { return f.members(t) == processes-1 }, "its lease ends")
			took := time.Since(killed)
			t.Logf("the slots of the dead process came back after %v, with a lease of %v", took, lease)
			assert.Less(t, took, lease+time.Second)
		}},
		{name: "CLIENT PAUSE", most: 2*limit - share, alone: processes, disturb: func(t *testing.T, f *fleet) {
			require.NoError(t, f.redis.client(t).Do(t.Context(), "CLIENT", "PAUSE", 3000).Err())
			time.Sleep(3 * time.Second)
		}},
		{name: "restart with data loss", most: 2*limit - share, alone: processes, disturb: func(t *testing.T, f *fleet) {
			f.redis.Restart(t)
		}},
		{name: "maxmemory", most: 2*limit - share, alone: processes, disturb: func(t *testing.T, f *fleet) {
			c := f.redis.client(t)
			require.NoError(t, c.ConfigSet(t.Context(), "maxmemory", "1").Err())
			time.Sleep(1500 * time.Millisecond)
			require.NoError(t, c.ConfigSet(t.Context(), "maxmemory", "0").Err())
		}},
		{name: "partition of a process", most: limit + share, alone: 1, disturb: func(t *testing.T, f *fleet) {
			f.proxy.setCut(true)
			time.Sleep(lease + time.Second)
			f.proxy.setCut(false)
		}},
	} {
		t.Run(d.name, func(t *testing.T) {
			if testing.Short() && d.alone > 0 {
				t.Skip("takes a minute together")
			}
			t.Parallel()
			cfg := redisguard.Config{Key: "test", Limit: limit, Lease: lease, Timeout: lease / 3}
			if d.alone == 0 && !d.lost {
				cfg.Lease, cfg.Timeout = redisguard.DefaultLease, redisguard.DefaultLease/3 // the machine may be slow
			}
			f := startFleet(t, cfg)
			stop := f.observe()
			d.disturb(t, f)
			answered, alone := 0, 0
			for i, c := range f.children {
				if d.lost && i == 0 {
					continue
				}
				r := c.wait(t)
				answered += r.Answered
				assert.Empty(t, r.Failed)
				if strings.Contains(c.log.String(), "Redis does not answer") {
					alone++
				}
			}
			over := stop()
			t.Logf("peak %d of %d, above the limit for %v", f.provider.Peak(), limit, over)
			assert.LessOrEqual(t, f.provider.Peak(), d.most)
			assert.GreaterOrEqual(t, f.provider.Peak(), limit, "the limit is used")
			assert.LessOrEqual(t, alone, d.alone, "processes without Redis")
			if !d.lost {
				assert.Equal(t, processes*callsEach, answered)
			}

			// All slots are back.
			l := newLimiter(t, f.redis.client(t), redisguard.Config{Limit: limit})
			release, err := l.Acquire(within(t, 20*time.Second), aiguard.Call{Weight: limit})
			require.NoError(t, err)
			release()
		})
	}
}
