package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// breakers has a circuit breaker for each operation and model: the model to fall back on may live on the same host. The
// number of both is the service's to bound: do not let users name the model.
type breakers struct {
	trip uint32        // failures in a row, each after its retries, that open one
	open time.Duration // for how long; then one call may try
	mu   sync.Mutex
	all  map[route]*gobreaker.TwoStepCircuitBreaker[any]
}

type route struct{ op, model string }

func newBreakers(trip uint32, open time.Duration) *breakers {
	return &breakers{trip: trip, open: open, all: map[route]*gobreaker.TwoStepCircuitBreaker[any]{}}
}

func (b *breakers) of(r route) *gobreaker.TwoStepCircuitBreaker[any] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all[r] == nil {
		b.all[r] = gobreaker.NewTwoStepCircuitBreaker[any](gobreaker.Settings{
			Timeout:     b.open,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= b.trip },
			IsExcluded:  func(err error) bool { return err != nil && !providersFault(err) },
		})
	}
	return b.all[r]
}

// middleware refuses calls while their breaker is open. It says ErrOverloaded, as whatever is refused before it is sent:
// aiguard.Fallback goes on at once, and a Do around the call does not wait for the breaker, as it would for the provider.
// Of a stream it sees the first event only: what breaks later is seen around the Do that collects it.
func (b *breakers) middleware(ctx context.Context, call aiguard.Call, next func(context.Context) error) (err error) {
	done, err := b.of(route{call.Op, call.Model}).Allow()
	if err != nil {
		return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: call.Op, Model: call.Model, Phase: "breaker",
			RetryAfter: b.open, Err: err}
	}
	err = context.Canceled // what a panic leaves behind: not the provider's fault either
	defer func() { done(err) }()
	err = next(ctx)
	return err
}

// providersFault tells the failures that say something about the provider's health from the caller's own end, our own
// limits, and requests that no health would help.
func providersFault(err error) bool {
	switch aiguard.KindOf(err) {
	case aiguard.ErrTimeout, aiguard.ErrUnavailable, aiguard.ErrRateLimited, aiguard.ErrQuota, aiguard.ErrTruncated,
		aiguard.ErrInvalidResponse:
		return true
	}
	return false
}

func circuitBreaker(ctx context.Context, p *providers, out io.Writer) error {
	b := newBreakers(3, 300*time.Millisecond)
	cfg := aiguard.Config{Retry: quick, Middleware: []aiguard.Middleware{b.middleware}}
	client, err := aiguard.NewClient(config(p.openai), cfg)
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	big := aiguardtest.FailFirst(6, down(), aiguardtest.Text("Rome, says the big model, back again."))
	p.openai.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		if r.Model == "gpt-4o" {
			return big
		}
		return aiguardtest.Text("Rome, says the small model.")
	})
	for i := 1; i <= 6; i++ {
		if i == 6 {
			time.Sleep(b.open + 50*time.Millisecond) // then one call may try
		}
		const question = "What is the capital of Italy?"
		answer, err := aiguard.Fallback(ctx, ask(client, "gpt-4o", question), ask(client, "gpt-4o-mini", question))
		for _, model := range []string{"gpt-4o", "gpt-4o-mini"} {
			state := b.of(route{"chat.completions", model}).State()
			fmt.Fprintf(out, "call %d: %s %v, %d requests\n", i, model, state, count(p.openai, model))
		}
		report(out, answer, err)
	}
	return nil
}
