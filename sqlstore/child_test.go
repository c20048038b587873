package sqlstore_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/childtest"
	"github.com/aiguard-go/aiguard/task"
)

// The tests run this test binary as another process. The environment holds its order, and the process reports events
// as lines.

// order tells a child process what to do.
type order struct {
	Database database
	Lease    time.Duration
	Blocked  bool   // start functions that block, and operations that wait behind them, and report their IDs
	Seed     uint64 // otherwise start Count operations, and cancel some of any process
	Count    int
	Hurry    bool // then exit at once instead of at the end of the input
}

// report is one line from a child for each event.
type report struct {
	Ran     string            `json:",omitempty"` // token of an operation whose function has started
	Blocked map[string]string `json:",omitempty"` // IDs of the started operations
	Stats   *task.Stats       `json:",omitempty"` // in the last line
}

var saying sync.Mutex

// say uses a single write, so that a killed child has written a whole line or nothing.
func say(r report) {
	line, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	saying.Lock()
	defer saying.Unlock()
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		panic(err)
	}
}

func (o order) obey(ctx context.Context) error {
	s, closeStore, err := o.Database.open(ctx)
	if err != nil {
		return err
	}
	g, err := aiguard.New(aiguard.Config{})
	if err != nil {
		return err
	}
	r, err := task.NewRunner(g, s, task.Config{MaxRunning: 2, MaxPending: 1000, Lease: o.Lease,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	if o.Blocked {
		if err := o.block(ctx, r, s); err != nil {
			return err
		}
	} else if err := o.play(ctx, r); err != nil {
		return err
	}
	leave := ctx
	if o.Hurry {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		leave = ended
	} else if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	_ = r.Shutdown(leave) // expected: leave has ended
	stats := r.Stats()
	say(report{Stats: &stats})
	return closeStore()
}

// block takes both slots with functions that end only with their context.
func (o order) block(ctx context.Context, r *task.Runner, s task.Store) error {
	block := func(ctx context.Context) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	for _, name := range []string{"blocked", "known", "unknown"} {
		task.Register(r, name, func(ctx context.Context, _ string) (any, error) { return block(ctx) })
	}
	ids := map[string]string{}
	for _, what := range []string{"running closure", "running blocked", "pending closure", "pending known", "pending known 2", "pending unknown"} {
		var op task.Operation
		var err error
		if name := strings.Fields(what)[1]; name == "closure" {
			op, err = r.Start(ctx, name, block)
		} else {
			op, err = r.Submit(ctx, name, what)
		}
		if err != nil {
			return err
		}
		ids[what] = op.ID
		for strings.HasPrefix(what, "running") && op.Status != task.Running {
			if op, err = s.Get(ctx, op.ID); err != nil {
				return err
			}
		}
	}
	say(report{Blocked: ids})
	return nil
}

// play acts like clients, at random.
func (o order) play(ctx context.Context, r *task.Runner) error {
	random := rand.New(rand.NewPCG(o.Seed, 0))
	work := func(ctx context.Context, in input) (any, error) {
		say(report{Ran: in.Token}) // the visible effect of the function
		task.SetProgress(ctx, 50, in.Token)
		select {
		case <-time.After(in.Takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if in.Fails {
			return nil, aiguard.ErrUnavailable
		}
		return in.Token, nil
	}
	task.Register(r, "work", work)
	for i := range o.Count {
		in := input{Token: fmt.Sprintf("%d-%d", o.Seed, i), Takes: time.Duration(random.IntN(15)) * time.Millisecond, Fails: random.IntN(5) == 0}
		var err error
		if random.IntN(3) == 0 {
			_, err = r.Start(ctx, in.Token, func(ctx context.Context) (any, error) { return work(ctx, in) })
		} else {
			_, err = r.Submit(ctx, "work", in)
		}
		if err != nil {
			return err
		}
		if random.IntN(3) == 0 {
			if err := cancelAny(ctx, r, random); err != nil {
				return err
			}
		}
	}
	return nil
}

type input struct {
	Token string // in the operation's name or input
	Takes time.Duration
	Fails bool
}

// cancelAny cancels one of the latest operations of any process.
func cancelAny(ctx context.Context, r *task.Runner, random *rand.Rand) error {
	ops, err := r.List(ctx, task.Query{Limit: 30})
	if err != nil || len(ops) == 0 {
		return err
	}
	_, err = r.Cancel(ctx, ops[random.IntN(len(ops))].ID)
	return err
}

// process is a child from the parent's side.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	lines *bufio.Scanner
	err   strings.Builder
}

func startChild(t *testing.T, o order) *process {
	t.Helper()
	cmd, err := childtest.Command(o)
	require.NoError(t, err)
	p := &process{cmd: cmd}
	p.cmd.Stderr = &p.err
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.lines = bufio.NewScanner(stdout)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	return p
}

// next returns the next line, or false at the end.
func (p *process) next() (r report, ok bool) {
	if !p.lines.Scan() {
		return report{}, false
	}
	return r, json.Unmarshal(p.lines.Bytes(), &r) == nil
}

// blocked returns the IDs of the operations that the child has started.
func (p *process) blocked(t *testing.T) map[string]string {
	t.Helper()
	r, ok := p.next()
	require.True(t, ok && r.Blocked != nil, "%s", &p.err)
	return r.Blocked
}
