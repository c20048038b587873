package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// work holds a slot for a second.
func work(ctx context.Context) error { return sleep(ctx, time.Second) }

// as makes the calls of ctx those of a tenant.
func as(ctx context.Context, tenant string) context.Context {
	return aiguard.WithCall(ctx, aiguard.Call{Tenant: tenant})
}

func TestCapacityIsSharedFairlyBetweenTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 2, MaxQueue: aiguard.Off, QueueTimeout: aiguard.Off, TotalTimeout: aiguard.Off})
		var calls sync.WaitGroup
		for range 200 {
			calls.Go(func() { assert.NoError(t, do(as(t.Context(), "heavy"), g, work)) })
		}
		for i := range 20 { // a call every two seconds: a quarter of the capacity
			time.Sleep(2 * time.Second)
			start := time.Now()
			require.NoError(t, do(as(t.Context(), "light"), g, work))
			require.LessOrEqual(t, time.Since(start), 2*time.Second, "call %d", i)
		}
		st := g.Stats()
		require.EqualValues(t, "heavy", st.Tenants[0].Tenant)
		require.EqualValues(t, 2, st.InFlight, "work conserving")
		require.Equal(t, st.Tenants[0].Waiting, st.Waiting)
		require.EqualValues(t, 20, st.Tenants[1].Calls)
		calls.Wait()
	})
}

// Shares are measured in tokens where answers report them. One that reports absurdly many keeps its tenant from its share
// only for a while.
func TestAbsurdUsageDoesNotKeepATenantFromItsShare(t *testing.T) {
	cfg := aiguard.Config{MaxConcurrent: 1, MaxQueue: aiguard.Off, QueueTimeout: aiguard.Off, TotalTimeout: aiguard.Off}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		var tokens atomic.Int64
		srv.Handle(func(*aiguardtest.Request) aiguardtest.Reply {
			return aiguardtest.After(time.Second, aiguardtest.JSON(200, fmt.Sprintf(`{"object":"chat.completion","usage":{"prompt_tokens":%d},
				"choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`, tokens.Load())))
		})
		tokens.Store(100)
		for _, tenant := range []string{"one", "other", "one", "other"} {
			require.NoError(t, askModel(as(t.Context(), tenant), c, "a"))
		}
		tokens.Store(math.MaxInt32) // go-openai reads it into an int
		require.NoError(t, askModel(as(t.Context(), "one"), c, "a"))
		tokens.Store(100)
		var calls sync.WaitGroup
		for range 500 {
			calls.Go(func() { assert.NoError(t, askModel(as(t.Context(), "other"), c, "a")) })
		}
		synctest.Wait()
		start := time.Now()
		for range 100 {
			require.NoError(t, askModel(as(t.Context(), "one"), c, "a"))
		}
		require.Less(t, time.Since(start), 300*time.Second, "about a minute, and then every second call")
		calls.Wait()
	})
}

func TestNewcomerOfALighterTenantTakesAPlaceInAFullQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 10})
		var calls sync.WaitGroup
		var mu sync.Mutex
		displaced := 0
		for range 11 {
			calls.Go(func() {
				if err := do(as(t.Context(), "heavy"), g, work); err != nil {
					e := facts(t, err, aiguard.ErrOverloaded)
					assert.EqualValues(t, 10, e.Max)
					assert.Positive(t, e.RetryAfter)
					mu.Lock()
					displaced++
					mu.Unlock()
				}
			})
			synctest.Wait()
		}
		require.ErrorIs(t, do(as(t.Context(), "heavy"), g, work), aiguard.ErrOverloaded)
		calls.Go(func() { assert.NoError(t, do(as(t.Context(), "light"), g, work)) })
		calls.Go(func() {
			assert.NoError(t, do(aiguard.WithCall(t.Context(), aiguard.Call{Tenant: "heavy", Priority: aiguard.Critical}), g, work))
		})
		calls.Wait()
		require.Equal(t, 2, displaced)
		st := g.Stats()
		require.EqualValues(t, 3, st.Normal.Refused)
		require.EqualValues(t, 3, st.Tenants[0].Refused)
	})
}

func TestPriorityGoesFirstAndBackgroundLeavesASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 3})
		with := func(p aiguard.Priority) context.Context {
			return aiguard.WithCall(t.Context(), aiguard.Call{Priority: p})
		}
		var calls sync.WaitGroup
		for range 6 {
			calls.Go(func() { assert.NoError(t, do(with(aiguard.Background), g, work)) })
		}
		synctest.Wait()
		require.EqualValues(t, 2, g.Stats().InFlight)
		require.EqualValues(t, 4, g.Stats().Background.Waiting)
		start := time.Now()
		require.NoError(t, do(t.Context(), g, work))
		took(t, start, time.Second)
		var mu sync.Mutex
		var order []aiguard.Priority
		for range 3 {
			calls.Go(func() {
				_ = do(with(aiguard.Normal), g, func(ctx context.Context) error { return sleep(ctx, 5*time.Second) })
			})
		}
		synctest.Wait()
		for _, p := range []aiguard.Priority{aiguard.Background, aiguard.Normal, aiguard.Critical} {
			calls.Go(func() {
				_ = do(with(p), g, func(ctx context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, p)
					return nil
				})
			})
			synctest.Wait()
		}
		calls.Wait()
		require.Equal(t, []aiguard.Priority{aiguard.Critical, aiguard.Normal, aiguard.Background}, order)
	})
}

func TestCallThatWouldNotBeServedInTimeIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		var calls sync.WaitGroup
		for range 5 {
			calls.Go(func() { assert.NoError(t, do(t.Context(), g, work)) })
		}
		synctest.Wait()
		hurried := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			return do(ctx, g, work)
		}
		start := time.Now()
		require.ErrorIs(t, hurried(300*time.Millisecond), context.DeadlineExceeded, "without evidence it waits")
		took(t, start, 300*time.Millisecond)
		time.Sleep(time.Second) // one has finished
		start = time.Now()
		e := facts(t, hurried(300*time.Millisecond), aiguard.ErrOverloaded)
		took(t, start, 0)
		require.Equal(t, "queue", e.Phase)
		require.Positive(t, e.RetryAfter)
		require.Contains(t, e.Error(), "no slot expected within")
		calls.Wait()
		require.NoError(t, hurried(2*time.Second))
	})
}

// What limits a Background call is MaxBackground, however many slots are free.
func TestBackgroundCallThatWouldNotBeServedInTimeIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 5, MaxBackground: 1}).With(aiguard.Call{Priority: aiguard.Background})
		nineSeconds := func(ctx context.Context) error { return sleep(ctx, 9*time.Second) }
		require.NoError(t, do(t.Context(), g, nineSeconds))
		var calls sync.WaitGroup
		for range 4 {
			calls.Go(func() { assert.NoError(t, do(t.Context(), g, nineSeconds)) })
			synctest.Wait()
		}
		start := time.Now()
		e := facts(t, do(t.Context(), g, nineSeconds), aiguard.ErrOverloaded)
		took(t, start, 0)
		time.Sleep(e.RetryAfter)
		require.NoError(t, do(t.Context(), g, nineSeconds), "the time that it was told is true")
		took(t, start, e.RetryAfter+9*time.Second)
		calls.Wait()
	})
}

func TestNewestCallsGoFirstUnderLastingOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 5})
		var mu sync.Mutex
		var waits []time.Duration
		served, refused := 0, 0
		var calls sync.WaitGroup
		for i := range 3000 { // 50 a second for a minute, of which five can be served
			time.Sleep(20 * time.Millisecond)
			late := i > 1000
			calls.Go(func() {
				start := time.Now()
				err := do(t.Context(), g, work)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					refused++
				case late:
					waits = append(waits, time.Since(start)-time.Second)
					fallthrough
				default:
					served++
				}
			})
		}
		calls.Wait()
		require.GreaterOrEqual(t, served, 290, "no capacity is lost")
		longer := 0
		for _, w := range waits {
			if w > time.Second {
				longer++
			}
		}
		require.LessOrEqual(t, longer, len(waits)/5, "one in ten is the longest waiter")
	})
}

// Refused by MaxQueue, displaced, timed out, left, cut by Close: each call has one end, and the counters add up.
func TestCountersAddUpWhateverBecomesOfCalls(t *testing.T) {
	for seed := range uint64(10) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			g := newGuard(t, aiguard.Config{MaxConcurrent: 3, MaxQueue: 8, QueueTimeout: 3 * time.Second, Retry: aiguard.Retry{MaxAttempts: 2}})
			var mu sync.Mutex
			var succeeded, failed, left int64
			var calls sync.WaitGroup
			for range 400 {
				time.Sleep(time.Duration(rng.Int64N(int64(200 * time.Millisecond))))
				call := aiguard.Call{Op: "work", Model: strconv.Itoa(rng.IntN(3)), Tenant: strconv.Itoa(rng.IntN(4)),
					Priority: aiguard.Priority(rng.IntN(3) - 1), Weight: 1 + rng.Int64N(3)}
				takes, patience, fate := time.Duration(rng.Int64N(int64(2*time.Second))), time.Duration(rng.Int64N(int64(5*time.Second))), rng.IntN(4)
				calls.Go(func() {
					ctx, cancel := context.WithTimeout(aiguard.WithCall(t.Context(), call), patience)
					defer cancel()
					err := do(ctx, g, func(ctx context.Context) error {
						if err := sleep(ctx, takes); err != nil {
							return err
						}
						switch fate {
						case 0:
							return &aiguard.Error{Kind: aiguard.ErrUnavailable, StatusCode: 503}
						case 1:
							return errors.New("of no kind")
						}
						return nil
					})
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						succeeded++
					case errors.Is(err, context.DeadlineExceeded) && aiguard.KindOf(err) == "":
						left++
					default:
						failed++
					}
				})
			}
			calls.Wait()
			st := g.Stats()
			require.EqualValues(t, 400, st.Calls)
			require.Equal(t, succeeded, st.Succeeded)
			require.Equal(t, failed, st.Failed+st.Refused)
			require.Equal(t, st.Calls, st.Succeeded+st.Failed+st.Refused+left)
			for _, r := range g.Routes() {
				require.Zero(t, r.InFlight, "%+v", r)
				require.Zero(t, r.Waiting, "%+v", r)
			}
			var waiting int64
			for _, p := range []aiguard.PriorityStats{st.Background, st.Normal, st.Critical} {
				require.Zero(t, p.InFlight)
				waiting += p.Waiting
			}
			require.Zero(t, waiting)
			for _, tenant := range st.Tenants {
				require.Zero(t, tenant.InFlight+tenant.Waiting, "%+v", tenant)
			}
		})
	}
}

// unsettling is a Budget that panics when an attempt is settled.
type unsettling struct{}

func (unsettling) Reserve(context.Context, aiguard.Call, aiguard.Usage) (func(aiguard.Usage), error) {
	return func(aiguard.Usage) { panic("settle") }, nil
}

func TestCountersAddUpThoughBudgetOrLimiterPanic(t *testing.T) {
	for name, cfg := range map[string]aiguard.Config{
		"settle": {Budget: unsettling{}}, "release": {Limiter: panicking{release: true}}, "acquire": {Limiter: panicking{acquire: true}},
	} {
		t.Run(name, func(t *testing.T) {
			var rec recorder
			cfg.OnEvent, cfg.Retry.MaxAttempts = rec.OnEvent, 1
			inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				ask := func(context.Context) error { return askModel(t.Context(), c, "a") }
				own := func(ctx context.Context) error {
					return do(ctx, c.Guard(), func(context.Context) error { return nil })
				}
				failing := func(ctx context.Context) error {
					return do(ctx, c.Guard(), func(context.Context) error { return errors.New("of no kind") })
				}
				for _, f := range []func(context.Context) error{ask, own, failing} {
					require.NotNil(t, panicOf(func() { _ = f(t.Context()) }))
				}
				st := c.Guard().Stats()
				require.EqualValues(t, 3, st.Calls)
				require.EqualValues(t, 3, st.Succeeded+st.Failed+st.Refused)
				require.Len(t, rec.all(aiguard.EventDone), 3)
			})
		})
	}
}

func TestUnknownTenantsDoNotGrowMemory(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	for range 10 {
		require.NoError(t, do(as(t.Context(), "busy"), g, func(context.Context) error { return nil }))
	}
	for i := range 10_000 {
		require.NoError(t, do(as(t.Context(), "tenant-"+strconv.Itoa(i)), g, func(context.Context) error { return nil }))
	}
	st := g.Stats()
	require.Len(t, st.Tenants, 1000)
	require.Equal(t, aiguard.TenantStats{Tenant: "busy", Calls: 10}, st.Tenants[0], "the busiest are kept")
}

func TestCallSettingsOutOfRangePanic(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	for want, call := range map[string]aiguard.Call{
		"Call.Priority is 2; want Background":             {Priority: 2},
		"Call.Priority is -2":                             {Priority: -2},
		"Call.Tenant is 257 bytes long; want at most 256": {Tenant: strings.Repeat("x", 257)},
		"Call.Weight is -1; want 0 or more":               {Weight: -1},
		"Call.Timeout is -2ns; want a positive duration":  {Timeout: -2},
		"Call.Attempts is -2":                             {Attempts: -2},
		"Call.TotalTimeout is 1s; want at least Timeout":  {TotalTimeout: time.Second, Timeout: time.Minute},
	} {
		require.Contains(t, panicOf(func() { g.With(call) }), "aiguard: With: "+want)
		require.Contains(t, panicOf(func() { aiguard.WithCall(t.Context(), call) }), "aiguard: WithCall: "+want)
	}
	require.NotPanics(t, func() { g.With(aiguard.Call{Tenant: strings.Repeat("x", 256), Priority: aiguard.Background}) })
}

func TestCallersDeadlineInTheQueueIsTheirOwn(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(20*time.Second, aiguardtest.Text("Hello!")))
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, err := chat(ctx, c)
		took(t, start, 5*time.Second)
		require.Equal(t, context.DeadlineExceeded, err)
		require.Empty(t, aiguard.KindOf(err))
		wg.Wait()
		require.Equal(t, 1, srv.Count())
		require.Zero(t, c.Guard().Stats().Refused+c.Guard().Stats().Failed)
	})
}

func TestPanicFreesItsSlotAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		start := time.Now()
		for range 3 {
			require.PanicsWithValue(t, "boom", func() {
				_ = do(t.Context(), g, func(context.Context) error { panic("boom") })
			})
			require.Zero(t, g.Stats().InFlight)
		}
		took(t, start, 0)
	})
}

func TestSlotIsFreeWhileARequestBacksOff(t *testing.T) {
	cfg := aiguard.Config{MaxConcurrent: 1, Retry: aiguard.Retry{BaseDelay: 8 * time.Second}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(503, ""))
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		synctest.Wait()
		require.Zero(t, c.Guard().Stats().InFlight)
		start := time.Now()
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		took(t, start, 0)
		wg.Wait()
		require.Equal(t, 3, srv.Count())
	})
}
