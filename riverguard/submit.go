package riverguard

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/operation"
	"github.com/aiguard-go/aiguard/task"
)

// kind is the kind of all jobs of Runners. With one kind, every process can rescue every job.
const kind = "aiguard_operation"

// args are the arguments of a job.
type args struct {
	Name  string `json:"name"`
	Input string `json:"input"` // JSON as a text: River's jsonb would change numbers, and rejects \u0000
}

// Kind implements river.JobArgs.
func (args) Kind() string { return kind }

// Submit starts an operation and returns it at once as Pending. The function registered for name runs it with input,
// in this or another process. The input is stored as JSON of at most 1 MiB; a larger input gives an *aiguard.Error of
// kind aiguard.ErrPromptTooLarge.
//
// Submit returns an *aiguard.Error of kind aiguard.ErrOverloaded, with a RetryAfter, if MaxPending operations wait in
// the queue. With n processes that submit at the same moment, up to n-1 more may wait. After Shutdown the kind is
// aiguard.ErrClosed.
//
// If Submit returns an error of the database, the operation may have been stored all the same.
func (r *Runner) Submit(ctx context.Context, name string, input any) (task.Operation, error) {
	// One at a time, so that this process does not exceed MaxPending.
	select {
	case r.submitting <- struct{}{}:
		defer func() { <-r.submitting }()
	case <-ctx.Done():
		return task.Operation{}, ctx.Err()
	}
	return r.submit(ctx, r.pool, name, input, r.client.Insert)
}

// SubmitTx is like Submit, but stores the operation with tx. The operation becomes visible and starts when tx commits,
// and never existed if tx rolls back. Until then Get does not find it. MaxPending does not count the operations of other
// transactions that have not committed. After an error, roll tx back.
func (r *Runner) SubmitTx(ctx context.Context, tx pgx.Tx, name string, input any) (task.Operation, error) {
	return r.submit(ctx, tx, name, input, func(ctx context.Context, a river.JobArgs, opts *river.InsertOpts) (*rivertype.JobInsertResult, error) {
		return r.client.InsertTx(ctx, tx, a, opts)
	})
}

// querier is a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// submit uses no connection but db's, because a transaction may hold the last one of the pool.
func (r *Runner) submit(ctx context.Context, db querier, name string, input any,
	insert func(context.Context, river.JobArgs, *river.InsertOpts) (*rivertype.JobInsertResult, error)) (task.Operation, error) {
	if r.handler(name) == nil {
		return task.Operation{}, fmt.Errorf("riverguard: Submit: no handler is registered for %q", name)
	}
	if err := operation.CheckName(name); err != nil {
		return task.Operation{}, err
	}
	in, err := operation.EncodeInput(name, input)
	if err != nil {
		return task.Operation{}, err
	}
	rec := record{Secret: rand.Text(), Name: name, Status: task.Pending, Revision: 1}
	metadata, err := json.Marshal(map[string]record{metadataKey: rec})
	if err != nil {
		return task.Operation{}, err
	}
	if err := ctx.Err(); err != nil {
		return task.Operation{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := r.admit(ctx, db, name); err != nil {
		return task.Operation{}, err
	}
	inserted, err := insert(ctx, args{name, string(in)}, &river.InsertOpts{Queue: r.cfg.Queue, MaxAttempts: r.cfg.MaxAttempts, Metadata: metadata})
	if err != nil {
		r.StoreFailed("create", task.Operation{Name: name}, err)
		return task.Operation{}, fmt.Errorf("riverguard: the operation could not be stored: %w", err)
	}
	return row{id: inserted.Job.ID, state: inserted.Job.State, created: inserted.Job.CreatedAt, record: rec}.operation(), nil
}

// admit returns an error if no operation may be added to the queue.
func (r *Runner) admit(ctx context.Context, db querier, name string) error {
	if r.closed() {
		return &aiguard.Error{Kind: aiguard.ErrClosed, Op: name, Phase: aiguard.PhaseTask}
	}
	if r.cfg.MaxPending == aiguard.Off {
		return nil
	}
	waiting, running, err := r.places(ctx, db)
	switch {
	case err != nil:
		r.StoreFailed("count", task.Operation{Name: name}, err)
		return fmt.Errorf("riverguard: the waiting operations could not be counted: %w", err)
	case waiting+running < r.cfg.MaxRunning+r.cfg.MaxPending: // operations that wait for free slots do not wait long
		return nil
	}
	r.count(func(s *task.Stats) { s.Refused++ })
	return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: name, Phase: aiguard.PhaseQueue,
		Size: int64(waiting), Max: int64(r.cfg.MaxPending), RetryAfter: r.retryAfter(waiting)}
}

func (r *Runner) closed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closing
}

// retryAfter estimates when a waiting operation will start, from the average time that operations run here.
func (r *Runner) retryAfter(waiting int) time.Duration {
	const least, most = time.Second, time.Minute
	r.mu.Lock()
	defer r.mu.Unlock()
	return min(max(r.held*time.Duration(waiting+1)/time.Duration(r.cfg.MaxRunning), least), most)
}
