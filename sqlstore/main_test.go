package sqlstore_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain is the other process, if it is asked to. Otherwise it fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) {
	if order := os.Getenv(childEnv); order != "" {
		os.Exit(child(order))
	}
	code := m.Run()
	stopPostgres()
	if left := goroutinesLeft(5 * time.Second); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind:\n\n"+left)
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of goroutines of this module or database/sql that are still there after the grace.
func goroutinesLeft(grace time.Duration) string {
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		var left []string
		for i, stack := range strings.Split(string(buf), "\n\n") {
			ours := strings.Contains(stack, "aiguard-go/aiguard") || strings.Contains(stack, "database/sql.")
			if i > 0 && ours { // the first is this one
				left = append(left, stack)
			}
		}
		if left == nil || time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
	}
}
