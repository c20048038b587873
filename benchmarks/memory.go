package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

const (
	rootModule    = ".."
	memoryTest    = "TestFiftyCallersOfTheWorstAnswersFitInto100MB"
	memoryCallers = 50
	memoryTimeout = 5 * time.Minute
	honestRow     = "an honest answer" // not a fault: most of its memory is go-openai's decoding
)

// measureMemory runs the root module's memory test and takes the highest peak. The test's child processes make the
// calls and report their VmHWM.
func measureMemory(ctx context.Context, all cost.Results, bench string) error {
	ctx, cancel := context.WithTimeout(ctx, memoryTimeout)
	defer cancel()
	dir, err := os.MkdirTemp("", "aiguard-memory-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "root.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, ".")
	build.Dir = rootModule
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the root module's tests: %w\n%s", err, out)
	}
	cmd := exec.CommandContext(ctx, binary, "-test.run", "^"+memoryTest+"$", "-test.v")
	cmd.Dir, cmd.Env = rootModule, plainEnv()
	out, failed := cmd.CombinedOutput()
	peaks, err := readMemory(out)
	if err != nil {
		return errors.Join(err, failed)
	}
	if failed != nil && peaks[contender.Aiguard] <= 100e6 { // the test failed for a reason other than a high peak
		return fmt.Errorf("%s: %w\n%s", memoryTest, failed, out)
	}
	for name, peak := range peaks {
		all.Add(bench, name, cost.PeakBytes, peak)
	}
	return nil
}

// memoryLine matches a line of the test's table: row, protocol, calls, peak in MB, results of the calls.
var memoryLine = regexp.MustCompile(`^\s*(\S.*?) +HTTP/[0-9.]+ +(\d+) +(\d+\.\d) `)

// readMemory returns the highest peaks in the test's table: of the guarded rows with all callers, and of the controls
// without the guard, which a watchdog stops.
func readMemory(out []byte) (map[string]float64, error) {
	peaks, honest := map[string]float64{}, false
	for line := range bytes.Lines(out) {
		m := memoryLine.FindSubmatch(line)
		if m == nil {
			continue
		}
		if strings.HasPrefix(string(m[1]), honestRow) {
			honest = true
			continue
		}
		name := contender.Aiguard
		switch calls, _ := strconv.Atoi(string(m[2])); {
		case strings.HasSuffix(string(m[1]), ", unguarded"):
			name = contender.Bare
		case calls != memoryCallers:
			continue
		}
		mb, err := strconv.ParseFloat(string(m[3]), 64)
		if err != nil {
			return nil, err
		}
		peaks[name] = max(peaks[name], mb*1e6)
	}
	if len(peaks) != 2 {
		return nil, fmt.Errorf("%s: no table in\n%s", memoryTest, out)
	}
	if !honest { // it has another name, and its peak counts as that of a fault
		return nil, fmt.Errorf("%s: no row %q in\n%s", memoryTest, honestRow, out)
	}
	return peaks, nil
}
