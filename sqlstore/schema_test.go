package sqlstore_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/sqlstore"
	"github.com/aiguard-go/aiguard/task"
)

// Possible future versions. Each fails if it runs twice.
var (
	second = []string{`ALTER TABLE aiguard_operations ADD COLUMN tenant TEXT`, `CREATE INDEX aiguard_tenant ON aiguard_operations (tenant)`}
	third  = []string{`UPDATE aiguard_operations SET tenant = name`, `CREATE TABLE aiguard_third (id BIGINT)`}
)

func TestMigrationKeepsOperations(t *testing.T) {
	for _, steps := range [][][][]string{
		{{second}, {second, third}}, // one after the other
		{{second, third}},           // both at once
		{{}, {second, third}, {second, third}},
	} {
		onEach(t, func(t *testing.T, d database) {
			s := openStore(t, d)
			add(t, s, "a", task.Running, time.Time{})
			for _, later := range steps {
				require.NoError(t, s.Migrate(t.Context(), later...))
			}
			op, err := s.Get(t.Context(), "a")
			require.NoError(t, err)
			require.Equal(t, task.Running, op.Status)
			var tenant string
			require.NoError(t, s.DB().QueryRowContext(t.Context(), "SELECT tenant FROM aiguard_operations").Scan(&tenant))
			require.Equal(t, "test", tenant)
		})
	}
}

func TestNewerDatabaseIsRejected(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		require.NoError(t, s.Migrate(t.Context(), second))
		_, _, err := d.open(t.Context())
		require.ErrorContains(t, err, "the database has schema version 3, but this program supports at most 2")
	})
}

func TestFailedMigrationRollsBack(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		require.Error(t, s.Migrate(t.Context(), second, []string{`CREATE TABLE aiguard_third (id BIGINT)`, `no SQL`}))
		openStore(t, d) // it has the version of this program
		require.NoError(t, s.Migrate(t.Context(), second, third))
	})
}

func TestConcurrentOpenAndMigrate(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		stores := make([]*sqlstore.Store, 6)
		atOnce(t, len(stores), func(i int) (err error) {
			s, closeStore, err := d.open(t.Context())
			if err == nil {
				stores[i] = s
				t.Cleanup(func() { require.NoError(t, closeStore()) })
			}
			return err
		})
		atOnce(t, len(stores), func(i int) error { return stores[i].Migrate(t.Context(), second, third) })
	})
}

// atOnce runs f n times concurrently.
func atOnce(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
}

func TestPostgresNeedsNoCreateRightForExistingTables(t *testing.T) {
	d := newPostgres(t)
	s := openStore(t, d)
	var schema string
	require.NoError(t, s.DB().QueryRowContext(t.Context(), "SELECT current_schema()").Scan(&schema))
	role := schema + "_worker" // roles belong to the whole server
	for _, statement := range []string{
		"CREATE ROLE " + role + " LOGIN",
		"GRANT USAGE ON SCHEMA " + schema + " TO " + role,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA " + schema + " TO " + role,
	} {
		_, err := s.DB().ExecContext(t.Context(), statement)
		require.NoError(t, err)
	}
	worker := openStore(t, database{DSN: d.DSN + " user=" + role})
	require.NoError(t, worker.Renew(t.Context(), "owner", time.Hour))
	add(t, worker, "a", task.Pending, time.Time{})
}
