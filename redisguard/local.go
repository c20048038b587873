package redisguard

import (
	"log/slog"
	"maps"
	"math"
	"slices"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/line"
)

// local is the line of this process while Redis does not answer. It is guarded by the Limiter's mutex.
type local struct {
	line    line.Line[*waiter]
	route   line.Route[*waiter]
	tenants map[string]*line.Tenant[*waiter]
	share   int64
}

// maxTenants is how many tenants the local line remembers while none of them waits.
const maxTenants = 1000

func (lo *local) init() {
	lo.line.MaxBackground = aiguard.Off
	lo.line.SetRoom(&lo.route, math.MaxInt64)
	lo.tenants = make(map[string]*line.Tenant[*waiter])
}

// fail begins the time without Redis.
func (l *Limiter) fail(err error) {
	if l.down != nil || l.closed {
		return
	}
	l.down = err
	l.released = nil  // the next sync tells what is held
	l.local.share = 1 // of how many is unknown, if Redis has never answered
	if l.epoch != "" {
		l.local.share = max(l.cfg.Limit/l.members, 1)
	}
	l.resize()
	for _, number := range slices.Sorted(maps.Keys(l.waiting)) {
		if w := l.waiting[number]; w != nil && w.queued {
			l.joinLocal(w)
		}
	}
	l.wake() // to report it
}

// report logs when Redis fails and when it is back.
func (l *Limiter) report() {
	l.mu.Lock()
	down, members, share, changed := l.down, l.members, l.local.share, (l.down != nil) != l.reported
	l.reported = l.down != nil
	l.mu.Unlock()
	key := slog.String("key", l.cfg.Key)
	switch {
	case !changed:
	case down == nil:
		l.cfg.Logger.Info("redisguard: Redis answers again", key, slog.Int64("members", members))
	case l.cfg.OnFailure == FailClosed:
		l.cfg.Logger.Warn("redisguard: Redis does not answer; calls are rejected", key, slog.Any("error", down))
	default:
		l.cfg.Logger.Warn("redisguard: Redis does not answer; this process goes on with its share of the limit", key,
			slog.Int64("share", share), slog.Any("error", down))
	}
}

// back ends the time without Redis. The sync has put all waiting calls in Redis's queue.
func (l *Limiter) back() {
	l.down = nil
	for _, w := range l.waiting {
		l.leaveLocal(w)
	}
	clear(l.local.tenants)
	l.syncNow = true // tells what the local line has admitted during the sync
	l.wake()
}

// joinLocal puts a call in the local line, or rejects it if calls are not admitted without Redis.
func (l *Limiter) joinLocal(w *waiter) {
	if l.cfg.OnFailure == FailClosed {
		l.reject(w, l.failure())
		return
	}
	if w.inLine {
		return
	}
	lo := &l.local
	w.inLine, w.queued, w.flow = true, true, lo.tenant(w.tenant)
	w.Waiter = line.Waiter[*waiter]{Value: w, Weight: min(w.weight, lo.share)} // a heavier call is admitted alone
	lo.line.Join(&w.Waiter, &lo.route, w.flow, w.priority, 0, 0)
	l.serveLocal()
}

func (l *Limiter) leaveLocal(w *waiter) {
	if w.inLine {
		w.inLine = false
		l.local.line.Leave(&w.Waiter)
	}
}

// releaseLocal gives the slot of a call back to the local line.
func (l *Limiter) releaseLocal(w *waiter) {
	if w.local {
		l.local.line.Release(w.flow, w.priority, w.Weight, 0)
	}
	l.resize()
	l.serveLocal()
}

// resize takes from the share what Redis has admitted and is still in flight.
func (l *Limiter) resize() {
	if l.down == nil {
		return
	}
	left := l.local.share
	for _, w := range l.held {
		if !w.local {
			left -= w.weight
		}
	}
	l.local.line.Capacity = max(left, 0)
}

// serveLocal admits the calls whose turn it is.
func (l *Limiter) serveLocal() {
	if l.down == nil {
		return
	}
	for w := l.local.line.First(0); w != nil && l.local.line.Admit(w, float64(w.Weight)); w = l.local.line.First(0) {
		w.Value.inLine, w.Value.local = false, true
		l.admit(w.Value)
	}
}

func (lo *local) tenant(name string) *line.Tenant[*waiter] {
	t := lo.tenants[name]
	if t == nil {
		if len(lo.tenants) >= maxTenants && !lo.line.Waiting() {
			clear(lo.tenants)
		}
		t = &line.Tenant[*waiter]{}
		lo.tenants[name] = t
	}
	return t
}
