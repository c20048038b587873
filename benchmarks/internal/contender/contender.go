// Package contender wraps a function with what each library offers, all set to the same limits.
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

// The limits of every contender that knows such a limit: the defaults of aiguard.
const (
	Slots          = aiguard.DefaultMaxConcurrent
	Queue          = aiguard.DefaultMaxQueue
	Timeout        = aiguard.DefaultCallTimeout
	Attempts       = aiguard.DefaultMaxAttempts
	BaseDelay      = aiguard.DefaultBaseDelay
	MaxDelay       = aiguard.DefaultMaxDelay
	MaxPromptChars = aiguard.DefaultMaxPromptChars

	BreakerFailures = 6 // in a row open a circuit breaker, for BreakerDelay: the defaults of gobreaker
	BreakerDelay    = time.Minute
)

// The contenders. Bare, OpenAI and those under overload are clients, and wrap no function.
const (
	Aiguard         = "aiguard"
	Hand            = "hand"                // context.WithTimeout, a semaphore of x/sync, utf8.RuneCountInString
	Failsafe        = "failsafe-go"         // retry(bulkhead(timeout))
	FailsafeBreaker = "failsafe-go+breaker" // retry(circuit breaker(bulkhead(timeout)))
	Resilience      = "goresilience"        // bulkhead(retry(timeout))
	Breaker         = "gobreaker+backoff"   // backoff(circuit breaker(context.WithTimeout)); neither limits concurrency
	Bare            = "bare"                // go-openai as it is
	OpenAI          = "openai-go"           // the official SDK with its own retries and timeout; it limits no concurrency
	OneTenant       = "aiguard-one-tenant"  // aiguard without tenants and priorities, beside aiguard with them
	Channel         = "channel"             // a buffered channel as a semaphore: the least that a goroutine can wait for

	Naive = "go-openai, naive retries" // under overload alone
)

// Who can do what, for the benchmarks to compare.
var (
	Limiting = []string{Aiguard, Hand, Failsafe, FailsafeBreaker, Resilience}                        // concurrency
	Waiters  = []string{Aiguard, Hand, Failsafe, FailsafeBreaker, Resilience, Channel}               // the same, in the rows that measure the wait
	Sharing  = []string{Aiguard, OneTenant}                                                          // capacity between tenants
	Wrapping = []string{Aiguard, Hand, Failsafe, FailsafeBreaker, Resilience, Breaker}               // any function
	Refusing = []string{Aiguard, Failsafe, FailsafeBreaker, Resilience}                              // at once, when full
	Leaving  = []string{Aiguard, Hand, Failsafe, FailsafeBreaker}                                    // when their ctx ends while they wait for a slot
	Chatting = []string{Aiguard, Bare, Hand, Failsafe, FailsafeBreaker, Resilience, Breaker, OpenAI} // calling CreateChatCompletion, or its like
	// Streaming has only clients: what wraps a function ends its context, and so the stream, when that returns.
	Streaming = []string{Aiguard, Bare, OpenAI}
)

// Run calls fn as a contender bounds it.
type Run[T any] func(ctx context.Context, fn func(context.Context) (T, error)) (T, error)

// Waiting says what happens to a call that finds no slot free.
type Waiting int

const (
	Bounded Waiting = iota // it waits, where the library can in a queue of length Queue
	Endless                // it waits, however many others do
	Refused                // it is refused at once; aiguard, which always has a queue, when that is full
)

// New returns the contender of that name, and what ends its goroutines. It panics if the contender cannot do that.
func New[T any](name string, waiting Waiting) (run Run[T], stop func()) {
	stop = func() {}
	switch name {
	case Aiguard, OneTenant:
		g := Guard(waiting)
		run = func(ctx context.Context, fn func(context.Context) (T, error)) (T, error) {
			return aiguard.Do(ctx, g, fn)
		}
		return run, func() { _ = g.Close() } // it always returns nil
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
	panic(fmt.Sprintf("contender: %s cannot do %d", name, waiting))
}

// Guard returns aiguard with its defaults, but for the queue. An endless one is for crowds that would be refused with the
// defaults, because they cannot all be served within the QueueTimeout on a busy machine.
func Guard(waiting Waiting) *aiguard.Guard {
	cfg := aiguard.Config{MaxQueue: Queue}
	if waiting == Endless {
		cfg.MaxQueue, cfg.QueueTimeout, cfg.TotalTimeout = aiguard.Off, time.Hour, 2*time.Hour
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

// newFailsafe composes in the order of failsafe-go's documentation. A call that the bulkhead refuses is not retried.
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

// newResilience composes in the order of goresilience's documentation. Its bulkhead takes no time of waiting as: for
// ever, and so refuses after a nanosecond at the earliest.
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
