// Package sqlstore keeps the operations of package task, and what package budget counts, in a SQL database, so that they
// outlive their process and several processes share them: SQLite on one machine, PostgreSQL on many.
//
//	store, err := sqlstore.OpenSQLite(ctx, "operations.db")
//	defer store.Close()
//	runner, err := task.NewRunner(guard, store, task.Config{})
//	budget, err := budget.New(budget.Config{Store: store, Limits: limits})
//
// Both constructors bring the database to the schema of this version, whatever older one it has. All tables have names
// that begin with aiguard_. A version of this package refuses a database that a newer one has changed; stop the processes
// of an old version before you start those of a new one.
//
// Nothing is forgotten by itself: call DeleteFinished and DeleteSpent now and then.
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
	busyTimeout = 4 * time.Second // for another process that writes to the same SQLite file, if ctx lets it
	maxReaders  = 4               // connections to a SQLite file
)

// Store is a task.Store and a budget.Store in a database. It is safe for concurrent use; make it with OpenSQLite or NewPostgres.
type Store struct {
	db      *sql.DB
	reads   *sql.DB // for what does not write
	dialect dialect
	close   func() error
}

var (
	_ task.Store   = (*Store)(nil)
	_ budget.Store = (*Store)(nil)
)

// OpenSQLite opens the database in the file at path, which is made, for its owner alone to read, if there is none; its folder must
// exist. ":memory:" and "file:" names are refused, since what is in memory is not shared: use task.NewMemory.
// The processes that share it must run on one machine: SQLite's locks do not hold on a network's file system.
// A write is on the disk when it returns. ctx bounds the opening, not the Store; Close it when no Runner uses it any more.
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
	// SQLite has one writer at a time. Here the next one waits in order; at the file it would poll, and might starve.
	// Those who read need not wait.
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
	if path == "" || path == ":memory:" || strings.HasPrefix(path, "file:") {
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
		path = "/" + path // C:/
	}
	settings := url.Values{
		"_pragma": append(pragmas, fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())),
		"_txlock": {"immediate"}, // a transaction that reads first could not write after another process has

		// Times are whole microseconds.
		"_time_integer_format": {"unix_micro"}, "_inttotime": {"true"},
	}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: settings.Encode()}).String())
}

// create makes the file, if there is none. It never opens the file itself: on closing it the system would forget the locks that
// another Store of this process has on it.
func create(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return errors.New("it is a folder; want a file")
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, ".sqlstore-*") // for its owner alone
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
	return nil // another process was first
}

// ping makes the first connection. SQLite refuses at once to begin a write-ahead log while another process does.
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

// NewPostgres uses the PostgreSQL database that db connects to: any driver will do, github.com/jackc/pgx/v5/stdlib is tested.
// The tables are in the first schema of its search_path; to make them takes the right to, to use them later
// does not. db stays the caller's, to close after the Store; its transactions must be READ COMMITTED by default, which
// PostgreSQL's are.
func NewPostgres(ctx context.Context, db *sql.DB) (*Store, error) {
	if db == nil {
		return nil, errors.New("sqlstore: NewPostgres: want a database, not nil")
	}
	if err := migrate(ctx, db, postgresDialect); err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	return &Store{db: db, reads: db, dialect: postgresDialect, close: func() error { return nil }}, nil
}

// Close closes what OpenSQLite has opened.
func (s *Store) Close() error { return s.close() }
