package redisguard

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/line"
)

// Limiter is an aiguard.Limiter whose capacity all processes with the same Key share. It is safe for concurrent use.
//
// Waiting calls are served by priority, then by fair share between tenants, then by arrival, across all processes.
// Calls without a tenant are shared fairly between processes. One of ten admissions goes to the call that has waited
// longest.
type Limiter struct {
	client  redis.UniversalClient
	cfg     Config
	member  string
	keys    []string
	field   string // of the member in Redis
	limit   string
	waker   chan struct{} // flush and sync as needed
	stop    context.CancelFunc
	running sync.WaitGroup

	mu sync.Mutex
	calls
	last     uint64    // number of the newest call
	epoch    string    // of the state in Redis; "": not seen yet
	members  int64     // processes last seen, at least 1
	busy     bool      // calls of any process wait in Redis
	released []release // not yet sent
	syncing  bool      // a sync is in flight, which repeats what was held before
	syncNow  bool
	flushing *time.Timer // calls lateFlush; it is set while armed is true
	armed    bool
	oldest   time.Time // of released
	failed   error     // like down, until it is in the log
	reported bool      // the log says that Redis does not answer
	closed   bool

	commands, messages atomic.Int64
}

// release is a lease to be given back.
type release struct {
	number     uint64
	took       time.Duration // negative: it was never used
	background bool
}

// waiter is a call that waits for a slot or has one.
type waiter struct {
	number   uint64
	weight   int64
	priority line.Priority
	tenant   string     // key in Redis
	over     chan error // receives the outcome
	queued   bool       // it is in Redis's queue, or the next sync puts it there
	asking   bool       // its command is in flight
	left     bool       // the caller left while it was
	since    time.Time  // when it was admitted

	line.Waiter[*waiter] // in the local line
	flow                 *line.Tenant[*waiter]
	inLine               bool
	local                bool // admitted by the local line
}

// Stats describes a Limiter.
type Stats struct {
	Shared   bool  // Redis answers
	Members  int64 // processes that share the limit, when Redis last answered
	InFlight int64 // weight of this process
	Waiting  int64 // calls of this process that wait for a slot
	Commands int64 // commands sent to Redis
	Messages int64 // messages received from other processes, each with slots for calls that wait
}

// releaseDelay is how long a release may wait for the next acquire, which takes it along, while no call waits.
const releaseDelay = 5 * time.Millisecond

// New returns a Limiter and starts its goroutines, which Close ends. It does not wait for Redis. The client must have
// ContextTimeoutEnabled. The caller closes it after the Limiter.
func New(client redis.UniversalClient, cfg Config) (*Limiter, error) {
	if err := checkClient(client); err != nil {
		return nil, err
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := &Limiter{client: client, cfg: cfg, member: newMember(), waker: make(chan struct{}, 1), members: 1}
	l.keys = limiterKeys(cfg.Key)
	l.field, l.limit = "m:"+l.member, strconv.FormatInt(cfg.Limit, 10)
	l.calls.init()
	l.flushing = time.AfterFunc(time.Hour, l.lateFlush)
	l.flushing.Stop()
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	l.running.Go(func() { l.loop(ctx) })
	l.running.Go(func() { listen(ctx, client, l.hear, l.keys[0]+":"+l.member, l.keys[0]) })
	return l, nil
}

// Acquire implements aiguard.Limiter. If there is room it takes one round trip to Redis. It returns when ctx ends. A slot
// that Redis grants later is given back.
func (l *Limiter) Acquire(ctx context.Context, call aiguard.Call) (release func(), err error) {
	w := &waiter{weight: max(call.Weight, 1), priority: line.Priority(min(max(call.Priority, aiguard.Background), aiguard.Critical) - aiguard.Background),
		tenant: tenantKey(call.Tenant, l.member), over: make(chan error, 1)}
	if w.weight > l.cfg.Limit {
		return nil, &aiguard.Error{Kind: aiguard.ErrOverloaded, Phase: aiguard.PhaseWeight, Size: w.weight, Max: l.cfg.Limit}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := l.begin(ctx, w); err != nil {
		return nil, err
	}
	select {
	case err = <-w.over:
	case <-ctx.Done():
		if l.abandon(w) {
			return nil, ctx.Err()
		}
		err = <-w.over // it was admitted at the same moment
	}
	if err != nil {
		return nil, err
	}
	var once atomic.Bool
	return func() {
		if !once.Swap(true) {
			l.release(w)
		}
	}, nil
}

// begin registers a call. It asks Redis in another goroutine, because go-redis waits for a reply until a deadline and does
// not notice that ctx is canceled.
func (l *Limiter) begin(ctx context.Context, w *waiter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return &aiguard.Error{Kind: aiguard.ErrClosed}
	}
	if l.down != nil && l.cfg.OnFailure == FailClosed {
		return noAnswer(aiguard.PhaseQueue, l.down)
	}
	l.last++
	w.number = l.last
	l.waiting[w.number] = w
	if l.down != nil {
		l.withoutRedis(w)
		return nil
	}
	along, epoch := l.unsent(), ""
	if !l.busy && short(w, along) {
		epoch = l.epoch
	}
	w.asking = true
	l.running.Go(func() { l.ask(ctx, w, along, epoch) })
	return nil
}

// unsent returns the releases to be sent. A sync in flight repeats what it saw, so releases wait for its end.
func (l *Limiter) unsent() []release {
	if l.syncing || len(l.released) == 0 {
		return nil
	}
	along := l.released
	l.released = nil
	return along
}

// ask asks Redis for a slot. along are the releases that its command takes along. epoch is set if acquire.lua is worth
// trying.
func (l *Limiter) ask(ctx context.Context, w *waiter, along []release, epoch string) {
	cctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	var got answer
	var err error
	if epoch != "" {
		var granted bool
		if granted, err = l.take(cctx, w, along, epoch); granted {
			l.mu.Lock()
			defer l.mu.Unlock()
			defer l.asked(w)
			if l.waiting[w.number] == w {
				l.admit(w)
			}
			return
		}
	}
	if err == nil {
		got, err = l.run(cctx, along, "acquire", id(l.member, w.number), w.weight, int(w.priority), w.tenant)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.asked(w)
	if err != nil {
		l.released = append(along, l.released...)
		if ctx.Err() == nil {
			l.fail(err)
			if l.waiting[w.number] == w {
				l.withoutRedis(w)
			}
		}
		return
	}
	l.learn(got)
	switch {
	case l.waiting[w.number] != w: // admitted by a message, or the caller has left
	case got.status == statusGranted:
		l.admit(w)
	case l.down != nil:
		l.withoutRedis(w)
	default:
		w.queued = true
		if got.status == statusStranger {
			l.syncNow = true
			l.wake()
		}
	}
}

// asked records that the command of a call has ended. Only now can Redis learn that the caller has left, because the
// commands of several connections may overtake each other.
func (l *Limiter) asked(w *waiter) {
	if w.asking = false; w.left {
		l.giveBack(release{w.number, -1, w.priority == line.Background})
	}
}

// learn records what every answer tells.
func (l *Limiter) learn(got answer) {
	if got.status == statusStranger {
		return // Redis has forgotten the members too
	}
	l.members, l.busy = max(got.members, 1), got.queued > 0
	if l.epoch == "" {
		l.epoch = got.epoch
	}
}

// abandon ends the wait of a canceled call. It reports false if the wait was already over.
func (l *Limiter) abandon(w *waiter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[w.number] != w {
		return false
	}
	delete(l.waiting, w.number)
	l.leave(w)
	if w.left = true; !w.asking {
		l.giveBack(release{w.number, -1, w.priority == line.Background})
	}
	return true
}

// release gives a slot back. It does not wait for Redis.
func (l *Limiter) release(w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[w.number] != w {
		return // after Close
	}
	l.calls.release(w)
	now := time.Now()
	if len(l.released) == 0 {
		l.oldest = now
	}
	l.giveBack(release{w.number, now.Sub(w.since), w.priority == line.Background})
}

// giveBack sends a release soon. While Redis is down it does not, because the next sync tells what is held.
func (l *Limiter) giveBack(r release) {
	if l.down != nil || l.closed {
		return
	}
	l.released = append(l.released, r)
	switch {
	case l.busy || len(l.waiting) > 0:
		l.wake()
	case !l.armed:
		l.armed = true
		l.flushing.Reset(releaseDelay)
	}
}

// lateFlush sends releases that no other command has taken along. It sets the timer again if they are younger than
// releaseDelay, because setting it for each release would be expensive.
func (l *Limiter) lateFlush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = false
	if len(l.released) == 0 || l.closed {
		return
	}
	if left := releaseDelay - time.Since(l.oldest); left > 0 {
		l.armed = true
		l.flushing.Reset(left)
		return
	}
	l.wake()
}

// wake makes the loop look for work.
func (l *Limiter) wake() {
	select {
	case l.waker <- struct{}{}:
	default:
	}
}

// Stats returns the current state.
func (l *Limiter) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Shared: l.down == nil, Members: l.members, InFlight: l.weight(), Waiting: int64(len(l.waiting)), Commands: l.commands.Load(), Messages: l.messages.Load()}
}

// Close gives all slots back, rejects waiting and new calls with aiguard.ErrClosed, and waits for the Limiter's
// goroutines. Close the Guard first. It returns the error of Redis if the slots could not be given back; they then
// come back after Config.Lease. It may be called more than once.
func (l *Limiter) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	for _, w := range l.waiting {
		l.reject(w, &aiguard.Error{Kind: aiguard.ErrClosed})
	}
	clear(l.held)
	l.flushing.Stop()
	l.mu.Unlock()
	l.stop()
	l.running.Wait()
	ctx, cancel := command(l.cfg.Timeout)
	defer cancel()
	if _, err := l.run(ctx, nil, "leave"); err != nil {
		return errors.Join(errors.New("redisguard: the slots come back at the end of the lease"), err)
	}
	return nil
}
