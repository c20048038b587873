package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/sqlstore"
	"github.com/aiguard-go/aiguard/task"
	"github.com/aiguard-go/aiguard/task/enginetest"
	"github.com/aiguard-go/aiguard/task/storetest"
)

// spread is a store that distributes its calls over several stores with one database, like those of several
// processes.
type spread struct {
	mu     sync.Mutex
	stores []*sqlstore.Store
}

func (s *spread) next() *sqlstore.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.stores[0]
	s.stores = append(s.stores[1:], first)
	return first
}

func (s *spread) Create(ctx context.Context, op task.Operation) error {
	return s.next().Create(ctx, op)
}
func (s *spread) Update(ctx context.Context, op task.Operation) error {
	return s.next().Update(ctx, op)
}
func (s *spread) Get(ctx context.Context, id string) (task.Operation, error) {
	return s.next().Get(ctx, id)
}
func (s *spread) List(ctx context.Context, q task.Query) ([]task.Operation, error) {
	return s.next().List(ctx, q)
}
func (s *spread) Renew(ctx context.Context, owner string, lease time.Duration) error {
	return s.next().Renew(ctx, owner, lease)
}
func (s *spread) Orphans(ctx context.Context, names []string, limit int) ([]task.Operation, error) {
	return s.next().Orphans(ctx, names, limit)
}

func TestStoresWithOneDatabaseMeetTheContract(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := &spread{stores: []*sqlstore.Store{openStore(t, d), openStore(t, d)}}
		check(t, s, s.next().DB(), storetest.Checks())
	})
}

// A connection pooler may allow only the simple protocol.
func TestRunnerWithADatabaseIsAnEngine(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		enginetest.Run(t, func(t *testing.T, l enginetest.Limits) task.Engine {
			own := newSQLite(t)
			if d.DSN != "" {
				own = newPostgres(t)
			}
			g, err := aiguard.New(aiguard.Config{TaskTimeout: l.TaskTimeout})
			require.NoError(t, err)
			r, err := task.NewRunner(g, openStore(t, own), task.Config{MaxRunning: l.MaxRunning, MaxPending: l.MaxPending, Grace: l.Grace})
			require.NoError(t, err)
			t.Cleanup(func() {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				_ = r.Shutdown(ctx)
				require.NoError(t, g.Close())
			})
			return r
		})
	})
}

func TestPostgresWorksWithTheSimpleProtocol(t *testing.T) {
	d := newPostgres(t)
	d.DSN += " default_query_exec_mode=simple_protocol"
	s := openStore(t, d)
	check(t, s, s.DB(), slices.DeleteFunc(storetest.Checks(), func(c storetest.Check) bool {
		return strings.Contains(c.Name, "Concurrent") || c.Name == "NoUpdateIsLost" // independent of the protocol
	}))
}

// check runs each check with an empty store.
func check(t *testing.T, s task.Store, db *sql.DB, checks []storetest.Check) {
	for _, c := range checks {
		t.Run(c.Name, func(t *testing.T) {
			for _, table := range []string{"aiguard_operations", "aiguard_leases", "aiguard_spent"} {
				_, err := db.ExecContext(t.Context(), "DELETE FROM "+table)
				require.NoError(t, err)
			}
			require.NoError(t, c.Run(t.Context(), s))
		})
	}
}

var created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// add stores an operation with this status.
func add(t *testing.T, s *sqlstore.Store, id string, status task.Status, finished time.Time) {
	t.Helper()
	require.NoError(t, s.Create(t.Context(), task.Operation{ID: id, Name: "test", Status: status, CreatedAt: created,
		FinishedAt: finished, Revision: 1}))
}

func TestOperationsOutliveTheirStore(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s, closeStore, err := d.open(t.Context())
		require.NoError(t, err)
		add(t, s, "a", task.Running, time.Time{})
		require.NoError(t, closeStore())
		_, err = s.Get(t.Context(), "a")
		if d.File != "" {
			require.ErrorContains(t, err, "closed")
		}
		op, err := openStore(t, d).Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, created, op.CreatedAt)
	})
}

func TestDeleteFinishedRemovesOlderOperations(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		limit := created.Add(time.Hour)
		add(t, s, "pending", task.Pending, time.Time{})
		add(t, s, "running", task.Running, time.Time{})
		add(t, s, "at", task.Succeeded, limit)
		add(t, s, "strange", task.Running, limit.Add(-time.Hour))
		for _, status := range []task.Status{task.Succeeded, task.Failed, task.Cancelled} {
			add(t, s, string(status), status, limit.Add(-time.Microsecond))
		}
		deleted, err := s.DeleteFinished(t.Context(), limit.In(time.FixedZone("", 3600)))
		require.NoError(t, err)
		require.EqualValues(t, 3, deleted)
		left, err := s.List(t.Context(), task.Query{})
		require.NoError(t, err)
		var ids []string
		for _, op := range left {
			ids = append(ids, op.ID)
		}
		require.ElementsMatch(t, []string{"pending", "running", "at", "strange"}, ids)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.DeleteFinished(ended, time.Now())
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestDeleteFinishedRemovesAnyNumber(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		const n = 1500
		_, err := s.DB().ExecContext(t.Context(), `INSERT INTO aiguard_operations WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
			SELECT 'id' || i, '', 'failed', '', '', 0, '', NULL, $2, NULL, $2, 0, 1, FALSE, '', NULL FROM n`, n, created)
		require.NoError(t, err)
		deleted, err := s.DeleteFinished(t.Context(), created.Add(time.Microsecond))
		require.NoError(t, err)
		require.EqualValues(t, n, deleted)
	})
}

func TestRenewRemovesExpiredLeases(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		for _, owner := range []string{"a", "b", "c"} {
			require.NoError(t, s.Renew(t.Context(), owner, time.Millisecond))
		}
		time.Sleep(10 * time.Millisecond)
		require.NoError(t, s.Renew(t.Context(), "d", time.Hour))
		var owner string
		require.NoError(t, s.DB().QueryRowContext(t.Context(), "SELECT MIN(owner) FROM aiguard_leases").Scan(&owner))
		require.Equal(t, "d", owner)
	})
}

func TestSQLiteFileIsPrivate(t *testing.T) {
	d := newSQLite(t)
	add(t, openStore(t, d), "a", task.Pending, time.Time{})
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(d.File + suffix)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), suffix)
	}
}

// When a process closes a file, the system releases all locks of the process on that file, however often it is open.
func TestSQLiteKeepsItsLocksAfterASecondOpen(t *testing.T) {
	d := newSQLite(t)
	openStore(t, d)
	before := locksOn(t, d.File)
	require.NotEmpty(t, before)
	_, closeAgain, err := d.open(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, locksOn(t, d.File))
	require.NoError(t, closeAgain())
	require.Equal(t, before, locksOn(t, d.File))
}

// locksOn returns the lines of /proc/locks for a file, without their numbers.
func locksOn(t *testing.T, path string) (found []string) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	table, err := os.ReadFile("/proc/locks")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this system has no /proc/locks")
	}
	require.NoError(t, err)
	for line := range strings.Lines(string(table)) {
		if _, lock, ok := strings.Cut(line, ": "); ok && strings.Contains(lock, inode) {
			found = append(found, lock)
		}
	}
	return found
}

func TestSQLiteAcceptsOnlyFilePaths(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, path := range []string{"relative.db", "a b&c=d.db", "memory", ":x"} {
		openStore(t, database{File: path})
		_, err := os.Stat(path)
		require.NoError(t, err)
	}
	for _, path := range []string{"", ":memory:", "file:x.db", "file:x?mode=memory", "file::memory:?cache=shared", ":memory:?cache=shared"} {
		_, err := sqlstore.OpenSQLite(t.Context(), path)
		require.EqualError(t, err, fmt.Sprintf("sqlstore: open SQLite file %q: want the path of a file; for operations in memory use task.NewMemory", path))
	}
	made, err := filepath.Glob("*memory*")
	require.NoError(t, err)
	require.NotContains(t, made, ":memory:")
}

func TestSQLiteErrorsNameThePath(t *testing.T) {
	t.Chdir(t.TempDir())
	missing := filepath.Join(t.TempDir(), "no such folder")
	_, err := sqlstore.OpenSQLite(t.Context(), filepath.Join(missing, "x.db"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, fmt.Sprintf("the folder %q does not exist", missing))

	require.NoError(t, os.WriteFile("letter.txt", []byte("this is no database, but a text that is long enough"), 0o600))
	_, err = sqlstore.OpenSQLite(t.Context(), "letter.txt")
	require.ErrorContains(t, err, "not a database")
	require.ErrorContains(t, err, `"letter.txt"`)

	_, err = sqlstore.OpenSQLite(t.Context(), filepath.Join("letter.txt", "x.db"))
	require.ErrorContains(t, err, `"letter.txt/x.db"`)
	_, err = sqlstore.OpenSQLite(t.Context(), ".")
	require.EqualError(t, err, `sqlstore: open SQLite file ".": it is a folder; want a file`)

	// Even root cannot write to this folder.
	_, err = sqlstore.OpenSQLite(t.Context(), "/proc/self/x.db")
	require.ErrorContains(t, err, `"/proc/self"`)
}

func TestSQLiteWaitsForAnotherWriterUntilItsContextEnds(t *testing.T) {
	d := newSQLite(t)
	s, other := openStore(t, d), openStore(t, d)
	tx, err := other.DB().BeginTx(t.Context(), nil) // an immediate transaction
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	before := time.Now()
	require.ErrorIs(t, s.Renew(ctx, "owner", time.Hour), context.DeadlineExceeded)
	require.Less(t, time.Since(before), 2*time.Second)
	_, err = s.Get(t.Context(), "a")
	require.ErrorIs(t, err, task.ErrNotFound, "readers do not wait")
	time.AfterFunc(50*time.Millisecond, func() { _ = tx.Rollback() })
	require.NoError(t, s.Renew(t.Context(), "owner", time.Hour))
}

func TestPostgresNeedsAReachableDatabase(t *testing.T) {
	_, err := sqlstore.NewPostgres(t.Context(), nil)
	require.ErrorContains(t, err, "nil")
	db, err := sql.Open("pgx", "host=127.0.0.1 port=1 sslmode=disable")
	require.NoError(t, err)
	defer db.Close()
	_, err = sqlstore.NewPostgres(t.Context(), db)
	require.ErrorContains(t, err, "PostgreSQL schema")
}

// After a failover a pool may hold sessions of a server that is now a standby and rejects every write.
func TestPostgresClosesReadOnlySessions(t *testing.T) {
	d := newPostgres(t)
	s := openStore(t, d)
	const sessions = 2 // database/sql keeps two idle connections
	var stale []*sql.Conn
	for range sessions {
		conn, err := s.DB().Conn(t.Context())
		require.NoError(t, err)
		_, err = conn.ExecContext(t.Context(), "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
		require.NoError(t, err)
		stale = append(stale, conn)
	}
	for _, conn := range stale {
		require.NoError(t, conn.Close())
	}
	require.Equal(t, sessions, s.DB().Stats().Idle)
	require.NoError(t, s.Renew(t.Context(), "owner", time.Hour))
	add(t, s, "a", task.Pending, time.Time{})
	require.Equal(t, task.Pending, get(t, s, "a").Status)

	// If every session is read-only, the result is an error and not an endless loop.
	readOnly := openStore(t, database{DSN: d.DSN + " default_transaction_read_only=on"})
	require.ErrorContains(t, readOnly.Renew(t.Context(), "owner", time.Hour), "25006")
}
