// Questions is a web service in which a model writes questions about a topic and rates answers. Both take time, so a
// request starts a background operation. Every client with the operation's ID can watch, read and cancel it.
//
//	go run ./examples/questions -addr 127.0.0.1:8080
//	curl -i 127.0.0.1:8080/questions -H 'Content-Type: application/json' -d '{"topic":"tides"}'
//	curl -N 127.0.0.1:8080/operations/ID/events
//	curl 127.0.0.1:8080/readyz
//
// The service has a web page at /. With OPENAI_API_KEY set, it calls the provider at OPENAI_BASE_URL (OpenAI by
// default) with OPENAI_MODEL. Otherwise it starts a fake provider. Then /questions?fault=timeout, outage, ratelimit,
// truncated or slow shows what a user gets when the provider fails. Eleven quick clicks overload the service itself.
// For a load test with far more requests, run go run ./examples/questions/load.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/task"
)

func main() {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := parseSettings(os.Args[1:], logger, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	// The first signal drains the service. A second signal is no longer caught and ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := run(ctx, s, logger, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run prints the service's address to out, serves until ctx ends, and then drains.
func run(ctx context.Context, cfg settings, logger *slog.Logger, out io.Writer) error {
	defer cfg.guard.Close()
	oc := openai.DefaultConfig(os.Getenv("OPENAI_API_KEY"))
	oc.BaseURL = cmp.Or(os.Getenv("OPENAI_BASE_URL"), oc.BaseURL)
	if cfg.fake {
		fake := aiguardtest.Start()
		defer fake.Close()
		fake.Handle(fakeAnswer(cfg.pace))
		oc.BaseURL = fake.URL
		logger.Info("OPENAI_API_KEY is not set: using a fake provider on this machine")
	}
	store, err := task.NewMemory(task.MemoryConfig{})
	if err != nil {
		return err
	}
	runner, err := task.NewRunner(cfg.guard, store, task.Config{})
	if err != nil {
		return err
	}
	s := &service{client: cfg.guard.Client(oc), runner: runner, model: cmp.Or(os.Getenv("OPENAI_MODEL"), openai.GPT4oMini),
		fake: cfg.fake, logger: logger}
	defer s.end(0)
	handler, err := s.routes()
	if err != nil {
		return err
	}

	ln, err := net.Listen("tcp", cfg.addr)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Fprintf(out, "listening on http://%s\n", ln.Addr())

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	return s.drain(srv, cfg.drainDelay, cfg.shutdownTimeout)
}

// drain stops the service without losing work. First the service reports that it is not ready, but still serves, so
// that load balancers notice. Then operations finish or are interrupted while their watchers are still connected.
// Last, the connections are closed.
func (s *service) drain(srv *http.Server, delay, timeout time.Duration) error {
	s.draining.Store(true)
	s.logger.Info("draining", "running", s.runner.Stats().Running, "pending", s.runner.Stats().Pending)
	time.Sleep(delay)
	s.end(timeout)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return srv.Close() // a client does not read its response
}

// end rejects new operations, waits up to timeout for the others, and then interrupts them. Their calls are the only
// work that the guard still has.
func (s *service) end(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := s.runner.Shutdown(ctx); err != nil && timeout > 0 {
		s.logger.Warn("operations were interrupted", "error", err)
	}
	_ = s.client.Guard().Shutdown(ctx) // same error as the runner's
}
