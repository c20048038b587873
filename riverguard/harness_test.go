package riverguard_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/pgtest"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
)

// patience is how long a test waits for what happens at once on an idle machine.
const patience = 30 * time.Second

var schemas atomic.Int64

// newDatabase returns the DSN of an empty schema, or skips the test if PostgreSQL is not installed.
func newDatabase(t testing.TB) (dsn string) {
	t.Helper()
	dsn, err := postgres.DSN()
	if errors.Is(err, pgtest.ErrNotInstalled) {
		t.Skip(err)
	}
	require.NoError(t, err)
	schema := fmt.Sprintf("test%d", schemas.Add(1))
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "CREATE SCHEMA "+schema)
	require.NoError(t, err)
	require.NoError(t, conn.Close(t.Context()))
	return dsn + " search_path=" + schema
}

func newPool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func newGuard(t testing.TB, cfg aiguard.Config) *aiguard.Guard {
	t.Helper()
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// newRunner returns a runner that the test's cleanup shuts down. The cleanup checks that all runs are counted.
func newRunner(t testing.TB, dsn string, guard aiguard.Config, cfg riverguard.Config) *riverguard.Runner {
	t.Helper()
	r, err := riverguard.NewRunner(t.Context(), newGuard(t, guard), newPool(t, dsn), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { shutdown(t, r) })
	return r
}

func shutdown(t testing.TB, r *riverguard.Runner) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.Shutdown(ctx)
	s := r.Stats()
	require.Equal(t, s.Started, s.Succeeded+s.Failed+s.Cancelled+s.Released+s.Lost, "%+v", s)
	require.Zero(t, s.Running, "%+v", s)
}

// register registers a function without an input.
func register(r *riverguard.Runner, name string, fn func(context.Context) (any, error)) {
	task.Register(r, name, func(ctx context.Context, _ any) (any, error) { return fn(ctx) })
}

func submit(t testing.TB, r *riverguard.Runner, name string) task.Operation {
	t.Helper()
	op, err := r.Submit(t.Context(), name, nil)
	require.NoError(t, err)
	require.Equal(t, task.Pending, op.Status)
	return op
}

func get(t testing.TB, r *riverguard.Runner, id string) task.Operation {
	t.Helper()
	op, err := r.Get(t.Context(), id)
	require.NoError(t, err)
	return op
}

// ends waits until the operation is over.
func ends(t testing.TB, r *riverguard.Runner, id string) task.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	op, err := r.Wait(ctx, id)
	require.NoError(t, err, "%+v", op)
	require.True(t, op.Status.Final())
	return op
}

// until waits until the operation has the status.
func until(t testing.TB, r *riverguard.Runner, id string, status task.Status) task.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	op, err := r.Next(ctx, id, 0)
	for err == nil && op.Status != status {
		require.False(t, op.Status.Final(), "%+v", op)
		op, err = r.Next(ctx, id, op.Revision)
	}
	require.NoError(t, err, "%+v", op)
	return op
}

// untilEnd is a function that returns when its context ends.
func untilEnd(ctx context.Context) (any, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
