package sqlstore

import (
	"context"
	"database/sql"
)

// Migrate does what SQLite or Postgres would do if the schema had these versions after the last one.
func (s *Store) Migrate(ctx context.Context, later ...[]string) error {
	d := s.dialect
	d.versions = append(d.versions[:len(d.versions):len(d.versions)], later...)
	return migrate(ctx, s.db, d)
}

// DB is for what a Store does not do.
func (s *Store) DB() *sql.DB { return s.db }
