package budget_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
)

// An agent's loop is bounded by what it may spend, and not by a number of steps that somebody has guessed.
func ExampleWithRun() {
	b, err := budget.New(budget.Config{Prices: map[string]budget.Price{
		"gpt-4o*": {Input: 2.50 * budget.Unit, CachedInput: 1.25 * budget.Unit, Output: 10 * budget.Unit},
	}})
	if err != nil {
		log.Fatal(err)
	}
	guard, err := aiguard.New(aiguard.Config{Budget: b})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()

	ctx := budget.WithRun(context.Background(), budget.Run{Name: "agent", Calls: 3, Cost: 0.10 * budget.Unit, Time: time.Minute})
	for {
		_, err := aiguard.Do(ctx, guard, func(context.Context) (string, error) { return "a tool to call", nil })
		if errors.Is(err, aiguard.ErrBudget) {
			fmt.Println(aiguard.UserMessage(err))
			break
		}
	}
	fmt.Println("calls:", budget.Spent(ctx).Calls)
	// Output:
	// This request has used all that it may use, and was stopped.
	// calls: 3
}

// Each tenant may spend 5 a day and 1,000 calls in any hour.
func ExampleNew() {
	b, err := budget.New(budget.Config{
		Prices: map[string]budget.Price{"gpt-4o-mini*": {Input: 0.15 * budget.Unit, Output: 0.60 * budget.Unit}},
		Limits: []budget.Limit{
			{Name: "tenant and day", Cost: 5 * budget.Unit, Per: budget.Tenant, Window: budget.Day},
			{Name: "calls of a tenant", Calls: 1000, Per: budget.Tenant, Window: budget.Hour, Sliding: true},
		},
		OnSoft: func(_ context.Context, r budget.Reached) {
			log.Printf("%s, %s: %s nearly spent until %v", r.Limit, r.Key, r.What, r.Until)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	guard, err := aiguard.New(aiguard.Config{Budget: b})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	ctx := aiguard.WithCall(context.Background(), aiguard.Call{Tenant: "acme"})
	answer, err := aiguard.Do(ctx, guard, func(context.Context) (string, error) { return "Hello!", nil })
	fmt.Println(answer, err)
	// Output: Hello! <nil>
}
