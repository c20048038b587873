package cacheguard

import (
	"context"
	"errors"
	"sync"
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

// lookup returns the answer cached under k, or nil. A store failure counts as a miss. absent reports that the store
// has no valid answer.
func (t *Transport) lookup(ctx context.Context, k key) (e *entry, absent bool) {
	b, err := t.store.Get(ctx, k.name())
	if err != nil || b == nil {
		return nil, err == nil
	}
	e, ok := decode(b, k)
	if !ok {
		t.corrupt.Add(1)
		return nil, true
	}
	return e, false
}

// keep stores an answer unless it is too large, and reports whether it is stored. ctx may have ended, because the
// callers already have the answer.
func (t *Transport) keep(ctx context.Context, q *request, e *entry) bool {
	b := e.encode(q.key)
	if int64(len(b)) > t.cfg.MaxEntryBytes || t.store.Set(context.WithoutCancel(ctx), q.key.name(), b, q.ttl) != nil {
		return false
	}
	t.stored.Add(1)
	return true
}

// bounded is a Store that cannot delay the cache for long.
type bounded struct {
	store   Store
	lookup  time.Duration
	breaker breaker
}

func (b *bounded) Get(ctx context.Context, name string) ([]byte, error) {
	return within(ctx, &b.breaker, b.lookup, func(ctx context.Context) ([]byte, error) { return b.store.Get(ctx, name) })
}

func (b *bounded) Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error {
	_, err := within(ctx, &b.breaker, writeTimeout, func(ctx context.Context) ([]byte, error) {
		return nil, b.store.Set(ctx, name, entry, ttl)
	})
	return err
}

// errPaused is the error of a use during the pause after a failure.
var errPaused = errors.New("not used for a second after a failure")

// breaker protects the cache from a slow or failing Store, Embed or Index. After a failure, all uses fail for
// storePause. Then one probe is allowed.
type breaker struct {
	failures *atomic.Int64
	ended    *sync.WaitGroup // waits for all uses
	born     time.Time       // keeps the monotonic clock reading, in case the wall clock is set back
	until    atomic.Int64    // end of the pause in nanoseconds since born; 0: no pause
}

func (t *Transport) newBreaker(failures *atomic.Int64) breaker {
	return breaker{failures: failures, ended: &t.ended, born: time.Now()}
}

// allows reports whether a use may begin now.
func (b *breaker) allows() bool {
	now := int64(time.Since(b.born))
	until := b.until.Load()
	return until == 0 || now >= until && b.until.CompareAndSwap(until, now+int64(storePause))
}

func (b *breaker) succeeded() { b.until.Store(0) }

func (b *breaker) failed() {
	b.failures.Add(1)
	b.until.Store(int64(time.Since(b.born) + storePause))
}

// within runs use for at most limit. It does not wait longer for a use that ignores its context. Its goroutine must be
// one that Close waits for.
func within[T any](ctx context.Context, b *breaker, limit time.Duration, use func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var r result
	if !b.allows() {
		return r.value, errPaused
	}
	bctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	used := make(chan result, 1)
	b.ended.Go(func() {
		value, err := use(bctx)
		used <- result{value, err}
	})
	select {
	case r = <-used:
	case <-bctx.Done():
		r.err = bctx.Err()
	}
	switch {
	case r.err == nil:
		b.succeeded()
	case ctx.Err() == nil: // a caller that leaves is not a failure
		b.failed()
	}
	return r.value, r.err
}
