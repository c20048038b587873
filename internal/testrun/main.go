// Testrun tests the modules of this repository and prints the duration of each in seconds:
//
//	go run ./internal/testrun        # the modules that users import; short, without the race detector
//	go run ./internal/testrun -all   # everything that CI tests, one after the other
//
// Run it from the root of the repository. It prints each reason for skipped tests once.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/modules"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

func main() {
	all := flag.Bool("all", false, "test every module with the race detector, then run the allocation, fuzz and stress tests")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *all)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, all bool) error {
	found, err := modules.Find(".")
	if err != nil {
		return err
	}
	r := runner{out: out, start: time.Now()}
	if all {
		everything(ctx, &r, found)
	} else {
		published(ctx, &r, found)
	}
	return r.summary()
}

// published tests the modules that users import. The tests of the root module mostly wait, so those of the others run
// at the same time. Their output comes at the end.
func published(ctx context.Context, r *runner, found []modules.Module) {
	var later syncbuf.Buffer // go test writes two streams to it
	nested := &runner{out: &later}
	var beside sync.WaitGroup
	for _, r := range []*runner{r, nested} {
		beside.Go(func() {
			for _, m := range found {
				if m.Published && (r == nested) == (m.Dir != ".") {
					r.part(ctx, title(m), func() error { return r.test(ctx, m.Dir, "-short") })
				}
			}
		})
	}
	beside.Wait()
	_, _ = io.WriteString(r.out, later.String())
	r.done = append(r.done, nested.done...)
}

func everything(ctx context.Context, r *runner, found []modules.Module) {
	// Some tests read the whole repository, and the cache of test results does not notice changes there.
	flags := []string{"-count=1"}
	if compiles(ctx) {
		flags = append(flags, "-race")
	} else {
		fmt.Fprintln(r.out, "note: no C compiler found, so the tests run without the race detector")
	}
	for _, m := range found {
		r.part(ctx, title(m), func() error {
			if err := r.install(ctx, m.Dir); err != nil {
				return err
			}
			return r.test(ctx, m.Dir, flags...)
		})
	}
	// The race detector allocates too, so tests of allocations run without it.
	r.part(ctx, "allocations", func() error { return r.test(ctx, ".", "-count=1", "-run=Allocates") })
	for _, target := range []string{"fuzz", "stress"} {
		r.part(ctx, target, func() error {
			return r.command(ctx, ".", "make", "--no-print-directory", target, "FUZZTIME=20000x", "STRESS=10s")
		})
	}
}

func title(m modules.Module) string {
	if m.Dir == "." {
		return "root module"
	}
	return m.Dir
}

// compiles reports whether there is a C compiler. Without one, go disables cgo.
func compiles(ctx context.Context) bool {
	enabled, err := exec.CommandContext(ctx, "go", "env", "CGO_ENABLED").Output()
	return err == nil && strings.TrimSpace(string(enabled)) == "1"
}

// runner runs parts and records their results.
type runner struct {
	out   io.Writer
	start time.Time
	done  []result
}

type result struct {
	part string
	took time.Duration
	err  error
}

func (r *runner) part(ctx context.Context, name string, run func() error) {
	if ctx.Err() != nil {
		return
	}
	fmt.Fprintln(r.out, "==>", name)
	start := time.Now()
	err := run()
	r.done = append(r.done, result{name, time.Since(start), err})
}

// summary prints a line for each part. It returns an error if a part failed.
func (r *runner) summary() error {
	var failed []string
	fmt.Fprintln(r.out)
	for _, d := range r.done {
		verdict := "ok"
		if d.err != nil {
			verdict = "FAILED: " + d.err.Error()
			failed = append(failed, d.part)
		}
		fmt.Fprintf(r.out, "%-20s %5.0f s  %s\n", d.part, d.took.Seconds(), verdict)
	}
	fmt.Fprintf(r.out, "%-20s %5.0f s\n", "all", time.Since(r.start).Seconds())
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// test runs the tests of a module. Packages are built in parallel and tested one at a time (-p 1), because tests of
// time, memory or load must not affect each other.
func (r *runner) test(ctx context.Context, dir string, flags ...string) error {
	if err := r.download(ctx, dir); err != nil {
		return err
	}
	build := []string{"list", "-export", "-deps", "-test"}
	for _, flag := range flags {
		if flag == "-race" {
			build = append(build, flag)
		}
	}
	_ = command(ctx, dir, "go", append(build, "./...")...).Run() // the tests report compile errors
	// On a busy machine the slowest package comes near go test's default of ten minutes.
	cmd := command(ctx, dir, "go", append(append([]string{"test", "-json", "-p=1", "-timeout=30m"}, flags...), "./...")...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = r.out
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := printEvents(r.out, pipe); err != nil {
		_ = cmd.Wait()
		return err
	}
	return cmd.Wait()
}

// download fetches the modules that a module requires. Its error is a single line.
func (r *runner) download(ctx context.Context, dir string) error {
	text, err := command(ctx, dir, "go", "mod", "download").CombinedOutput()
	if err == nil {
		return nil
	}
	why := strings.Join(strings.Fields(string(text)), " ")
	return fmt.Errorf("cannot download the required modules: is the network or the module proxy reachable? %s", why)
}

// install installs the npm packages that some tests need. Without npm those tests skip themselves.
func (r *runner) install(ctx context.Context, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "package.json")); err != nil {
		return nil
	}
	if _, err := exec.LookPath("npm"); err != nil {
		fmt.Fprintln(r.out, "note: npm is not installed, so the tests that need its packages are skipped")
		return nil
	}
	return r.command(ctx, dir, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
}

func (r *runner) command(ctx context.Context, dir, name string, args ...string) error {
	cmd := command(ctx, dir, name, args...)
	cmd.Stdout, cmd.Stderr = r.out, r.out
	return cmd.Run()
}

func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	return cmd
}
