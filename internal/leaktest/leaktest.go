// Package leaktest finds goroutines that tests have left behind.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Main runs the tests of a package, for its TestMain, and fails if they leave a goroutine behind: of the project, of a
// connection that it, or a test that forgot to Close something, still holds, or with one of more in its stack.
func Main(tests interface{ Run() int }, more ...string) {
	code := tests.Run()
	if left := left(5*time.Second, append(more, "github.com/aiguard-go/aiguard", "net/http.")); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind; a guard or server that was not closed?\n\n"+left)
		code = 1
	}
	os.Exit(code)
}

// left returns the stacks, but for the caller's, that have one of parts and are still there after the grace.
func left(grace time.Duration, parts []string) string {
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		var found []string
		for i, stack := range strings.Split(Stacks(), "\n\n") {
			if i > 0 && slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(stack, part) }) { // the first is this one
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
