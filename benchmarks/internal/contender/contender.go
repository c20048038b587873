// Package contender wraps a function with the limits of each library, with the same values for all.
package contender

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	failsafetimeout "github.com/failsafe-go/failsafe-go/timeout"
	"github.com/slok/goresilience"
	resiliencebulkhead "github.com/slok/goresilience/bulkhead"
	resilienceretry "github.com/slok/goresilience/retry"
	resiliencetimeout "github.com/slok/goresilience/timeout"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/sync/semaphore"

	"github.com/aiguard-go/aiguard"
)

// The limits are the defaults of aiguard. Each contender gets those that it supports.
const (
	Slots          = aiguard.DefaultMaxConcurrent
	Queue          = aiguard.DefaultMaxQueue
	Timeout        = aiguard.DefaultCallTimeout
	Attempts       = aiguard.DefaultMaxAttempts
	BaseDelay      = aiguard.DefaultBaseDelay
	MaxDelay       = aiguard.DefaultMaxDelay
	MaxPromptChars = aiguard.DefaultMaxPromptChars

	BreakerFailures = 6 // consecutive failures that open a circuit breaker for BreakerDelay: the defaults of gobreaker
	BreakerDelay    = time.Minute
)

// Names of the contenders. Bare, OpenAI and Naive are clients and do not wrap a function.
const (
	Aiguard         = "aiguard"
	Hand            = "hand"                // context.WithTimeout, a semaphore of x/sync, utf8.RuneCountInString
	Failsafe        = "failsafe-go"         // retry(bulkhead(timeout))
	FailsafeBreaker = "failsafe-go+breaker" // retry(circuit breaker(bulkhead(timeout)))
	Resilience      = "goresilience"        // bulkhead(retry(timeout))
	Breaker         = "gobreaker+backoff"   // backoff(circuit breaker(context.WithTimeout)); no limit of concurrency
	Bare            = "bare"                // plain go-openai
	OpenAI          = "openai-go"           // the official SDK with its own retries and timeout; no limit of concurrency
	OneTenant       = "aiguard-one-tenant"  // aiguard without tenants and priorities, for comparison with aiguard with them
	Channel         = "channel"             // a buffered channel as a semaphore: the cheapest way to wait

	Naive = "go-openai, naive retries" // only under overload
)

// The contenders for each kind of benchmark.
var (
	Limiting = []string{Aiguard, Hand, Failsafe, FailsafeBreaker, Resilience}                        // limit concurrency
	Waiters  = []string{Aiguard, Hand, Failsafe, FailsafeBreaker, Resilience, Channel}               // limit concurrency, in the rows that measure the wait
	Sharing  = []string{Aiguard, OneTenant}                                                          // share capacity between tenants
	Wrapping = []string{Aiguard, Hand, Failsafe, FailsafeBreaker, Resilience, Breaker}               // wrap any function
	Refusing = []string{Aiguard, Failsafe, FailsafeBreaker, Resilience}                              // reject at once when full
	Leaving  = []string{Aiguard, Hand, Failsafe, FailsafeBreaker}                                    // return when ctx ends during the wait for a slot
	Chatting = []string{Aiguard, Bare, Hand, Failsafe, FailsafeBreaker, Resilience, Breaker, OpenAI} // call CreateChatCompletion or its equivalent
	// Streaming has only clients. A wrapper around a function ends its context when the function returns, and the
	// context ends the stream.
	Streaming = []string{Aiguard, Bare, OpenAI}
)

// Run calls fn within the limits of a contender.
type Run[T any] func(ctx context.Context, fn func(context.Context) (T, error)) (T, error)

// Waiting is the behaviour of a call when no slot is free.
type Waiting int

const (
	Bounded Waiting = iota // the call waits, in a queue of length Queue if the library has one
	Endless                // the call waits, regardless of the number of waiting calls
	Refused                // the call is rejected at once; with aiguard, which always has a queue, when the queue is full
)

// New returns the contender called name and a function that ends its goroutines. It panics if the contender does not
// support waiting.
func New[T any](name string, waiting Waiting) (run Run[T], stop func()) {
	stop = func() {}
	switch name {
	case Aiguard, OneTenant:
		g := Guard(waiting)
		run = func(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
			return aiguard.Do(ctx, g, fn)
		}
		return run, func() { _ = g.Close() } // Close always returns nil
	case Hand:
		if waiting != Refused {
			return hand[T](), stop
		}
	case Channel:
		if waiting == Endless {
			return channel[T](), stop
		}
	case Failsafe:
		return newFailsafe[T](waiting), stop
	case FailsafeBreaker:
		return newFailsafe[T](waiting,
			circuitbreaker.NewBuilder[T]().WithFailureThreshold(BreakerFailures).WithDelay(BreakerDelay).Build()), stop
	case Resilience:
		return newResilience[T](waiting)
	case Breaker:
		if waiting == Bounded {
			return newBreaker[T](), stop
		}
	}
	panic(fmt.Sprintf("contender: %s does not support Waiting(%d)", name, waiting))
}

// Guard returns aiguard with its defaults except for the queue. An endless queue is for crowds that the defaults would
// reject, because a busy machine cannot serve them all within the QueueTimeout. Its limits exceed each estimate of the
// wait, even one made after a slot was held for seconds.
func Guard(waiting Waiting) *aiguard.Guard {
	cfg := aiguard.Config{MaxQueue: Queue}
	if waiting == Endless {
		cfg.MaxQueue, cfg.QueueTimeout, cfg.TotalTimeout = aiguard.Off, 1000*time.Hour, 2000*time.Hour
	}
	g, err := aiguard.New(cfg)
	if err != nil {
		panic(err)
	}
	return g
}

func hand[T any]() Run[T] {
	sem := semaphore.NewWeighted(Slots)
	return func(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
		ctx, cancel := context.WithTimeout(ctx, Timeout)
		defer cancel()
		if err := sem.Acquire(ctx, 1); err != nil {
			var zero T
			return zero, err
		}
		defer sem.Release(1)
		return fn(ctx)
	}
}

func channel[T any]() Run[T] {
	slots := make(chan struct{}, Slots)
	return func(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
		slots <- struct{}{}
		defer func() { <-slots }()
		return fn(ctx)
	}
}

// newFailsafe composes policies in the order of failsafe-go's documentation. It does not retry calls that the bulkhead
// rejects.
func newFailsafe[T any](waiting Waiting, breaker ...failsafe.Policy[T]) Run[T] {
	retry := retrypolicy.NewBuilder[T]().WithMaxAttempts(Attempts).WithBackoff(BaseDelay, MaxDelay).WithJitterFactor(.25).
		AbortOnErrors(bulkhead.ErrFull, circuitbreaker.ErrOpen, context.Canceled).Build()
	slots := bulkhead.NewBuilder[T](Slots)
	if waiting != Refused {
		slots = slots.WithMaxWaitTime(Timeout)
	}
	policies := append([]failsafe.Policy[T]{retry}, breaker...)
	executor := failsafe.With(append(policies, slots.Build(), failsafetimeout.New[T](Timeout))...)
	return func(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
		return executor.WithContext(ctx).GetWithExecution(func(exec failsafe.Execution[T]) (T, error) {
			return fn(exec.Context())
		})
	}
}

// newResilience composes runners in the order of goresilience's documentation. For its bulkhead a wait of zero means
// for ever, so the shortest possible wait is a nanosecond.
func newResilience[T any](waiting Waiting) (Run[T], func()) {
	wait := Timeout
	if waiting == Refused {
		wait = time.Nanosecond
	}
	stopped := make(chan struct{})
	runner := goresilience.RunnerChain(
		resiliencebulkhead.NewMiddleware(resiliencebulkhead.Config{Workers: Slots, MaxWaitTime: wait, StopC: stopped}),
		resilienceretry.NewMiddleware(resilienceretry.Config{Times: Attempts - 1, WaitBase: BaseDelay}),
		resiliencetimeout.NewMiddleware(resiliencetimeout.Config{Timeout: Timeout}),
	)
	run := func(ctx context.Context, fn func(context.Context) (T, error)) (value T, err error) {
		err = runner.Run(ctx, func(ctx context.Context) (err error) {
			value, err = fn(ctx)
			return err
		})
		return value, err
	}
	return run, func() { close(stopped) }
}

func newBreaker[T any]() Run[T] {
	breaker := gobreaker.NewCircuitBreaker[T](gobreaker.Settings{})
	return func(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
		return backoff.Retry(ctx, func() (T, error) {
			value, err := breaker.Execute(func() (T, error) {
				ctx, cancel := context.WithTimeout(ctx, Timeout)
				defer cancel()
				return fn(ctx)
			})
			if errors.Is(err, gobreaker.ErrOpenState) {
				err = backoff.Permanent(err)
			}
			return value, err
		}, backoff.WithMaxTries(Attempts))
	}
}
