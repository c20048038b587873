package task

import (
	"context"
	"sync/atomic"
	"time"
)

// lease is a Runner's claim to its operations in the store. While the lease is valid, no other process takes them over.
type lease struct {
	store  Store
	owner  string // the Owner of the Runner's operations
	length time.Duration
	taken  atomic.Bool
}

// take makes sure that the Runner has had a lease. An operation created without a lease would be an orphan at once.
func (l *lease) take(ctx context.Context) error {
	if l.taken.Load() {
		return nil
	}
	return l.renew(ctx)
}

func (l *lease) renew(ctx context.Context) error {
	err := l.store.Renew(ctx, l.owner, l.length)
	if err == nil {
		l.taken.Store(true)
	}
	return err
}

// release ends the lease, so that other processes can take over the remaining operations at once.
func (l *lease) release(ctx context.Context) error {
	return once(ctx, func(ctx context.Context) error { return l.store.Renew(ctx, l.owner, 0) })
}
