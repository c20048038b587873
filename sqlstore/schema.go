package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// dialect holds the SQL that differs between the databases.
type dialect struct {
	name      string
	now       string     // the clock that all processes share
	expiry    string     // $2 microseconds from now
	hasSchema string     // whether the table aiguard_schema exists
	lock      string     // allows one migration at a time
	lockKey   string     // allows one transaction at a time to spend under the key $1; "": the database has one writer
	versions  [][]string // statements that lead from each version to the next
}

var sqliteDialect = dialect{
	name:      "SQLite",
	now:       "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
	expiry:    "CAST(unixepoch('subsec') * 1000000 AS INTEGER) + $2",
	hasSchema: "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'aiguard_schema')",
	lock:      "SELECT 1", // not needed: the transaction is IMMEDIATE
	versions:  versions("TIMESTAMP"),
}

var postgresDialect = dialect{
	name:   "PostgreSQL",
	now:    "clock_timestamp()",
	expiry: "clock_timestamp() + $2::bigint * interval '1 microsecond'",
	// Not to_regclass: within a transaction it may not see tables that others have created since.
	hasSchema: "SELECT EXISTS (SELECT 1 FROM pg_class WHERE relname = 'aiguard_schema' AND pg_table_is_visible(oid))",
	lock:      "SELECT pg_advisory_xact_lock(7009134170155573607)", // an arbitrary number
	lockKey:   "SELECT pg_advisory_xact_lock($1)",
	versions:  versions("TIMESTAMPTZ"),
}

// versions returns the statements that lead from each version of the schema to the next. Never change a released
// version; add a new one.
func versions(timestamp string) [][]string {
	return [][]string{{
		`CREATE TABLE aiguard_operations (
			id               TEXT PRIMARY KEY,
			name             TEXT NOT NULL,
			status           TEXT NOT NULL,
			error_code       TEXT NOT NULL,
			error_message    TEXT NOT NULL,
			progress         BIGINT NOT NULL,
			progress_note    TEXT NOT NULL,
			result           TEXT,
			created_at       ` + timestamp + ` NOT NULL,
			started_at       ` + timestamp + `,
			finished_at      ` + timestamp + `,
			attempts         BIGINT NOT NULL,
			revision         BIGINT NOT NULL,
			cancel_requested BOOLEAN NOT NULL,
			owner            TEXT NOT NULL,
			input            TEXT
		)`,
		// These indexes serve List without a filter, by name, by status, and by owner. The third also serves Orphans,
		// and the last serves DeleteFinished.
		`CREATE INDEX aiguard_operations_created ON aiguard_operations (created_at, id)`,
		`CREATE INDEX aiguard_operations_name ON aiguard_operations (name, created_at, id)`,
		`CREATE INDEX aiguard_operations_status ON aiguard_operations (status, created_at, id)`,
		`CREATE INDEX aiguard_operations_owner ON aiguard_operations (owner, status)`,
		`CREATE INDEX aiguard_operations_finished ON aiguard_operations (finished_at) WHERE finished_at IS NOT NULL`,
		`CREATE TABLE aiguard_leases (
			owner      TEXT PRIMARY KEY,
			expires_at ` + timestamp + ` NOT NULL
		)`,
	}, {
		`CREATE TABLE aiguard_spent (
			counter TEXT NOT NULL,
			slot    BIGINT NOT NULL,
			over_at BIGINT NOT NULL,
			amount  BIGINT NOT NULL,
			PRIMARY KEY (counter, slot)
		)`,
		// For DeleteSpent.
		`CREATE INDEX aiguard_spent_over ON aiguard_spent (over_at)`,
	}}
}

// migrate migrates the database to the latest version in one transaction.
func migrate(ctx context.Context, db *sql.DB, d dialect) error {
	current, err := version(ctx, db, d)
	if err == nil && current < len(d.versions) {
		err = upgrade(ctx, db, d)
	}
	if err != nil {
		return fmt.Errorf("prepare the %s schema: %w", d.name, err)
	}
	return nil
}

func upgrade(ctx context.Context, db *sql.DB, d dialect) (err error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted}) // under the lock, it must see what others have committed
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	if _, err := tx.ExecContext(ctx, d.lock); err != nil {
		return err
	}
	current, err := version(ctx, tx, d)
	if err != nil {
		return err
	}
	var todo []string
	if current == 0 {
		todo = append(todo, `CREATE TABLE IF NOT EXISTS aiguard_schema (version BIGINT NOT NULL)`)
	}
	for _, statements := range d.versions[current:] {
		todo = append(todo, statements...)
	}
	todo = append(todo, `DELETE FROM aiguard_schema`, fmt.Sprintf(`INSERT INTO aiguard_schema (version) VALUES (%d)`, len(d.versions)))
	for _, statement := range todo {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return tx.Commit()
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// version returns the schema version of the database, or 0 if the tables do not exist. It returns an error if the
// version is newer than this package.
func version(ctx context.Context, db querier, d dialect) (v int, err error) {
	var exists bool
	if err := db.QueryRowContext(ctx, d.hasSchema).Scan(&exists); err != nil || !exists {
		return 0, err
	}
	if err := db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM aiguard_schema`).Scan(&v); err != nil {
		return 0, err
	}
	if v > len(d.versions) {
		return 0, fmt.Errorf("the database has schema version %d, but this program supports at most %d; use a newer aiguard", v, len(d.versions))
	}
	return v, nil
}
