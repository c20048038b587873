// Package pgindex keeps the questions of cacheguard's Config.Similar in PostgreSQL with the extension pgvector. Several
// processes can share them. They need a shared cacheguard.Store too, such as redisstore, because a process can only use
// answers that it can read.
//
//	index, err := pgindex.New(ctx, db, pgindex.Config{})
//	cfg := cacheguard.Config{Store: store, Similar: cacheguard.Similar{Embed: embed, Threshold: 0.9, Index: index}}
//
// Any driver works. This package imports none, and the tests use github.com/jackc/pgx/v5/stdlib.
//
// A search reads all vectors of its partition, and so finds the most similar one without exception. Partitions are small,
// because the questions of one have almost the same words. The table has no text of a question.
package pgindex

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"

	"github.com/aiguard-go/aiguard/cacheguard"
)

// The defaults of Config.
const (
	DefaultTable      = "aiguard_questions"
	DefaultDimensions = cacheguard.DefaultEmbeddingDimensions
)

// maxDimensions is the limit of pgvector.
const maxDimensions = 16_000

// Config configures an Index. The zero value is valid.
type Config struct {
	// Table is the name of the table, of lower-case letters, digits and '_'. It is in the first schema of the search_path.
	// Vectors of different models are not comparable: change the name when you change the model. Default aiguard_questions
	Table string

	Dimensions int // of the vectors. Default 256
}

// Index is a cacheguard.Index in PostgreSQL. It is safe for concurrent use.
type Index struct {
	db              *sql.DB
	dimensions      int
	nearest, update string // statements
}

var _ cacheguard.Index = (*Index)(nil)

var tableName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,39}$`)

// New returns an Index in the database of db. The first use needs the rights to create a table and, if it does not exist,
// the extension vector. New returns an error if the table exists with other dimensions. The caller closes db after the
// Transport.
func New(ctx context.Context, db *sql.DB, cfg Config) (*Index, error) {
	if cfg.Table == "" {
		cfg.Table = DefaultTable
	}
	if cfg.Dimensions == 0 {
		cfg.Dimensions = DefaultDimensions
	}
	switch {
	case db == nil:
		return nil, errors.New("pgindex: New: db is nil; want a database")
	case !tableName.MatchString(cfg.Table):
		return nil, fmt.Errorf("pgindex: Config.Table is %q; want up to 40 characters of a to z, 0 to 9 and _, "+
			"and no digit at the start", cfg.Table)
	case cfg.Dimensions < 0 || cfg.Dimensions > maxDimensions:
		return nil, fmt.Errorf("pgindex: Config.Dimensions is %d; want 0 (the default, %d) to %d",
			cfg.Dimensions, DefaultDimensions, maxDimensions)
	}
	x := &Index{
		db: db, dimensions: cfg.Dimensions,

		// <#> is the negative scalar product.
		nearest: `SELECT id, -(embedding <#> $2::vector) FROM ` + cfg.Table + `
			WHERE partition = $1 AND expires_at > clock_timestamp() ORDER BY embedding <#> $2::vector LIMIT 1`,

		// Each update also removes some expired items, so that their number stays small. It does not remove an item that it
		// adds, because both parts see the table as it was before.
		update: `WITH item AS (
				SELECT * FROM jsonb_to_recordset($1::jsonb) AS item (id text, partition text, embedding text, ttl bigint)
			), gone AS (
				DELETE FROM ` + cfg.Table + ` WHERE id NOT IN (SELECT id FROM item) AND (
					id IN (SELECT jsonb_array_elements_text($2::jsonb)) OR
					id IN (SELECT id FROM ` + cfg.Table + ` WHERE expires_at <= clock_timestamp() LIMIT 10 FOR UPDATE SKIP LOCKED))
			)
			INSERT INTO ` + cfg.Table + ` (id, partition, embedding, expires_at)
			SELECT id, partition, embedding::vector, clock_timestamp() + ttl * interval '1 microsecond' FROM item
			ON CONFLICT (id) DO UPDATE
				SET partition = EXCLUDED.partition, embedding = EXCLUDED.embedding, expires_at = EXCLUDED.expires_at`,
	}
	if err := x.prepare(ctx, cfg); err != nil {
		return nil, fmt.Errorf("pgindex: prepare the table %s: %w", cfg.Table, err)
	}
	return x, nil
}

// prepare creates what does not exist.
func (x *Index) prepare(ctx context.Context, cfg Config) (err error) {
	tx, err := x.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreDone(tx.Rollback()))
		}
	}()
	for _, statement := range []string{
		`SELECT pg_advisory_xact_lock(7009134170155573608)`, // an arbitrary number: one process at a time
		`CREATE EXTENSION IF NOT EXISTS vector`,
		fmt.Sprintf(`CREATE TABLE IF NOT EXISTS %s (
			id         TEXT PRIMARY KEY,
			partition  TEXT NOT NULL,
			embedding  VECTOR(%d) NOT NULL,
			expires_at TIMESTAMPTZ NOT NULL
		)`, cfg.Table, cfg.Dimensions),
		fmt.Sprintf(`CREATE INDEX IF NOT EXISTS %[1]s_partition ON %[1]s (partition)`, cfg.Table),
		fmt.Sprintf(`CREATE INDEX IF NOT EXISTS %[1]s_expires ON %[1]s (expires_at)`, cfg.Table),
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	var dimensions int
	const typeOfColumn = `SELECT atttypmod FROM pg_attribute WHERE attrelid = $1::text::regclass AND attname = 'embedding'`
	err = tx.QueryRowContext(ctx, typeOfColumn, cfg.Table).Scan(&dimensions)
	if err == nil && dimensions != cfg.Dimensions {
		err = fmt.Errorf("it has vectors of %d dimensions, and Config.Dimensions is %d; want the same number, or another Config.Table",
			dimensions, cfg.Dimensions)
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

// ignoreDone returns nil for a transaction that the end of its context has rolled back.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// Nearest implements cacheguard.Index.
func (x *Index) Nearest(ctx context.Context, partition string, vector []float32, least float64) (cacheguard.Match, error) {
	var m cacheguard.Match
	if err := x.check(vector); err != nil {
		return m, err
	}
	err := x.db.QueryRowContext(ctx, x.nearest, partition, literal(vector)).Scan(&m.ID, &m.Similarity)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return cacheguard.Match{}, nil
	case err != nil:
		return cacheguard.Match{}, fmt.Errorf("pgindex: search: %w", err)
	case m.Similarity < least:
		return cacheguard.Match{}, nil
	}
	m.Similarity = min(m.Similarity, 1)
	return m, nil
}

// row is an Item as the statement update reads it.
type row struct {
	ID        string `json:"id"`
	Partition string `json:"partition"`
	Embedding string `json:"embedding"`
	TTL       int64  `json:"ttl"`
}

// Update implements cacheguard.Index. It also removes up to ten expired items.
func (x *Index) Update(ctx context.Context, add []cacheguard.Item, remove []string) error {
	if len(add)+len(remove) == 0 {
		return nil
	}
	rows := map[string]row{} // a statement cannot insert an ID twice
	for _, item := range add {
		if err := x.check(item.Vector); err != nil {
			return err
		}
		rows[item.ID] = row{item.ID, item.Partition, literal(item.Vector), item.TTL.Microseconds()}
	}
	added, err := json.Marshal(slices.AppendSeq([]row{}, maps.Values(rows)))
	if err != nil {
		return err
	}
	removed, err := json.Marshal(append([]string{}, remove...))
	if err != nil {
		return err
	}
	if _, err := x.db.ExecContext(ctx, x.update, string(added), string(removed)); err != nil {
		return fmt.Errorf("pgindex: update: %w", err)
	}
	return nil
}

func (x *Index) check(vector []float32) error {
	if len(vector) != x.dimensions {
		return fmt.Errorf("pgindex: a vector has %d dimensions; want %d (Config.Dimensions)", len(vector), x.dimensions)
	}
	return nil
}

// literal returns the vector in the form of pgvector.
func literal(vector []float32) string {
	b := []byte{'['}
	for i, v := range vector {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendFloat(b, float64(v), 'g', -1, 32)
	}
	return string(append(b, ']'))
}
