package task

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// change applies f to op and stores the result in store. If another process has changed the operation, change applies f to the
// stored version. f reports whether it changed anything. A final operation never changes. change returns the stored
// operation.
func change(ctx context.Context, store Store, op Operation, f func(*Operation) bool) (Operation, error) {
	for {
		next := op
		if op.Status.Final() || !f(&next) {
			return op, nil
		}
		next.Revision++
		err := store.Update(ctx, next)
		if err == nil {
			return next, nil
		}
		if !errtree.Is(err, ErrConflict) {
			return op, err
		}
		// Another writer was first, or an earlier attempt was stored although it returned an error. f checks the
		// stored version.
		stored, err := store.Get(ctx, op.ID)
		if err != nil {
			return op, err
		}
		if stored.Revision <= op.Revision {
			return op, fmt.Errorf("%w, but its revision is still %d", ErrConflict, stored.Revision)
		}
		op = stored
	}
}

// persist calls f until it succeeds, with backoff between the attempts. It makes at most tries attempts; with 0 it
// continues until ctx ends. A temporary failure of the store therefore loses no state.
func (r *Runner) persist(ctx context.Context, tries int, what string, op Operation, f func(context.Context) error) error {
	const first, most = 50 * time.Millisecond, 5 * time.Second
	for try, wait := 1, first; ; try, wait = try+1, min(2*wait, most) {
		err := once(ctx, f)
		if err == nil || errtree.Is(err, ErrExists) {
			return err
		}
		r.StoreFailed(what, op, err)
		if try == tries || errtree.Is(err, ErrNotFound) {
			return err
		}
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// once calls f with the timeout of one call of the Store.
func once(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return f(ctx)
}

// StoreFailed counts and logs a failure of the store. what is the step that failed.
func (r *Runner) StoreFailed(what string, op Operation, err error) {
	r.scheduler.count(&r.scheduler.counts.StoreErrors)
	r.cfg.Logger.LogAttrs(r.ctx, slog.LevelWarn, "task: the store failed", slog.String("step", what),
		slog.String("name", op.Name), slog.String("id", op.ID), slog.Any("error", err))
}
