package riverguard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
	"github.com/aiguard-go/aiguard/riverguard"
)

const secret = "the secret prompt"

// jobArgs are the arguments of a user's own job.
type jobArgs struct{ Prompt string }

func (jobArgs) Kind() string { return "own" }

// jobs is a user's own River client with the middleware.
type jobs struct {
	*river.Client[pgx.Tx]
	t      *testing.T
	pool   *pgxpool.Pool
	events <-chan *river.Event
	log    *syncbuf.Buffer
}

// newJobs starts a client whose worker is work. The jobs may be snoozed for patience.
func newJobs(t *testing.T, g *aiguard.Guard, patience time.Duration, cfg river.Config, work func(context.Context) error) *jobs {
	t.Helper()
	j := &jobs{t: t, pool: newPool(t, newDatabase(t)), log: &syncbuf.Buffer{}}
	migrator, err := rivermigrate.New(riverpgxv5.New(j.pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	_, err = migrator.Migrate(t.Context(), rivermigrate.DirectionUp, nil)
	require.NoError(t, err)

	m, err := riverguard.NewMiddleware(g, patience)
	require.NoError(t, err)
	require.NoError(t, m.Install(&cfg))
	cfg.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}}
	cfg.Workers, cfg.TestOnly = river.NewWorkers(), true
	cfg.Logger = slog.New(slog.NewTextHandler(j.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	river.AddWorker(cfg.Workers, river.WorkFunc(func(ctx context.Context, _ *river.Job[jobArgs]) error { return work(ctx) }))
	j.Client, err = river.NewClient(riverpgxv5.New(j.pool), &cfg)
	require.NoError(t, err)
	j.events, _ = j.Subscribe(river.EventKindJobCompleted, river.EventKindJobFailed, river.EventKindJobCancelled, river.EventKindJobSnoozed)
	require.NoError(t, j.Start(context.Background()))
	t.Cleanup(func() { j.stop() })
	return j
}

func (j *jobs) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(j.t, j.StopAndCancel(ctx))
}

// run inserts a job and returns the event of its first run.
func (j *jobs) run(opts *river.InsertOpts) *river.Event {
	j.t.Helper()
	_, err := j.Insert(j.t.Context(), jobArgs{secret}, opts)
	require.NoError(j.t, err)
	return j.next()
}

// next returns the event of the next run.
func (j *jobs) next() *river.Event {
	j.t.Helper()
	select {
	case e := <-j.events:
		return e
	case <-time.After(patience):
		require.Fail(j.t, "the job does not run", j.log)
		return nil
	}
}

// stored returns all that the database has of the jobs, apart from their arguments.
func (j *jobs) stored() string {
	j.t.Helper()
	rows, err := j.pool.Query(j.t.Context(), "SELECT to_jsonb(river_job) - 'args' FROM river_job")
	require.NoError(j.t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[json.RawMessage])
	require.NoError(j.t, err)
	text, err := json.Marshal(all)
	require.NoError(j.t, err)
	return string(text)
}

func TestKindsBecomeRiversVerbs(t *testing.T) {
	t.Parallel()
	var result error
	j := newJobs(t, newGuard(t, aiguard.Config{}), 0, river.Config{}, func(context.Context) error { return result })
	tooLong := 2 * riverguard.DefaultPatience
	for verb, errs := range map[river.EventKind][]error{
		river.EventKindJobCompleted: {nil},
		river.EventKindJobCancelled: {
			aiguard.ErrPromptTooLarge, aiguard.ErrRejected, aiguard.ErrQuota, aiguard.ErrUnauthorized, aiguard.ErrMisconfigured, aiguard.ErrBudget,
			&aiguard.Error{Kind: aiguard.ErrRejected, RetryAfter: time.Second}, fmt.Errorf("%s: %w", secret, aiguard.ErrRejected),
			river.JobCancel(errors.New(secret)), river.JobCancel(aiguard.ErrTimeout),
		},
		river.EventKindJobSnoozed: {
			aiguard.ErrRateLimited, aiguard.ErrOverloaded, &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Millisecond},
			fmt.Errorf("%s: %w", secret, &aiguard.Error{Kind: aiguard.ErrOverloaded, RetryAfter: time.Second}), river.JobSnooze(time.Second),
			&aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Minute}, &aiguard.Error{Kind: aiguard.ErrBudget, RetryAfter: time.Minute},
			river.JobSnooze(time.Hour),
		},
		river.EventKindJobFailed: {
			aiguard.ErrTimeout, aiguard.ErrUnavailable, aiguard.ErrTruncated, aiguard.ErrInvalidResponse, aiguard.ErrResponseTooLarge, aiguard.ErrClosed,
			errors.New(secret), fmt.Errorf("%s: %w", secret, context.DeadlineExceeded), fmt.Errorf("%s: %w", secret, context.Canceled),
			&aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: tooLong}, &aiguard.Error{Kind: aiguard.ErrBudget, RetryAfter: tooLong},
		},
	} {
		for _, result = range errs {
			e := j.run(&river.InsertOpts{MaxAttempts: 5, Metadata: []byte(`{"other": 1}`)})
			require.Equal(t, verb, e.Kind, "%v", result)
			require.Equal(t, 5, e.Job.MaxAttempts)
			if verb == river.EventKindJobSnoozed {
				require.Zero(t, e.Job.Attempt, "a snooze spends no attempt")
				require.Empty(t, e.Job.Errors)
				if facts := aiguard.Explain(result); facts != nil {
					delay, least := time.Until(e.Job.ScheduledAt), max(facts.RetryAfter, time.Second)
					require.Greater(t, delay, least-500*time.Millisecond, "%v", result)
					require.Less(t, delay, least*5/4+time.Second, "%v", result)
				}
			} else {
				require.Equal(t, 1, e.Job.Attempt)
			}
			_, err := j.JobCancel(t.Context(), e.Job.ID) // changes nothing if the job is over
			require.NoError(t, err)
		}
	}
	require.NotContains(t, j.stored(), secret)
	require.NotContains(t, j.log.String(), secret)
}

func TestSnoozesSpendNoAttemptsAndEndWithPatience(t *testing.T) {
	t.Parallel()
	j := newJobs(t, newGuard(t, aiguard.Config{}), 4*time.Second, river.Config{}, func(context.Context) error { return aiguard.ErrRateLimited })
	e, snoozes := j.run(&river.InsertOpts{MaxAttempts: 2}), 0
	start := e.Job.CreatedAt
	for ; e.Kind == river.EventKindJobSnoozed; e = j.next() {
		snoozes++
		require.Zero(t, e.Job.Attempt)
		require.Equal(t, 2, e.Job.MaxAttempts, "does not grow")
	}
	require.GreaterOrEqual(t, snoozes, 2)
	require.Equal(t, river.EventKindJobFailed, e.Kind, "River's own retry takes over")
	require.Equal(t, 1, e.Job.Attempt)
	require.Less(t, time.Since(start), 4*time.Second+patience)
	e = j.next()
	require.Equal(t, river.EventKindJobFailed, e.Kind)
	require.Equal(t, rivertype.JobStateDiscarded, e.Job.State)
	require.Len(t, e.Job.Errors, 2)
}

func TestPanicLeavesNoTextInRiver(t *testing.T) {
	t.Parallel()
	type prompt struct{ Text string }
	values := []any{secret, errors.New(secret), prompt{secret}, fmt.Errorf("%s: %w", secret, aiguard.ErrRejected)}
	var value any
	j := newJobs(t, newGuard(t, aiguard.Config{}), 0, river.Config{}, func(context.Context) error { panic(value) })
	for _, value = range values {
		e := j.run(&river.InsertOpts{MaxAttempts: 1})
		require.Equal(t, river.EventKindJobFailed, e.Kind)
		require.Equal(t, fmt.Sprintf("%T", value), e.Job.Errors[0].Error)
		require.Contains(t, e.Job.Errors[0].Trace, "middleware_test.go", "the stack of the panic")
	}
	require.NotContains(t, j.stored(), secret)
	require.NotContains(t, j.log.String(), secret)
}

func TestErrorsOfHooksAndLaterMiddlewareLeaveNoTextInRiver(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]river.Config{
		"hook before": {Hooks: []rivertype.Hook{river.HookWorkBeginFunc(func(context.Context, *rivertype.JobRow) error { return errors.New(secret) })}},
		"hook after": {Hooks: []rivertype.Hook{river.HookWorkEndFunc(func(context.Context, *rivertype.JobRow, error) error {
			return errors.New(secret)
		})}},
		"middleware": {Middleware: []rivertype.Middleware{river.WorkerMiddlewareFunc(
			func(context.Context, *rivertype.JobRow, func(context.Context) error) error { return errors.New(secret) })}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var original error
			cfg.ErrorHandler = handler(func(err error) { original = errors.Unwrap(err) })
			j := newJobs(t, newGuard(t, aiguard.Config{}), 0, cfg, func(context.Context) error { return nil })
			e := j.run(&river.InsertOpts{MaxAttempts: 1})
			require.Equal(t, "an error of type *errors.errorString, whose text is not stored", e.Job.Errors[0].Error)
			require.NotContains(t, j.stored(), secret)
			require.NotContains(t, j.log.String(), secret)
			require.EqualError(t, original, secret, "the user's error handler finds the original error")
		})
	}
}

// handler is an ErrorHandler.
type handler func(error)

func (h handler) HandleError(_ context.Context, _ *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	h(err)
	return nil
}

func (h handler) HandlePanic(context.Context, *rivertype.JobRow, any, string) *river.ErrorHandlerResult {
	return nil
}

func TestJobRunsUnderTheTaskTimeout(t *testing.T) {
	t.Parallel()
	j := newJobs(t, newGuard(t, aiguard.Config{TaskTimeout: time.Second}), 0, river.Config{}, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	e := j.run(&river.InsertOpts{MaxAttempts: 1})
	require.Contains(t, e.Job.Errors[0].Error, "timeout: task")
	require.GreaterOrEqual(t, e.JobStats.RunDuration, time.Second)
}

func TestStoppedClientReleasesItsJobs(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	j := newJobs(t, newGuard(t, aiguard.Config{}), 0, river.Config{}, func(ctx context.Context) error {
		close(started)
		<-ctx.Done()
		return &aiguard.Error{Kind: aiguard.ErrUnavailable} // not the context's own error
	})
	inserted, err := j.Insert(t.Context(), jobArgs{secret}, nil)
	require.NoError(t, err)
	<-started
	j.stop()
	job, err := j.JobGet(t.Context(), inserted.Job.ID)
	require.NoError(t, err)
	require.Equal(t, rivertype.JobStateAvailable, job.State)
	require.Zero(t, job.Attempt)
	require.Empty(t, job.Errors)
}

func TestInstallFitsRiversTimesToTheTaskTimeout(t *testing.T) {
	install := func(g aiguard.Config, cfg river.Config) (river.Config, error) {
		m, err := riverguard.NewMiddleware(newGuard(t, g), 0)
		require.NoError(t, err)
		err = m.Install(&cfg)
		return cfg, err
	}
	cfg, err := install(aiguard.Config{}, river.Config{Middleware: []rivertype.Middleware{&river.MiddlewareDefaults{}}})
	require.NoError(t, err)
	require.Greater(t, cfg.JobTimeout, 2*time.Minute, "River's default of one minute would end a job earlier")
	require.Greater(t, cfg.RescueStuckJobsAfter, cfg.JobTimeout)
	require.Less(t, cfg.RescueStuckJobsAfter, 3*time.Minute)
	require.IsType(t, &riverguard.Middleware{}, cfg.Middleware[0], "first, to see all errors")
	require.Len(t, cfg.Middleware, 2)

	cfg, err = install(aiguard.Config{}, river.Config{JobTimeout: time.Hour, RescueStuckJobsAfter: 2 * time.Hour})
	require.NoError(t, err)
	require.Equal(t, time.Hour, cfg.JobTimeout)
	require.Equal(t, 2*time.Hour, cfg.RescueStuckJobsAfter)

	for want, bad := range map[string]river.Config{
		"JobTimeout is -1ns":         {JobTimeout: -1}, // River would never rescue a job
		"JobTimeout is 2m0s":         {JobTimeout: 2 * time.Minute},
		"RescueStuckJobsAfter is 2m": {RescueStuckJobsAfter: 2 * time.Minute},
		"WorkerMiddleware":           {WorkerMiddleware: []rivertype.WorkerMiddleware{&riverguard.Middleware{}}},
	} {
		_, err := install(aiguard.Config{}, bad)
		require.ErrorContains(t, err, want)
	}
	_, err = install(aiguard.Config{TaskTimeout: aiguard.Off}, river.Config{})
	require.ErrorContains(t, err, "TaskTimeout is off")
	_, err = riverguard.NewMiddleware(nil, 0)
	require.ErrorContains(t, err, "nil")
	_, err = riverguard.NewMiddleware(newGuard(t, aiguard.Config{}), -2)
	require.ErrorContains(t, err, "patience is -2ns")
}
