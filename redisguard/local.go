package redisguard

import (
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/line"
)

// calls are the calls of this process, and their line while Redis does not answer. The Limiter's mutex guards them.
type calls struct {
	held    map[uint64]*waiter // have a slot
	waiting map[uint64]*waiter // wait for one

	down    error // why Redis does not answer; nil: it does
	share   int64 // of the limit, while it does not
	line    line.Line[*waiter]
	route   line.Route[*waiter]
	tenants map[string]*line.Tenant[*waiter]
}

// maxTenants is how many tenants the local line remembers while none of them waits.
const maxTenants = 1000

func (c *calls) init() {
	c.held, c.waiting = make(map[uint64]*waiter), make(map[uint64]*waiter)
	c.line.MaxBackground = aiguard.Off
	c.line.SetRoom(&c.route, math.MaxInt64)
	c.tenants = make(map[string]*line.Tenant[*waiter])
}

// admit gives a waiting call its slot.
func (c *calls) admit(w *waiter) {
	delete(c.waiting, w.number)
	c.leave(w)
	c.held[w.number] = w
	c.resize()
	w.since = time.Now()
	w.over <- nil
}

// reject ends a wait without a slot.
func (c *calls) reject(w *waiter, err error) {
	delete(c.waiting, w.number)
	c.leave(w)
	w.over <- err
}

// weight returns the weight that this process holds.
func (c *calls) weight() (sum int64) {
	for _, w := range c.held {
		sum += w.weight
	}
	return sum
}

// fail begins the time without Redis.
func (l *Limiter) fail(err error) {
	if l.down != nil || l.closed {
		return
	}
	l.down, l.failed = err, err
	l.released = nil // the next sync tells what is held
	l.share = 1      // of how many is unknown, if Redis has never answered
	if l.epoch != "" {
		l.share = max(l.cfg.Limit/l.members, 1)
	}
	l.resize()
	for _, number := range slices.Sorted(maps.Keys(l.waiting)) {
		if w := l.waiting[number]; w != nil && w.queued {
			l.withoutRedis(w)
		}
	}
	l.wake() // to report it
}

// report logs when Redis fails and when it is back. Both may have happened since the last report.
func (l *Limiter) report() {
	l.mu.Lock()
	failed, members, share := l.failed, l.members, l.share
	l.reported = l.reported || failed != nil
	back := l.reported && l.down == nil
	if l.failed = nil; back {
		l.reported = false
	}
	l.mu.Unlock()
	key := slog.String("key", l.cfg.Key)
	switch {
	case failed == nil:
	case l.cfg.OnFailure == FailClosed:
		l.cfg.Logger.Warn("redisguard: Redis does not answer; calls are rejected", key, slog.Any("error", failed))
	default:
		l.cfg.Logger.Warn("redisguard: Redis does not answer; this process goes on with its share of the limit", key,
			slog.Int64("share", share), slog.Any("error", failed))
	}
	if back {
		l.cfg.Logger.Info("redisguard: Redis answers again", key, slog.Int64("members", members))
	}
}

// back ends the time without Redis. The sync has put all waiting calls in Redis's queue.
func (l *Limiter) back() {
	l.down = nil
	for _, w := range l.waiting {
		l.leave(w)
	}
	clear(l.tenants)
	l.syncNow = true // tells what the local line has admitted during the sync
	l.wake()
}

// withoutRedis puts a call in the local line, or rejects it if calls are not admitted without Redis.
func (l *Limiter) withoutRedis(w *waiter) {
	if l.cfg.OnFailure == FailClosed {
		l.reject(w, noAnswer(aiguard.PhaseQueue, l.down))
	} else {
		l.join(w)
	}
}

// join puts a call in the local line.
func (c *calls) join(w *waiter) {
	if w.inLine {
		return
	}
	w.inLine, w.queued, w.flow = true, true, c.tenant(w.tenant)
	w.Waiter = line.Waiter[*waiter]{Value: w, Weight: min(w.weight, c.share)} // a heavier call is admitted alone
	c.line.Join(&w.Waiter, &c.route, w.flow, w.priority, 0, 0)
	c.serve()
}

func (c *calls) leave(w *waiter) {
	if w.inLine {
		w.inLine = false
		c.line.Leave(&w.Waiter)
	}
}

// release takes the slot of a call back.
func (c *calls) release(w *waiter) {
	delete(c.held, w.number)
	if w.local {
		c.line.Release(w.flow, w.priority, w.Weight, 0)
	}
	c.resize()
	c.serve()
}

// resize takes from the share what Redis has admitted and is still in flight.
func (c *calls) resize() {
	if c.down == nil {
		return
	}
	left := c.share
	for _, w := range c.held {
		if !w.local {
			left -= w.weight
		}
	}
	c.line.Capacity = max(left, 0)
}

// serve admits the calls whose turn it is in the local line.
func (c *calls) serve() {
	if c.down == nil {
		return
	}
	for w := c.line.First(0); w != nil && c.line.Admit(w, float64(w.Weight)); w = c.line.First(0) {
		w.Value.inLine, w.Value.local = false, true
		c.admit(w.Value)
	}
}

func (c *calls) tenant(name string) *line.Tenant[*waiter] {
	t := c.tenants[name]
	if t == nil {
		if len(c.tenants) >= maxTenants && !c.line.Waiting() {
			clear(c.tenants)
		}
		t = &line.Tenant[*waiter]{}
		c.tenants[name] = t
	}
	return t
}
