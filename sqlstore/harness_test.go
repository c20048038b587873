package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/pgtest"
	"github.com/aiguard-go/aiguard/sqlstore"
	"github.com/aiguard-go/aiguard/task"
)

// database is a database that processes share.
type database struct {
	File string // for SQLite
	DSN  string // for PostgreSQL
}

var schemas atomic.Int64

// onEach runs f in parallel with an empty database of each kind.
func onEach(t *testing.T, f func(t *testing.T, d database)) {
	_, _ = postgres.DSN() // starts before any lease can expire; newPostgres reports errors
	for kind, newDatabase := range map[string]func(*testing.T) database{"SQLite": newSQLite, "PostgreSQL": newPostgres} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f(t, newDatabase(t))
		})
	}
}

func newSQLite(t *testing.T) database {
	return database{File: filepath.Join(t.TempDir(), "a name? 100% #1.db")}
}

func newPostgres(t *testing.T) database {
	t.Helper()
	dsn, err := postgres.DSN()
	if errors.Is(err, pgtest.ErrNotInstalled) {
		t.Skip(err)
	}
	require.NoError(t, err)
	schema := fmt.Sprintf("test%d", schemas.Add(1))
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), "CREATE SCHEMA "+schema)
	require.NoError(t, err)
	return database{DSN: dsn + " search_path=" + schema}
}

// open opens the store and returns a function that closes it.
func (d database) open(ctx context.Context) (*sqlstore.Store, func() error, error) {
	if d.File != "" {
		s, err := sqlstore.OpenSQLite(ctx, d.File)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	}
	db, err := sql.Open("pgx", d.DSN)
	if err != nil {
		return nil, nil, err
	}
	s, err := sqlstore.NewPostgres(ctx, db)
	if err != nil {
		return nil, nil, errors.Join(err, db.Close())
	}
	return s, func() error { return errors.Join(s.Close(), db.Close()) }, nil
}

func openStore(t *testing.T, d database) *sqlstore.Store {
	t.Helper()
	s, closeStore, err := d.open(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, closeStore()) })
	return s
}

// newRunner returns a runner that the test's cleanup shuts down.
func newRunner(t *testing.T, s task.Store, cfg task.Config) *task.Runner {
	t.Helper()
	g, err := aiguard.New(aiguard.Config{})
	require.NoError(t, err)
	r, err := task.NewRunner(g, s, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Shutdown(ctx)
		require.NoError(t, g.Close())
	})
	return r
}
