package service

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard"
)

// settings are the values from the command line and the environment.
type settings struct {
	addr                        string
	open                        Open   // the engine
	database                    string // of the engine
	guard                       *aiguard.Guard
	fake                        bool // true without OPENAI_API_KEY
	pace                        time.Duration
	drainDelay, shutdownTimeout time.Duration
}

// Defaults of this service that differ from the guard's.
const (
	maxQueue        = 5               // people do not wait long
	MaxOutputTokens = 1000            // expected answers are far shorter
	fakeCallTimeout = 5 * time.Second // keeps demonstrations of the fake provider short
)

// parseSettings reads the settings. Flags override the environment (see aiguard.FromEnv), which overrides the
// defaults. The error joins all mistakes.
func parseSettings(args []string, engines map[string]Open, logger *slog.Logger, usage io.Writer) (settings, error) {
	s := settings{fake: os.Getenv("OPENAI_API_KEY") == ""}
	cfg, envErr := aiguard.FromEnv()
	cfg.Logger = logger
	if os.Getenv("AIGUARD_MAX_QUEUE") == "" {
		cfg.MaxQueue = maxQueue
	}
	if cfg.MaxOutputTokens == 0 { // the guard has no default
		cfg.MaxOutputTokens = MaxOutputTokens
	}
	if s.fake && os.Getenv("AIGUARD_CALL_TIMEOUT") == "" {
		cfg.CallTimeout = fakeCallTimeout
	}

	flags := flag.NewFlagSet("questions", flag.ContinueOnError)
	flags.StringVar(&s.addr, "addr", "127.0.0.1:0", "address to listen on")
	flags.DurationVar(&cfg.CallTimeout, "call-timeout", cfg.CallTimeout, "timeout for the AI service to start its answer")
	flags.DurationVar(&cfg.TaskTimeout, "task-timeout", cfg.TaskTimeout, "timeout for a whole operation")
	flags.Int64Var(&cfg.MaxConcurrent, "max-concurrent", cfg.MaxConcurrent, "operations that run at once")
	flags.IntVar(&cfg.MaxQueue, "max-queue", cfg.MaxQueue, "operations that wait; further operations are rejected")
	flags.DurationVar(&s.pace, "pace", 60*time.Millisecond, "time between two pieces of the fake provider's answer")
	flags.DurationVar(&s.drainDelay, "drain-delay", 500*time.Millisecond, "time after SIGTERM during which /readyz fails but requests are still served")
	flags.DurationVar(&s.shutdownTimeout, "shutdown-timeout", 20*time.Second, "time after drain-delay for running operations to finish")
	engine := flags.String("engine", "memory", "what runs the operations: "+names(engines))
	flags.StringVar(&s.database, "database", "", "PostgreSQL database of the engine river: postgres://user@host/name")
	flags.SetOutput(io.Discard) // the error is reported with the others
	flagErr := flags.Parse(args)
	if errors.Is(flagErr, flag.ErrHelp) {
		flags.SetOutput(usage)
		flags.Usage()
		return s, flagErr
	}
	if flagErr == nil && flags.NArg() > 0 {
		flagErr = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var engineErr error
	if s.open = engines[*engine]; s.open == nil {
		engineErr = fmt.Errorf("-engine is %q; want %s. The program in examples/questions/river also has the engine river", *engine, names(engines))
	}
	guard, guardErr := aiguard.New(cfg)
	s.guard = guard
	var zeroErr error
	if envErr == nil && flagErr == nil { // otherwise settings are 0 that nobody set to 0
		zeroErr = errors.Join(notZero("call-timeout", cfg.CallTimeout), notZero("task-timeout", cfg.TaskTimeout),
			notZero("max-concurrent", cfg.MaxConcurrent), notZero("max-queue", cfg.MaxQueue))
	}
	return s, errors.Join(envErr, flagErr, zeroErr, engineErr, guardErr,
		notNegative("pace", s.pace), notNegative("drain-delay", s.drainDelay), notNegative("shutdown-timeout", s.shutdownTimeout))
}

func names(engines map[string]Open) string {
	return strings.Join(slices.Sorted(maps.Keys(engines)), " or ")
}

// notZero rejects 0, which the guard would replace by its default. A user who types 0 does not want that.
func notZero[T int | int64 | time.Duration](name string, v T) error {
	if v == 0 {
		return fmt.Errorf("-%s is %v; want more than 0", name, v)
	}
	return nil
}

func notNegative(name string, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("-%s is %v; want 0 or more", name, d)
	}
	return nil
}
