// Package service is the web service of the example questions. Its engine of operations can be exchanged.
package service

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

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/task"
)

// Open opens an engine over the database, which is "" without -database. close is called after the engine's Shutdown.
type Open func(ctx context.Context, g *aiguard.Guard, database string) (engine task.Engine, close func() error, err error)

// Memory opens the engine of package task without a database: one process, and no operation survives it.
func Memory(_ context.Context, g *aiguard.Guard, database string) (task.Engine, func() error, error) {
	if database != "" {
		return nil, nil, errors.New("-database is set; the engine memory uses no database")
	}
	store, err := task.NewMemory(task.MemoryConfig{})
	if err != nil {
		return nil, nil, err
	}
	engine, err := task.NewRunner(g, store, task.Config{})
	return engine, func() error { return nil }, err
}

// Main is the program. It uses the flags, and one of engines, which must have "memory".
func Main(engines map[string]Open) {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := parseSettings(os.Args[1:], engines, logger, os.Stderr)
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
func run(ctx context.Context, cfg settings, logger *slog.Logger, out io.Writer) (err error) {
	defer cfg.guard.Close()
	oc := openai.DefaultConfig(os.Getenv("OPENAI_API_KEY"))
	oc.BaseURL = cmp.Or(os.Getenv("OPENAI_BASE_URL"), oc.BaseURL)
	if cfg.fake {
		fake := aiguardtest.Start()
		defer fake.Close()
		fake.Handle(FakeAnswer(cfg.pace))
		oc.BaseURL = fake.URL
		logger.Info("OPENAI_API_KEY is not set: using a fake provider on this machine")
	}
	engine, closeEngine, err := cfg.open(ctx, cfg.guard, cfg.database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeEngine()) }()
	s := &Service{Client: cfg.guard.Client(oc), Engine: engine, Model: cmp.Or(os.Getenv("OPENAI_MODEL"), openai.GPT4oMini),
		Fake: cfg.fake, Logger: logger}
	defer s.End(0)
	s.Register()
	handler, err := s.Routes()
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
func (s *Service) drain(srv *http.Server, delay, timeout time.Duration) error {
	s.Draining.Store(true)
	s.Logger.Info("draining", "running", s.Engine.Stats().Running, "pending", s.Engine.Stats().Pending)
	time.Sleep(delay)
	s.End(timeout)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return srv.Close() // a client does not read its response
}

// End rejects new operations, waits up to timeout for the others, and then interrupts them. Their calls are the only
// work that the guard still has.
func (s *Service) End(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := s.Engine.Shutdown(ctx); err != nil && timeout > 0 {
		s.Logger.Warn("operations were interrupted", "error", err)
	}
	_ = s.Client.Guard().Shutdown(ctx) // same error as the runner's
}
