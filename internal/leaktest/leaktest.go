// Package leaktest finds goroutines that tests have left behind.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Main runs the tests of a package, for its TestMain, and fails if they leave a goroutine behind: of the project, or of a
// connection that it, or a test that forgot to Close something, still holds.
func Main(tests interface{ Run() int }) {
	code := tests.Run()
	if left := Left(5 * time.Second); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind; a guard or server that was not closed?\n\n"+left)
		code = 1
	}
	os.Exit(code)
}

// Left returns the stacks of goroutines of the project or net/http, but for the caller's, that are still there after the grace.
func Left(grace time.Duration) string {
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		var left []string
		for i, stack := range strings.Split(Stacks(), "\n\n") {
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

// Stacks returns the stacks of all goroutines, the caller's first.
func Stacks() string {
	for buf := make([]byte, 1<<20); ; buf = make([]byte, 2*len(buf)) {
		if n := runtime.Stack(buf, true); n < len(buf) || len(buf) >= 64<<20 {
			return string(buf[:n])
		}
	}
}
