// Package sqlstore stores the operations of package task and the counts of package budget in a SQL database. They survive
// a restart, and several processes can share them. Use SQLite on one machine and PostgreSQL on several.
//
//	store, err := sqlstore.OpenSQLite(ctx, "operations.db")
//	defer store.Close()
//	runner, err := task.NewRunner(guard, store, task.Config{})
//	budget, err := budget.New(budget.Config{Store: store, Limits: limits})
//
// Both constructors migrate the database to the current schema. All table names begin with aiguard_. The package
// rejects a database that a newer version has migrated. Stop all processes of an old version before you start a new
// one.
//
// Finished operations are kept until you call DeleteFinished, and counts of ended windows until you call DeleteSpent. Call
// both regularly.
package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/task"
)

const (
	busyTimeout = 4 * time.Second // longest wait for a writer in another process, unless ctx ends first
	maxReaders  = 4               // connections to a SQLite file
)

// Store is a task.Store and a budget.Store in a database. It is safe for concurrent use. Create it with OpenSQLite or NewPostgres.
type Store struct {
	db      *sql.DB
	reads   *sql.DB // for statements that only read
	dialect dialect
	close   func() error
}

var (
	_ task.Store   = (*Store)(nil)
	_ budget.Store = (*Store)(nil)
)

// OpenSQLite opens the SQLite database in the file at path. If the file does not exist, OpenSQLite creates it,
// readable only by its owner. The folder must exist. OpenSQLite rejects ":memory:" and "file:" names, because a
// database in memory cannot be shared; use task.NewMemory instead. All processes that share the file must run on one
// machine, because SQLite's locks do not work on network file systems. A write is durable when it returns. ctx limits
// only the opening. Close the Store after the last Runner that uses it has shut down.
func OpenSQLite(ctx context.Context, path string) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("sqlstore: open SQLite file %q: %w", path, err)
		}
	}()
	db, err := openSQLite(path, "journal_mode(wal)", "synchronous(full)")
	if err != nil {
		return nil, err
	}
	reads, err := openSQLite(path, "query_only(true)")
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	closeBoth := func() error { return errors.Join(reads.Close(), db.Close()) }
	// SQLite allows one writer at a time. With one connection, writers of this process wait in order. With several,
	// they would poll the file's lock and could starve. Readers need not wait.
	db.SetMaxOpenConns(1)
	reads.SetMaxOpenConns(maxReaders)
	if err := ping(ctx, db); err != nil {
		return nil, errors.Join(err, closeBoth())
	}
	if err := migrate(ctx, db, sqliteDialect); err != nil {
		return nil, errors.Join(err, closeBoth())
	}
	return &Store{db: db, reads: reads, dialect: sqliteDialect, close: closeBoth}, nil
}

func openSQLite(path string, pragmas ...string) (*sql.DB, error) {
	if path == "" || strings.HasPrefix(path, ":memory:") || strings.HasPrefix(path, "file:") {
		return nil, errors.New("want the path of a file; for operations in memory use task.NewMemory")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := create(path); err != nil {
		return nil, err
	}
	path = filepath.ToSlash(path)
	if path[0] != '/' {
		path = "/" + path // for Windows paths such as C:/
	}
	settings := url.Values{
		"_pragma": append(pragmas, fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())),
		"_txlock": {"immediate"}, // a deferred transaction that has read fails if another process writes before it does

		// Times are stored as whole microseconds.
		"_time_integer_format": {"unix_micro"}, "_inttotime": {"true"},
	}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: settings.Encode()}).String())
}

// create creates the file if it does not exist. It never opens an existing file: when a process closes a file, the
// system releases all locks that the process has on it, including those of other Stores.
func create(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return errors.New("it is a folder; want a file")
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, ".sqlstore-*") // readable only by its owner
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the folder %q does not exist: %w", folder, fs.ErrNotExist)
	case err != nil:
		return fmt.Errorf("cannot write to the folder %q: %w", folder, err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil // another process has created it
}

// ping makes the first connection. SQLite fails at once, without a busy timeout, if another process is just creating
// the write-ahead log.
func ping(ctx context.Context, db *sql.DB) error {
	for deadline := time.Now().Add(busyTimeout); ; {
		err := db.PingContext(ctx)
		var failure *sqlite.Error
		if !errors.As(err, &failure) || failure.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(deadline) {
			return err
		}
		wait := time.NewTimer(10 * time.Millisecond)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
	}
}

// NewPostgres returns a Store in the PostgreSQL database of db. Any driver works; the tests use
// github.com/jackc/pgx/v5/stdlib. The tables are in the first schema of the search_path. The first use needs the
// right to create tables, and later uses do not. db must use the isolation level READ COMMITTED, PostgreSQL's
// default. The caller closes db after the Store.
func NewPostgres(ctx context.Context, db *sql.DB) (*Store, error) {
	if db == nil {
		return nil, errors.New("sqlstore: NewPostgres: want a database, not nil")
	}
	if err := migrate(ctx, db, postgresDialect); err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	return &Store{db: db, reads: db, dialect: postgresDialect, close: func() error { return nil }}, nil
}

// Close closes the connections that OpenSQLite has opened. It does not close the db of NewPostgres.
func (s *Store) Close() error { return s.close() }
