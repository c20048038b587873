package sqlstore_test

import (
	"os"
	"testing"

	"github.com/aiguard-go/aiguard/internal/leaktest"
)

// TestMain is the other process, if it is asked to. Otherwise it fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) {
	if order := os.Getenv(childEnv); order != "" {
		os.Exit(child(order))
	}
	leaktest.Main(withPostgres{m}, "database/sql.")
}

// withPostgres ends the tests' own server when they are over.
type withPostgres struct{ *testing.M }

func (w withPostgres) Run() int {
	defer stopPostgres()
	return w.M.Run()
}
