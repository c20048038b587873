package aiguard_test

import (
	"context"
	"log/slog"
	"math"
	"math/rand/v2"
	"reflect"
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

// update changes the configuration of g as a user does.
func update(t testing.TB, g *aiguard.Guard, change func(*aiguard.Config)) {
	t.Helper()
	cfg := g.Config()
	change(&cfg)
	require.NoError(t, g.Update(cfg))
}

// queued makes n calls at once that hold their slots for a second, and returns when they wait or run.
func queued(t testing.TB, ctx context.Context, g *aiguard.Guard, n int) (wait func() (failures []error)) {
	t.Helper()
	var calls sync.WaitGroup
	var mu sync.Mutex
	var failures []error
	for range n {
		calls.Go(func() {
			if err := do(ctx, g, work); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failures = append(failures, err)
			}
		})
		synctest.Wait()
	}
	return func() []error {
		calls.Wait()
		return failures
	}
}

func TestHigherCapacityAdmitsWaitersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		for name, g := range map[string]*aiguard.Guard{"without a route": g, "with a route": named(g), "with another": g.With(aiguard.Call{Model: "m"})} {
			update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 1 })
			wait := queued(t, t.Context(), g, 5)
			require.EqualValues(t, 1, g.Stats().InFlight, name)
			update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 3 })
			st := g.Stats()
			require.EqualValues(t, 3, st.InFlight, name)
			require.EqualValues(t, 2, st.Waiting, name)
			require.EqualValues(t, 3, st.MaxConcurrent, name)
			start := time.Now()
			require.Empty(t, wait(), name)
			took(t, start, 2*time.Second)
		}
	})
}

func TestLowerCapacityLetsTheCallsInFlightFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, aiguard.Config{MaxConcurrent: 4}))
		start := time.Now()
		wait := queued(t, t.Context(), g, 6)
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 2 })
		require.EqualValues(t, 4, g.Stats().InFlight, "nobody is interrupted")
		time.Sleep(time.Second + 1)
		require.EqualValues(t, 2, g.Stats().InFlight)
		require.Empty(t, wait())
		took(t, start, 2*time.Second)
	})
}

func TestCapacityCanBeSwitchedOffAndOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, aiguard.Config{MaxConcurrent: 1}))
		wait := queued(t, t.Context(), g, 10)
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = aiguard.Off })
		require.EqualValues(t, 10, g.Stats().InFlight)
		require.EqualValues(t, aiguard.Off, g.Routes()[0].Limit)
		require.Empty(t, wait())
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 2 })
		require.EqualValues(t, 2, g.Routes()[0].Limit)
		wait = queued(t, t.Context(), g, 10)
		require.EqualValues(t, 2, g.Stats().InFlight)
		require.Empty(t, wait())
	})
}

func TestWaiterThatNoLongerFitsIsRefusedAndHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 5})
		running := queued(t, t.Context(), g.With(aiguard.Call{Weight: 2}), 2)
		heavy := queued(t, t.Context(), g.With(aiguard.Call{Weight: 4}), 1)
		light := queued(t, t.Context(), g, 2)
		require.EqualValues(t, 3, g.Stats().Waiting, "the light ones wait behind the heavy one")
		start := time.Now()
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 3 })
		failures := heavy()
		took(t, start, 0)
		require.Len(t, failures, 1)
		e := facts(t, failures[0], aiguard.ErrOverloaded)
		require.Equal(t, aiguard.PhaseWeight, e.Phase)
		require.EqualValues(t, 4, e.Size)
		require.EqualValues(t, 3, e.Max)
		require.EqualValues(t, 1, g.Stats().Refused)
		require.Empty(t, running())
		require.Empty(t, light())
		took(t, start, 2*time.Second)
	})
}

// The weight is checked before each attempt, because the capacity may be lowered while the call backs off.
func TestRetryThatNoLongerFitsEndsWithItsFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		tries, start := 0, time.Now()
		err := do(t.Context(), g.With(aiguard.Call{Weight: 5}), func(context.Context) error {
			tries++
			update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 4 })
			return aiguard.ErrUnavailable
		})
		require.Equal(t, 1, facts(t, err, aiguard.ErrUnavailable).Attempts)
		require.Equal(t, 1, tries)
		require.Less(t, time.Since(start), time.Second, "it backs off and does not wait for a slot")
	})
}

func TestMaxQueueConcernsThoseThatCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 4})
		wait := queued(t, t.Context(), g, 5)
		update(t, g, func(c *aiguard.Config) { c.MaxQueue = 2 })
		require.EqualValues(t, 4, g.Stats().Waiting, "a place that was given is kept")
		require.EqualValues(t, 2, facts(t, do(t.Context(), g, work), aiguard.ErrOverloaded).Max)
		update(t, g, func(c *aiguard.Config) { c.MaxQueue = 6 })
		more := queued(t, t.Context(), g, 2)
		require.EqualValues(t, 6, g.Stats().Waiting)
		require.EqualValues(t, 6, facts(t, do(t.Context(), g, work), aiguard.ErrOverloaded).Max)
		update(t, g, func(c *aiguard.Config) { c.MaxQueue = aiguard.Off })
		most := queued(t, t.Context(), g, 20)
		require.EqualValues(t, 26, g.Stats().Waiting)
		require.Empty(t, append(append(wait(), more()...), most()...))
	})
}

func TestShorterQueueTimeoutEndsWaitsThatHaveBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, QueueTimeout: 20 * time.Second})
		release := make(chan struct{})
		var holder sync.WaitGroup
		holder.Go(func() { assert.NoError(t, do(t.Context(), g, func(context.Context) error { <-release; return nil })) })
		synctest.Wait()
		start := time.Now()
		long := queued(t, t.Context(), g, 1)
		time.Sleep(2 * time.Second)
		update(t, g, func(c *aiguard.Config) { c.QueueTimeout = 3 * time.Second })
		short := queued(t, t.Context(), g, 1)
		update(t, g, func(c *aiguard.Config) { c.QueueTimeout = 8 * time.Second })
		longer := queued(t, t.Context(), g, 1)
		for _, w := range []struct {
			wait  func() []error
			limit time.Duration
			after time.Duration
		}{{long, 3 * time.Second, 3 * time.Second}, {short, 3 * time.Second, 5 * time.Second}, {longer, 8 * time.Second, 10 * time.Second}} {
			failures := w.wait()
			took(t, start, w.after)
			require.Len(t, failures, 1)
			require.Equal(t, w.limit, facts(t, failures[0], aiguard.ErrOverloaded).Limit)
		}
		close(release)
		holder.Wait()
	})
}

// A call that retries waits within the current QueueTimeout and its own TotalTimeout.
func TestTotalTimeoutHoldsUnderALongerQueueTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, QueueTimeout: time.Second, TotalTimeout: 40 * time.Second})
		release := make(chan struct{})
		var holder sync.WaitGroup
		start, tries := time.Now(), 0
		err := do(t.Context(), g, func(context.Context) error {
			tries++
			update(t, g, func(c *aiguard.Config) { c.QueueTimeout = aiguard.Off })
			holder.Go(func() {
				assert.NoError(t, do(t.Context(), g.With(aiguard.Call{Timeout: aiguard.Off, TotalTimeout: aiguard.Off}), func(context.Context) error {
					<-release
					return nil
				}))
			})
			return aiguard.ErrUnavailable
		})
		took(t, start, 40*time.Second)
		require.ErrorIs(t, err, aiguard.ErrUnavailable)
		require.Equal(t, 1, tries)
		close(release)
		holder.Wait()
	})
}

func TestMaxBackgroundChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 4, MaxBackground: 1})
		wait := queued(t, t.Context(), g.With(aiguard.Call{Priority: aiguard.Background}), 4)
		require.EqualValues(t, 1, g.Stats().InFlight)
		update(t, g, func(c *aiguard.Config) { c.MaxBackground = 3 })
		require.EqualValues(t, 3, g.Stats().InFlight)
		require.Empty(t, wait())
	})
}

func TestBoundsOfAKnownRouteChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := named(newGuard(t, adapting))
		_ = do(t.Context(), g, refuse)
		require.EqualValues(t, 7, limit(t, g))
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 20 })
		require.EqualValues(t, 7, limit(t, g), "what it has learned remains")
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 4 })
		require.EqualValues(t, 4, limit(t, g))
		update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 20 })
		require.EqualValues(t, 20, limit(t, g), "it was at the maximum")
		update(t, g, func(c *aiguard.Config) { c.MinConcurrent = 20 })
		_ = do(t.Context(), g, refuse)
		require.EqualValues(t, 20, limit(t, g), "it does not adapt")
	})
}

func TestPaceOfAKnownRouteChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{RequestsPerMinute: 2}).With(aiguard.Call{Op: "work"})
		fast := func(context.Context) error { return nil }
		require.NoError(t, do(t.Context(), g, fast))
		start := time.Now()
		var calls sync.WaitGroup
		calls.Go(func() { assert.NoError(t, do(t.Context(), g, fast)) })
		synctest.Wait()
		time.Sleep(3 * time.Second) // a tenth of the burst of one request is back, so of the new burst of six
		update(t, g, func(c *aiguard.Config) { c.RequestsPerMinute = 60 })
		require.EqualValues(t, 60, g.Routes()[0].RequestsPerMinute)
		calls.Wait()
		took(t, start, 3400*time.Millisecond)
		update(t, g, func(c *aiguard.Config) { c.RequestsPerMinute = aiguard.Off })
		for range 10 {
			require.NoError(t, do(t.Context(), g, fast))
		}
		took(t, start, 3400*time.Millisecond)
		update(t, g, func(c *aiguard.Config) { c.TokensPerMinute = 1000 })
		require.EqualValues(t, 1000, g.Routes()[0].TokensPerMinute)
	})
}

func TestMemoryLimitChangesAtOnce(t *testing.T) {
	g := newGuard(t, aiguard.Config{MemoryLimit: aiguard.Off})
	idle := func(context.Context) error { return nil }
	require.NoError(t, do(t.Context(), g, idle))
	update(t, g, func(c *aiguard.Config) { c.MemoryLimit = 1 })
	require.Equal(t, aiguard.PhaseMemory, facts(t, do(t.Context(), g, idle), aiguard.ErrOverloaded).Phase)
	require.EqualValues(t, 1, g.Stats().MemoryLimit)
	require.True(t, g.Stats().OverMemory)
	update(t, g, func(c *aiguard.Config) { c.MemoryLimit = 1 << 50 })
	require.NoError(t, do(t.Context(), g, idle))
	update(t, g, func(c *aiguard.Config) { c.MemoryLimit = aiguard.Off })
	require.NoError(t, do(t.Context(), g, idle))
	require.Zero(t, g.Stats().MemoryLimit)
}

func TestRetryBudgetChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 2}}).With(aiguard.Call{Op: "work"})
		fails := func(context.Context) error { return aiguard.ErrInvalidResponse }
		for facts(t, do(t.Context(), g, fails), aiguard.ErrInvalidResponse).Attempts == 2 { // until the budget is empty
		}
		update(t, g, func(c *aiguard.Config) { c.Retry.Budget = aiguard.Off })
		for range 150 { // more than the whole guard has tokens for
			require.Equal(t, 2, facts(t, do(t.Context(), g, fails), aiguard.ErrInvalidResponse).Attempts)
		}
		update(t, g, func(c *aiguard.Config) { c.Retry.MaxAttempts = 1 })
		require.Equal(t, 1, facts(t, do(t.Context(), g, fails), aiguard.ErrInvalidResponse).Attempts)
	})
}

// Each setting of a call is in effect for the next one, for Do, the Client, derived guards and contexts that have been
// used before.
func TestNextCallHasTheNewSettings(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		derived, ctx := g.With(aiguard.Call{Op: "derived"}), as(t.Context(), "tenant")
		hang := func(ctx context.Context) error { return sleep(ctx, time.Hour) }
		timeouts := func(want time.Duration) {
			t.Helper()
			srv.SetDefault(aiguardtest.Hang())
			for name, call := range map[string]func() error{
				"do":      func() error { return do(t.Context(), g, hang) },
				"derived": func() error { return do(t.Context(), derived, hang) },
				"context": func() error { return do(ctx, g, hang) },
				"client":  func() error { return askModel(t.Context(), c, "m") },
			} {
				require.Equal(t, want, facts(t, call(), aiguard.ErrTimeout).Limit, name)
			}
		}
		timeouts(30 * time.Second)
		update(t, g, func(c *aiguard.Config) { c.CallTimeout = 3 * time.Second })
		timeouts(3 * time.Second)
		update(t, derived, func(c *aiguard.Config) { c.CallTimeout = 5 * time.Minute }) // TotalTimeout follows
		timeouts(5 * time.Minute)
		update(t, g, func(c *aiguard.Config) { c.Models = map[string]aiguard.Call{"m": {Timeout: 7 * time.Second}} })
		require.Equal(t, 7*time.Second, facts(t, askModel(t.Context(), c, "m"), aiguard.ErrTimeout).Limit)
		update(t, g, func(c *aiguard.Config) { c.Models["m"] = aiguard.Call{MaxPromptChars: 5} })
		require.EqualValues(t, 5, facts(t, askModel(t.Context(), c, "m"), aiguard.ErrPromptTooLarge).Max)
		require.Error(t, g.CheckPrompt("m", "123456"))
		update(t, g, func(c *aiguard.Config) { c.Models, c.MaxPromptChars = nil, 4 })
		require.EqualValues(t, 4, facts(t, askModel(t.Context(), c, "m"), aiguard.ErrPromptTooLarge).Max)
		require.Error(t, g.CheckPrompt("", "12345"))
		update(t, g, func(c *aiguard.Config) {
			c.MaxPromptChars, c.MaxPromptTokens, c.CountTokens = aiguard.Off, 3, countBytes
		})
		require.EqualValues(t, 3, facts(t, askModel(t.Context(), c, "m"), aiguard.ErrPromptTooLarge).Max)

		srv.SetDefault(aiguardtest.Text("hello"))
		l := newLedger(t)
		update(t, g, func(c *aiguard.Config) {
			c.MaxPromptTokens, c.MaxOutputTokens, c.OnEvent, c.Budget = aiguard.Off, 33, rec.OnEvent, l
		})
		require.NoError(t, askModel(t.Context(), c, "m"))
		requests := srv.Requests()
		require.Contains(t, string(requests[len(requests)-1].Body), `"max_tokens":33`)
		require.Len(t, rec.all(aiguard.EventDone), 1)
		require.Len(t, l.all(), 1)
		var log strings.Builder
		update(t, g, func(c *aiguard.Config) {
			c.OnEvent, c.Budget, c.Logger, c.MaxRequestBytes = nil, nil, slog.New(slog.NewTextHandler(&log, nil)), 10
			c.Middleware = []aiguard.Middleware{func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
				log.WriteString("in the middleware\n")
				return next(ctx)
			}}
		})
		require.Equal(t, aiguard.PhaseRequest, facts(t, askModel(t.Context(), c, "m"), aiguard.ErrPromptTooLarge).Phase)
		require.Len(t, rec.all(aiguard.EventDone), 1)
		require.Len(t, l.all(), 1)
		require.Contains(t, log.String(), "in the middleware\n")
		require.Contains(t, log.String(), "call refused")
	})
}

func TestCallKeepsTheSettingsItBeganWith(t *testing.T) {
	before, after := &recorder{}, &recorder{}
	cfg := aiguard.Config{OnEvent: before.OnEvent, StreamIdleTimeout: 9 * time.Second}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		defer s.Close()
		hanging := make(chan error, 1)
		start := time.Now()
		go func() {
			hanging <- do(t.Context(), c.Guard(), func(ctx context.Context) error { return sleep(ctx, time.Hour) })
		}()
		synctest.Wait()
		update(t, c.Guard(), func(c *aiguard.Config) {
			c.OnEvent, c.StreamIdleTimeout, c.CallTimeout, c.Retry.MaxAttempts = after.OnEvent, time.Second, 2*time.Second, 1
		})
		_, err = recvAll(s)
		require.Equal(t, 9*time.Second, facts(t, err, aiguard.ErrTimeout).Limit)
		require.Equal(t, 30*time.Second, facts(t, <-hanging, aiguard.ErrTimeout).Limit)
		took(t, start, 30*time.Second)
		require.Len(t, before.all(aiguard.EventDone), 2)
		require.Empty(t, after.all(aiguard.EventDone))
	})
}

// Update rejects what New rejects, with the same error, and changes nothing.
func TestUpdateIsRefusedWhole(t *testing.T) {
	g := newGuard(t, aiguard.Config{MaxConcurrent: 3})
	before := g.Config()
	refused := func(cfg aiguard.Config, want string) {
		t.Helper()
		cfg.MaxConcurrent, cfg.CallTimeout = 9, time.Second // which are valid
		require.ErrorContains(t, g.Update(cfg), want)
		require.Equal(t, before, g.Config())
		require.EqualValues(t, 3, g.Stats().MaxConcurrent)
		require.EqualValues(t, 1, g.Stats().ConfigVersion)
	}
	eachNumber(t, &aiguard.Config{}, func(name string, _ reflect.Value) {
		if name == "MaxConcurrent" || name == "CallTimeout" {
			return
		}
		cfg := g.Config()
		eachNumber(t, &cfg, func(n string, field reflect.Value) {
			if n == name {
				setNumber(field, -2)
			}
		})
		_, err := aiguard.New(cfg)
		refused(cfg, err.Error())
	})
	refused(aiguard.Config{MinConcurrent: 10}, "Config.MinConcurrent is 10; want at most MaxConcurrent (9)")
	refused(aiguard.Config{Retry: aiguard.Retry{Budget: math.NaN()}}, "Config.Retry.Budget is NaN")
	refused(aiguard.Config{Models: map[string]aiguard.Call{"m": {Weight: 10}}}, `Config.Models["m"].Weight is 10`)
	refused(aiguard.Config{Middleware: []aiguard.Middleware{nil}}, "Config.Middleware[0] is nil")
	refused(aiguard.Config{Limiter: noLimit{}}, "Config.Limiter")
}

// limiterFunc is a Limiter of a type that Go cannot compare.
type limiterFunc func(context.Context, aiguard.Call) (func(), error)

func (f limiterFunc) Acquire(ctx context.Context, call aiguard.Call) (func(), error) {
	return f(ctx, call)
}

func TestLimiterCannotBeReplaced(t *testing.T) {
	admit := limiterFunc(func(context.Context, aiguard.Call) (func(), error) { return func() {}, nil })
	for name, l := range map[string]aiguard.Limiter{"pointer": &pointedLimiter{}, "function": admit} {
		t.Run(name, func(t *testing.T) {
			g := newGuard(t, aiguard.Config{Limiter: l})
			update(t, g, func(c *aiguard.Config) { c.CallTimeout = time.Second })
			require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
			for _, other := range []aiguard.Limiter{nil, &pointedLimiter{}, noLimit{}, limiterFunc(admit)} {
				cfg := g.Config()
				cfg.Limiter = other
				require.ErrorContains(t, g.Update(cfg), "Config.Limiter")
			}
			require.EqualValues(t, 2, g.Stats().ConfigVersion)
		})
	}
}

// pointedLimiter is a Limiter that is compared by its address.
type pointedLimiter struct{ asked atomic.Int64 }

func (l *pointedLimiter) Acquire(context.Context, aiguard.Call) (func(), error) {
	l.asked.Add(1)
	return func() {}, nil
}

func TestConfigIsAcceptedAsItIs(t *testing.T) {
	for name, cfg := range map[string]aiguard.Config{
		"zero":       {},
		"off":        {MaxConcurrent: aiguard.Off, MemoryLimit: aiguard.Off, TotalTimeout: aiguard.Off, QueueTimeout: aiguard.Off, MaxQueue: aiguard.Off},
		"one":        {MaxConcurrent: 1},
		"long calls": {CallTimeout: time.Hour, Models: map[string]aiguard.Call{"m*": {Timeout: 2 * time.Hour}}},
		"short":      {TotalTimeout: 10 * time.Second},
		"delays":     {Retry: aiguard.Retry{BaseDelay: time.Minute}},
		"limiter":    {Limiter: noLimit{}},
		"tokens":     {MaxPromptTokens: 5, CountTokens: countBytes},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuard(t, cfg)
			comparableConfig := func() aiguard.Config {
				cfg := g.Config()
				cfg.CountTokens = nil // functions cannot be compared
				return aiguard.WithoutOrigin(cfg)
			}
			before := comparableConfig()
			for n := range 3 {
				require.NoError(t, g.Update(g.Config()))
				require.EqualValues(t, n+2, g.Stats().ConfigVersion)
				require.Equal(t, before, comparableConfig())
			}
		})
	}
}

func TestDefaultsFollowWhatTheyDependOn(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	stale := g.Config()
	update(t, g, func(c *aiguard.Config) { c.CallTimeout, c.MaxConcurrent = 5*time.Minute, 20 })
	require.Equal(t, 6*time.Minute+30*time.Second, g.Config().TotalTimeout)
	require.EqualValues(t, 19, g.Config().MaxBackground)
	update(t, g, func(c *aiguard.Config) { c.CallTimeout, c.MaxConcurrent = time.Second, 2 })
	require.Equal(t, 2*time.Minute, g.Config().TotalTimeout)
	require.EqualValues(t, 1, g.Config().MaxBackground)
	update(t, g, func(c *aiguard.Config) { c.Retry.BaseDelay = time.Minute })
	require.Equal(t, time.Minute, g.Config().Retry.MaxDelay)
	update(t, g, func(c *aiguard.Config) { c.Retry.BaseDelay = time.Second })
	require.Equal(t, aiguard.DefaultMaxDelay, g.Config().Retry.MaxDelay)
	update(t, g, func(c *aiguard.Config) { c.Retry.MaxDelay = time.Millisecond * 1500 })
	require.Equal(t, time.Second, g.Config().Retry.BaseDelay)
	update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = aiguard.Off })
	require.EqualValues(t, aiguard.Off, g.Config().MinConcurrent)
	require.EqualValues(t, aiguard.Off, g.Config().MaxBackground)
	update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 4 })
	require.EqualValues(t, aiguard.DefaultMinConcurrent, g.Config().MinConcurrent)
	stale.MaxConcurrent = 3 // a Config from before the other updates
	require.NoError(t, g.Update(stale))
	require.EqualValues(t, 2, g.Config().MaxBackground)

	cfg := g.Config() // what is set is kept, and may be a mistake
	cfg.TotalTimeout, cfg.MaxBackground = time.Minute, 3
	require.NoError(t, g.Update(cfg))
	cfg = g.Config()
	cfg.CallTimeout = 5 * time.Minute
	require.ErrorContains(t, g.Update(cfg), "Config.TotalTimeout is 1m0s; want at least CallTimeout (5m0s)")
	cfg = g.Config()
	cfg.MaxConcurrent = 2
	require.ErrorContains(t, g.Update(cfg), "Config.MaxBackground is 3; want at most MaxConcurrent (2)")
}

func TestUpdateAfterCloseIsRefused(t *testing.T) {
	for name, end := range map[string]func(*aiguard.Guard) error{
		"close": (*aiguard.Guard).Close, "shutdown": func(g *aiguard.Guard) error { return g.Shutdown(context.Background()) },
	} {
		g := newGuard(t, aiguard.Config{})
		require.NoError(t, end(g), name)
		require.ErrorIs(t, g.Update(aiguard.Config{}), aiguard.ErrClosed, name)
		require.EqualValues(t, 1, g.Stats().ConfigVersion, name)
	}
}

// Update may be called from every callback.
func TestEveryCallbackMayUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g *aiguard.Guard
		updates := 0
		again := func() {
			if g != nil && updates < 100 {
				updates++
				update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = int64(1 + updates%5) })
			}
		}
		cfg := aiguard.Config{
			OnEvent: func(context.Context, aiguard.Event) { again() },
			CountTokens: func(_, text string) (int, error) {
				again()
				return len(text), nil
			},
			MaxPromptTokens: 100,
			Middleware: []aiguard.Middleware{func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
				again()
				return next(ctx)
			}},
			Budget: budgetFunc(again),
		}
		g = newGuard(t, cfg)
		require.NoError(t, do(t.Context(), g, func(context.Context) error { again(); return nil }))
		require.Positive(t, updates)
		require.EqualValues(t, updates+1, g.Stats().ConfigVersion)
	})
}

type budgetFunc func()

func (f budgetFunc) Reserve(context.Context, aiguard.Call, aiguard.Usage) (func(aiguard.Usage), error) {
	f()
	return func(aiguard.Usage) { f() }, nil
}

// In any order of calls, cancellations and updates, each call ends. The weight in flight is never above the largest
// capacity so far. After the last update and the end of the calls in flight, it is never above the last capacity.
func TestUpdatesInAnyOrderLoseNobody(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			g := newGuard(t, aiguard.Config{MaxQueue: aiguard.Off, TotalTimeout: 10 * time.Minute})
			guards := []*aiguard.Guard{g, named(g), g.With(aiguard.Call{Op: "other", Priority: aiguard.Background}), g.With(aiguard.Call{Model: "m", Tenant: "t"})}
			var calls sync.WaitGroup
			var ended, flight, most atomic.Int64
			most.Store(aiguard.DefaultMaxConcurrent)
			const many = 150
			for range many {
				weight, held := 1+random.Int64N(3), time.Duration(random.IntN(3000))*time.Millisecond
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(5) == 0 {
					time.AfterFunc(time.Duration(random.IntN(4000))*time.Millisecond, cancel)
				}
				guard := guards[random.IntN(len(guards))].With(aiguard.Call{Weight: weight})
				calls.Go(func() {
					defer cancel()
					defer ended.Add(1)
					err := do(ctx, guard, func(ctx context.Context) error {
						assert.LessOrEqual(t, flight.Add(weight), most.Load(), "seed %d", seed)
						defer flight.Add(-weight)
						return sleep(ctx, held)
					})
					if err != nil && ctx.Err() == nil {
						assert.ErrorIs(t, err, aiguard.ErrOverloaded, "seed %d", seed)
					}
				})
				if random.IntN(4) == 0 {
					time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond)
				}
				if random.IntN(3) == 0 {
					capacity := 1 + random.Int64N(8)
					most.Store(max(most.Load(), capacity))
					update(t, g, func(c *aiguard.Config) {
						c.MaxConcurrent, c.QueueTimeout = capacity, time.Duration(1+random.IntN(60))*time.Second
						c.RequestsPerMinute = []int64{aiguard.Off, 600, 6000}[random.IntN(3)]
					})
				}
			}
			update(t, g, func(c *aiguard.Config) { c.MaxConcurrent = 3 })
			time.Sleep(3 * time.Second) // those in flight are over
			most.Store(3)
			calls.Wait()
			require.EqualValues(t, many, ended.Load())
			st := g.Stats()
			require.Zero(t, st.InFlight)
			require.Zero(t, st.Waiting)
			require.Zero(t, st.Background.InFlight+st.Normal.InFlight)
		})
	}
}

// For the race detector: calls of every kind while the configuration changes all the time.
func TestUpdatesUnderLoadDoNotRace(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	srv.SetDefault(aiguardtest.Text("hello"))
	c := newClient(t, srv, aiguard.Config{MaxQueue: aiguard.Off, MaxConcurrent: 2})
	g := c.Guard()
	rec := &counter{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load, updates sync.WaitGroup
	for n := range 8 {
		load.Go(func() {
			guard, ctx := g.With(aiguard.Call{Op: "work", Weight: 1 + int64(n)%2}), as(t.Context(), "t")
			for range 100 {
				assert.NoError(t, do(ctx, guard, func(context.Context) error { return nil }))
				assert.NoError(t, do(ctx, g, func(context.Context) error { return nil }))
				if n < 3 {
					_, err := chat(ctx, c)
					assert.NoError(t, err)
				}
				_, _, _ = g.Stats(), g.Routes(), g.Config()
			}
		})
	}
	for n := range 2 {
		updates.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				cfg := g.Config()
				cfg.MaxConcurrent, cfg.QueueTimeout = int64(2+(i+n)%4), time.Duration(60+i%30)*time.Second
				cfg.MaxPromptChars, cfg.MemoryLimit = 1000+i%10, []int64{aiguard.Off, 1 << 50}[i%2]
				cfg.MaxEventBytes, cfg.CallTimeout = int64(1+i%2)<<20, time.Duration(30+i%10)*time.Second
				cfg.Models = map[string]aiguard.Call{"m": {Timeout: time.Duration(1+i) * time.Second}}
				cfg.OnEvent, cfg.Retry.Budget = []func(context.Context, aiguard.Event){nil, rec.OnEvent}[i%2], float64(i%3)
				assert.NoError(t, g.Update(cfg))
			}
		})
	}
	load.Wait()
	cancel()
	updates.Wait()
	require.Greater(t, g.Stats().ConfigVersion, int64(2))
	require.Equal(t, g.Stats().Calls, g.Stats().Succeeded)
	require.Equal(t, rec.admitted.Load(), rec.done.Load(), "a call has one OnEvent from its beginning to its end")
}

type counter struct{ admitted, done atomic.Int64 }

func (c *counter) OnEvent(_ context.Context, e aiguard.Event) {
	switch e.Type {
	case aiguard.EventAdmitted:
		c.admitted.Add(1)
	case aiguard.EventDone:
		c.done.Add(1)
	}
}
