package aiguard_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails if the tests leave a goroutine behind: of the guard, or of a connection that it, or a test
// that forgot to Close something, still holds.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := goroutinesLeft(5 * time.Second); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind; a guard or server that was not closed?\n\n"+left)
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft returns the stacks of goroutines of this module or net/http that are still there after the grace.
func goroutinesLeft(grace time.Duration) string {
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		var left []string
		for i, stack := range strings.Split(stacks(), "\n\n") {
			ours := strings.Contains(stack, "github.com/aiguard-go/aiguard") || strings.Contains(stack, "net/http.")
			if i > 0 && ours { // the first is this one
				left = append(left, stack)
			}
		}
		if left == nil || time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
	}
}

// stacks returns the stacks of all goroutines, this one's first.
func stacks() string {
	for buf := make([]byte, 1<<20); ; buf = make([]byte, 2*len(buf)) {
		if n := runtime.Stack(buf, true); n < len(buf) || len(buf) >= 64<<20 {
			return string(buf[:n])
		}
	}
}
