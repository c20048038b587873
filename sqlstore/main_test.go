package sqlstore_test

import (
	"os"
	"testing"

	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/pgtest"
)

// TestMain runs the child process if the environment requests it. Otherwise it runs the tests and fails if a
// goroutine leaks.
func TestMain(m *testing.M) {
	if order := os.Getenv(childEnv); order != "" {
		os.Exit(child(order))
	}
	leaktest.Main(withPostgres{m}, "database/sql.")
}

// postgres is the PostgreSQL server of the tests.
var postgres pgtest.Server

// withPostgres stops the tests' PostgreSQL server after the tests.
type withPostgres struct{ *testing.M }

func (w withPostgres) Run() int {
	defer postgres.Stop()
	return w.M.Run()
}
