package riverguard_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
	"github.com/aiguard-go/aiguard/task/enginetest"
)

func TestRunnerIsAnEngine(t *testing.T) {
	var log syncbuf.Buffer
	t.Run("", func(t *testing.T) {
		enginetest.Run(t, func(t *testing.T, l enginetest.Limits) task.Engine {
			t.Parallel()
			return newRunner(t, newDatabase(t), aiguard.Config{TaskTimeout: l.TaskTimeout}, riverguard.Config{
				MaxRunning: l.MaxRunning, MaxPending: l.MaxPending, Grace: l.Grace, Patience: aiguard.Off,
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			})
		})
	})
	require.NotContains(t, log.String(), enginetest.Secret)
	require.Contains(t, log.String(), "riverguard: panic")
}

// River stores and logs what a worker returns.
func TestFailedOperationLeavesNoTextInRiver(t *testing.T) {
	t.Parallel()
	var log syncbuf.Buffer
	dsn := newDatabase(t)
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{MaxAttempts: 2, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for name, fn := range map[string]func() error{
		"error":     func() error { return errors.New(secret) },
		"panic":     func() error { panic(secret) },
		"temporary": func() error { return fmt.Errorf("%s: %w", secret, aiguard.ErrUnavailable) },
		"permanent": func() error { return fmt.Errorf("%s: %w", secret, aiguard.ErrRejected) },
		"snoozed": func() error {
			return &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Minute, Err: errors.New(secret)}
		},
	} {
		register(r, name, func(context.Context) (any, error) { return nil, fn() })
		if id := submit(t, r, name).ID; name != "snoozed" {
			require.Equal(t, task.Failed, ends(t, r, id).Status)
		}
	}
	require.Eventually(t, func() bool { return r.Stats().Running == 0 }, patience, 10*time.Millisecond)
	shutdown(t, r)
	j := &jobs{t: t, pool: newPool(t, dsn)}
	require.Contains(t, j.stored(), "unavailable")
	require.NotContains(t, j.stored(), secret)
	require.NotContains(t, log.String(), secret)
}

func TestInvalidConfigNamesTheField(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/none")
	require.NoError(t, err)
	defer pool.Close()
	g := newGuard(t, aiguard.Config{})
	for field, cfg := range map[string]riverguard.Config{
		"MaxRunning": {MaxRunning: -2}, "MaxPending": {MaxPending: -2}, "MaxAttempts": {MaxAttempts: -1}, "Patience": {Patience: -2},
		"Grace": {Grace: -1},
	} {
		_, err := riverguard.NewRunner(t.Context(), g, pool, cfg)
		require.ErrorContains(t, err, "Config."+field)
	}
	for _, schema := range []string{"A", "a-b", "a; DROP TABLE x", strings.Repeat("x", 41)} {
		_, err = riverguard.NewRunner(t.Context(), g, pool, riverguard.Config{Schema: schema})
		require.ErrorContains(t, err, "Config.Schema is "+strconv.Quote(schema))
	}
	for _, queue := range []string{"A", "a b", "a'", "-a", "a_", "a--b", "ü", strings.Repeat("x", 65)} {
		_, err = riverguard.NewRunner(t.Context(), g, pool, riverguard.Config{Queue: queue, SubmitOnly: true})
		require.ErrorContains(t, err, "Config.Queue is "+strconv.Quote(queue[:min(len(queue), 64)]))
	}
	_, err = riverguard.NewRunner(t.Context(), g, pool, riverguard.Config{MaxRunning: 10_001})
	require.ErrorContains(t, err, "MaxRunning is 10001")
	_, err = riverguard.NewRunner(t.Context(), newGuard(t, aiguard.Config{TaskTimeout: aiguard.Off}), pool, riverguard.Config{})
	require.ErrorContains(t, err, "TaskTimeout is off")
	_, err = riverguard.NewRunner(t.Context(), nil, pool, riverguard.Config{})
	require.ErrorContains(t, err, "nil")
	_, err = riverguard.NewRunner(t.Context(), g, nil, riverguard.Config{})
	require.ErrorContains(t, err, "nil")
	_, err = riverguard.NewRunner(t.Context(), g, pool, riverguard.Config{})
	require.ErrorContains(t, err, "connect", "the database is unreachable")
}

// River takes no lock when it migrates.
func TestConcurrentRunnersMigrateOnce(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	g := newGuard(t, aiguard.Config{})
	var all sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		pool := newPool(t, dsn+" pool_max_conns=1")
		all.Go(func() {
			_, errs[i] = riverguard.NewRunner(t.Context(), g, pool, riverguard.Config{SubmitOnly: true})
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
}

func TestSubmitTxStartsWithItsTransaction(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{})
	task.Register(r, "echo", func(_ context.Context, in string) (string, error) { return in, nil })
	pool := newPool(t, dsn)
	_, err := pool.Exec(t.Context(), "CREATE TABLE orders (operation text)")
	require.NoError(t, err)
	order := func(commit bool) string {
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		defer tx.Rollback(context.Background())
		op, err := r.SubmitTx(t.Context(), tx, "echo", "hello")
		require.NoError(t, err)
		require.Equal(t, task.Pending, op.Status)
		_, err = tx.Exec(t.Context(), "INSERT INTO orders VALUES ($1)", op.ID)
		require.NoError(t, err)
		_, err = r.Get(t.Context(), op.ID)
		require.ErrorIs(t, err, task.ErrNotFound, "before the commit")
		if commit {
			require.NoError(t, tx.Commit(t.Context()))
		}
		return op.ID
	}
	lost, kept := order(false), order(true)
	require.Equal(t, task.Succeeded, ends(t, r, kept).Status)
	_, err = r.Get(t.Context(), lost)
	require.ErrorIs(t, err, task.ErrNotFound)
	var stored []string
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT array_agg(operation) FROM orders").Scan(&stored))
	require.Equal(t, []string{kept}, stored)
	require.EqualValues(t, 1, r.Stats().Started)
}

func TestSubmitTxNeedsNoOtherConnection(t *testing.T) {
	t.Parallel()
	pool := newPool(t, newDatabase(t)+" pool_max_conns=1")
	r, err := riverguard.NewRunner(t.Context(), newGuard(t, aiguard.Config{}), pool, riverguard.Config{SubmitOnly: true, MaxPending: 1, MaxRunning: 1})
	require.NoError(t, err)
	register(r, "work", untilEnd)
	tx, err := pool.Begin(t.Context()) // the only connection
	require.NoError(t, err)
	defer tx.Rollback(context.Background())
	for range 2 {
		_, err = r.SubmitTx(t.Context(), tx, "work", nil)
		require.NoError(t, err)
	}
	_, err = r.SubmitTx(t.Context(), tx, "work", nil)
	require.ErrorIs(t, err, aiguard.ErrOverloaded)
}

func TestRateLimitedOperationRunsAgainWithoutSpendingAnAttempt(t *testing.T) {
	t.Parallel()
	r := newRunner(t, newDatabase(t), aiguard.Config{}, riverguard.Config{})
	runs := 0
	register(r, "limited", func(context.Context) (any, error) {
		if runs++; runs < 3 {
			return nil, &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: 10 * time.Millisecond}
		}
		return "done", nil
	})
	op := submit(t, r, "limited")
	running, ctx := false, t.Context()
	for !op.Status.Final() {
		next, err := r.Next(ctx, op.ID, op.Revision)
		require.NoError(t, err)
		running = running || next.Status == task.Running
		require.False(t, running && next.Status == task.Pending, "a snoozed operation stays Running")
		op = next
	}
	require.Equal(t, task.Succeeded, op.Status)
	require.Equal(t, 3, op.Attempts)
	require.GreaterOrEqual(t, op.FinishedAt.Sub(op.StartedAt), 2*time.Second, "a snooze takes at least a second")
	s := r.Stats()
	require.EqualValues(t, 3, s.Started)
	require.EqualValues(t, 2, s.Released)
}

func TestSnoozesEndWithPatience(t *testing.T) {
	t.Parallel()
	r := newRunner(t, newDatabase(t), aiguard.Config{}, riverguard.Config{Patience: 3 * time.Second})
	register(r, "limited", func(context.Context) (any, error) { return nil, aiguard.ErrRateLimited })
	op := ends(t, r, submit(t, r, "limited").ID)
	require.Equal(t, task.Failed, op.Status)
	require.Equal(t, aiguard.ErrRateLimited, op.ErrorCode)
	require.GreaterOrEqual(t, op.Attempts, 2)
	require.Less(t, op.FinishedAt.Sub(op.StartedAt), 3*time.Second+patience)
}

func TestCancelEndsAnOperationThatWaitsToRunAgain(t *testing.T) {
	t.Parallel()
	r := newRunner(t, newDatabase(t), aiguard.Config{}, riverguard.Config{})
	register(r, "limited", func(context.Context) (any, error) {
		return nil, &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Minute}
	})
	op := submit(t, r, "limited")
	require.Eventually(t, func() bool { return r.Stats().Released == 1 && r.Stats().Running == 0 }, patience, 10*time.Millisecond)
	op, err := r.Cancel(t.Context(), op.ID)
	require.NoError(t, err)
	op = ends(t, r, op.ID)
	require.Equal(t, task.Cancelled, op.Status)
	require.Equal(t, task.KindCancelled, op.ErrorCode)
	require.Equal(t, 1, op.Attempts)
}

func TestTemporaryFailuresAreRepeatedUpToMaxAttempts(t *testing.T) {
	t.Parallel()
	r := newRunner(t, newDatabase(t), aiguard.Config{}, riverguard.Config{MaxAttempts: 2})
	register(r, "temporary", func(context.Context) (any, error) { return nil, aiguard.ErrUnavailable })
	register(r, "permanent", func(context.Context) (any, error) { return nil, aiguard.ErrRejected })
	temporary, permanent := ends(t, r, submit(t, r, "temporary").ID), ends(t, r, submit(t, r, "permanent").ID)
	require.Equal(t, aiguard.ErrUnavailable, temporary.ErrorCode)
	require.Equal(t, 2, temporary.Attempts)
	require.Equal(t, aiguard.ErrRejected, permanent.ErrorCode)
	require.Equal(t, 1, permanent.Attempts)
}

func TestShutdownGivesOperationsWithAttemptsLeftToOthers(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	cfg := riverguard.Config{MaxAttempts: 2}
	first := newRunner(t, dsn, aiguard.Config{}, cfg)
	register(first, "work", untilEnd)
	op := until(t, first, submit(t, first, "work").ID, task.Running)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, first.Shutdown(ctx), context.Canceled)
	require.Equal(t, task.Running, get(t, first, op.ID).Status)
	r := newRunner(t, dsn, aiguard.Config{}, cfg)
	register(r, "work", func(context.Context) (any, error) { return "done", nil })
	op = ends(t, r, op.ID)
	require.Equal(t, task.Succeeded, op.Status)
	require.Equal(t, 2, op.Attempts)
}

// A process dies after it has stored the end of an operation and before River has ended the job.
func TestEndThatRiverHasNotSeenIsNotRepeated(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{})
	runs := 0
	register(r, "work", func(context.Context) (any, error) { runs++; return "done", nil })
	op := ends(t, r, submit(t, r, "work").ID)
	pool := newPool(t, dsn)
	require.Eventually(t, func() bool { return riverState(t, pool) == "completed" }, patience, 10*time.Millisecond)
	_, err := pool.Exec(t.Context(), "UPDATE river_job SET state = 'available', finalized_at = NULL, attempt = 0") // as after a rescue
	require.NoError(t, err)
	require.Eventually(t, func() bool { return riverState(t, pool) == "completed" }, patience, 10*time.Millisecond)
	require.Equal(t, op, get(t, r, op.ID))
	require.Equal(t, 1, runs)
}

func riverState(t *testing.T, pool *pgxpool.Pool) (state string) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT state FROM river_job").Scan(&state))
	return state
}

func TestUnregisteredNamesWaitForAProcessThatKnowsThem(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	ignorant := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{})
	register(ignorant, "other", untilEnd)
	s := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{SubmitOnly: true})
	register(s, "work", untilEnd)
	op := submit(t, s, "work")
	time.Sleep(time.Second)
	require.Equal(t, op, get(t, s, op.ID), "a process that does not know the name changes nothing")
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{})
	register(r, "work", func(context.Context) (any, error) { return "done", nil })
	op = await(t, s, op.ID, 2*time.Minute) // the other process may win the job several times
	require.Equal(t, task.Succeeded, op.Status)
	require.Equal(t, 1, op.Attempts)
}

func TestSchemaSeparatesTheRunnerFromOtherRiverClients(t *testing.T) {
	t.Parallel()
	j := newJobs(t, newGuard(t, aiguard.Config{}), 0, river.Config{}, func(context.Context) error { return nil })
	schema := fmt.Sprintf("own%d", schemas.Add(1))
	r, err := riverguard.NewRunner(t.Context(), newGuard(t, aiguard.Config{}), j.pool, riverguard.Config{Schema: schema})
	require.NoError(t, err)
	t.Cleanup(func() { shutdown(t, r) })
	register(r, "work", func(context.Context) (any, error) { return "done", nil })
	tx, err := j.pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background())
	_, err = j.InsertTx(t.Context(), tx, jobArgs{}, nil)
	require.NoError(t, err)
	op, err := r.SubmitTx(t.Context(), tx, "work", nil)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, river.EventKindJobCompleted, j.next().Kind)
	require.Equal(t, task.Succeeded, ends(t, r, op.ID).Status)
	found, err := r.List(t.Context(), task.Query{})
	require.NoError(t, err)
	require.Len(t, found, 1)
	running := until(t, r, submitUntilEnd(t, r), task.Running)
	_, err = r.Cancel(t.Context(), running.ID)
	require.NoError(t, err)
	require.Equal(t, task.Cancelled, ends(t, r, running.ID).Status)
}

func submitUntilEnd(t *testing.T, r *riverguard.Runner) string {
	register(r, "until end", untilEnd)
	return submit(t, r, "until end").ID
}

// River's default for the timeout of a job is one minute.
func TestFunctionHasTheTimeOfTheTaskTimeout(t *testing.T) {
	t.Parallel()
	r := newRunner(t, newDatabase(t), aiguard.Config{TaskTimeout: 3 * time.Minute}, riverguard.Config{})
	register(r, "work", func(ctx context.Context) (any, error) {
		deadline, _ := ctx.Deadline()
		return time.Until(deadline), nil
	})
	left, err := task.Result[time.Duration](ends(t, r, submit(t, r, "work").ID))
	require.NoError(t, err)
	require.InDelta(t, 3*time.Minute, left, float64(patience))
}

func TestQueuesAreSeparate(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	a := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{Queue: "a"})
	b := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{Queue: "b"})
	register(a, "work", func(context.Context) (any, error) { return "a", nil })
	register(b, "work", func(context.Context) (any, error) { return "b", nil })
	op := ends(t, a, submit(t, a, "work").ID)
	require.JSONEq(t, `"a"`, string(op.Result))
	_, err := b.Get(t.Context(), op.ID)
	require.ErrorIs(t, err, task.ErrNotFound)
	found, err := b.List(t.Context(), task.Query{})
	require.NoError(t, err)
	require.Empty(t, found)
}

// After a failover a pool may hold sessions of a server that is now a standby and rejects every write.
func TestReadOnlySessionsAreClosed(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	pool := newPool(t, dsn+" pool_max_conns=1")
	r, err := riverguard.NewRunner(t.Context(), newGuard(t, aiguard.Config{}), pool, riverguard.Config{SubmitOnly: true})
	require.NoError(t, err)
	register(r, "work", untilEnd)
	_, err = pool.Exec(t.Context(), "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
	require.NoError(t, err)
	_, err = r.Submit(t.Context(), "work", nil)
	require.ErrorContains(t, err, "25006")
	require.EqualValues(t, 1, r.Stats().StoreErrors)
	submit(t, r, "work")
}

// Neither reading an operation nor counting the waiting ones may read the inputs, which are large.
func TestGetDoesNotReadTheInput(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{SubmitOnly: true})
	task.Register(r, "work", func(context.Context, string) (any, error) { return nil, nil })
	op, err := r.Submit(t.Context(), "work", "the input")
	require.NoError(t, err)
	_, err = newPool(t, dsn).Exec(t.Context(), "ALTER TABLE river_job RENAME COLUMN args TO hidden")
	require.NoError(t, err)
	require.Equal(t, op, get(t, r, op.ID))
	found, err := r.List(t.Context(), task.Query{})
	require.NoError(t, err)
	require.Equal(t, []task.Operation{op}, found)
}

func TestEndIsStoredWhenTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{})
	release := make(chan struct{})
	register(r, "work", func(context.Context) (any, error) { <-release; return "done", nil })
	op := until(t, r, submit(t, r, "work").ID, task.Running)
	pool := newPool(t, dsn)
	_, err := pool.Exec(t.Context(), "ALTER TABLE river_job RENAME TO away") // as if the database failed
	require.NoError(t, err)
	_, err = r.Get(t.Context(), op.ID)
	require.ErrorContains(t, err, "riverguard: get")
	_, err = r.Submit(t.Context(), "work", nil)
	require.ErrorContains(t, err, "river_job")
	_, err = r.Cancel(t.Context(), op.ID)
	require.Error(t, err)
	close(release)
	before := r.Stats().StoreErrors
	require.Eventually(t, func() bool { return r.Stats().StoreErrors > before+1 }, patience, 10*time.Millisecond)
	_, err = pool.Exec(t.Context(), "ALTER TABLE away RENAME TO river_job")
	require.NoError(t, err)
	op = ends(t, r, op.ID)
	require.Equal(t, task.Succeeded, op.Status)
	require.JSONEq(t, `"done"`, string(op.Result))
	require.Equal(t, 1, op.Attempts)
}
