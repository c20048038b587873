package sqlstore

import (
	"context"
	"database/sql"
)

// Migrate migrates the database as if later followed the schema's last version.
func (s *Store) Migrate(ctx context.Context, later ...[]string) error {
	d := s.dialect
	d.versions = append(d.versions[:len(d.versions):len(d.versions)], later...)
	return migrate(ctx, s.db, d)
}

// DB gives tests direct access to the database.
func (s *Store) DB() *sql.DB { return s.db }
