package riverguard

import (
	"context"
	"time"

	"github.com/aiguard-go/aiguard/task"
)

const pollInterval = time.Second // for operations that change in another process

// Wait waits until the operation is over and returns it. It returns ctx's error if ctx ends first.
func (r *Runner) Wait(ctx context.Context, id string) (task.Operation, error) {
	var op task.Operation
	var err error
	for revision := int64(0); err == nil && !op.Status.Final(); revision = op.Revision {
		op, err = r.Next(ctx, id, revision)
	}
	return op, err
}

// Next waits until the operation has a later revision or is final, and returns it. It polls the database every second
// for operations of other processes.
func (r *Runner) Next(ctx context.Context, id string, revision int64) (task.Operation, error) {
	job, _, ok := parseID(id)
	if !ok {
		return task.Operation{}, task.ErrNotFound
	}
	changes, stop := r.topics.watch(job)
	defer stop()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		changed := changes()
		op, err := r.Get(ctx, id)
		if err != nil || op.Revision > revision || op.Status.Final() {
			return op, err
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-ctx.Done():
			return task.Operation{}, ctx.Err()
		}
	}
}

// Cancel cancels the operation and returns its new state. A Pending operation becomes Cancelled, and so does one that
// waits to run again. For an operation that runs in any process, Cancel ends the context of its function. The operation
// is over when the function returns, or after Grace. A finished operation does not change. An operation whose function
// still succeeds becomes Succeeded.
func (r *Runner) Cancel(ctx context.Context, id string) (task.Operation, error) {
	w, err := r.get(ctx, id)
	if err != nil {
		return task.Operation{}, err
	}
	if op := w.operation(); op.Status.Final() {
		return op, nil
	}
	if _, err := r.client.JobCancel(ctx, w.id); err != nil {
		return task.Operation{}, stepFailed("cancel", err)
	}
	r.topics.publish(w.id)
	return r.Get(ctx, id)
}
