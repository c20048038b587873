package riverguard_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/childtest"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
)

// The tests run this test binary as another process. The environment holds its order, and the process writes a line
// for each function that starts and one for each that ends.

// order tells a child process what to do. It works on the operations "work", which end with their context.
type order struct {
	DSN         string
	TaskTimeout time.Duration
	Config      riverguard.Config
}

func (o order) obey(ctx context.Context) error {
	g, err := aiguard.New(aiguard.Config{TaskTimeout: o.TaskTimeout})
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, o.DSN)
	if err != nil {
		return err
	}
	defer pool.Close()
	o.Config.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	r, err := riverguard.NewRunner(ctx, g, pool, o.Config)
	if err != nil {
		return err
	}
	task.Register(r, "work", func(ctx context.Context, token string) (any, error) {
		fmt.Println(token)
		<-ctx.Done()
		fmt.Println(token, "ended")
		return nil, ctx.Err()
	})
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_ = r.Shutdown(ended)
	return nil
}

// process is a child from the parent's side.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	lines chan string
	err   strings.Builder
}

// startChild starts a child and waits until it works.
func startChild(t *testing.T, o order) *process {
	t.Helper()
	cmd, err := childtest.Command(o)
	require.NoError(t, err)
	p := &process{t: t, cmd: cmd, lines: make(chan string, 1000)}
	p.cmd.Stderr = &p.err
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		p.kill()
		<-read
		_ = p.cmd.Wait()
	})
	p.says("ready")
	return p
}

func (p *process) kill() { _ = p.cmd.Process.Kill() }

// says waits until the child writes the line.
func (p *process) says(line string) {
	p.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case got, ok := <-p.lines:
			require.True(p.t, ok, "%s", &p.err)
			if got == line {
				return
			}
		case <-timeout:
			require.Fail(p.t, "the child does not say "+line, "%s", &p.err)
		}
	}
}
