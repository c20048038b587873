package riverguard

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river/rivertype"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/operation"
	"github.com/aiguard-go/aiguard/task"
)

// record is what an operation keeps in the metadata of its job. Only the current run of the job writes it.
type record struct {
	Secret     string       `json:"secret"`
	Name       string       `json:"name"`
	Status     task.Status  `json:"status"`
	Revision   int64        `json:"revision"`
	Run        string       `json:"run,omitempty"` // the run that wrote the record
	Owner      string       `json:"owner,omitempty"`
	Attempts   int          `json:"attempts,omitempty"`
	Progress   int          `json:"progress,omitempty"`
	Note       string       `json:"note,omitempty"`
	Code       aiguard.Kind `json:"code,omitempty"`
	Message    string       `json:"message,omitempty"`
	Result     *string      `json:"result,omitempty"` // JSON as a text, for the same reason as the input
	StartedAt  time.Time    `json:"started_at,omitzero"`
	FinishedAt time.Time    `json:"finished_at,omitzero"`
}

// row is what the database has of an operation, without its input.
type row struct {
	id        int64
	state     rivertype.JobState
	created   time.Time
	finalized *time.Time
	cancelled bool // its cancellation was requested
	record    record
}

const columns = `id, state, created_at, finalized_at, metadata ? 'cancel_attempted_at', metadata->'aiguard'`

// status is the SQL for the Status of row.operation.
const status = `CASE WHEN metadata->'aiguard'->>'finished_at' IS NOT NULL THEN metadata->'aiguard'->>'status'
	WHEN state = 'completed' THEN 'succeeded' WHEN state = 'cancelled' THEN 'cancelled' WHEN state = 'discarded' THEN 'failed'
	ELSE metadata->'aiguard'->>'status' END`

// operation returns the operation of the row. A run's own end of the operation takes precedence over River's state,
// which follows it. If River ended the job alone, no run could say why: the job was cancelled while it waited, or its
// process died.
func (w row) operation() task.Operation {
	rec := w.record
	op := task.Operation{ID: operationID(w.id, rec.Secret), Name: rec.Name, Status: rec.Status, ErrorCode: rec.Code, ErrorMessage: rec.Message,
		Progress: rec.Progress, ProgressNote: rec.Note, CreatedAt: w.created.UTC(), StartedAt: rec.StartedAt, FinishedAt: rec.FinishedAt,
		Attempts: rec.Attempts, Revision: rec.Revision, Owner: rec.Owner}
	if rec.Result != nil {
		op.Result = json.RawMessage(*rec.Result)
	}
	if op.Status.Final() {
		return op
	}
	if w.cancelled {
		op.CancelRequested = true
		op.Revision++
	}
	if w.finalized == nil {
		return op
	}
	op.FinishedAt = w.finalized.UTC()
	op.Revision++
	var why operation.Failure
	switch w.state {
	case rivertype.JobStateCompleted: // by somebody else than a Runner
		op.Status, op.Progress = task.Succeeded, 100
	case rivertype.JobStateCancelled:
		op.Status, why = task.Cancelled, operation.Cancelled()
	default:
		op.Status, why = task.Failed, operation.Interrupted()
	}
	op.ErrorCode, op.ErrorMessage = why.Code, why.Message
	return op
}

// operationID returns the ID of an operation. The number finds its job, and the secret makes the ID hard to guess.
func operationID(job int64, secret string) string { return fmt.Sprintf("%s-%d", secret, job) }

// parseID returns the parts of an operation's ID.
func parseID(id string) (job int64, secret string, ok bool) {
	secret, number, _ := strings.Cut(id, "-")
	job, err := strconv.ParseInt(number, 10, 64)
	return job, secret, err == nil && operation.IsID(id) && operationID(job, secret) == id
}

func scan(from pgx.Row) (w row, err error) {
	var rec []byte
	if err = from.Scan(&w.id, &w.state, &w.created, &w.finalized, &w.cancelled, &rec); err == nil {
		err = json.Unmarshal(rec, &w.record)
	}
	return w, err
}

// Get returns an operation without its Input, or task.ErrNotFound.
func (r *Runner) Get(ctx context.Context, id string) (task.Operation, error) {
	w, err := r.get(ctx, id)
	if err != nil {
		return task.Operation{}, err
	}
	return w.operation(), nil
}

func (r *Runner) get(ctx context.Context, id string) (row, error) {
	job, secret, ok := parseID(id)
	if !ok {
		return row{}, task.ErrNotFound
	}
	w, err := scan(r.pool.QueryRow(ctx, `SELECT `+columns+` FROM `+r.table+`
		WHERE id = $1 AND kind = $2 AND queue = $3 AND metadata->'aiguard'->>'secret' = $4`, job, kind, r.cfg.Queue, secret))
	if errors.Is(err, pgx.ErrNoRows) {
		err = task.ErrNotFound
	}
	return w, stepFailed("get", err)
}

// List returns the operations of the queue that q selects, newest first, without their Input.
func (r *Runner) List(ctx context.Context, q task.Query) (found []task.Operation, err error) {
	statuses := make([]string, len(q.Statuses))
	for i, s := range q.Statuses {
		statuses[i] = string(s)
	}
	rows, err := r.pool.Query(ctx, `SELECT `+columns+` FROM `+r.table+`
		WHERE kind = $1 AND queue = $2 AND ($3 = '' OR metadata->'aiguard'->>'name' = $3) AND ($4 = '' OR metadata->'aiguard'->>'owner' = $4)
			AND (cardinality($5::text[]) = 0 OR `+status+` = ANY ($5))
		ORDER BY id DESC LIMIT $6`, kind, r.cfg.Queue, q.Name, q.Owner, statuses, cmp.Or(max(q.Limit, 0), task.DefaultLimit))
	if err != nil {
		return nil, stepFailed("list", err)
	}
	found, err = pgx.CollectRows(rows, func(from pgx.CollectableRow) (task.Operation, error) {
		w, err := scan(from)
		return w.operation(), err
	})
	return found, stepFailed("list", err)
}

// places returns how many operations of the queue wait and run. It counts at most MaxRunning that run, because those of
// other processes take no slot of this one, and no more that wait than Submit needs.
func (r *Runner) places(ctx context.Context, db querier) (waiting, running int, err error) {
	err = db.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM (SELECT FROM `+r.table+` WHERE queue = $1 AND state IN ('available', 'pending', 'retryable', 'scheduled') LIMIT $2) w),
		(SELECT count(*) FROM (SELECT FROM `+r.table+` WHERE queue = $1 AND state = 'running' LIMIT $3) r)`,
		r.cfg.Queue, r.cfg.MaxRunning+r.cfg.MaxPending, r.cfg.MaxRunning).Scan(&waiting, &running)
	return waiting, running, err
}

// save stores the record of a run. mine is false if the run has lost its job: another run has begun, or the operation
// is over. The run may repeat the same save.
func (r *Runner) save(ctx context.Context, job *rivertype.JobRow, rec record) (mine bool, err error) {
	text, err := json.Marshal(rec)
	if err != nil {
		return false, err
	}
	tag, err := r.pool.Exec(ctx, `UPDATE `+r.table+` SET metadata = metadata || jsonb_build_object('aiguard', $3::jsonb)
		WHERE id = $1 AND attempted_at = $2 AND finalized_at IS NULL AND (metadata->'aiguard'->>'finished_at' IS NULL OR metadata->'aiguard'->>'run' = $4)`,
		job.ID, job.AttemptedAt, string(text), rec.Run)
	return tag.RowsAffected() == 1, err
}

// running reports whether a run of the job is active.
func (r *Runner) running(ctx context.Context, job int64) (running bool, err error) {
	err = r.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+r.table+` WHERE id = $1 AND state = 'running')`, job).Scan(&running)
	return running, err
}

// stepFailed adds the failed step to err. Errors of package task stay unchanged.
func stepFailed(step string, err error) error {
	if err == nil || errors.Is(err, task.ErrNotFound) {
		return err
	}
	return fmt.Errorf("riverguard: %s: %w", step, err)
}
