package task

import (
	"context"
	"log/slog"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
)

// orphanBatch is the maximum number of orphans that one round reads.
const orphanBatch = 100

// upkeep renews the lease until Shutdown. It also handles operations that another process has cancelled or marked,
// and operations of crashed processes.
func (r *Runner) upkeep() {
	interval := r.cfg.Lease / 3
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		r.lookAfter(interval)
		select {
		case <-ticks.C:
		case <-r.ctx.Done():
			_ = r.lease.release(callctx.Detach(r.ctx))
			return
		}
	}
}

// lookAfter runs one round. limit ends the round before the next renewal is due.
func (r *Runner) lookAfter(limit time.Duration) {
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	defer cancel()
	err := r.lease.renew(ctx)
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

// reconcile compares the Runner's active operations with their state in the store.
func (r *Runner) reconcile(ctx context.Context) error {
	active := r.scheduler.snapshot()
	stored, err := r.store.List(ctx, Query{Owner: r.lease.owner, Statuses: []Status{Pending, Running}, Limit: len(active) + orphanBatch})
	if err != nil {
		return err
	}
	ours := make(map[string]bool, len(stored))
	for _, op := range stored {
		ours[op.ID] = true
		switch x := r.scheduler.find(op.ID); {
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
			if op.Status.Final() && r.scheduler.find(op.ID) == x {
				x.end(KindInterrupted) // the lease had expired and another process marked it
			}
		}
	}
	return nil
}

// adopt handles the operations of crashed processes. It takes over those that it can run and marks the others.
func (r *Runner) adopt(ctx context.Context) error {
	var names []string
	if r.scheduler.accepts() {
		names = r.names()
	}
	orphans, err := r.store.Orphans(ctx, names, orphanBatch)
	if err != nil {
		return err
	}
	for _, op := range orphans {
		switch {
		case op.Owner == r.lease.owner: // the lease has just expired; the next round renews it
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
	op, err := change(ctx, r.store, orphan, func(op *Operation) bool {
		if op.Owner != orphan.Owner || op.Status != orphan.Status {
			return false
		}
		interrupted().end(op)
		return true
	})
	if err == nil && op.Status.Final() && op.Revision == orphan.Revision+1 {
		r.scheduler.count(&r.scheduler.counts.Interrupted)
		r.cfg.Logger.LogAttrs(ctx, slog.LevelError, "task: interrupted", slog.String("name", op.Name), slog.String("id", op.ID))
	}
	return err
}

// takeOver makes this Runner the owner of a pending operation, if there is a place for it.
func (r *Runner) takeOver(ctx context.Context, orphan Operation) error {
	x := newExecution(callctx.Detach(r.ctx), r, orphan, r.handler(orphan.Name).with(orphan.Input))
	if r.scheduler.enter(x) != nil {
		return nil // another process or a later round takes it over
	}
	op, err := change(ctx, r.store, orphan, func(op *Operation) bool {
		if op.Owner != orphan.Owner || op.Status != Pending {
			return false
		}
		op.Owner = r.lease.owner
		return true
	})
	if err != nil || op.Owner != r.lease.owner {
		r.scheduler.settle(x)
		r.scheduler.leave(x)
		return err
	}
	x.stored(op)
	r.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "task: taken over", slog.String("name", op.Name), slog.String("id", op.ID))
	r.scheduler.enqueue(x)
	return nil
}
