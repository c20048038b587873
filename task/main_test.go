package task_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails if the tests leave a goroutine of this module behind.
func TestMain(m *testing.M) {
	code := m.Run()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(5 * time.Second); code == 0; time.Sleep(10 * time.Millisecond) {
		stacks := strings.SplitN(string(buf[:runtime.Stack(buf, true)]), "\n\n", 2) // the first is this one
		if len(stacks) < 2 || !strings.Contains(stacks[1], "github.com/aiguard-go/aiguard") {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintln(os.Stderr, "goroutines left behind\n\n"+stacks[1])
			code = 1
		}
	}
	os.Exit(code)
}
