package redisguard_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/childtest"
	"github.com/aiguard-go/aiguard/redisguard"
)

// The tests run this test binary as other processes. The environment holds the order, and the process prints a line
// when it starts its calls and a report at the end.

// order tells a child process what to do.
type order struct {
	Redis, Provider string // addresses
	Config          redisguard.Config
	Calls           int
	Callers         int    // that call one after the other
	Tenant          string // of the calls
	Within          time.Duration
}

// report is what a child has seen.
type report struct {
	Answered int
	Failed   map[string]int // by kind
	Slowest  time.Duration
	Stats    redisguard.Stats // before Close
}

func (o order) obey(ctx context.Context) error {
	rdb := redis.NewClient(&redis.Options{Addr: o.Redis, ContextTimeoutEnabled: true})
	o.Config.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	limiter, err := redisguard.New(rdb, o.Config)
	if err != nil {
		return err
	}
	guard, err := aiguard.New(aiguard.Config{Limiter: limiter, QueueTimeout: time.Minute, TotalTimeout: aiguard.Off, MaxQueue: aiguard.Off,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = o.Provider
	client := guard.Client(oc)
	if o.Tenant != "" {
		ctx = aiguard.WithCall(ctx, aiguard.Call{Tenant: o.Tenant})
	}
	fmt.Println("started")
	r := o.call(ctx, client)
	r.Stats = limiter.Stats()
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return err
	}
	if err := guard.Close(); err != nil {
		return err
	}
	if err := limiter.Close(); err != nil {
		return err
	}
	return rdb.Close()
}

// call makes the calls.
func (o order) call(ctx context.Context, client *aiguard.Client) report {
	r := report{Failed: map[string]int{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	left, until := o.Calls, time.Now().Add(o.Within)
	for range o.Callers {
		all.Go(func() {
			for {
				mu.Lock()
				left--
				done := left < 0 || o.Within > 0 && time.Now().After(until)
				mu.Unlock()
				if done {
					return
				}
				start := time.Now()
				_, err := client.CreateChatCompletion(ctx, openai.ChatCompletionRequest{Model: "m",
					Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello."}}})
				mu.Lock()
				r.Slowest = max(r.Slowest, time.Since(start))
				if err != nil {
					r.Failed[string(aiguard.KindOf(err))]++
				} else {
					r.Answered++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return r
}

// process is a child from the parent's side.
type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	log   strings.Builder
}

// startChild starts a child and waits until it makes its calls.
func startChild(t *testing.T, o order) *process {
	t.Helper()
	cmd, err := childtest.Command(o)
	require.NoError(t, err)
	p := &process{cmd: cmd}
	p.cmd.Stderr = &p.log
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.lines = bufio.NewScanner(io.Reader(stdout))
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	require.True(t, p.lines.Scan(), "%s", &p.log)
	return p
}

// wait returns the child's report after its end.
func (p *process) wait(t *testing.T) (r report) {
	t.Helper()
	require.True(t, p.lines.Scan(), "%s", &p.log)
	require.NoError(t, json.Unmarshal(p.lines.Bytes(), &r))
	require.NoError(t, p.cmd.Wait(), "%s", &p.log)
	return r
}
