package riverguard

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	mathrand "math/rand/v2"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
)

// Config configures a Runner. The zero value is valid.
type Config struct {
	MaxRunning  int           // operations that run at once in this process. Default: the guard's MaxConcurrent; aiguard.Off: 10,000
	MaxPending  int           // operations of the queue that wait in all processes. Default: the guard's MaxQueue; aiguard.Off: no limit
	MaxAttempts int           // runs of an operation that fails or whose process ends. Snoozes do not count. Default 1
	Patience    time.Duration // time after its start in which a rate limited operation is repeated. Default 10m; aiguard.Off: it fails at once
	Grace       time.Duration // wait for a function to return after its context ended; then its operation ends as stuck. Default 5s
	Queue       string        // River's queue. Services that share a database need different queues. Default "aiguard"
	Schema      string        // of River's tables. It is created if necessary. Default: the first schema of the search_path
	SubmitOnly  bool          // leave the operations to other processes. Default false
	Logger      *slog.Logger  // logs failures, never an input or a result. Default: the guard's
}

// Runner runs the operations of package task as River jobs. It is safe for concurrent use. Create it with NewRunner and
// call Shutdown before you close its guard and its pool.
//
// An operation that waits is a job that any process with the same queue and the same registered name may run. Each
// operation ends in one final state, which never changes. Its function runs once, unless MaxAttempts allows more, the
// operation is snoozed, or a process that was frozen goes on after River has given its job to another.
//
// Progress, results, error codes and messages are those of task.Runner. These are the differences:
//
//   - There is no method Start, because a function cannot be sent to another process. The function of an operation does
//     not get the context given to Submit, nor its values.
//   - An operation that is rate limited, overloaded or over a budget whose window ends is snoozed and runs again, for
//     Patience after its start. All that time it is Running.
//   - An operation that fails for a temporary reason runs again up to MaxAttempts times, with River's backoff.
//   - A pending operation survives the end of all processes.
//   - If a process dies, its running operations are rescued when they are older than the guard's TaskTimeout, Grace and
//     10 seconds. River looks every 30 seconds. If the dead process was River's leader, another takes its place within 21
//     seconds. A rescued operation runs again if MaxAttempts allows it, and otherwise it fails as interrupted.
//   - River deletes succeeded and cancelled operations after 24 hours, and failed ones after at most 7 days.
type Runner struct {
	guard     *aiguard.Guard
	pool      *pgxpool.Pool
	cfg       Config
	client    *river.Client[pgx.Tx]
	table     string // of River's jobs
	taskLimit time.Duration
	ctx       context.Context // of the store's calls, until Shutdown has given up
	stop      context.CancelFunc
	topics    topics

	submitting chan struct{} // has capacity 1: a lock around the count of waiting operations and the insert

	mu       sync.Mutex
	handlers map[string]task.Handle
	closing  bool
	held     time.Duration // moving average of how long operations run
	stats    task.Stats
}

var _ task.Engine = (*Runner)(nil)

// NewRunner returns a Runner that keeps its operations in the PostgreSQL database of pool and runs them under g's
// TaskTimeout, which must not be off. It creates or migrates River's tables if necessary, and starts to work. The first
// use needs the right to create tables. Give the Runner a Schema of its own if the service has other River clients in the
// database: River elects one leader for all clients of a schema, and a leader that does not know the Runner's kind of job
// discards the jobs of dead processes. Runners of one schema need the same TaskTimeout and Grace. The connections of pool must be sessions of PostgreSQL, because River listens for notifications; PgBouncer's transaction mode does not work.
// ctx limits only NewRunner itself. The caller closes pool after Shutdown.
//
// The zero Config is valid. NewRunner returns an error that names each invalid field of cfg.
func NewRunner(ctx context.Context, g *aiguard.Guard, pool *pgxpool.Pool, cfg Config) (*Runner, error) {
	if g == nil || pool == nil {
		return nil, errors.New("riverguard: NewRunner: want a guard and a pool, not nil")
	}
	limit, err := cfg.complete(g)
	if err != nil {
		return nil, err
	}
	r := &Runner{guard: g, pool: pool, cfg: cfg, table: "river_job", taskLimit: limit, submitting: make(chan struct{}, 1), handlers: make(map[string]task.Handle)}
	if cfg.Schema != "" {
		r.table = cfg.Schema + ".river_job"
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	if err := r.start(ctx); err != nil {
		r.stop()
		return nil, fmt.Errorf("riverguard: %w", err)
	}
	return r, nil
}

var (
	schemaNames = regexp.MustCompile(`^([a-z_][a-z0-9_]{0,39})?$`)
	queueNames  = regexp.MustCompile(`^([a-z0-9]+([_-][a-z0-9]+)*)?$`) // a part of what River accepts
)

// maxQueueName is River's limit.
const maxQueueName = 64

// complete replaces zero fields by their defaults and returns the guard's TaskTimeout.
func (cfg *Config) complete(g *aiguard.Guard) (limit time.Duration, err error) {
	var mistakes []error
	check := func(ok bool, field string, value any, want string) {
		if !ok {
			mistakes = append(mistakes, fmt.Errorf("riverguard: Config.%s is %v; want %s", field, value, want))
		}
	}
	check(cfg.MaxRunning >= aiguard.Off && cfg.MaxRunning <= river.QueueNumWorkersMax, "MaxRunning", cfg.MaxRunning,
		"1 to 10,000, 0 for the guard's, or aiguard.Off")
	check(cfg.MaxPending >= aiguard.Off, "MaxPending", cfg.MaxPending, "a positive number, 0 for the guard's, or aiguard.Off")
	check(cfg.MaxAttempts >= 0 && cfg.MaxAttempts <= 1000, "MaxAttempts", cfg.MaxAttempts, "1 to 1,000, or 0 for the default")
	check(cfg.Patience >= aiguard.Off, "Patience", cfg.Patience, "a positive duration, 0 for the default, or aiguard.Off")
	check(schemaNames.MatchString(cfg.Schema), "Schema", strconv.Quote(cfg.Schema), "1 to 40 lower-case letters, digits and underscores, or nothing")
	check(queueNames.MatchString(cfg.Queue) && len(cfg.Queue) <= maxQueueName, "Queue", strconv.Quote(cfg.Queue[:min(len(cfg.Queue), maxQueueName)]),
		"1 to 64 lower-case letters and digits, with single hyphens or underscores between them, or nothing for the default")
	check(cfg.Grace >= 0, "Grace", cfg.Grace, "a positive duration, or 0 for the default")
	limit, ok := taskTimeout(g)
	if !ok {
		mistakes = append(mistakes,
			errors.New("riverguard: the guard's TaskTimeout is off; want a limit, because River rescues operations of dead processes by their age"))
	}
	limits := g.Config()
	cfg.MaxRunning = cmp.Or(cfg.MaxRunning, int(min(limits.MaxConcurrent, river.QueueNumWorkersMax)))
	if cfg.MaxRunning == aiguard.Off {
		cfg.MaxRunning = river.QueueNumWorkersMax
	}
	cfg.MaxPending = min(cmp.Or(cfg.MaxPending, limits.MaxQueue), math.MaxInt-cfg.MaxRunning) // they are added
	cfg.MaxAttempts = cmp.Or(cfg.MaxAttempts, 1)
	cfg.Patience = cmp.Or(cfg.Patience, DefaultPatience)
	cfg.Grace = cmp.Or(cfg.Grace, DefaultGrace)
	cfg.Queue = cmp.Or(cfg.Queue, DefaultQueue)
	cfg.Logger = cmp.Or(cfg.Logger, limits.Logger, slog.New(slog.DiscardHandler))
	return limit, errors.Join(mistakes...)
}

// start makes the tables and starts River's client.
func (r *Runner) start(ctx context.Context) error {
	if err := migrate(ctx, r.pool, r.cfg.Schema, slog.New(warnings{r.cfg.Logger.Handler()})); err != nil {
		return err
	}
	cfg := &river.Config{
		ID:     "aiguard-" + rand.Text(), // River's default is a time and may not be unique
		Logger: slog.New(warnings{r.cfg.Logger.Handler()}),
		Schema: r.cfg.Schema,
		// River measures these from the start of a job. It never rescues a job that has no timeout.
		JobTimeout:           r.jobTimeout(),
		RescueStuckJobsAfter: r.jobTimeout() + margin,
		MaxAttempts:          r.cfg.MaxAttempts,
		// With different intervals, no process is always the first to see a job that another has put back.
		FetchPollInterval: 750*time.Millisecond + mathrand.N(500*time.Millisecond),
	}
	if !r.cfg.SubmitOnly {
		cfg.Queues = map[string]river.QueueConfig{r.cfg.Queue: {MaxWorkers: r.cfg.MaxRunning}}
		cfg.Workers = river.NewWorkers()
		if err := river.AddWorkerSafely(cfg.Workers, &worker{r: r}); err != nil {
			return err
		}
	}
	var err error
	if r.client, err = river.NewClient(riverpgxv5.New(r.pool), cfg); err != nil || r.cfg.SubmitOnly {
		return err
	}
	return r.client.Start(r.ctx)
}

// warnings passes on warnings and errors, as River's own default does. River logs its statistics as information.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && w.Handler.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }

// jobTimeout is later than the end of any function that still has a place in the Runner.
func (r *Runner) jobTimeout() time.Duration { return r.taskLimit + r.cfg.Grace + margin }

// Handle implements task.Engine. Use task.Register.
func (r *Runner) Handle(name string, fn task.Handle) {
	if fn == nil {
		panic("riverguard: Handle: nil fn")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.handlers[name]; ok {
		panic(fmt.Sprintf("riverguard: Register: %q is already registered", name))
	}
	r.handlers[name] = fn
}

// handler returns the function registered for name, or nil.
func (r *Runner) handler(name string) task.Handle {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handlers[name]
}

// Stats returns a snapshot of this process. Started counts the runs that began here, and Released those that River
// repeats. Pending is 0, because a waiting operation belongs to no process.
func (r *Runner) Stats() task.Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stats
}

// count changes the statistics.
func (r *Runner) count(change func(*task.Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.stats)
}

// Shutdown rejects new operations with aiguard.ErrClosed, takes no more operations from the queue, and waits for those
// that run in this process. If ctx ends first, Shutdown ends their contexts. An operation with attempts left goes back
// to the queue, and all others end as interrupted after at most Grace. In this case Shutdown returns ctx's error, and
// functions that ignore their context may still run. Pending operations stay in the queue. Shutdown may be called more
// than once.
func (r *Runner) Shutdown(ctx context.Context) error {
	r.close()
	defer r.stop()
	if r.cfg.SubmitOnly {
		return nil
	}
	if ctx.Err() == nil && r.client.Stop(ctx) == nil {
		return nil
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.Grace+2*storeTimeout)
	defer cancel()
	go r.endWithStuck(patience, cancel)
	if r.client.StopAndCancel(patience) != nil {
		r.cfg.Logger.LogAttrs(ctx, slog.LevelError, "riverguard: functions still run after Shutdown", slog.Int("running", r.Stats().Running))
	}
	return ctx.Err()
}

// endWithStuck calls end when only stuck functions still run. Their operations are over.
func (r *Runner) endWithStuck(ctx context.Context, end func()) {
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if s := r.Stats(); s.Stuck > 0 && s.Running == s.Stuck {
			end()
			return
		}
	}
}

func (r *Runner) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closing = true
}

// topics wakes those who wait for changes that this process makes. The zero value is ready.
type topics struct {
	mu    sync.Mutex
	topic map[int64]*topic
}

type topic struct {
	changed  chan struct{} // closed at the next change
	watchers int
}

// watch returns a function that returns a channel for the next change of a job, and a function that ends the watch.
func (t *topics) watch(id int64) (changes func() <-chan struct{}, stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.topic == nil {
		t.topic = make(map[int64]*topic)
	}
	w := t.topic[id]
	if w == nil {
		w = &topic{changed: make(chan struct{})}
		t.topic[id] = w
	}
	w.watchers++
	changes = func() <-chan struct{} {
		t.mu.Lock()
		defer t.mu.Unlock()
		return w.changed
	}
	stop = func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if w.watchers--; w.watchers == 0 {
			delete(t.topic, id)
		}
	}
	return changes, stop
}

// publish wakes the watchers of a job.
func (t *topics) publish(id int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.topic[id]; w != nil {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}
