package cacheguard

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Store keeps cached answers. It must be safe for concurrent use and return soon after ctx has ended. Callers do not
// wait for it then, but a goroutine of the Transport does.
type Store interface {
	// Get returns the entry with this name, or nil and no error if there is none. name is a short string of
	// hexadecimal digits. The Transport does not modify the entry.
	Get(ctx context.Context, name string) (entry []byte, err error)

	// Set stores entry for at most ttl and replaces any entry with this name. It must not modify entry.
	Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error
}

const (
	writeTimeout = time.Second // for a write; callers do not wait for it
	storePause   = time.Second // pause after a failure
)

// lookup returns the answer cached under k, or nil. A store failure counts as a miss.
func (t *Transport) lookup(ctx context.Context, k key) *entry {
	b, err := t.store.Get(ctx, k.name())
	if err != nil || b == nil {
		return nil
	}
	e, ok := decode(b, k)
	if !ok {
		t.corrupt.Add(1)
		return nil
	}
	return e
}

// keep stores an answer unless it is too large. ctx may have ended, because the callers already have the answer.
func (t *Transport) keep(ctx context.Context, q *request, e *entry) {
	b := e.encode(q.key)
	if int64(len(b)) > t.cfg.MaxEntryBytes {
		return
	}
	if t.store.Set(context.WithoutCancel(ctx), q.key.name(), b, q.ttl) == nil {
		t.stored.Add(1)
	}
}

// errPaused is the error of a use during the pause after a failure.
var errPaused = errors.New("cacheguard: the store is paused after a failure")

// bounded protects the cache from a slow or failing Store. Each use has a timeout. After a failure, all uses fail for
// storePause. Then one probe uses the store.
type bounded struct {
	store    Store
	lookup   time.Duration
	failures *atomic.Int64
	born     time.Time    // keeps the monotonic clock reading, in case the wall clock is set back
	until    atomic.Int64 // end of the pause in nanoseconds since born; 0: no pause
}

func (b *bounded) Get(ctx context.Context, name string) ([]byte, error) {
	return b.within(ctx, b.lookup, func(ctx context.Context) ([]byte, error) { return b.store.Get(ctx, name) })
}

func (b *bounded) Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error {
	_, err := b.within(ctx, writeTimeout, func(ctx context.Context) ([]byte, error) {
		return nil, b.store.Set(ctx, name, entry, ttl)
	})
	return err
}

// within runs use for at most limit. It does not wait longer for a use that ignores its context.
func (b *bounded) within(ctx context.Context, limit time.Duration, use func(context.Context) ([]byte, error)) ([]byte, error) {
	now := int64(time.Since(b.born))
	if until := b.until.Load(); until != 0 && (now < until || !b.until.CompareAndSwap(until, now+int64(storePause))) {
		return nil, errPaused
	}
	bctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type result struct {
		entry []byte
		err   error
	}
	used := make(chan result, 1)
	go func() {
		entry, err := use(bctx)
		used <- result{entry, err}
	}()
	var r result
	select {
	case r = <-used:
	case <-bctx.Done():
		r.err = bctx.Err()
	}
	switch {
	case r.err == nil:
		b.until.Store(0)
	case ctx.Err() == nil: // a caller that leaves is not a store failure
		b.failures.Add(1)
		b.until.Store(int64(time.Since(b.born) + storePause))
	}
	return r.entry, r.err
}
