// Package leaktest finds goroutines that tests have leaked.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Main runs the tests of a package and fails if they leak a goroutine. Call it from TestMain. It finds goroutines of
// the project, goroutines of connections that are still open, and goroutines with one of more in their stack.
func Main(tests interface{ Run() int }, more ...string) {
	code := tests.Run()
	if left := left(5*time.Second, append(more, "github.com/aiguard-go/aiguard", "net/http.")); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind; a guard or server that was not closed?\n\n"+left)
		code = 1
	}
	os.Exit(code)
}

// left returns the stacks, except the caller's, that contain one of parts and still exist after the grace period.
func left(grace time.Duration, parts []string) string {
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		var found []string
		for i, stack := range strings.Split(Stacks(), "\n\n") {
			if i > 0 && slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(stack, part) }) { // the first stack is this goroutine's
				found = append(found, stack)
			}
		}
		if found == nil || time.Now().After(deadline) {
			return strings.Join(found, "\n\n")
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
