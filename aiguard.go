// Package aiguard makes LLM calls bounded: no call hangs, piles up, is retried into a storm, sends an
// oversized prompt, eats the machine's memory, looks complete when it was cut short, or shows a
// user a provider's raw error.
//
// Wrap the OpenAI client and go on as before:
//
//	client, err := aiguard.NewClient(openai.DefaultConfig(key), aiguard.Config{})
//	resp, err := client.CreateChatCompletion(ctx, req)
//	if err != nil {
//		http.Error(w, aiguard.UserMessage(err), aiguard.HTTPStatus(err))
//	}
//
// Most programs need NewClient alone. Guard.Transport gives the same bounds to any SDK that speaks HTTP, Do to any
// function, RunTask to a background task of many calls.
//
// # Deadlines
//
// One API call may take CallTimeout (30 s), a stream StreamIdleTimeout between two events (30 s) and
// StreamTimeout in all (10 min), the wait for a slot QueueTimeout (30 s), and all attempts with their waits
// TotalTimeout (2 min). The Error says which bound ran out and where the time went. The caller's own context is
// honoured throughout, and its error returned unchanged.
//
// # Capacity
//
// MaxConcurrent calls (5) are in flight and MaxQueue (100) wait; the rest are refused at once with a RetryAfter, and so is
// a call that is not expected to be served before its deadline. Waiting calls are served by priority, then fair share between
// tenants, then arrival; under lasting overload the newest call of a tenant goes first. A slot is held while the provider
// works: until a JSON answer is read or a stream has ended or is closed, not while backing off.
//
// What is known of a provider is kept for each route: a host and model. A 429 pauses its route; an outage takes it down
// until a probe is answered; rate limit headers pace it; and its limit adapts between MinConcurrent (1) and MaxConcurrent
// by additive increase and multiplicative decrease (Chiu and Jain, 1989; RFC 5681). Calls that wait for a route do not
// hold up those of another. Guard.Routes tells.
//
// # Errors
//
// Every failure of the Client is an *Error with a Kind: errors.Is(err, aiguard.ErrRateLimited). The cause stays reachable:
// errors.As finds go-openai's *openai.APIError, with the provider's reason. Other SDKs return their own error types. KindOf
// and Explain understand those too, and UserMessage and HTTPStatus turn any error into what a user and a client may see.
package aiguard

import (
	"context"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is a snapshot of a Guard: gauges now, then counters since New. Calls that their callers left are in Calls,
// and neither in Succeeded nor Failed nor Refused.
type Stats struct {
	InFlight, Waiting, MaxConcurrent int64     // weight in flight, calls waiting, capacity (Off: none)
	Limit                            int64     // weight that may be in flight at present: MaxConcurrent, or less if the routes' limits add up to less
	HeapBytes, MemoryLimit           int64     // live heap; 0 where there is no limit
	BufferedBytes                    int64     // answers held until their callers have read or closed them; a quarter of MemoryLimit at most
	PausedUntil                      time.Time // the latest end of the pauses that providers have asked for; zero: none
	OverMemory, Draining             bool      // new calls are refused: by the memory limit, after Shutdown or Close

	Calls, Succeeded, Failed, Refused int64
	Retries, Timeouts                 int64
	WaitCount                         int64         // calls that had to wait
	WaitTime                          time.Duration // how long, in all

	Background, Normal, Critical PriorityStats
	Tenants                      []TenantStats // the busiest 1,000, the busiest first; nil if no call has a Tenant
}

// Guard bounds calls. It owns the limits, which everything made from it shares; it is safe for concurrent
// use. Make it with New, once per provider account, and Close or Shutdown it at the end.
type Guard struct {
	*core
	own  Call     // those of With
	call settings // of a Do: own, over what the model has
}

// core is what all Guards that With derives share.
type core struct {
	clock
	cfg      Config
	ownTotal bool // TotalTimeout is not the default
	models   models
	limiter  *limiter
	memory   *memory
	pool     *pool
	ids      atomic.Uint64 // the last CallID; its random start keeps those of several guards apart
	repeats  repeats
	recent   recent
	storm    storm

	mu      sync.Mutex  // guards the ring and the limiter: a call enters and leaves both at once
	active  call        // head of the ring of calls and tasks under way
	closing atomic.Bool // no new ones; set with mu held
	killed  bool        // those under way are cancelled
	idle    chan struct{}

	calls, succeeded, failed, refused, retries, timeouts atomic.Int64
}

// New makes a Guard. The zero Config is valid; a field out of range is an error that names the field, its value and
// what is allowed.
func New(cfg Config) (*Guard, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	ownTotal := cfg.TotalTimeout != 0
	cfg.setDefaults()
	cfg.tellAliases()
	cfg.Middleware = slices.Clone(cfg.Middleware)
	cfg.Models = maps.Clone(cfg.Models)
	clock := newClock()
	c := &core{clock: clock, cfg: cfg, ownTotal: ownTotal, models: newModels(cfg.Models),
		memory: newMemory(cfg.MemoryLimit, cfg.MaxEventBytes, clock), pool: newPool(&cfg), idle: make(chan struct{})}
	c.limiter = newLimiter(&cfg, clock, &c.mu)
	c.repeats.seed = maphash.MakeSeed()
	c.ids.Store(rand.Uint64())
	c.active.next, c.active.prev = &c.active, &c.active
	return &Guard{core: c, call: c.settle(Call{})}, nil
}

// With returns a Guard that shares every limit with g and applies c's non-zero fields to its calls. It panics if a field
// of c is out of range.
func (g *Guard) With(c Call) *Guard {
	g.must("With")
	c.mustBeValid("With")
	own := g.own.over(c)
	return &Guard{core: g.core, own: own, call: g.settle(own)}
}

// must refuses a Guard that was not made by New, with words instead of a nil dereference.
func (g *Guard) must(method string) {
	if g == nil || g.core == nil {
		panic("aiguard: " + method + ": nil Guard; make it with aiguard.New")
	}
}

// Do runs fn as one bounded call. It waits for a slot, gives fn a context that ends at the call's timeout, and repeats fn
// after a failure that may pass (see KindOf for the errors it understands). It returns fn's value and error; a failure with
// a Kind comes as an *Error. A result that fn returns after its deadline is still a result.
//
// Do waits for fn: if fn ignores its ctx, it holds its slot until it returns. Do repeats fn as a whole. If fn has passed a
// part of an answer on, a second run would send it again: return Final(err) then. A stream that fn returns is dead: it
// ends with fn's context.
//
// Guarded calls of the same Guard inside fn, made with its ctx, take no second slot and make one attempt each: return their
// errors, so that Do can retry. A call that meets a paused or slow route fails at once; Do waits for the route without its
// slot, which costs an attempt. A context that does not end with fn's, such as one of context.WithoutCancel, is not inside.
//
// A Do has a route of its own, named by its Op and Model, which its failures may pause or take down. A Do without a name,
// given by Guard.With or WithCall, has none.
//
// Do panics if ctx, g or fn is nil, and passes on fn's panic.
func Do[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error)) (T, error) {
	return do(ctx, g, fn, false)
}

func mustContext(method string, ctx context.Context) {
	if ctx == nil {
		panic("aiguard: " + method + ": nil context")
	}
}

// Stats returns a snapshot.
func (g *Guard) Stats() Stats {
	g.must("Stats")
	st := g.limiter.stats()
	st.MemoryLimit, st.BufferedBytes = g.memory.limit, g.memory.buffered()
	st.Calls, st.Succeeded, st.Failed, st.Refused = g.calls.Load(), g.succeeded.Load(), g.failed.Load(), g.refused.Load()
	st.Retries, st.Timeouts = g.retries.Load(), g.timeouts.Load()
	st.HeapBytes = g.memory.sample(g.now(), memorySample)
	st.OverMemory = g.memory.refuses(st.HeapBytes)
	st.Draining = g.closing.Load()
	return st
}

// Config returns the settings in force: those given to New, with the defaults in the fields that were zero.
func (g *Guard) Config() Config {
	g.must("Config")
	cfg := g.cfg
	cfg.MemoryLimit = g.memory.limit
	if cfg.MemoryLimit == 0 {
		cfg.MemoryLimit = Off
	}
	cfg.Middleware, cfg.Models = slices.Clone(cfg.Middleware), maps.Clone(cfg.Models)
	return cfg
}

// Shutdown refuses new calls and tasks with ErrClosed and waits for those under way, queued ones included. When ctx
// ends first it cancels the rest, as Close does, and returns ctx's error. It closes the connections of the guard's own pool,
// and may be called more than once and together with Close.
func (g *Guard) Shutdown(ctx context.Context) error {
	g.must("Shutdown")
	mustContext("Shutdown", ctx)
	g.refuseNew()
	select {
	case <-g.idle:
		g.pool.close()
		return nil
	case <-ctx.Done():
		g.kill()
		return ctx.Err()
	}
}

// Close refuses new calls and tasks with ErrClosed, cancels those under way, which end with ErrClosed too, and closes
// the connections of the guard's own pool. It does not wait for them. It always returns nil.
func (g *Guard) Close() error {
	g.must("Close")
	g.refuseNew()
	g.kill()
	return nil
}
