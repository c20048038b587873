package riverguard_test

import (
	"flag"
	"testing"

	"github.com/aiguard-go/aiguard/internal/childtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/pgtest"
)

// TestMain runs the child process if the environment requests it. Otherwise it runs the tests and fails if a
// goroutine leaks.
func TestMain(m *testing.M) {
	childtest.Main(order.obey)
	_ = flag.Set("test.parallel", "8") // the tests wait much more than they compute
	leaktest.Main(withPostgres{m}, "github.com/riverqueue/river", "github.com/jackc/pgx")
}

// postgres is the PostgreSQL server of the tests.
var postgres pgtest.Server

// withPostgres stops the tests' PostgreSQL server after the tests.
type withPostgres struct{ *testing.M }

func (w withPostgres) Run() int {
	defer postgres.Stop()
	return w.M.Run()
}
