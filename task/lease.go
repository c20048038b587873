package task

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// orphanBatch is the maximum number of orphans that one round reads.
const orphanBatch = 100

// keepLease renews the lease until Shutdown. It also handles operations that another process has cancelled or marked,
// and operations of crashed processes.
func (r *Runner) keepLease() {
	interval := r.cfg.Lease / 3
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		r.lookAfter(interval)
		select {
		case <-ticks.C:
		case <-r.ctx.Done():
			// This lets other processes take over the remaining operations at once.
			_ = r.once(callctx.Detach(r.ctx), func(ctx context.Context) error { return r.store.Renew(ctx, r.owner, 0) })
			return
		}
	}
}

// lookAfter runs one round. limit ends the round before the next renewal is due.
func (r *Runner) lookAfter(limit time.Duration) {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	err := r.renew(ctx)
	if err == nil {
		err = r.reconcile(ctx)
	}
	if err == nil {
		err = r.adopt(ctx)
	}
	if err != nil && r.ctx.Err() == nil {
		r.StoreFailed("lease", Operation{}, err)
	}
}

// takeLease makes sure that the Runner has had a lease. An operation created without a lease would be an orphan at
// once.
func (r *Runner) takeLease(ctx context.Context) error {
	r.mu.Lock()
	leased := r.leased
	r.mu.Unlock()
	if leased {
		return nil
	}
	return r.renew(ctx)
}

func (r *Runner) renew(ctx context.Context) error {
	if err := r.store.Renew(ctx, r.owner, r.cfg.Lease); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leased = true
	return nil
}

// reconcile compares the Runner's active operations with their state in the store.
func (r *Runner) reconcile(ctx context.Context) error {
	active := r.snapshot()
	stored, err := r.store.List(ctx, Query{Owner: r.owner, Statuses: []Status{Pending, Running}, Limit: len(active) + orphanBatch})
	if err != nil {
		return err
	}
	ours := make(map[string]bool, len(stored))
	for _, op := range stored {
		ours[op.ID] = true
		switch x := r.find(op.ID); {
		case x == nil: // half created, or finished since then, in which case change does nothing
			err = r.mark(ctx, op)
		case op.CancelRequested:
			x.end(KindCancelled)
		}
		if err != nil {
			return err
		}
	}
	for _, x := range active {
		if before := x.operation(); !ours[before.ID] && before.Status == Running {
			op, err := r.store.Get(ctx, before.ID)
			if err != nil {
				return err
			}
			if op.Status.Final() && r.find(op.ID) == x {
				x.end(KindInterrupted) // the lease had expired and another process marked it
			}
		}
	}
	return nil
}

// adopt handles the operations of crashed processes. It takes over those that it can run and marks the others.
func (r *Runner) adopt(ctx context.Context) error {
	var names []string
	r.mu.Lock()
	if r.room() && !r.closing {
		names = slices.Collect(maps.Keys(r.handlers))
	}
	r.mu.Unlock()
	orphans, err := r.store.Orphans(ctx, names, orphanBatch)
	if err != nil {
		return err
	}
	for _, op := range orphans {
		switch {
		case op.Owner == r.owner: // the lease has just expired; the next round renews it
		case op.Status == Running || op.Input == nil:
			err = r.mark(ctx, op)
		default:
			err = r.takeOver(ctx, op)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mark ends an operation as interrupted, because its process cannot end it.
func (r *Runner) mark(ctx context.Context, orphan Operation) error {
	op, err := r.change(ctx, orphan, func(op *Operation) bool {
		if op.Owner != orphan.Owner || op.Status != orphan.Status {
			return false
		}
		interrupted().end(op)
		return true
	})
	if err == nil && op.Status.Final() && op.Revision == orphan.Revision+1 {
		r.mu.Lock()
		r.stats.Interrupted++
		r.mu.Unlock()
		r.cfg.Logger.LogAttrs(ctx, slog.LevelError, "task: interrupted", slog.String("name", op.Name), slog.String("id", op.ID))
	}
	return err
}

// takeOver makes this Runner the owner of a pending operation, if there is a place for it.
func (r *Runner) takeOver(ctx context.Context, orphan Operation) error {
	x := newExecution(callctx.Detach(r.ctx), r, orphan, r.handler(orphan.Name).with(orphan.Input))
	if r.enter(x) != nil {
		return nil // another process or a later round takes it over
	}
	op, err := r.change(ctx, orphan, func(op *Operation) bool {
		if op.Owner != orphan.Owner || op.Status != Pending {
			return false
		}
		op.Owner = r.owner
		return true
	})
	if err != nil || op.Owner != r.owner {
		r.settle(x)
		r.leave(x)
		return err
	}
	x.stored(op)
	r.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "task: taken over", slog.String("name", op.Name), slog.String("id", op.ID))
	r.enqueue(x)
	return nil
}
