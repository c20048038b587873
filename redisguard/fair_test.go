package redisguard_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/redisguard"
)

// queue makes calls that wait, one after the other, and returns their names in the order in which they were admitted.
// Each is released at once.
type queue struct {
	t       *testing.T
	c       *redis.Client
	mu      sync.Mutex
	order   []string
	waiting sync.WaitGroup
}

func (q *queue) add(l *redisguard.Limiter, name string, call aiguard.Call) {
	q.t.Helper()
	before := queued(q.t.Context(), q.c, "test")
	q.waiting.Go(func() {
		release, err := l.Acquire(q.t.Context(), call)
		if !assert.NoError(q.t, err) {
			return
		}
		q.mu.Lock()
		q.order = append(q.order, name)
		q.mu.Unlock()
		release()
	})
	eventually(q.t, func() bool { return queued(q.t.Context(), q.c, "test") == before+1 }, "the call waits")
}

func (q *queue) all() []string {
	q.waiting.Wait()
	return q.order
}

// occupied returns two limiters of one key whose only slot is taken, and the function that frees it.
func occupied(t *testing.T, cfg redisguard.Config) (one, two *redisguard.Limiter, q *queue, free func()) {
	s := startRedis(t)
	one, two = newLimiter(t, s.client(t), cfg), newLimiter(t, s.client(t), cfg)
	free, err := one.Acquire(t.Context(), aiguard.Call{Weight: cfg.Limit})
	require.NoError(t, err)
	return one, two, &queue{t: t, c: s.client(t)}, free
}

func TestCallsOfAllProcessesAreServedByPriorityThenTenant(t *testing.T) {
	one, two, q, free := occupied(t, redisguard.Config{Limit: 1})
	q.add(one, "a1", aiguard.Call{Tenant: "a"})
	q.add(one, "a2", aiguard.Call{Tenant: "a"})
	q.add(one, "a3", aiguard.Call{Tenant: "a"})
	q.add(two, "background", aiguard.Call{Tenant: "c", Priority: aiguard.Background})
	q.add(two, "b1", aiguard.Call{Tenant: "b"})
	q.add(two, "b2", aiguard.Call{Tenant: "b"})
	q.add(two, "critical", aiguard.Call{Tenant: "a", Priority: aiguard.Critical})
	free()
	got := q.all()
	require.Equal(t, "critical", got[0])
	require.Equal(t, "background", got[6])
	place := map[string]int{}
	for i, name := range got {
		place[name] = i
	}
	assert.Less(t, place["b1"], place["a2"], "%v", got)
	assert.Less(t, place["b2"], place["a3"], "%v", got)
	assert.Less(t, place["a1"], place["a2"], "%v", got)
}

func TestCallsWithoutTenantAreSharedBetweenProcesses(t *testing.T) {
	one, two, q, free := occupied(t, redisguard.Config{Limit: 1})
	for range 6 {
		q.add(one, "busy", aiguard.Call{})
	}
	q.add(two, "quiet", aiguard.Call{})
	free()
	require.Contains(t, q.all()[:2], "quiet")
}

func TestOneOfTenAdmissionsGoesToTheLongestWaiter(t *testing.T) {
	one, two, q, free := occupied(t, redisguard.Config{Limit: 1})
	q.add(one, "background", aiguard.Call{Priority: aiguard.Background})
	for range 15 {
		q.add(two, "critical", aiguard.Call{Priority: aiguard.Critical})
	}
	free()
	got := q.all()
	require.Contains(t, got[:11], "background", "%v", got)
	require.NotContains(t, got[:8], "background", "%v", got)
}

func TestHeavyCallIsNotOvertaken(t *testing.T) {
	s := startRedis(t)
	one, two := newLimiter(t, s.client(t), redisguard.Config{Limit: 2}), newLimiter(t, s.client(t), redisguard.Config{Limit: 2})
	free := acquire(t, one)
	q := &queue{t: t, c: s.client(t)}
	q.add(one, "heavy", aiguard.Call{Tenant: "a", Weight: 2})
	q.add(two, "light", aiguard.Call{Tenant: "b", Weight: 1}) // it would fit
	free()
	require.Equal(t, []string{"heavy", "light"}, q.all())
}

func TestBackgroundCallsNeverTakeTheLastSlot(t *testing.T) {
	s := startRedis(t)
	one, two := newLimiter(t, s.client(t), redisguard.Config{Limit: 3}), newLimiter(t, s.client(t), redisguard.Config{Limit: 3})
	background := aiguard.Call{Priority: aiguard.Background}
	var releases []func()
	for _, l := range []*redisguard.Limiter{one, two} {
		release, err := l.Acquire(t.Context(), background)
		require.NoError(t, err)
		releases = append(releases, release)
	}
	q := &queue{t: t, c: s.client(t)}
	q.add(one, "background", background)
	release, err := two.Acquire(t.Context(), aiguard.Call{})
	require.NoError(t, err, "the last slot is for others")
	release()
	require.EqualValues(t, 1, one.Stats().Waiting)
	for _, release := range releases {
		release()
	}
	q.all()
}

func TestTenantAtTwentyTimesItsShareDoesNotStarveATenantOnAnotherProcess(t *testing.T) {
	needsTime(t)
	const slots, work = 4, 20 * time.Millisecond
	s := startRedis(t)
	cfg := redisguard.Config{Limit: slots}
	greedy, modest := newLimiter(t, s.client(t), cfg), newLimiter(t, s.client(t), cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	waits := map[string]*[2]atomic.Int64{"greedy": {}, "modest": {}} // calls, time
	mean := func(tenant string) time.Duration {
		return time.Duration(waits[tenant][1].Load() / waits[tenant][0].Load())
	}
	call := func(l *redisguard.Limiter, tenant string) bool {
		began := time.Now()
		release, err := l.Acquire(ctx, aiguard.Call{Tenant: tenant})
		if err != nil {
			return false
		}
		waits[tenant][0].Add(1)
		waits[tenant][1].Add(int64(time.Since(began)))
		time.Sleep(work)
		release()
		return true
	}
	var all sync.WaitGroup
	for range 20 * slots {
		all.Go(func() {
			for call(greedy, "greedy") {
			}
		})
	}
	eventually(t, func() bool { return greedy.Stats().Waiting > 10*slots }, "the greedy tenant fills the queue")
	for call(modest, "modest") {
	}
	all.Wait()
	t.Logf("mean wait: %v of the greedy tenant, %v of the modest one", mean("greedy"), mean("modest"))
	// It waits for one of the four calls in flight, and the greedy tenant for its own queue of 80.
	assert.Less(t, mean("modest"), mean("greedy")/4)
}

func TestTenantWithLongCallsGetsNoMoreTimeThanOneWithShortCalls(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, connect func() *redis.Client) {
		cfg := redisguard.Config{Limit: 4}
		one, two := newLimiter(t, connect(), cfg), newLimiter(t, connect(), cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var all sync.WaitGroup
		var long, short atomic.Int64 // slot time
		use := func(l *redisguard.Limiter, tenant string, work time.Duration, sum *atomic.Int64) {
			for range 8 {
				all.Go(func() {
					for {
						release, err := l.Acquire(ctx, aiguard.Call{Tenant: tenant})
						if err != nil {
							return
						}
						time.Sleep(work)
						sum.Add(int64(work))
						release()
					}
				})
			}
		}
		use(one, "long", time.Second, &long)
		use(two, "short", 100*time.Millisecond, &short)
		all.Wait()
		share := float64(long.Load()) / float64(long.Load()+short.Load())
		assert.InDelta(t, 0.5, share, 0.1, "share of the tenant with long calls")
	})
}
