package riverguard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/operation"
	"github.com/aiguard-go/aiguard/task"
)

const storeTimeout = 5 * time.Second // for one statement

// worker is the River worker of a Runner's operations.
type worker struct {
	river.WorkerDefaults[args]
	r *Runner
}

// Work implements river.Worker.
func (w *worker) Work(ctx context.Context, job *river.Job[args]) error {
	fn := w.r.handler(job.Args.Name)
	if fn == nil {
		return river.JobSnooze(unknownDelay(job.JobRow)) // for a process that has registered the name
	}
	rec, err := recordOf(job.JobRow)
	if err != nil {
		return river.JobCancel(&failure{"riverguard: the metadata of the job has no operation", err})
	}
	if rec.Status.Final() { // a process died after it had stored the end, and before River had
		return riversEnd(rec)
	}
	return newRun(w.r, job.JobRow, rec).work(ctx, func(ctx context.Context) (any, error) { return fn(ctx, json.RawMessage(job.Args.Input)) })
}

// unknownDelay returns how long a job waits for another process. At first it is short, because this process may win the
// job again. It grows, because there may be no process that knows the name.
func unknownDelay(job *rivertype.JobRow) time.Duration {
	const first, most, quick = time.Second, time.Minute, 5
	var metadata struct{ Snoozes int }
	_ = json.Unmarshal(job.Metadata, &metadata) // River's own data
	delay := first
	for n := quick; n < metadata.Snoozes && delay < most; n++ {
		delay += delay / 2
	}
	return min(delay, most) + rand.N(first)
}

func recordOf(job *rivertype.JobRow) (record, error) {
	var metadata struct {
		Record *record `json:"aiguard"`
	}
	if err := json.Unmarshal(job.Metadata, &metadata); err != nil {
		return record{}, err
	}
	if metadata.Record == nil {
		return record{}, errors.New("it is missing")
	}
	return *metadata.Record, nil
}

// riversEnd returns what makes River end the job of an operation that is over. Failed operations are cancelled jobs.
func riversEnd(rec record) error {
	if rec.Status == task.Succeeded {
		return nil
	}
	return river.JobCancel(fmt.Errorf("operation %s: %s", rec.Status, rec.Code))
}

// result is what the function of an operation returned.
type result struct {
	value json.RawMessage
	err   error
}

// work runs the operation and returns what River does with its job next.
func (x *run) work(ctx context.Context, fn func(context.Context) (any, error)) error {
	x.r.count(func(s *task.Stats) { s.Started++; s.Running++ })
	start := time.Now()
	defer func() {
		x.r.mu.Lock()
		defer x.r.mu.Unlock()
		x.r.stats.Running--
		x.r.held += (time.Since(start) - x.r.held) / 8
	}()
	if !x.write("begin", x.begin) {
		return x.lost()
	}
	returned, overdue := make(chan result, 1), make(chan error, 1)
	go x.call(ctx, fn, returned, overdue)
	select {
	case res := <-returned:
		return x.end(ctx, res)
	case cause := <-overdue:
		// The operation ends now. Its function keeps its place until it returns.
		err := x.end(ctx, result{err: cause})
		x.log(slog.LevelError, "riverguard: stuck: the function still runs after its context ended")
		x.r.count(func(s *task.Stats) { s.Stuck++ })
		<-returned
		x.r.count(func(s *task.Stats) { s.Stuck-- })
		return err
	}
}

// call calls the function as a task of the guard. overdue receives the cause if the function still runs when Grace has
// passed since the end of its context. call runs in a goroutine of its own, because runtime.Goexit in the function
// would end River's.
func (x *run) call(ctx context.Context, fn func(context.Context) (any, error), returned chan<- result, overdue chan<- error) {
	res := result{err: task.KindInternal} // after runtime.Goexit
	over := make(chan struct{})
	defer func() {
		close(over)
		returned <- res
	}()
	var value json.RawMessage
	err := x.r.guard.With(aiguard.Call{Op: x.name}).RunTask(ctx, func(ctx context.Context) (err error) {
		stop := context.AfterFunc(ctx, func() { x.await(ctx, over, overdue) })
		defer stop()
		own := context.WithValue(ctx, operation.ProgressKey{}, x)
		value, err = operation.Call(func() (any, error) { return fn(own) }, func(what, stack string) {
			x.log(slog.LevelError, "riverguard: panic", slog.String("panic", what), slog.String("stack", stack))
		})
		return err
	})
	res = result{value, err}
}

// await waits up to Grace for a function whose context has ended.
func (x *run) await(ctx context.Context, over <-chan struct{}, overdue chan<- error) {
	grace := time.NewTimer(x.r.cfg.Grace)
	defer grace.Stop()
	select {
	case <-over:
		return
	case <-grace.C:
	}
	cause := context.Cause(ctx)
	if cause == context.Canceled {
		cause = aiguard.ErrClosed // the guard's Close sets no cause
	}
	overdue <- cause
}

// end decides how the run ends, stores it, and returns what River does with the job.
func (x *run) end(ctx context.Context, res result) error {
	x.decide()
	if res.err == nil {
		return x.finish(task.Succeeded, operation.Failure{}, res.value)
	}
	again := x.job.Attempt < x.job.MaxAttempts
	if cause := context.Cause(ctx); cause != nil && aiguard.KindOf(res.err) != aiguard.ErrTimeout { // unless the timeout came first
		switch {
		case errors.Is(cause, rivertype.ErrJobCancelledRemotely):
			return x.finish(task.Cancelled, operation.Cancelled(), nil)
		case again:
			return x.release(storable(errors.Join(ctx.Err(), res.err))) // River does not count the attempt
		}
		return x.finish(task.Failed, operation.Interrupted(), nil)
	}
	left := time.Duration(0)
	if x.r.cfg.Patience != aiguard.Off {
		left = x.r.cfg.Patience - time.Since(x.record().StartedAt)
	}
	v, delay := judge(res.err, left)
	switch {
	case v == snoozed:
		return x.release(river.JobSnooze(delay))
	case v == retried && again:
		return x.release(storable(res.err))
	}
	return x.finish(task.Failed, operation.Failed(res.err), nil)
}

// finish stores the end of the operation.
func (x *run) finish(status task.Status, why operation.Failure, value json.RawMessage) error {
	stored := x.write("finish", func(rec *record) {
		rec.Status, rec.Code, rec.Message, rec.FinishedAt = status, why.Code, why.Message, now()
		rec.Revision++ // a request to cancel adds 1 until the end
		if status == task.Succeeded {
			text := string(value)
			rec.Progress, rec.Result = 100, &text
		}
	})
	if !stored {
		return x.lost()
	}
	x.settle(status, why.Code)
	return riversEnd(x.record())
}

// settle counts and logs the end.
func (x *run) settle(status task.Status, code aiguard.Kind) {
	switch status {
	case task.Succeeded:
		x.r.count(func(s *task.Stats) { s.Succeeded++ })
	case task.Cancelled:
		x.r.count(func(s *task.Stats) { s.Cancelled++ })
		x.log(slog.LevelInfo, "riverguard: cancelled")
	default:
		x.r.count(func(s *task.Stats) { s.Failed++ })
		level := slog.LevelWarn
		if code == aiguard.ErrTimeout || code == task.KindInternal {
			level = slog.LevelError
		}
		x.log(level, "riverguard: failed", slog.String("code", string(code)))
	}
}

// release stores the progress of a run after which the job runs again, and returns verdict.
func (x *run) release(verdict error) error {
	if !x.write("release", func(*record) {}) {
		return x.lost()
	}
	x.r.count(func(s *task.Stats) { s.Released++ })
	x.log(slog.LevelInfo, "riverguard: runs again", slog.Any("reason", verdict))
	return verdict
}

// lost ends a run whose job belongs to another run, or to none. This happens if the process was frozen until River gave
// the job to another. What the worker returns would apply to the other run. lost therefore waits until that is over.
func (x *run) lost() error {
	x.r.count(func(s *task.Stats) { s.Lost++ })
	x.log(slog.LevelError, "riverguard: lost: another process has taken over the operation")
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for patience := x.r.jobTimeout(); patience > 0; patience -= time.Second {
		running, err := x.r.running(x.r.ctx, x.job.ID)
		if err == nil && !running {
			break
		}
		select {
		case <-ticks.C:
		case <-x.r.ctx.Done():
			patience = 0
		}
	}
	return errors.New("riverguard: another process has taken over the operation")
}
