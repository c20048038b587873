package redisguard

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	pollEvery  = time.Second // while calls wait, in case a message is lost
	retryEvery = time.Second // while Redis does not answer
)

// loop sends releases and renews the leases of this process.
func (l *Limiter) loop(ctx context.Context) {
	timer := time.NewTimer(jittered(pollEvery))
	defer timer.Stop()
	synced := time.Now()
	for {
		due := false
		select {
		case <-ctx.Done():
			return
		case <-l.waker:
		case <-timer.C:
			due = true
			timer.Reset(jittered(pollEvery))
		}
		if l.needsSync(due, time.Since(synced)) {
			l.sync()
			synced = time.Now()
		}
		l.flush()
		l.report()
	}
}

// needsSync reports whether it is time to renew the leases.
func (l *Limiter) needsSync(due bool, age time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.syncNow || due && (l.down != nil || len(l.waiting) > 0 || age >= l.cfg.Lease/3-pollEvery)
}

// flush sends the releases that no other command has taken along.
func (l *Limiter) flush() {
	l.mu.Lock()
	along := l.unsent()
	l.mu.Unlock()
	if len(along) == 0 {
		return
	}
	ctx, cancel := command(l.cfg.Timeout)
	defer cancel()
	got, err := l.run(ctx, along, "")
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.fail(err)
		return
	}
	l.learn(got)
	if got.status == statusStranger {
		l.syncNow = true
		l.wake()
	}
}

// sync renews the leases. It tells Redis all that this process holds and all that waits, so that Redis forgets what
// is no longer true and learns what it has lost.
func (l *Limiter) sync() {
	ctx, cancel := command(l.cfg.Timeout)
	defer cancel()
	got, err := l.run(ctx, nil, l.snapshot()...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncing = false
	if err != nil {
		l.fail(err)
		return
	}
	l.learn(got)
	l.epoch = got.epoch
	for _, id := range got.granted {
		l.grant(id)
	}
	if l.down != nil {
		l.back()
	}
}

// snapshot returns the arguments of a sync.
func (l *Limiter) snapshot() []any {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncing, l.syncNow = true, false
	below, waits := l.last+1, 0
	for _, w := range l.waiting {
		if w.queued || l.down != nil {
			waits++
		} else {
			below = min(below, w.number) // its command is in flight
		}
	}
	args := make([]any, 0, 4+4*(len(l.held)+waits))
	args = append(args, "sync", below, len(l.held))
	add := func(w *waiter) { args = append(args, id(l.member, w.number), w.weight, int(w.priority), w.tenant) }
	for _, w := range l.held {
		add(w)
	}
	args = append(args, waits)
	for _, number := range slices.Sorted(maps.Keys(l.waiting)) { // in order of arrival
		if w := l.waiting[number]; w.queued || l.down != nil {
			w.queued = true
			add(w)
		}
	}
	return args
}

// grant admits a call that Redis has given a slot.
func (l *Limiter) grant(id string) {
	number, ok := numberOf(l.member, id)
	if !ok {
		return
	}
	if w := l.waiting[number]; w != nil {
		l.admit(w)
	} else if l.held[number] == nil { // the caller has left
		l.giveBack(release{number, -1, true})
	}
}

// listen calls hear with each message of the channels, and with a *redis.Subscription each time it has connected, until
// ctx ends.
func listen(ctx context.Context, client redis.UniversalClient, hear func(any), channels ...string) {
	sub := client.Subscribe(ctx, channels...) // waits for Redis
	defer sub.Close()
	messages := sub.ChannelWithSubscriptions()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			hear(m)
		}
	}
}

// hear admits the calls to which other processes have given slots.
func (l *Limiter) hear(m any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m := m.(type) {
	case *redis.Message:
		switch {
		case l.closed:
			return
		case m.Channel == l.keys[0]: // Redis has lost its data
			l.syncNow = true
			l.wake()
			return
		}
		l.messages.Add(1)
		for id := range strings.FieldsSeq(m.Payload) {
			l.grant(id)
		}
	case *redis.Subscription: // connected again: messages may have been lost, or Redis has restarted
		l.syncNow = true
		l.wake()
	}
}
