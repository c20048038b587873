package riverguard

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/riverqueue/river/rivertype"

	"github.com/aiguard-go/aiguard/task"
)

const progressInterval = 500 * time.Millisecond // between two writes of an operation's progress

// run is one run of an operation's job. Only its writes change the record of the operation.
type run struct {
	r   *Runner
	job *rivertype.JobRow

	id, name string // of the operation

	writing sync.Mutex // held during a write
	rec     record     // as stored; guarded by writing

	mu      sync.Mutex
	percent int
	note    string
	decided bool        // the end is chosen
	saved   time.Time   // time of the last progress write
	saving  *time.Timer // the next progress write
}

func newRun(r *Runner, job *rivertype.JobRow, rec record) *run {
	return &run{r: r, job: job, id: operationID(job.ID, rec.Secret), name: rec.Name, rec: rec}
}

// begin makes the operation Running in this run.
func (x *run) begin(rec *record) {
	rec.Status, rec.Owner, rec.Run = task.Running, x.r.client.ID(), strconv.FormatInt(x.job.AttemptedAt.UnixMicro(), 36)
	rec.Attempts++
	if rec.StartedAt.IsZero() {
		rec.StartedAt = now()
	}
}

// write changes the record in the database, and tries until it succeeds or Shutdown has given up. It returns false if
// the run has lost its job.
func (x *run) write(step string, change func(*record)) (stored bool) {
	x.writing.Lock()
	defer x.writing.Unlock()
	const first, most = 50 * time.Millisecond, 5 * time.Second
	for wait := first; ; wait = min(2*wait, most) {
		mine, err := x.store(change)
		if err == nil {
			return mine
		}
		x.r.StoreFailed(step, task.Operation{ID: x.id, Name: x.name}, err)
		timer := time.NewTimer(wait/2 + rand.N(wait/2))
		select {
		case <-timer.C:
		case <-x.r.ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// store makes one attempt to change the record. The caller holds writing.
func (x *run) store(change func(*record)) (mine bool, err error) {
	ctx, cancel := context.WithTimeout(x.r.ctx, storeTimeout)
	defer cancel()
	rec := x.rec
	rec.Revision++
	rec.Progress, rec.Note = x.latest()
	change(&rec)
	if mine, err = x.r.save(ctx, x.job, rec); !mine || err != nil {
		return false, err
	}
	x.rec = rec
	x.r.topics.publish(x.job.ID)
	return true, nil
}

func (x *run) record() record {
	x.writing.Lock()
	defer x.writing.Unlock()
	return x.rec
}

// SetProgress implements operation.Progress.
func (x *run) SetProgress(percent int, note string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.percent, x.note = percent, note
	if x.saving == nil && !x.decided {
		x.saving = time.AfterFunc(max(progressInterval-time.Since(x.saved), 1), x.saveProgress)
	}
}

// saveProgress makes one attempt. After a failure, the next progress or the end carries the value.
func (x *run) saveProgress() {
	x.writing.Lock()
	defer x.writing.Unlock()
	x.mu.Lock()
	decided := x.decided
	x.saved, x.saving = time.Now(), nil
	x.mu.Unlock()
	if decided {
		return
	}
	if percent, note := x.latest(); percent == x.rec.Progress && note == x.rec.Note {
		return
	}
	if _, err := x.store(func(*record) {}); err != nil {
		x.r.StoreFailed("progress", task.Operation{ID: x.id, Name: x.name}, err)
	}
}

// decide stops the writes of progress, because the end is chosen.
func (x *run) decide() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.decided = true
	if x.saving != nil {
		x.saving.Stop()
	}
}

func (x *run) latest() (percent int, note string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.percent, x.note
}

// log logs one line about the operation. It never logs the input, the result, or the text of an unknown error.
func (x *run) log(level slog.Level, msg string, more ...slog.Attr) {
	x.r.cfg.Logger.LogAttrs(x.r.ctx, level, msg, append([]slog.Attr{slog.String("name", x.name), slog.String("id", x.id)}, more...)...)
}

// StoreFailed counts and logs a failure of the database at a step. After a failover, the pool may hold sessions of a
// server that is now a standby and rejects every write. StoreFailed closes them.
func (r *Runner) StoreFailed(step string, op task.Operation, err error) {
	const readOnlyTransaction = "25006"
	if failure := (*pgconn.PgError)(nil); errors.As(err, &failure) && failure.Code == readOnlyTransaction {
		r.pool.Reset()
	}
	r.count(func(s *task.Stats) { s.StoreErrors++ })
	r.cfg.Logger.LogAttrs(r.ctx, slog.LevelWarn, "riverguard: the database failed", slog.String("step", step),
		slog.String("name", op.Name), slog.String("id", op.ID), slog.Any("error", err))
}

// now has microsecond precision, as PostgreSQL.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
