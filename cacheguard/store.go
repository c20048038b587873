package cacheguard

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Store is where answers are kept. It must be safe for concurrent use, and return soon after ctx has ended: nobody waits
// for it then, but a goroutine of the Transport's does.
type Store interface {
	// Get returns the entry under this name, a short word of hexadecimal digits; nil and no error if there is none. The
	// Transport does not change it.
	Get(ctx context.Context, name string) (entry []byte, err error)

	// Set keeps entry for ttl, or less, in place of what is there. It must not change entry.
	Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error
}

const (
	writeTimeout = time.Second // nobody waits for it
	storePause   = time.Second // after a failure
)

// lookup returns the answer that is kept under k, or nil. A store that fails has none.
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

// keep stores an answer that is not too large. ctx may have ended: its callers have what they want.
func (t *Transport) keep(ctx context.Context, q *request, e *entry) {
	b := e.encode(q.key)
	if int64(len(b)) > t.cfg.MaxEntryBytes {
		return
	}
	if t.store.Set(context.WithoutCancel(ctx), q.key.name(), b, q.ttl) == nil {
		t.stored.Add(1)
	}
}

// errPaused is what a store gets no chance to say.
var errPaused = errors.New("cacheguard: the store has just failed")

// bounded is a Store that may be slow or broken: each use has its time, and after a failure there are none for a while,
// then one that tries.
type bounded struct {
	store    Store
	lookup   time.Duration
	failures *atomic.Int64
	born     time.Time    // with its monotonic reading: the wall clock may be set back
	until    atomic.Int64 // end of the pause in nanoseconds since born; 0: none
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

// within runs use for limit at most. One that does not heed its context is left to itself.
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
	case ctx.Err() == nil: // the callers' end is no failure
		b.failures.Add(1)
		b.until.Store(int64(time.Since(b.born) + storePause))
	}
	return r.entry, r.err
}
