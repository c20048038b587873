// Package task runs background operations that somebody asks about later: a web handler starts one, answers with its id at
// once, and whoever has the id sees it Pending, Running, Succeeded, Failed or Cancelled, with an error code and a
// message fit for a user.
//
//	runner, err := task.NewRunner(client.Guard(), store, task.Config{})
//	op, err := runner.Start(r.Context(), "questions", func(ctx context.Context) (any, error) {
//		return generate(ctx, client, topic) // guarded calls
//	})
//	w.Header().Set("Location", "/operations/"+op.ID)
//
// Each operation runs under the guard's TaskTimeout, at most MaxRunning at once; MaxPending wait, more are refused. Its
// status is never a lie: a state is in the Store before anybody sees it, a final one never changes, and what a
// crashed process left behind is marked as interrupted by the next one that looks.
//
// Most programs need NewRunner, Start and Handler. Register and Submit are for operations that another process may
// take over.
package task

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unicode"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// The defaults of Config.
const (
	DefaultGrace = 5 * time.Second
	DefaultLease = 30 * time.Second
)

const (
	maxNameBytes   = 100
	maxNoteRunes   = 200
	maxResultBytes = 1 << 20
	maxInputBytes  = 1 << 20
	maxIDBytes     = 128

	storeTimeout     = 5 * time.Second        // one call of the Store
	progressInterval = 500 * time.Millisecond // between two writes of an operation's progress
	pollInterval     = time.Second            // of operations that another process runs
)

// Config is what NewRunner needs to know beside the guard and the store: nothing.
type Config struct {
	MaxRunning int           // operations at once. The guard's MaxConcurrent; aiguard.Off: no bound
	MaxPending int           // operations that wait. The guard's MaxQueue; aiguard.Off: no bound
	Grace      time.Duration // for a function to return after its context has ended, before its operation is marked without it. 5s
	Lease      time.Duration // how long after a crash other processes wait before they mark or take over what it left. 30s
	Logger     *slog.Logger  // failures, never an input or a result. The guard's
}

// Runner runs operations. It is safe for concurrent use; make it with NewRunner, and Shutdown it before its guard and its
// store. It has a goroutine that renews its lease, three times in each Lease, until Shutdown.
type Runner struct {
	guard *aiguard.Guard
	store Store
	cfg   Config
	owner string

	ctx  context.Context // of the store's calls, and of the lease
	stop context.CancelFunc
	beat sync.WaitGroup // the goroutine of the lease

	mu       sync.Mutex
	handlers map[string]handler
	active   map[string]*execution // not known to be final, by ID
	queue    []*execution
	places   int // taken: by what runs, waits, or is about to
	running  int
	leased   bool
	closing  bool
	idle     chan struct{} // closed when closing and nothing is active
	held     time.Duration // moving average of how long an operation runs
	stats    Stats
}

// handler runs an operation that was started by Submit.
type handler func(ctx context.Context, input json.RawMessage) (any, error)

// Stats is a snapshot of a Runner: gauges, then counters. Once nothing is pending or running, Started is the sum
// of Succeeded, Failed, Cancelled, Released and Lost.
type Stats struct {
	Running, Pending int // what has a place: functions that run, operations that wait
	Stuck            int // functions that run on although their operation is over; they are in Running

	Started                      int64 // or taken over
	Succeeded, Failed, Cancelled int64
	Refused                      int64
	Released                     int64 // by Shutdown, for another process to take over
	Lost                         int64 // over, but the Store did not take it until Shutdown gave up; its lease will tell
	Interrupted                  int64 // marked for a process that crashed
	StoreErrors                  int64
}

// NewRunner makes a Runner whose operations run under g's TaskTimeout and are kept in store. The zero Config is valid; a field out
// of range is an error that names it.
func NewRunner(g *aiguard.Guard, store Store, cfg Config) (*Runner, error) {
	if g == nil || store == nil {
		return nil, errors.New("task: NewRunner: want a guard and a store, not nil")
	}
	var mistakes []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			mistakes = append(mistakes, fmt.Errorf("task: Config.%s is %v; want %s", field, value, want))
		}
	}
	check(cfg.MaxRunning >= aiguard.Off, "MaxRunning", cfg.MaxRunning, "a positive number, 0 for the guard's, or Off")
	check(cfg.MaxPending >= aiguard.Off, "MaxPending", cfg.MaxPending, "a positive number, 0 for the guard's, or Off")
	check(cfg.Grace >= 0, "Grace", cfg.Grace, "a positive duration, or 0 for the default")
	check(cfg.Lease == 0 || cfg.Lease >= 3*time.Millisecond, "Lease", cfg.Lease, "a positive duration, or 0 for the default")
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	limits := g.Config()
	cfg.MaxRunning = cmp.Or(cfg.MaxRunning, int(limits.MaxConcurrent))
	cfg.MaxPending = cmp.Or(cfg.MaxPending, limits.MaxQueue)
	cfg.Grace = cmp.Or(cfg.Grace, DefaultGrace)
	cfg.Lease = cmp.Or(cfg.Lease, DefaultLease)
	cfg.Logger = cmp.Or(cfg.Logger, limits.Logger, slog.New(slog.DiscardHandler))
	r := &Runner{guard: g, store: store, cfg: cfg, owner: rand.Text(),
		handlers: make(map[string]handler), active: make(map[string]*execution), idle: make(chan struct{})}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.beat.Go(r.keepLease)
	return r, nil
}

// Start begins an operation and returns it, Pending, at once. fn gets a context with the values of ctx, but not its
// end: that of the guard's TaskTimeout, of Cancel, or of Shutdown. What it returns is kept as JSON, at most 1 MiB.
// An error becomes the operation's error code (its aiguard.KindOf, or KindInternal) and message (its aiguard.UserMessage).
//
// Start fails with an *aiguard.Error of kind aiguard.ErrOverloaded, and a RetryAfter, when MaxPending operations wait, and of
// kind aiguard.ErrClosed after Shutdown.
func (r *Runner) Start(ctx context.Context, name string, fn func(context.Context) (any, error)) (Operation, error) {
	if fn == nil {
		panic("task: Start: nil fn")
	}
	return r.start(ctx, Operation{Name: name}, fn)
}

// Register says how to run the operations called name that Submit starts: in this process, and in others, for which they are kept in
// the store with their input. It panics if there is such a handler already.
func Register[In, Out any](r *Runner, name string, fn func(context.Context, In) (Out, error)) {
	if fn == nil {
		panic("task: Register: nil fn")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.handlers[name]; ok {
		panic(fmt.Sprintf("task: Register: %q has a handler", name))
	}
	r.handlers[name] = func(ctx context.Context, input json.RawMessage) (any, error) {
		var in In
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, fmt.Errorf("task: the input of %q is no %T", name, in)
		}
		return fn(ctx, in)
	}
}

// Submit begins, like Start, an operation that the handler registered under its name runs with input, which
// is kept as JSON, at most 1 MiB: a larger one fails with an *aiguard.Error of kind aiguard.ErrPromptTooLarge. While it is Pending, a process that has registered the name too takes it over from one that crashed or
// was shut down.
func (r *Runner) Submit(ctx context.Context, name string, input any) (Operation, error) {
	handle := r.handler(name)
	if handle == nil {
		return Operation{}, fmt.Errorf("task: Submit: no handler is registered for %q", name)
	}
	in, err := json.Marshal(input)
	if err != nil {
		return Operation{}, fmt.Errorf("task: Submit: a %T cannot be kept as JSON", input)
	}
	if len(in) > maxInputBytes {
		return Operation{}, &aiguard.Error{Kind: aiguard.ErrPromptTooLarge, Op: name, Phase: "task", Size: int64(len(in)), Max: maxInputBytes}
	}
	return r.start(ctx, Operation{Name: name, Input: in}, handle.with(in))
}

// handler returns what runs the operations called name, or nil.
func (r *Runner) handler(name string) handler {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handlers[name]
}

func (h handler) with(input json.RawMessage) func(context.Context) (any, error) {
	return func(ctx context.Context) (any, error) { return h(ctx, input) }
}

func (r *Runner) start(ctx context.Context, op Operation, fn func(context.Context) (any, error)) (Operation, error) {
	if err := checkName(op.Name); err != nil {
		return Operation{}, err
	}
	if err := ctx.Err(); err != nil {
		return Operation{}, err
	}
	op.ID, op.Status, op.Owner, op.CreatedAt, op.Revision = rand.Text(), Pending, r.owner, now(), 1
	x := newExecution(callctx.Detach(ctx), r, op, fn)
	if err := r.enter(x); err != nil {
		return Operation{}, err
	}
	// The client that leaves now has no id to ask with; but what is half created must be found again.
	err := r.persist(callctx.Detach(ctx), creationTries, "create", op, func(ctx context.Context) error {
		if err := r.takeLease(ctx); err != nil {
			return err
		}
		return r.store.Create(ctx, op)
	})
	if err != nil && !errtree.Is(err, ErrExists) { // an earlier try was stored though it seemed to fail
		r.settle(x)
		r.leave(x)
		return Operation{}, fmt.Errorf("task: the operation could not be stored: %w", err)
	}
	r.enqueue(x)
	return op, nil
}

// creationTries is how often Start asks the Store: somebody waits for it.
const creationTries = 3

func checkName(name string) error {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Errorf("task: the name has %d bytes; want 1 to %d", len(name), maxNameBytes)
	}
	for _, c := range name {
		if !unicode.IsPrint(c) || c == unicode.ReplacementChar {
			return fmt.Errorf("task: the name %q is not of printable characters", name)
		}
	}
	return nil
}

// Get returns the operation as it is in the store, without its Input, or ErrNotFound.
func (r *Runner) Get(ctx context.Context, id string) (Operation, error) {
	if !isID(id) {
		return Operation{}, ErrNotFound
	}
	return r.store.Get(ctx, id)
}

// isID reports whether id may be one of an operation. Anybody can ask for one; a store need not look for what it would not
// even take, such as a NUL.
func isID(id string) bool {
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return id != "" && len(id) <= maxIDBytes
}

// List returns the operations that q asks for, of all processes that share the store, the newest first.
func (r *Runner) List(ctx context.Context, q Query) ([]Operation, error) {
	return r.store.List(ctx, q)
}

// Wait returns the operation when it is over, or ctx's error when that ends first.
func (r *Runner) Wait(ctx context.Context, id string) (Operation, error) {
	var op Operation
	var err error
	for revision := int64(0); err == nil && !op.Status.Final(); revision = op.Revision {
		op, err = r.next(ctx, id, revision)
	}
	return op, err
}

// next returns the operation when it has changed since the revision, or is final. It looks into the store once a
// second for what another process runs.
func (r *Runner) next(ctx context.Context, id string, revision int64) (Operation, error) {
	for {
		var changed <-chan struct{} // nil: another process has it
		if x := r.find(id); x != nil {
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

// Cancel cancels the operation and returns it as it then is: Cancelled if it was Pending; if it was Running, its function's
// context has ended, and it is over when the function returns, or after Grace. One that another process runs learns it with
// that one's lease. One that is over stays as it is, and so does one whose function succeeds all the same.
func (r *Runner) Cancel(ctx context.Context, id string) (Operation, error) {
	if x := r.find(id); x != nil {
		return x.cancel(ctx)
	}
	op, err := r.Get(ctx, id)
	if err != nil {
		return Operation{}, err
	}
	return r.change(ctx, op, requestCancel)
}

func requestCancel(op *Operation) bool {
	if op.Status == Pending {
		cancelled.end(op)
		return true
	}
	asked := op.CancelRequested
	op.CancelRequested = true
	return !asked
}

// Stats returns a snapshot.
func (r *Runner) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Running, s.Pending = r.running, r.places-r.running
	return s
}

// Shutdown refuses new operations with aiguard.ErrClosed and waits for those that run and wait. When ctx ends first, it
// releases what is Pending and was started by Submit, for another process; ends the contexts of what is Running; and after
// Grace marks what is left as interrupted. Then it returns ctx's error; functions that ignore their context may
// still run. It may be called more than once.
func (r *Runner) Shutdown(ctx context.Context) error {
	r.close()
	defer func() {
		r.stop()
		r.beat.Wait()
	}()
	select {
	case <-r.idle:
		return nil
	case <-ctx.Done():
	}
	r.interrupt()
	patience := time.NewTimer(r.cfg.Grace + storeTimeout)
	defer patience.Stop()
	select {
	case <-r.idle:
	case <-patience.C:
		r.stop() // the store does not take what there is to say
		<-r.idle
	}
	return ctx.Err()
}
