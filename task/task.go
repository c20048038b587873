// Package task runs background operations. A web handler starts an operation and responds at once with its ID.
// Clients use the ID to see whether the operation is Pending, Running, Succeeded, Failed or Cancelled. A failed
// operation has an error code and a message for the user.
//
//	runner, err := task.NewRunner(client.Guard(), store, task.Config{})
//	op, err := runner.Start(r.Context(), "questions", func(ctx context.Context) (any, error) {
//		return generate(ctx, client, topic) // guarded calls
//	})
//	w.Header().Set("Location", "/operations/"+op.ID)
//
// Each operation runs under the guard's TaskTimeout. At most MaxRunning operations run at once, and MaxPending
// operations wait. Further operations are rejected. A status becomes visible only after the Store has it, and a final
// status never changes. If a process crashes, another process marks its operations as interrupted.
//
// Most programs need NewRunner, Start and Handler. Use Register and Submit for operations that another process may
// take over. Module riverguard has another Engine for them, which is a queue for several processes.
package task

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/operation"
)

// The defaults of Config.
const (
	DefaultGrace = 5 * time.Second
	DefaultLease = 30 * time.Second
)

const (
	storeTimeout     = 5 * time.Second        // for one call of the Store
	progressInterval = 500 * time.Millisecond // between two writes of an operation's progress
	pollInterval     = time.Second            // for operations of another process
)

// Config configures a Runner. The zero value is valid.
type Config struct {
	MaxRunning int           // operations that run at once. Default: the guard's MaxConcurrent; aiguard.Off: no limit
	MaxPending int           // operations that wait. Default: the guard's MaxQueue; aiguard.Off: no limit
	Grace      time.Duration // wait for a function to return after its context ended; then its operation ends as stuck. Default 5s
	Lease      time.Duration // time after a crash before other processes mark or take over its operations. Default 30s
	Logger     *slog.Logger  // logs failures, never an input or a result. Default: the guard's
}

// Runner runs operations. It is safe for concurrent use. Create it with NewRunner and call Shutdown before you close
// its guard and its store. A goroutine renews the Runner's lease three times per Lease until Shutdown.
type Runner struct {
	guard     *aiguard.Guard
	store     Store
	cfg       Config
	scheduler *scheduler
	lease     *lease

	ctx  context.Context // for the store's calls and the lease
	stop context.CancelFunc
	beat sync.WaitGroup // the lease's goroutine

	mu       sync.Mutex
	handlers map[string]Handle
}

// Stats is a snapshot of a Runner: gauges first, then counters. When no operation is pending or running, Started is
// the sum of Succeeded, Failed, Cancelled, Released and Lost.
type Stats struct {
	Running, Pending int // functions that run, and operations that wait
	Stuck            int // functions that still run although their operation is over; part of Running

	Started                      int64 // includes operations taken over
	Succeeded, Failed, Cancelled int64
	Refused                      int64
	Released                     int64 // by Shutdown, for another process to take over
	Lost                         int64 // finished, but the Store failed until Shutdown gave up; other processes mark them
	Interrupted                  int64 // operations of crashed processes that this Runner marked
	StoreErrors                  int64
}

// NewRunner returns a Runner that keeps its operations in store and runs them under g's TaskTimeout. The zero Config
// is valid. NewRunner returns an error that names each invalid field of cfg. Defaults that come from g's settings are
// read once, so a later Guard.Update does not change them.
func NewRunner(g *aiguard.Guard, store Store, cfg Config) (*Runner, error) {
	if g == nil || errtree.IsNil(store) {
		return nil, errors.New("task: NewRunner: want a guard and a store, not nil")
	}
	var mistakes []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			mistakes = append(mistakes, fmt.Errorf("task: Config.%s is %v; want %s", field, value, want))
		}
	}
	check(cfg.MaxRunning >= aiguard.Off, "MaxRunning", cfg.MaxRunning, "a positive number, 0 for the guard's, or aiguard.Off")
	check(cfg.MaxPending >= aiguard.Off, "MaxPending", cfg.MaxPending, "a positive number, 0 for the guard's, or aiguard.Off")
	check(cfg.Grace >= 0, "Grace", cfg.Grace, "a positive duration, or 0 for the default")
	check(cfg.Lease == 0 || cfg.Lease >= 3*time.Millisecond, "Lease", cfg.Lease, "at least 3ms, or 0 for the default")
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	limits := g.Config()
	cfg.MaxRunning = cmp.Or(cfg.MaxRunning, int(limits.MaxConcurrent))
	cfg.MaxPending = cmp.Or(cfg.MaxPending, limits.MaxQueue)
	cfg.Grace = cmp.Or(cfg.Grace, DefaultGrace)
	cfg.Lease = cmp.Or(cfg.Lease, DefaultLease)
	cfg.Logger = cmp.Or(cfg.Logger, limits.Logger, slog.New(slog.DiscardHandler))
	r := &Runner{guard: g, store: store, cfg: cfg, scheduler: newScheduler(cfg.MaxRunning, cfg.MaxPending),
		lease: &lease{store: store, owner: rand.Text(), length: cfg.Lease}, handlers: make(map[string]Handle)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.beat.Go(r.upkeep)
	return r, nil
}

// Start starts an operation and returns it at once as Pending. fn gets a context with the values of ctx, but without
// its deadline and cancellation. The context ends with the guard's TaskTimeout, Cancel or Shutdown. The result of fn
// is stored as JSON of at most 1 MiB. An error of fn becomes the operation's error code (aiguard.KindOf, or
// KindInternal) and message (aiguard.UserMessage).
//
// Start returns an *aiguard.Error of kind aiguard.ErrOverloaded, with a RetryAfter, if MaxPending operations wait.
// After Shutdown the kind is aiguard.ErrClosed. Start panics if fn is nil.
func (r *Runner) Start(ctx context.Context, name string, fn func(context.Context) (any, error)) (Operation, error) {
	if fn == nil {
		panic("task: Start: nil fn")
	}
	return r.start(ctx, Operation{Name: name}, fn)
}

// Handle sets the function that runs the operations with this name. Use Register, which decodes their input. Handle
// panics if fn is nil or the name is already registered.
func (r *Runner) Handle(name string, fn Handle) {
	if fn == nil {
		panic("task: Handle: nil fn")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.handlers[name]; ok {
		panic(fmt.Sprintf("task: Register: %q is already registered", name))
	}
	r.handlers[name] = fn
}

// Submit starts an operation like Start. The function registered for name runs it with input. The input is stored as
// JSON of at most 1 MiB; a larger input gives an *aiguard.Error of kind aiguard.ErrPromptTooLarge. If this process
// crashes or shuts down while the operation is Pending, another process that has registered the name takes it over.
func (r *Runner) Submit(ctx context.Context, name string, input any) (Operation, error) {
	handle := r.handler(name)
	if handle == nil {
		return Operation{}, fmt.Errorf("task: Submit: no handler is registered for %q", name)
	}
	in, err := operation.EncodeInput(name, input)
	if err != nil {
		return Operation{}, err
	}
	return r.start(ctx, Operation{Name: name, Input: in}, handle.with(in))
}

// handler returns the function registered for name, or nil.
func (r *Runner) handler(name string) Handle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handlers[name]
}

// names returns the names that have a function.
func (r *Runner) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.handlers))
}

func (h Handle) with(input json.RawMessage) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) { return h(ctx, input) }
}

func (r *Runner) start(ctx context.Context, op Operation, fn func(context.Context) (any, error)) (Operation, error) {
	if err := operation.CheckName(op.Name); err != nil {
		return Operation{}, err
	}
	if err := ctx.Err(); err != nil {
		return Operation{}, err
	}
	op.ID, op.Status, op.Owner, op.CreatedAt, op.Revision = rand.Text(), Pending, r.lease.owner, now(), 1
	x := newExecution(callctx.Detach(ctx), r, op, fn)
	if err := r.scheduler.enter(x); err != nil {
		return Operation{}, err
	}
	// The store's calls ignore the client's cancellation, so that no operation is left half created.
	err := r.persist(callctx.Detach(ctx), creationTries, "create", op, func(ctx context.Context) error {
		if err := r.lease.take(ctx); err != nil {
			return err
		}
		return r.store.Create(ctx, op)
	})
	if err != nil && !errtree.Is(err, ErrExists) { // ErrExists: an earlier attempt was stored although it returned an error
		r.scheduler.settle(x)
		r.scheduler.leave(x)
		return Operation{}, fmt.Errorf("task: the operation could not be stored: %w", err)
	}
	r.scheduler.enqueue(x)
	return op, nil
}

// creationTries is the number of attempts to store a new operation. It is small because the caller of Start waits.
const creationTries = 3

// Get returns the stored operation without its Input, or ErrNotFound.
func (r *Runner) Get(ctx context.Context, id string) (Operation, error) {
	if !operation.IsID(id) {
		return Operation{}, ErrNotFound
	}
	return r.store.Get(ctx, id)
}

// List returns the operations that q selects, newest first. It includes those of all processes that share the store.
func (r *Runner) List(ctx context.Context, q Query) ([]Operation, error) {
	return r.store.List(ctx, q)
}

// Wait waits until the operation is over and returns it. It returns ctx's error if ctx ends first.
func (r *Runner) Wait(ctx context.Context, id string) (Operation, error) {
	var op Operation
	var err error
	for revision := int64(0); err == nil && !op.Status.Final(); revision = op.Revision {
		op, err = r.Next(ctx, id, revision)
	}
	return op, err
}

// Next waits until the operation has a later revision or is final, and returns it. It polls the store every second for
// operations of other processes.
func (r *Runner) Next(ctx context.Context, id string, revision int64) (Operation, error) {
	for {
		var changed <-chan struct{} // nil: another process runs it
		if x := r.scheduler.find(id); x != nil {
			changed = x.changes()
		}
		op, err := r.Get(ctx, id)
		if err != nil || op.Revision > revision || op.Status.Final() {
			return op, err
		}
		poll, stop := context.WithTimeout(ctx, pollInterval)
		select {
		case <-changed:
		case <-poll.Done():
		}
		stop()
		if ctx.Err() != nil {
			return Operation{}, ctx.Err()
		}
	}
}

// Cancel cancels the operation and returns its new state. A Pending operation becomes Cancelled. For a Running
// operation, Cancel ends the context of its function. The operation is over when the function returns, or after
// Grace. If another process runs the operation, that process sees the request at its next lease renewal. A finished
// operation does not change. An operation whose function still succeeds becomes Succeeded.
func (r *Runner) Cancel(ctx context.Context, id string) (Operation, error) {
	if x := r.scheduler.find(id); x != nil {
		return x.cancel(ctx)
	}
	op, err := r.Get(ctx, id)
	if err != nil {
		return Operation{}, err
	}
	return change(ctx, r.store, op, requestCancel)
}

func requestCancel(op *Operation) bool {
	if op.Status == Pending {
		cancelled().end(op)
		return true
	}
	asked := op.CancelRequested
	op.CancelRequested = true
	return !asked
}

// Stats returns a snapshot.
func (r *Runner) Stats() Stats { return r.scheduler.stats() }

// Shutdown rejects new operations with aiguard.ErrClosed and waits for running and pending operations. If ctx ends
// first, Shutdown releases Pending operations of Submit, so that another process can take them over. It then ends the
// contexts of all other operations, and after Grace it marks the unfinished ones as interrupted. In this case it
// returns ctx's error, and functions that ignore their context may still run. Shutdown may be called more than once.
func (r *Runner) Shutdown(ctx context.Context) error {
	r.scheduler.close()
	defer func() {
		r.stop()
		r.beat.Wait()
	}()
	select {
	case <-r.scheduler.idle:
		return nil
	case <-ctx.Done():
	}
	r.scheduler.interrupt()
	patience := time.NewTimer(r.cfg.Grace + storeTimeout)
	defer patience.Stop()
	select {
	case <-r.scheduler.idle:
	case <-patience.C:
		r.stop() // the store still rejects the final states
		<-r.scheduler.idle
	}
	return ctx.Err()
}
