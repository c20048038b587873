package task

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/operation"
)

// execution runs an operation in its Runner, from its creation to its final state in the store:
//
//	enter → create → enqueue → run: begin → call → finish
//
// Each change of the stored operation holds writing, so that a progress update never races with the final state.
type execution struct {
	r   *Runner
	fn  func(context.Context) (any, error)
	ctx context.Context // has the values of Start's context

	submitted bool // another process can run it
	end       context.CancelCauseFunc

	// The scheduler's mutex guards turn, stuck and left.
	turn, stuck, left bool      // takes a running slot, counts in Stats.Stuck, has released its place
	since             time.Time // start of its turn

	writing chan struct{} // has capacity 1: a lock around store writes

	mu      sync.Mutex
	op      Operation     // as stored
	changed chan struct{} // closed at the next change of op
	decided bool          // the final state is chosen
	percent int
	note    string
	saved   time.Time   // time of the last progress write
	saving  *time.Timer // the next progress write
}

func newExecution(ctx context.Context, r *Runner, op Operation, fn func(context.Context) (any, error)) *execution {
	x := &execution{r: r, op: op, fn: fn, submitted: op.Input != nil, writing: make(chan struct{}, 1), changed: make(chan struct{})}
	x.ctx, x.end = context.WithCancelCause(ctx)
	return x
}

func (x *execution) operation() Operation {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.op
}

func (x *execution) changes() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.changed
}

// cancel ends the operation and returns its state after that.
func (x *execution) cancel(ctx context.Context) (Operation, error) {
	before := x.operation()
	x.end(KindCancelled)
	x.r.scheduler.dispatch()
	if before.Status == Pending {
		return x.r.Next(ctx, before.ID, before.Revision)
	}
	return x.r.store.Get(ctx, before.ID)
}

// run runs the operation when its turn comes.
func (x *execution) run() {
	defer x.end(nil)
	x.since = time.Now()
	defer x.r.scheduler.leave(x)
	if !x.begin() {
		return
	}
	end := failed(KindInternal).end // if the function calls runtime.Goexit
	defer func() { x.finish(end) }()
	result, err := x.call()
	end = x.outcome(result, err)
}

// begin makes the operation Running, unless it has already ended.
func (x *execution) begin() bool {
	switch cause := context.Cause(x.ctx); {
	case cause == KindInterrupted && x.submitted:
		x.decide()
		x.write("release", func(op *Operation) bool {
			mine := op.Owner == x.r.lease.owner
			op.Owner = ""
			return mine
		})
		x.settle()
		return false
	case cause != nil:
		x.finish(x.outcome(nil, cause))
		return false
	}
	x.write("begin", func(op *Operation) bool {
		if op.Status != Pending || op.Owner != x.r.lease.owner {
			return false
		}
		op.Status, op.StartedAt = Running, now()
		op.Attempts++
		return true
	})
	if op := x.operation(); op.Status != Running || op.Owner != x.r.lease.owner {
		x.decide()
		x.settle() // cancelled or taken over by another process, or the store never accepted the start
		return false
	}
	return true
}

// call runs the function as a task of the guard.
func (x *execution) call() (result json.RawMessage, err error) {
	returned := make(chan struct{})
	defer close(returned)
	err = x.r.guard.With(aiguard.Call{Op: x.op.Name}).RunTask(x.ctx, func(ctx context.Context) (err error) {
		stop := context.AfterFunc(ctx, func() { x.await(ctx, returned) })
		defer stop()
		result, err = x.protected(context.WithValue(ctx, operation.ProgressKey{}, x))
		return err
	})
	return result, err
}

// protected recovers a panic of the function, so that the process continues.
func (x *execution) protected(ctx context.Context) (json.RawMessage, error) {
	return operation.Call(func() (any, error) { return x.fn(ctx) }, func(what, stack string) {
		x.log(slog.LevelError, "task: panic", slog.String("panic", what), slog.String("stack", stack))
	})
}

// await waits up to Grace for a function to return after its context has ended. Then it ends the operation without
// waiting for the function.
func (x *execution) await(ctx context.Context, returned <-chan struct{}) {
	grace := time.NewTimer(x.r.cfg.Grace)
	defer grace.Stop()
	select {
	case <-returned:
		return
	case <-grace.C:
	}
	cause := context.Cause(ctx)
	if cause == context.Canceled {
		cause = aiguard.ErrClosed // the guard's Close sets no cause
	}
	end := x.outcome(nil, cause)
	if !x.decide() {
		return
	}
	x.r.scheduler.stuck(x)
	x.log(slog.LevelError, "task: stuck: the function still runs after its context ended")
	x.conclude(end)
}

// outcome returns the final change for a function that returned result and err.
func (x *execution) outcome(result json.RawMessage, err error) func(*Operation) {
	if err == nil {
		return func(op *Operation) {
			op.Status, op.Result, op.Progress, op.FinishedAt = Succeeded, result, 100, now()
		}
	}
	if aiguard.KindOf(err) != aiguard.ErrTimeout { // unless the timeout came first
		switch context.Cause(x.ctx) {
		case KindCancelled:
			return cancelled().end
		case KindInterrupted:
			return interrupted().end
		}
	}
	return failed(err).end
}

// decide reports whether the caller is the first to choose the final state. It also stops progress writes.
func (x *execution) decide() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	first := !x.decided
	x.decided = true
	if x.saving != nil {
		x.saving.Stop()
	}
	return first
}

// finish makes the operation final, unless another caller already does.
func (x *execution) finish(end func(*Operation)) {
	if x.decide() {
		x.conclude(end)
	}
}

func (x *execution) conclude(end func(*Operation)) {
	x.write("finish", func(op *Operation) bool {
		if op.Owner != x.r.lease.owner {
			return false
		}
		op.Progress, op.ProgressNote = x.latest()
		end(op)
		return true
	})
	x.settle()
}

// settle counts and logs the final state that this process knows.
func (x *execution) settle() {
	op := x.operation()
	var count *int64
	switch s := &x.r.scheduler.counts; {
	case op.Owner != x.r.lease.owner:
		count = &s.Released
		x.log(slog.LevelInfo, "task: released to another process")
	case op.Status == Succeeded:
		count = &s.Succeeded
	case op.Status == Failed:
		count = &s.Failed
		level := slog.LevelWarn
		if op.ErrorCode == aiguard.ErrTimeout || op.ErrorCode == KindInternal {
			level = slog.LevelError
		}
		x.log(level, "task: failed", slog.String("code", string(op.ErrorCode)))
	case op.Status == Cancelled:
		count = &s.Cancelled
		x.log(slog.LevelInfo, "task: cancelled")
	default:
		count = &s.Lost
		x.log(slog.LevelError, "task: lost: the store did not accept the final state")
	}
	x.r.scheduler.count(count)
	x.r.scheduler.settle(x)
}

// write changes the operation in the store and wakes its waiters. It gives up only after Shutdown has given up, or if
// the operation no longer exists.
func (x *execution) write(what string, f func(*Operation) bool) {
	x.writing <- struct{}{}
	defer func() { <-x.writing }()
	op := x.operation()
	err := x.r.persist(x.r.ctx, 0, what, op, func(ctx context.Context) (err error) {
		op, err = change(ctx, x.r.store, op, f)
		return err
	})
	if err == nil {
		x.stored(op)
	}
}

// stored records the operation as it is now in the store.
func (x *execution) stored(op Operation) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.op = op
	close(x.changed)
	x.changed = make(chan struct{})
}

// log logs one line about the operation. It never logs the input, the result, or the text of an error.
func (x *execution) log(level slog.Level, msg string, more ...slog.Attr) {
	op := x.operation()
	attrs := []slog.Attr{slog.String("name", op.Name), slog.String("id", op.ID)}
	if !op.StartedAt.IsZero() {
		attrs = append(attrs, slog.Duration("elapsed", time.Since(op.StartedAt)))
	}
	x.r.cfg.Logger.LogAttrs(x.ctx, level, msg, append(attrs, more...)...)
}

// SetProgress reports the progress of the operation that ctx belongs to. percent is limited to 0 to 100. note is a
// text for the user and is cut after 200 characters. SetProgress does not wait. The store gets the latest progress at
// most twice a second. With any other ctx it does nothing.
func SetProgress(ctx context.Context, percent int, note string) {
	operation.SetProgress(ctx, percent, note)
}

// SetProgress implements operation.Progress.
func (x *execution) SetProgress(percent int, note string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.percent, x.note = percent, note
	if x.saving == nil && !x.decided {
		// The delay must not be 0: two timers with 0 at once crash the race detector of Go 1.26.8 in a synctest
		// bubble.
		x.saving = time.AfterFunc(max(progressInterval-time.Since(x.saved), 1), x.saveProgress)
	}
}

func (x *execution) latest() (percent int, note string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.percent, x.note
}

// saveProgress makes one attempt. After a failure, the next progress or the final state carries the value.
func (x *execution) saveProgress() {
	x.writing <- struct{}{}
	defer func() { <-x.writing }()
	x.mu.Lock()
	op, decided := x.op, x.decided
	x.saved, x.saving = time.Now(), nil
	x.mu.Unlock()
	if decided {
		return
	}
	ctx, cancel := context.WithTimeout(x.r.ctx, storeTimeout)
	defer cancel()
	changed, err := change(ctx, x.r.store, op, func(op *Operation) bool {
		percent, note := x.latest()
		if op.Owner != x.r.lease.owner || op.Progress == percent && op.ProgressNote == note {
			return false
		}
		op.Progress, op.ProgressNote = percent, note
		return true
	})
	if err != nil {
		x.r.StoreFailed("progress", op, err)
		return
	}
	if changed.Revision > op.Revision {
		x.stored(changed)
	}
}
