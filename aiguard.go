// Package aiguard puts limits on LLM calls. A guarded call does not hang, pile up, start a retry storm or send an
// oversized prompt. It does not exhaust memory, pass off a truncated answer as complete, or show a provider's raw
// error to a user.
//
// Wrap the OpenAI client and use it as before:
//
//	client, err := aiguard.NewClient(openai.DefaultConfig(key), aiguard.Config{})
//	resp, err := client.CreateChatCompletion(ctx, req)
//	if err != nil {
//		http.Error(w, aiguard.UserMessage(err), aiguard.HTTPStatus(err))
//	}
//
// Most programs need only NewClient. Guard.Transport applies the same limits to any SDK that uses HTTP, Do applies
// them to any function, and Guard.RunTask to a background task that makes many calls.
//
// # Deadlines
//
// Each API call has a timeout of CallTimeout (30 s). A stream may pause for StreamIdleTimeout (30 s) between two
// events and run for StreamTimeout (10 min) in total. A call waits at most QueueTimeout (30 s) for a slot.
// TotalTimeout (2 min) limits all attempts together with their waits. The Error says which limit was reached and
// where the time went. The caller's context is always honored, and its error is returned unchanged.
//
// # Capacity
//
// At most MaxConcurrent calls (5) are in flight and MaxQueue calls (100) wait. Further calls are rejected at once with
// a RetryAfter. So is a call that is not expected to be served before its deadline. Waiting calls are served by
// priority, then by fair share between tenants, then in order of arrival. Under overload that lasts longer than a
// third of QueueTimeout, a tenant's newest call is served first. A call holds its slot while the provider works: until
// a JSON answer has been read, or until a stream has ended or is closed. It holds no slot while it backs off.
//
// The Guard tracks each route separately. A route is a host and a model. A 429 pauses its route. An outage takes the
// route down until a probe succeeds. Rate limit headers set its pace. The limit of a route adapts between
// MinConcurrent (1) and MaxConcurrent by additive increase and multiplicative decrease (Chiu and Jain, 1989; RFC
// 5681). Calls that wait for one route do not delay calls to another. Guard.Routes reports the state of each route.
// Guard.Update changes all limits without a restart.
//
// # Errors
//
// Every failure of the Client is an *Error with a Kind, so errors.Is(err, aiguard.ErrRateLimited) works. The cause
// stays reachable: errors.As finds go-openai's *openai.APIError with the provider's reason. Other SDKs return their
// own error types, which KindOf and Explain also understand. UserMessage and HTTPStatus turn any error into a text
// and a status that are safe to send to users and clients.
package aiguard

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/storm"
)

// Stats is a snapshot of a Guard. The first fields are gauges, the others are counters since New. A call that its
// caller canceled is counted in Calls, but not in Succeeded, Failed or Refused.
type Stats struct {
	InFlight, Waiting, MaxConcurrent int64 // weight in flight, calls waiting, capacity (Off: no limit)

	// Limit is the weight that may be in flight now: MaxConcurrent, or the sum of the routes' limits if that is less.
	Limit int64

	HeapBytes, MemoryLimit int64 // live heap; a MemoryLimit of 0 means no limit

	// BufferedBytes counts answers that are held until their callers have read or closed them. The maximum is a
	// quarter of MemoryLimit.
	BufferedBytes int64

	PausedUntil          time.Time // latest end of the pauses that providers asked for; zero: none
	OverMemory, Draining bool      // new calls are rejected: memory limit reached; Shutdown or Close was called
	ConfigVersion        int64     // 1 after New; each Update adds 1

	Calls, Succeeded, Failed int64         // calls begun; calls that succeeded; calls that failed
	Refused                  int64         // calls rejected before their first attempt
	Retries, Timeouts        int64         // repeated attempts; calls and tasks that ended with ErrTimeout
	WaitCount                int64         // calls that had to wait
	WaitTime                 time.Duration // total time that calls waited

	Background, Normal, Critical PriorityStats
	Tenants                      []TenantStats // the 1,000 busiest tenants, busiest first; nil if no call has a Tenant
}

// Guard limits calls. Everything made from a Guard shares its limits. Make one per provider account with New, and
// call Shutdown or Close at the end. A Guard is safe for concurrent use.
type Guard struct {
	*core
	own    Call                     // the Call given to With
	cached atomic.Pointer[settings] // what usual returns: own on top of the settings of its model
}

// core is the state shared by a Guard and all Guards derived from it by With.
type core struct {
	clock
	current atomic.Pointer[live]
	limiter *limiter
	memory  *memory
	pool    *pool
	ids     atomic.Uint64 // the last CallID; its random start keeps those of several guards apart
	repeats repeats
	recent  recent
	storm   storm.Limit[stormKey]
	ring    ring
	reuse   sync.Pool // of *call, for Do
	judges  sync.Pool // of *judge

	calls, succeeded, failed, refused, retries, timeouts atomic.Int64
}

// New makes a Guard. The zero Config is valid. If a field is out of range, New returns an error that names the field,
// its value and the allowed values.
func New(cfg Config) (*Guard, error) {
	l, err := newLive(cfg)
	if err != nil {
		return nil, err
	}
	cfg.logAliases()
	clock := newClock()
	c := &core{clock: clock, memory: newMemory(l.cfg.MemoryLimit, l.cfg.MaxEventBytes, clock), pool: newPool(&l.cfg)}
	c.current.Store(l)
	c.limiter = newLimiter(&l.cfg, clock, &c.ring.mu)
	c.repeats.seed = maphash.MakeSeed()
	c.ids.Store(rand.Uint64())
	c.ring.init()
	return c.guard(Call{}), nil
}

// With returns a Guard that shares all limits with g and applies c's non-zero fields to its calls. It panics if a
// field of c is out of range.
func (g *Guard) With(c Call) *Guard {
	g.must("With")
	c.mustBeValid("With")
	return g.guard(g.own.over(c))
}

func (c *core) guard(own Call) *Guard {
	g := &Guard{core: c, own: own}
	g.cacheSettings()
	return g
}

// must panics with a clear message if the Guard was not made by New.
func (g *Guard) must(method string) {
	if g == nil || g.core == nil {
		panic("aiguard: " + method + ": nil Guard; make it with aiguard.New")
	}
}

// Do runs fn as one guarded call. It waits for a slot and calls fn with a context that ends at the call's timeout. It
// calls fn again after a failure that may be temporary; see KindOf for the errors it understands. Do returns fn's
// value and error. An error that has a Kind is returned as an *Error. A result that fn returns after its deadline
// still counts as a result.
//
// Do always waits for fn to return. If fn ignores its context, it holds its slot until it returns. A retry runs the
// whole of fn again. If fn has already passed on part of an answer, return Final(err) to prevent a retry. Do not
// return a stream from fn, because the stream ends with fn's context.
//
// Guarded calls that fn makes through the same Guard with its context share fn's slot and make one attempt each.
// Return their errors from fn, so that Do can retry. Such a call fails at once if its route is paused or rate
// limited. Do then waits for the route without holding its slot, which uses up one attempt. A context that does not
// end with fn's context, such as one from context.WithoutCancel, does not share the slot.
//
// A Do has its own route, named by its Op and Model. A failure of fn may pause that route or take it down. Set the
// names with Guard.With or WithCall. A Do without a name has no route.
//
// Do panics if ctx, g or fn is nil. A panic in fn propagates to the caller.
func Do[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error)) (T, error) {
	return do(ctx, g, fn, false)
}

func mustContext(method string, ctx context.Context) {
	if ctx == nil {
		panic("aiguard: " + method + ": nil context")
	}
}

// Stats returns a snapshot of the Guard's gauges and counters.
func (g *Guard) Stats() Stats {
	g.must("Stats")
	st := g.limiter.stats()
	st.MemoryLimit, st.BufferedBytes = max(g.memory.limit.Load(), 0), g.memory.buffered()
	st.Calls, st.Refused = st.Calls+g.calls.Load(), st.Refused+g.refused.Load()
	st.Succeeded, st.Failed = g.succeeded.Load(), g.failed.Load()
	st.Retries, st.Timeouts = g.retries.Load(), g.timeouts.Load()
	st.HeapBytes = g.memory.sample(g.now(), memorySample)
	st.OverMemory = g.memory.refuses(st.HeapBytes)
	st.Draining, st.ConfigVersion = g.ring.closing.Load(), g.current.Load().version
	return st
}

// Shutdown rejects new calls and tasks with ErrClosed and waits until all active calls, including queued ones, are
// done. If ctx ends first, Shutdown cancels the remaining calls, as Close does, and returns ctx's error. It closes
// the connections of the Guard's own pool. Shutdown may be called more than once and concurrently with Close. A callback
// of a call, or a function inside a Do or RunTask, must not wait for Shutdown: it would wait for itself until ctx ends.
func (g *Guard) Shutdown(ctx context.Context) error {
	g.must("Shutdown")
	mustContext("Shutdown", ctx)
	g.ring.close()
	select {
	case <-g.ring.idle:
		g.pool.close()
		return nil
	case <-ctx.Done():
		g.kill()
		return ctx.Err()
	}
}

// Close rejects new calls and tasks with ErrClosed and cancels the active ones, which also end with ErrClosed. It
// closes the connections of the Guard's own pool. Close does not wait for the canceled calls. It always returns nil.
func (g *Guard) Close() error {
	g.must("Close")
	g.ring.close()
	g.kill()
	return nil
}

// kill cancels the active calls and closes the pool.
func (c *core) kill() {
	c.limiter.close()
	c.ring.kill()
	c.pool.close()
}
