package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/task"
)

const (
	columns = `id, name, status, error_code, error_message, progress, progress_note, result, created_at, started_at, finished_at,
	attempts, revision, cancel_requested, owner, input`

	// Inputs are large, and only Orphans needs them.
	withInput    = `SELECT ` + columns + ` FROM aiguard_operations`
	withoutInput = `SELECT id, name, status, error_code, error_message, progress, progress_note, result, created_at, started_at, finished_at,
	attempts, revision, cancel_requested, owner, NULL FROM aiguard_operations`
)

// Create implements task.Store.
func (s *Store) Create(ctx context.Context, op task.Operation) error {
	created, err := s.exec(ctx, `INSERT INTO aiguard_operations (`+columns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) ON CONFLICT (id) DO NOTHING`,
		op.ID, op.Name, string(op.Status), string(op.ErrorCode), op.ErrorMessage, op.Progress, op.ProgressNote, text(op.Result),
		op.CreatedAt.UTC(), when(op.StartedAt), when(op.FinishedAt), op.Attempts, op.Revision, op.CancelRequested, op.Owner, text(op.Input))
	if err == nil && created == 0 {
		err = task.ErrExists
	}
	return failed("create", err)
}

// Get implements task.Store.
func (s *Store) Get(ctx context.Context, id string) (task.Operation, error) {
	op, err := scan(s.reads.QueryRowContext(ctx, withoutInput+` WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = task.ErrNotFound
	}
	return op, failed("get", err)
}

// List implements task.Store.
func (s *Store) List(ctx context.Context, q task.Query) ([]task.Operation, error) {
	var c condition
	if q.Name != "" {
		c.and(`name = ` + c.arg(q.Name))
	}
	if q.Owner != "" {
		c.and(`owner = ` + c.arg(q.Owner))
	}
	if len(q.Statuses) > 0 {
		c.and(`status IN (` + list(&c, q.Statuses) + `)`)
	}
	limit := cmp.Or(max(q.Limit, 0), task.DefaultLimit)
	found, err := s.find(ctx, withoutInput, &c, `ORDER BY created_at DESC, id DESC LIMIT `+c.arg(limit))
	return found, failed("list", err)
}

// Update implements task.Store. It uses one statement, so that of two concurrent updates the second sees the first.
func (s *Store) Update(ctx context.Context, op task.Operation) error {
	fromPending, fromRunning := task.Pending.MayBecome(op.Status), task.Running.MayBecome(op.Status)
	updated, err := s.exec(ctx, `UPDATE aiguard_operations SET status = $3, error_code = $4, error_message = $5, progress = $6,
			progress_note = $7, result = $8, started_at = $9, finished_at = $10, attempts = $11, cancel_requested = $12, owner = $13,
			revision = revision + 1
		WHERE id = $1 AND revision = $2 AND (status = 'pending' AND $14 OR status = 'running' AND $15)`,
		op.ID, op.Revision-1, string(op.Status), string(op.ErrorCode), op.ErrorMessage, op.Progress,
		op.ProgressNote, text(op.Result), when(op.StartedAt), when(op.FinishedAt), op.Attempts, op.CancelRequested, op.Owner,
		fromPending, fromRunning)
	if err == nil && updated == 0 {
		err = s.refused(ctx, op.ID)
	}
	return failed("update", err)
}

// refused returns the reason why Update changed no row.
func (s *Store) refused(ctx context.Context, id string) error {
	var exists bool
	err := s.reads.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM aiguard_operations WHERE id = $1)`, id).Scan(&exists)
	switch {
	case err != nil:
		return err
	case !exists:
		return task.ErrNotFound
	}
	return task.ErrConflict
}

// Renew implements task.Store. It also removes expired leases.
func (s *Store) Renew(ctx context.Context, owner string, lease time.Duration) (err error) {
	if lease > 0 {
		_, err = s.exec(ctx, `INSERT INTO aiguard_leases (owner, expires_at) VALUES ($1, `+s.dialect.expiry+`)
			ON CONFLICT (owner) DO UPDATE SET expires_at = excluded.expires_at`, owner, lease.Microseconds())
	} else {
		_, err = s.exec(ctx, `DELETE FROM aiguard_leases WHERE owner = $1`, owner)
	}
	if err == nil {
		_, err = s.exec(ctx, `DELETE FROM aiguard_leases WHERE expires_at <= `+s.dialect.now)
	}
	return failed("renew", err)
}

// Orphans implements task.Store.
func (s *Store) Orphans(ctx context.Context, names []string, limit int) ([]task.Operation, error) {
	var c condition
	c.and(`status IN ('pending', 'running')`)
	c.and(`NOT EXISTS (SELECT 1 FROM aiguard_leases l WHERE l.owner = aiguard_operations.owner AND l.expires_at > ` + s.dialect.now + `)`)
	mine := `status = 'running' OR input IS NULL`
	if len(names) > 0 {
		mine += ` OR name IN (` + list(&c, names) + `)`
	}
	c.and(`(` + mine + `)`)
	found, err := s.find(ctx, withInput, &c, `ORDER BY created_at, id LIMIT `+c.arg(max(limit, 0)))
	return found, failed("find orphans", err)
}

// DeleteFinished deletes the operations that finished before the given time and returns their number. It deletes in
// steps, so that other statements do not wait long. If it fails, the completed steps remain.
func (s *Store) DeleteFinished(ctx context.Context, before time.Time) (deleted int64, err error) {
	const step = 1000
	for n := int64(step); err == nil && n == step; deleted += n {
		n, err = s.exec(ctx, `DELETE FROM aiguard_operations WHERE id IN (SELECT id FROM aiguard_operations
			WHERE finished_at < $1 AND status NOT IN ('pending', 'running') ORDER BY finished_at LIMIT $2)`, before.UTC(), step)
	}
	return deleted, failed("delete finished operations", err)
}

// exec runs a statement and returns the number of changed rows.
func (s *Store) exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := s.db.ExecContext(ctx, query, args...)
	if isReadOnly(err) {
		return s.execElsewhere(ctx, query, args...)
	}
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// execElsewhere repeats a statement that failed in a read-only session. After a failover of PostgreSQL the pool may
// hold sessions of a server that is now a standby. execElsewhere closes such sessions one by one until one can write.
func (s *Store) execElsewhere(ctx context.Context, query string, args ...any) (rows int64, err error) {
	for left := s.db.Stats().OpenConnections; left >= 0; left-- {
		rows, err = s.execOrClose(ctx, query, args...)
		if !isReadOnly(err) {
			break
		}
	}
	return rows, err
}

// execOrClose runs a statement in one session and closes the session if it is read-only.
func (s *Store) execOrClose(ctx context.Context, query string, args ...any) (int64, error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close() // returns it to the pool
	result, err := conn.ExecContext(ctx, query, args...)
	if isReadOnly(err) {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // makes database/sql close the connection
	}
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// isReadOnly reports whether err means that the session is read-only.
func isReadOnly(err error) bool {
	const readOnlyTransaction = "25006"
	var state interface{ SQLState() string } // implemented by the errors of pgx and lib/pq
	return errors.As(err, &state) && state.SQLState() == readOnlyTransaction
}

// find returns the operations that match c.
func (s *Store) find(ctx context.Context, selection string, c *condition, orderAndLimit string) (found []task.Operation, err error) {
	rows, err := s.reads.QueryContext(ctx, selection+c.where()+` `+orderAndLimit, c.args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		op, err := scan(rows)
		if err != nil {
			return nil, err
		}
		found = append(found, op)
	}
	return found, rows.Err()
}

// scan reads the columns of one operation.
func scan(row interface{ Scan(...any) error }) (op task.Operation, err error) {
	var started, finished sql.NullTime
	err = row.Scan(&op.ID, &op.Name, &op.Status, &op.ErrorCode, &op.ErrorMessage, &op.Progress, &op.ProgressNote, (*[]byte)(&op.Result),
		&op.CreatedAt, &started, &finished, &op.Attempts, &op.Revision, &op.CancelRequested, &op.Owner, (*[]byte)(&op.Input))
	op.CreatedAt, op.StartedAt, op.FinishedAt = op.CreatedAt.UTC(), started.Time.UTC(), finished.Time.UTC()
	return op, err
}

// text returns NULL for nil, and otherwise a string, because some drivers do not accept bytes for a text column.
func text(raw json.RawMessage) sql.NullString {
	return sql.NullString{String: string(raw), Valid: raw != nil}
}

// when returns NULL for the zero time.
func when(t time.Time) sql.NullTime { return sql.NullTime{Time: t.UTC(), Valid: !t.IsZero()} }

// condition collects the terms of a WHERE clause and the arguments of its query.
type condition struct {
	terms []string
	args  []any
}

func (c *condition) and(term string) { c.terms = append(c.terms, term) }

// arg adds an argument and returns its placeholder.
func (c *condition) arg(v any) string {
	c.args = append(c.args, v)
	return fmt.Sprintf("$%d", len(c.args))
}

func (c *condition) where() string {
	if len(c.terms) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.terms, " AND ")
}

// list adds the values as arguments and returns their placeholders.
func list[T ~string](c *condition, values []T) string {
	placeholders := make([]string, len(values))
	for i, v := range values {
		placeholders[i] = c.arg(string(v))
	}
	return strings.Join(placeholders, ", ")
}

// failed adds the failed step to err. Errors of package task stay unchanged.
func failed(what string, err error) error {
	if err == nil || errors.Is(err, task.ErrNotFound) || errors.Is(err, task.ErrExists) || errors.Is(err, task.ErrConflict) {
		return err
	}
	return fmt.Errorf("sqlstore: %s: %w", what, err)
}
