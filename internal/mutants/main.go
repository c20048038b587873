// Command mutants disables the limits of package aiguard and of some nested modules, one at a time, in a copy. It checks
// that at least one test fails for each:
//
//	go run ./internal/mutants                # all of table.go
//	go run ./internal/mutants 'stream|slot'  # those whose name matches
//
// It fails if a mutant survives, does not compile, or no longer matches the code.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// mutation disables one limit. It replaces old by new in file, and makes further edits where a limit is enforced
// twice.
type mutation struct {
	name     string // what the mutation breaks
	in       string // package whose tests should fail; "": the root package
	run      string // pattern for -run; "": all tests
	file     string
	old, new string // old must occur exactly once in file
	also     []edit
}

type edit struct{ file, old, new string }

func (m *mutation) edits() []edit { return append([]edit{{m.file, m.old, m.new}}, m.also...) }

// skip excludes stress tests and long memory measurements, which all have short counterparts.
const skip = "^(TestStress|TestChaos|TestFiftyCallersOfTheWorstAnswers|TestTwoHundredHugeAnswers)"

const timeout = 240 * time.Second // for one test run

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	chosen := mutations
	if len(args) > 0 {
		pattern, err := regexp.Compile(strings.Join(args, "|"))
		if err != nil {
			return err
		}
		chosen = slices.DeleteFunc(slices.Clone(mutations), func(m mutation) bool { return !pattern.MatchString(m.name) })
		if len(chosen) == 0 {
			return fmt.Errorf("no mutation name matches %v", pattern)
		}
	}

	dir, err := os.MkdirTemp("", "aiguard-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copyTree(ctx, dir); err != nil {
		return err
	}
	if err := checkTable(dir, mutations); err != nil {
		return err
	}

	// If the unmodified tests failed, every mutant would seem to be killed.
	tested := map[string]bool{}
	for _, m := range chosen {
		if tested[m.in] {
			continue
		}
		tested[m.in] = true
		start := time.Now()
		if r := test(ctx, dir, m.in, ""); ctx.Err() != nil {
			return ctx.Err()
		} else if r.outcome != survived {
			return fmt.Errorf("the tests of ./%s fail without any mutation (%s):\n%s", m.in, r.by, withoutPasses(r.output))
		}
		fmt.Printf("passed    without a mutation in ./%s  %s\n", m.in, since(start))
	}

	var survivors, broken int
	for _, m := range chosen {
		start := time.Now()
		r, err := try(ctx, dir, &m)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", m.name, err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		switch r.outcome {
		case killed:
			fmt.Printf("killed    %s  (%s)  %s\n", m.name, r.by, since(start))
		case survived:
			survivors++
			fmt.Printf("SURVIVED  %s  %s\n", m.name, since(start))
		case notBuilt:
			broken++
			fmt.Printf("ERROR     %s: does not compile\n%s", m.name, r.output)
		}
	}
	fmt.Printf("%d killed, %d survived, %d do not compile\n", len(chosen)-survivors-broken, survivors, broken)
	if survivors+broken > 0 {
		return errors.New("not every mutant was killed")
	}
	return nil
}

// withoutPasses removes the lines of passed tests from the output of go test -v.
func withoutPasses(out []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		if said := strings.TrimSpace(line); !strings.HasPrefix(said, "=== ") && !strings.HasPrefix(said, "--- PASS") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func since(start time.Time) string { return fmt.Sprintf("%.1fs", time.Since(start).Seconds()) }

// copyTree copies the files of the work tree.
func copyTree(ctx context.Context, dir string) error {
	gomod, err := output(ctx, "", "go", "env", "GOMOD")
	if err != nil {
		return err
	}
	root := filepath.Dir(strings.TrimSpace(gomod))
	list, err := output(ctx, root, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	for f := range strings.SplitSeq(strings.TrimRight(list, "\x00"), "\x00") {
		switch err := copyFile(filepath.Join(root, f), filepath.Join(dir, f)); {
		case errors.Is(err, fs.ErrNotExist): // deleted in the work tree
		case err != nil:
			return err
		}
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, stderr.Bytes())
	}
	return string(out), nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// checkTable reports all entries that do not match the code or that share a name.
func checkTable(dir string, table []mutation) error {
	var errs []error
	names := map[string]bool{}
	for _, m := range table {
		if names[m.name] {
			errs = append(errs, fmt.Errorf("table: there are two mutations named %q", m.name))
		}
		names[m.name] = true
		if _, err := regexp.Compile(m.run); err != nil {
			errs = append(errs, fmt.Errorf("table: %s: %w", m.name, err))
		}
		for _, e := range m.edits() {
			data, err := os.ReadFile(filepath.Join(dir, e.file))
			if err != nil {
				errs = append(errs, fmt.Errorf("table: %s: %w", m.name, err))
			} else if n := bytes.Count(data, []byte(e.old)); n != 1 {
				errs = append(errs, fmt.Errorf("table: %s: in %s this text occurs %d times; want once: %s", m.name, e.file, n, e.old))
			}
		}
	}
	return errors.Join(errs...)
}

// try applies m, runs the tests and reverts m.
func try(ctx context.Context, dir string, m *mutation) (result, error) {
	for _, e := range m.edits() {
		file := filepath.Join(dir, e.file)
		data, err := os.ReadFile(file)
		if err != nil {
			return result{}, err
		}
		if err := os.WriteFile(file, bytes.Replace(data, []byte(e.old), []byte(e.new), 1), 0o644); err != nil {
			return result{}, err
		}
		defer func() { _ = os.WriteFile(file, data, 0o644) }()
	}
	r := test(ctx, dir, m.in, m.run)
	if r.outcome == survived && m.run != "" {
		r = test(ctx, dir, m.in, "")
		r.by += ", not " + m.run
	}
	return r, nil
}

type outcome int

const (
	survived outcome = iota
	killed
	notBuilt
)

type result struct {
	outcome outcome
	by      string // first failed test
	output  []byte
}

// test runs the tests of a package that match pattern, or all if pattern is empty.
func test(ctx context.Context, dir, pkg, pattern string) result {
	args := []string{"test", "-count=1", "-failfast", "-v", "-vet=off", "-timeout", timeout.String(), "-skip", skip}
	if pattern != "" {
		args = append(args, "-run", pattern)
	}
	module := pkg
	for module != "." && module != "" && !exists(filepath.Join(dir, module, "go.mod")) {
		module = path.Dir(module)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/"))...)
	cmd.Dir = filepath.Join(dir, module)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return result{outcome: survived, output: out}
	case bytes.Contains(out, []byte("[build failed]")), bytes.Contains(out, []byte("[setup failed]")):
		return result{outcome: notBuilt, by: "does not compile", output: out}
	}
	return result{outcome: killed, by: failed(out), output: out}
}

var (
	failure = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
	began   = regexp.MustCompile(`(?m)^=== RUN +(\w+)`)
)

// failed returns the failed test. After a panic in another goroutine or a hang, it returns the last test that
// started.
func failed(out []byte) string {
	if m := failure.FindSubmatch(out); m != nil {
		return string(m[1])
	}
	if bytes.Contains(out, []byte("goroutines left behind")) {
		return "TestMain"
	}
	all := began.FindAllSubmatch(out, -1)
	if len(all) == 0 {
		return "go test failed"
	}
	last := string(all[len(all)-1][1])
	if bytes.Contains(out, []byte("panic: test timed out")) {
		return last + ", hung"
	}
	return last + ", panic"
}
