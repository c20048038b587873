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
// MaxConcurrent calls (5) are in flight, MaxQueue (100) wait in order, the rest are refused at once with a RetryAfter.
// A slot is held while the provider works: until a JSON answer is read or a stream has ended or is closed, not
// while backing off.
//
// Where nobody knows how much the provider bears, MinConcurrent makes the limit adapt between itself and MaxConcurrent, by
// additive increase and multiplicative decrease (Chiu and Jain, 1989; RFC 5681): answers raise it by one for each
// full round of them; a 429, a 408, 503, 504 or 529, a failed connection and a time-out of ours lower it by 30%, once a
// round. While nothing at all is answered one call is tried every half second, and the first answer brings the limit back.
// How long answers take does not count.
//
// # Errors
//
// Every failure is an *Error with a Kind: errors.Is(err, aiguard.ErrRateLimited), KindOf(err). UserMessage and
// HTTPStatus turn any error into what a user and a client may see.
package aiguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Off, in a field of Config or Retry, or in Call.Timeout, means: no such bound.
const Off = -1

// The defaults of Config and Retry.
const (
	DefaultCallTimeout       = 30 * time.Second
	DefaultStreamIdleTimeout = 30 * time.Second
	DefaultStreamTimeout     = 10 * time.Minute
	DefaultQueueTimeout      = 30 * time.Second
	DefaultTotalTimeout      = 2 * time.Minute
	DefaultTaskTimeout       = 2 * time.Minute

	DefaultMaxConcurrent    = 5
	DefaultMaxQueue         = 100
	DefaultMaxPromptChars   = 20_000
	DefaultMaxRequestBytes  = 32 << 20
	DefaultMaxResponseBytes = 32 << 20
	DefaultMaxEventBytes    = 16 << 20

	DefaultMaxAttempts = 3
	DefaultBaseDelay   = 500 * time.Millisecond
	DefaultMaxDelay    = 8 * time.Second
	DefaultBudget      = 0.1
)

// Config is what New needs to know: nothing. In each field zero means the default stated there, Off (-1) no such
// bound; any other negative value makes New fail.
type Config struct {
	CallTimeout       time.Duration // one API call, request to last byte; of a stream, to its first event. 30s
	StreamIdleTimeout time.Duration // silence between two events of a stream, while the caller waits for one. 30s
	StreamTimeout     time.Duration // a whole stream. 10m
	QueueTimeout      time.Duration // waiting for a slot. 30s
	TotalTimeout      time.Duration // queue, attempts and backoff together; of a stream, to its first event. 2m
	TaskTimeout       time.Duration // RunTask. 2m

	MaxConcurrent int64   // weight in flight. 5
	MinConcurrent int64   // the limit falls to this while the provider drops calls: see Capacity above. None: it stays at MaxConcurrent
	MaxQueue      int     // calls waiting. 100
	Limiter       Limiter // replaces the in-process limiter; then MaxConcurrent is only what Stats reports. None

	MaxPromptChars   int                                   // characters (runes) in all texts of a request. 20,000
	MaxPromptTokens  int                                   // tokens in them; needs CountTokens. None
	CountTokens      func(model, text string) (int, error) // for concurrent use; asked where the size does not tell; may add 8 to a text. None
	MaxOutputTokens  int                                   // a larger or absent limit in the request is set to it. None
	MaxRequestBytes  int64                                 // of a request's body. 32 MiB
	MaxResponseBytes int64                                 // of an answer, after decompression. 32 MiB
	MaxEventBytes    int64                                 // of one event of a stream. 16 MiB
	MemoryLimit      int64                                 // live heap in bytes above which new calls are refused; answers held for their callers may take a quarter of it. 90% of GOMEMLIMIT if that is set, else none

	Retry Retry // when a failed attempt is repeated

	// Middleware wraps each call, outside limiter and retry; the first is outermost. None
	Middleware []Middleware

	// OnEvent is called at the moments of a call's life, in the goroutine of the call and with no lock held:
	// it may call the Guard, and should not wait. None
	OnEvent func(context.Context, Event)

	// Logger gets timeouts, retries, refusals, pauses and abandoned streams; never a prompt, an answer or a key. Silent
	Logger *slog.Logger
}

// Retry says when a failed attempt is repeated. Delays are exponential with jitter between half and all of the
// delay ("equal jitter" in Marc Brooker's "Exponential Backoff And Jitter", AWS Architecture Blog, 2015); a
// provider's Retry-After is waited for in full, with up to a quarter on top.
type Retry struct {
	MaxAttempts int           // the first included. 3; 1 or Off: never retry
	BaseDelay   time.Duration // before the second attempt; doubled for each further one. 500ms
	MaxDelay    time.Duration // 8s
	Timeouts    bool          // also retry a call that hit CallTimeout: a silent provider is rarely worth a second wait. false
	Budget      float64       // retries as a fraction of calls, above a small floor, for the whole Guard. 0.1
}

// Call is one call's own settings. The zero Call is valid.
type Call struct {
	Op       string        // name in errors, logs and metrics. Client sets it: "chat.completions", …
	Model    string        // Client sets it from the request
	Weight   int64         // share of MaxConcurrent. 1
	Timeout  time.Duration // Config.CallTimeout, and for RunTask Config.TaskTimeout; Off: none
	Attempts int           // Retry.MaxAttempts; 1: never retry
}

// Middleware wraps a call: it must call next, once, with ctx or one derived from it, and return its error, or refuse
// the call with an error of its own. For a stream, next returns at the first event and the rest of the stream
// lives in the same ctx: do not cancel it on return. RunTask, which only gives time, has no middleware.
type Middleware func(ctx context.Context, call Call, next func(context.Context) error) error

// Event is one moment in a call's life. Durations that don't apply are zero.
type Event struct {
	Type    EventType
	Call    Call
	Attempt int // the attempt it belongs to, from 1

	Queued, Backoff, InFlight, Elapsed time.Duration // so far; for EventRetry and EventPaused, Backoff is the wait to come

	Usage Usage // EventDone
	Err   error // why: an *Error, or the caller's own

	// Of the call that EventMemorySpike names: the bodies of the last request, if its length was known, and of its answer,
	// and how much the heap has grown since the call was admitted.
	PromptBytes, AnswerBytes, HeapGrowth int64
}

// EventType names an Event. More may come: ignore those you don't know.
//
// EventMemorySpike has two forms. With Err, the heap is over MemoryLimit: calls are refused from now on. Without, the heap
// has grown across this call by a tenth of MemoryLimit (64 MiB if there is none). That is a hint where to look, given once a
// second at most: what other goroutines did meanwhile and what is garbage are in the growth. A call over HTTP is measured
// when its answer has been decoded, after EventDone, and only if prompt and answer have 1/64 of that many bytes; a Do only
// if it took 100 ms.
type EventType string

// The moments of a call.
const (
	EventQueued      EventType = "queued"       // no slot is free: waiting
	EventAdmitted    EventType = "admitted"     // has a slot; the attempt begins
	EventFirstEvent  EventType = "first_event"  // a stream is handed to its caller
	EventRetry       EventType = "retry"        // the attempt failed with Err; another follows after Backoff
	EventPaused      EventType = "paused"       // a 429 pauses the route for Backoff
	EventRefused     EventType = "refused"      // not admitted
	EventDone        EventType = "done"         // over; Err nil: answered
	EventAbandoned   EventType = "abandoned"    // a stream that nobody read or closed ended by StreamTimeout; EventDone follows
	EventTask        EventType = "task"         // RunTask is over
	EventMemorySpike EventType = "memory_spike" // the heap has grown over MemoryLimit, or much across a call
)

// Usage is the tokens a call took, where the answer said so. Input includes cached input, Output includes reasoning.
type Usage struct {
	Input, Output         int64
	CacheRead, CacheWrite int64 // of the input: read from the provider's cache, and written to it
	Reasoning             int64 // of the output
	Estimated             bool  // not what the answer said, but a guess
}

// Stats is a snapshot of a Guard: gauges now, then counters since New. Calls that their callers left are in Calls,
// and neither in Succeeded nor Failed nor Refused.
type Stats struct {
	InFlight, Waiting, MaxConcurrent int64     // weight in flight, calls waiting, capacity (Off: none)
	Limit                            int64     // weight let in at present: MaxConcurrent, or less where MinConcurrent is set
	HeapBytes, MemoryLimit           int64     // live heap; 0 where there is no limit
	BufferedBytes                    int64     // answers held until their callers have read or closed them; a quarter of MemoryLimit at most
	PausedUntil                      time.Time // the latest end of the pauses that providers have asked for; zero: none
	OverMemory, Draining             bool      // new calls are refused: by the memory limit, after Shutdown or Close

	Calls, Succeeded, Failed, Refused int64
	Retries, Timeouts                 int64
	WaitCount                         int64         // calls that had to wait for a slot
	WaitTime                          time.Duration // how long, in all
}

// Guard bounds calls. It owns the limits, which everything made from it shares; it is safe for concurrent
// use. Make it with New, once per provider account, and Close or Shutdown it at the end.
type Guard struct {
	*core
	call settings // those of With
}

// core is what all Guards that With derives share.
type core struct {
	clock
	cfg    Config
	slots  *slots
	memory *memory
	budget budget
	routes routes
	pool   *pool

	mu      sync.Mutex
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
	cfg.setDefaults()
	cfg.Middleware = slices.Clone(cfg.Middleware)
	clock := newClock()
	c := &core{clock: clock, cfg: cfg, slots: newSlots(&cfg, clock), memory: newMemory(cfg.MemoryLimit), pool: newPool(&cfg), idle: make(chan struct{})}
	c.budget.init(cfg.Retry.Budget)
	c.routes.capacity = cfg.MaxConcurrent
	c.active.next, c.active.prev = &c.active, &c.active
	return &Guard{core: c, call: settings{Call: Call{Weight: 1}}}, nil
}

// With returns a Guard that shares every limit with g and applies c's non-zero fields to its calls. It panics if
// Weight is negative, or Timeout or Attempts is below Off.
func (g *Guard) With(c Call) *Guard {
	g.must("With")
	switch {
	case c.Weight < 0:
		panic(fmt.Sprintf("aiguard: With: Call.Weight is %d; want 0 or more", c.Weight))
	case c.Timeout < Off:
		panic(fmt.Sprintf("aiguard: With: Call.Timeout is %v; want 0, more, or Off", c.Timeout))
	case c.Attempts < Off:
		panic(fmt.Sprintf("aiguard: With: Call.Attempts is %d; want 0, more, or Off", c.Attempts))
	}
	return &Guard{core: g.core, call: settings{Call: g.call.over(c)}}
}

// over returns c with the non-zero fields of top.
func (c Call) over(top Call) Call {
	if top.Op != "" {
		c.Op = top.Op
	}
	if top.Model != "" {
		c.Model = top.Model
	}
	if top.Weight != 0 {
		c.Weight = top.Weight
	}
	if top.Timeout != 0 {
		c.Timeout = top.Timeout
	}
	if top.Attempts != 0 {
		c.Attempts = top.Attempts
	}
	return c
}

// must refuses a Guard that was not made by New, with words instead of a nil dereference.
func (g *Guard) must(method string) {
	if g == nil || g.core == nil {
		panic("aiguard: " + method + ": nil Guard; make it with aiguard.New")
	}
}

// Do runs fn as one bounded call: it waits for a slot, gives fn a context that ends at the call's timeout, and
// repeats fn after a failure that passes (see KindOf for the errors it understands). It returns fn's value and
// error; a failure with a Kind comes as an *Error. A result that fn returns after its deadline is still a result.
//
// Do waits for fn: one that ignores its ctx holds its slot until it returns. Guarded calls inside fn, made with its
// ctx, take no second slot and make one attempt each: Do retries fn as a whole, so return their error. Do panics
// if ctx, g or fn is nil, and passes on fn's panic.
func Do[T any](ctx context.Context, g *Guard, fn func(context.Context) (T, error)) (T, error) {
	return do(ctx, g, fn, false)
}

// Fallback returns the value of the first alternative that succeeds. It goes on to the next after a failure that
// another model could cure: timeout, overloaded, rate limited, quota, unavailable, misconfigured, truncated, invalid
// response, prompt or response too large; not once ctx has ended, nor when the request was rejected or unauthorized.
// The error joins what each said, the last one first, so that KindOf and UserMessage speak of the latest that they know.
// It panics without alternatives.
func Fallback[T any](ctx context.Context, alternatives ...func(context.Context) (T, error)) (T, error) {
	mustContext("Fallback", ctx)
	if len(alternatives) == 0 {
		panic("aiguard: Fallback: no alternatives")
	}
	var zero T
	var failed []error
	for i, alternative := range alternatives {
		if alternative == nil {
			panic(fmt.Sprintf("aiguard: Fallback: alternative %d is nil", i))
		}
		v, err := alternative(ctx)
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil && KindOf(err) == "" {
			return zero, err // the caller's own, unchanged
		}
		failed = append([]error{err}, failed...)
		if ctx.Err() != nil || !curable(err) {
			break
		}
	}
	if len(failed) == 1 {
		return zero, failed[0]
	}
	return zero, errors.Join(failed...)
}

// curable reports whether another model, or another provider, could succeed where this one failed.
func curable(err error) bool {
	switch KindOf(err) {
	case ErrTimeout, ErrOverloaded, ErrRateLimited, ErrQuota, ErrUnavailable, ErrTruncated, ErrInvalidResponse,
		ErrPromptTooLarge, ErrResponseTooLarge, ErrMisconfigured:
		return true
	case "":
		return errors.Is(err, context.DeadlineExceeded) // the alternative's own: the caller is still here
	}
	return false
}

func mustContext(method string, ctx context.Context) {
	if ctx == nil {
		panic("aiguard: " + method + ": nil context")
	}
}

// Stats returns a snapshot.
func (g *Guard) Stats() Stats {
	g.must("Stats")
	s := g.slots
	st := Stats{
		InFlight: s.taken(), Waiting: s.waiting.Load(), MaxConcurrent: s.capacity, Limit: s.limit(),
		MemoryLimit: g.memory.limit, BufferedBytes: g.memory.room.bytes(), PausedUntil: g.routes.pausedUntil(),
		Calls: g.calls.Load(), Succeeded: g.succeeded.Load(), Failed: g.failed.Load(), Refused: g.refused.Load(),
		Retries: g.retries.Load(), Timeouts: g.timeouts.Load(),
		WaitCount: s.waitCount.Load(), WaitTime: time.Duration(s.waitTime.Load()),
	}
	st.HeapBytes = g.memory.sample(time.Now(), memorySample)
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
	cfg.Middleware = slices.Clone(cfg.Middleware)
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

func (c *core) refuseNew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing.Load() {
		return
	}
	c.closing.Store(true)
	if c.active.next == &c.active {
		close(c.idle)
	}
}

func (c *core) kill() {
	c.slots.close()
	for _, cancel := range c.cancels() {
		cancel()
	}
	c.pool.close()
}

// cancels marks the guard as killed and collects how to end what is under way: to be called with no lock held.
func (c *core) cancels() (cancels []context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	for call := c.active.next; call != &c.active; call = call.next {
		if call.cancel != nil {
			cancels = append(cancels, call.cancel)
		}
	}
	return cancels
}

func (c *Config) validate() error {
	var errs []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			errs = append(errs, fmt.Errorf("aiguard: Config.%s is %v; want %s", field, value, want))
		}
	}
	duration := func(field string, d time.Duration) {
		check(d >= Off, field, d, "a positive duration, 0 for the default, or Off")
	}
	number := func(field string, n int64) {
		check(n >= Off, field, n, "a positive number, 0 for the default, or Off")
	}
	duration("CallTimeout", c.CallTimeout)
	duration("StreamIdleTimeout", c.StreamIdleTimeout)
	duration("StreamTimeout", c.StreamTimeout)
	duration("QueueTimeout", c.QueueTimeout)
	duration("TotalTimeout", c.TotalTimeout)
	duration("TaskTimeout", c.TaskTimeout)
	number("MaxConcurrent", c.MaxConcurrent)
	number("MinConcurrent", c.MinConcurrent)
	if c.MinConcurrent > 0 {
		most := cmp.Or(c.MaxConcurrent, DefaultMaxConcurrent)
		check(c.MinConcurrent <= most, "MinConcurrent", c.MinConcurrent, fmt.Sprintf("at most MaxConcurrent (%d)", most))
		check(c.Limiter == nil, "MinConcurrent", c.MinConcurrent, "no Limiter beside it")
	}
	number("MaxQueue", int64(c.MaxQueue))
	number("MaxPromptChars", int64(c.MaxPromptChars))
	number("MaxPromptTokens", int64(c.MaxPromptTokens))
	check(c.MaxPromptTokens <= 0 || c.CountTokens != nil, "MaxPromptTokens", c.MaxPromptTokens, "CountTokens to be set with it")
	number("MaxOutputTokens", int64(c.MaxOutputTokens))
	number("MaxRequestBytes", c.MaxRequestBytes)
	number("MaxResponseBytes", c.MaxResponseBytes)
	number("MaxEventBytes", c.MaxEventBytes)
	number("MemoryLimit", c.MemoryLimit)
	number("Retry.MaxAttempts", int64(c.Retry.MaxAttempts))
	duration("Retry.BaseDelay", c.Retry.BaseDelay)
	duration("Retry.MaxDelay", c.Retry.MaxDelay)
	base, most := c.Retry.BaseDelay, c.Retry.MaxDelay
	check(base <= 0 || most <= 0 || base <= most, "Retry.BaseDelay", base, fmt.Sprintf("at most Retry.MaxDelay (%v)", most))
	check((c.Retry.Budget >= 0 || c.Retry.Budget == Off) && c.Retry.Budget <= maxBudget, "Retry.Budget", c.Retry.Budget,
		"a fraction of calls such as 0.1, 0 for the default, or Off")
	for i, m := range c.Middleware {
		check(m != nil, fmt.Sprintf("Middleware[%d]", i), "nil", "a function")
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	orDefault(&c.CallTimeout, DefaultCallTimeout)
	orDefault(&c.StreamIdleTimeout, DefaultStreamIdleTimeout)
	orDefault(&c.StreamTimeout, DefaultStreamTimeout)
	orDefault(&c.QueueTimeout, DefaultQueueTimeout)
	orDefault(&c.TotalTimeout, DefaultTotalTimeout)
	orDefault(&c.TaskTimeout, DefaultTaskTimeout)
	orDefault(&c.MaxConcurrent, DefaultMaxConcurrent)
	orDefault(&c.MaxQueue, DefaultMaxQueue)
	orDefault(&c.MaxPromptChars, DefaultMaxPromptChars)
	orDefault(&c.MaxRequestBytes, DefaultMaxRequestBytes)
	orDefault(&c.MaxResponseBytes, DefaultMaxResponseBytes)
	orDefault(&c.MaxEventBytes, DefaultMaxEventBytes)
	orDefault(&c.Retry.MaxAttempts, DefaultMaxAttempts)
	if c.Retry.BaseDelay == 0 && c.Retry.MaxDelay > 0 {
		c.Retry.BaseDelay = min(DefaultBaseDelay, c.Retry.MaxDelay)
	}
	orDefault(&c.Retry.BaseDelay, DefaultBaseDelay)
	orDefault(&c.Retry.MaxDelay, max(DefaultMaxDelay, c.Retry.BaseDelay))
	orDefault(&c.Retry.Budget, DefaultBudget)
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
