package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
)

// runner measures rows. Each contender runs in a separate process, so no contender inherits another's heap or timers.
type runner struct {
	rounds    int
	benchtime time.Duration
	progress  io.Writer
	binary    string
}

const runTimeout = 2 * time.Minute // for one contender in one round

// run measures the rows. Each round runs every contender once. The order changes between rounds, so that other load on
// the machine affects all contenders equally.
func (r *runner) run(ctx context.Context, rows []cost.Row) (cost.Results, error) {
	dir, err := os.MkdirTemp("", "aiguard-benchmarks-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	r.binary = filepath.Join(dir, "cost.test")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", r.binary, "./cost").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building ./cost: %w\n%s", err, out)
	}
	all := cost.Results{}
	for round := range r.rounds {
		fmt.Fprintf(r.progress, "round %d of %d:", round+1, r.rounds)
		done := map[string]bool{} // several rows may share a benchmark
		for _, row := range rows {
			if row.How == cost.MemoryRows || done[row.Bench] {
				continue
			}
			done[row.Bench] = true
			fmt.Fprint(r.progress, " ", row.Bench)
			for i := range row.Contenders {
				if err := r.one(ctx, all, row, row.Contenders[(i+round)%len(row.Contenders)]); err != nil {
					return nil, err
				}
			}
		}
		fmt.Fprintln(r.progress)
	}
	for _, row := range rows {
		if row.How == cost.MemoryRows {
			fmt.Fprintln(r.progress, "memory of the worst answers, in child processes")
			if err := measureMemory(ctx, all, row.Bench); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// one runs one contender.
func (r *runner) one(ctx context.Context, all cost.Results, row cost.Row, name string) error {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.binary, r.args(row, name)...)
	cmd.Env = plainEnv()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s of %s: %w\n%s", row.Bench, name, err, out)
	}
	before := len(all.Values(row.Bench, name, row.Unit))
	if err := all.Read(out); err != nil {
		return err
	}
	if len(all.Values(row.Bench, name, row.Unit)) != before+1 {
		return fmt.Errorf("%s of %s: no %s in\n%s", row.Bench, name, row.Unit, out)
	}
	return nil
}

func (r *runner) args(row cost.Row, name string) []string {
	pattern := exact(row.Bench + "/" + name)
	switch row.How {
	case cost.Virtual:
		return []string{"-test.run", strings.Replace(pattern, "^", "^Test", 1), "-callers", "100"}
	case cost.OneShot:
		return []string{"-test.run", "^$", "-test.bench", strings.Replace(pattern, "^", "^Benchmark", 1), "-test.benchtime", "1x"}
	}
	return []string{"-test.run", "^$", "-test.bench", strings.Replace(pattern, "^", "^Benchmark", 1), "-test.benchtime", r.benchtime.String()}
}

// exact returns a pattern that matches only this test or benchmark.
func exact(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return strings.Join(parts, "/")
}

// plainEnv returns the environment with the default settings of the garbage collector.
func plainEnv() []string { return append(os.Environ(), "GOGC=100", "GOMEMLIMIT=off", "GODEBUG=") }
