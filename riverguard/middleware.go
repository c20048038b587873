package riverguard

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/operation"
)

// Middleware is a rivertype.WorkerMiddleware. It runs each job under the guard's TaskTimeout. When a job fails, it maps
// the error's kind to what River does next:
//
//   - ErrRateLimited, ErrOverloaded, and ErrBudget with a window that ends: the job is snoozed for the error's
//     RetryAfter, but at least for a second, with jitter. A snooze spends no attempt. Snoozes go on for Patience; after
//     that, River's own retry applies.
//   - ErrPromptTooLarge, ErrRejected, ErrQuota, ErrUnauthorized, ErrMisconfigured, and other ErrBudget: the job is
//     cancelled, because it would fail again.
//   - All other errors, and panics: River's own retry.
//
// What a worker returns with river.JobSnooze or river.JobCancel stays as it is.
//
// River stores the texts of errors and panics in the job's row and logs them. Middleware replaces the text of an error
// that is not of package aiguard by its type. errors.As and errors.Is still find the original error in River's
// ErrorHandler. This covers the errors of workers, hooks and later middleware. It does not cover middleware that a
// worker adds itself with Middleware, because River runs that first.
//
// Use Install to put it into a river.Config.
type Middleware struct {
	river.MiddlewareDefaults
	guard    *aiguard.Guard
	patience time.Duration
}

var _ rivertype.WorkerMiddleware = (*Middleware)(nil)

// NewMiddleware returns a Middleware that runs jobs under g's TaskTimeout. patience is how long a job may be snoozed
// altogether. 0 is DefaultPatience, and aiguard.Off means that jobs are never snoozed.
func NewMiddleware(g *aiguard.Guard, patience time.Duration) (*Middleware, error) {
	if g == nil {
		return nil, errors.New("riverguard: NewMiddleware: want a guard, not nil")
	}
	if patience < aiguard.Off {
		return nil, fmt.Errorf("riverguard: NewMiddleware: patience is %v; want a positive duration, 0 for the default, or aiguard.Off", patience)
	}
	return &Middleware{guard: g, patience: cmp.Or(patience, DefaultPatience)}, nil
}

// Install makes m the first middleware of cfg, so that it sees the errors of all others. It also sets the two times of
// cfg that must fit to the guard's TaskTimeout, or returns an error if they are set and do not fit:
//
//   - JobTimeout ends a job's context. River's default is one minute, less than the guard's default of two. It must not
//     be -1, because River never rescues the jobs of a dead process if they have no timeout. The same is true for the
//     Timeout method of a worker.
//   - RescueStuckJobsAfter is the age at which River repeats a job that still runs. River's default is more than an
//     hour.
func (m *Middleware) Install(cfg *river.Config) error {
	limit, ok := taskTimeout(m.guard)
	if !ok {
		return errors.New("riverguard: the guard's TaskTimeout is off; want a limit, because River rescues jobs of dead processes by their age")
	}
	if len(cfg.WorkerMiddleware)+len(cfg.JobInsertMiddleware) > 0 {
		return errors.New("riverguard: river.Config has WorkerMiddleware or JobInsertMiddleware; move them to Middleware")
	}
	timeout := cmp.Or(cfg.JobTimeout, limit+margin)
	rescue := cmp.Or(cfg.RescueStuckJobsAfter, timeout+margin)
	if timeout <= limit {
		return fmt.Errorf("riverguard: river.Config.JobTimeout is %v; want more than the guard's TaskTimeout of %v, or 0", timeout, limit)
	}
	if rescue <= timeout {
		return fmt.Errorf("riverguard: river.Config.RescueStuckJobsAfter is %v; want more than the JobTimeout of %v, or 0", rescue, timeout)
	}
	cfg.JobTimeout, cfg.RescueStuckJobsAfter = timeout, rescue
	cfg.Middleware = append([]rivertype.Middleware{m}, cfg.Middleware...)
	return nil
}

// Work implements rivertype.WorkerMiddleware.
func (m *Middleware) Work(ctx context.Context, job *rivertype.JobRow, doInner func(context.Context) error) error {
	err := m.run(ctx, job, doInner)
	switch {
	case err == nil:
		return nil
	case rivers(err):
		return storable(err)
	case ctx.Err() != nil: // the client stops; River repeats a job that says so, and does not count the attempt
		return storable(errors.Join(ctx.Err(), err))
	}
	since := snoozedSince(job)
	switch v, delay := judge(err, m.left(since)); v {
	case snoozed:
		if err := river.MetadataSet(ctx, metadataKey, waiting{since}); err != nil {
			return storable(err)
		}
		return river.JobSnooze(delay)
	case abandoned:
		return river.JobCancel(storable(err))
	}
	return storable(err)
}

// run runs the job. River stores and logs the value of a panic, so run replaces it.
func (m *Middleware) run(ctx context.Context, job *rivertype.JobRow, doInner func(context.Context) error) error {
	defer func() {
		if p := recover(); p != nil {
			panic(operation.PanicText(p))
		}
	}()
	return m.guard.With(aiguard.Call{Op: job.Kind}).RunTask(ctx, doInner)
}

func (m *Middleware) left(since time.Time) time.Duration {
	if m.patience == aiguard.Off {
		return 0
	}
	return m.patience - time.Since(since)
}

// metadataKey is the key of riverguard in a job's metadata.
const metadataKey = "aiguard"

// waiting is what Middleware keeps in a job's metadata.
type waiting struct {
	Since time.Time `json:"snoozed_since"`
}

// snoozedSince returns when a job was snoozed first, or now.
func snoozedSince(job *rivertype.JobRow) time.Time {
	var metadata struct {
		Waiting waiting `json:"aiguard"`
	}
	if json.Unmarshal(job.Metadata, &metadata) != nil || metadata.Waiting.Since.IsZero() { // never snoozed, or someone else's data
		return time.Now()
	}
	return metadata.Waiting.Since
}
