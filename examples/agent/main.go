// Agent lets a model call tools in a loop, and stops it by what it may spend.
//
//	go run ./examples/agent
//
// With OPENAI_API_KEY set it calls the provider at OPENAI_BASE_URL (OpenAI by default). Without it a fake provider is
// started, which asks for tools for ever.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
)

const model = "gpt-4o-mini"

// prices are per million tokens.
var prices = map[string]budget.Price{
	"gpt-4o-mini*": {Input: 0.15 * budget.Unit, CachedInput: 0.075 * budget.Unit, Output: 0.60 * budget.Unit},
}

func main() {
	flag.Parse() // exits with an error if a flag is given, because none is defined
	if flag.NArg() > 0 {
		log.Fatalf("unexpected argument %q", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	oc := openai.DefaultConfig(os.Getenv("OPENAI_API_KEY"))
	if url := os.Getenv("OPENAI_BASE_URL"); url != "" {
		oc.BaseURL = url
	}
	if os.Getenv("OPENAI_API_KEY") == "" {
		fake := startFake()
		defer fake.Close()
		oc.BaseURL = fake.URL
		fmt.Println("OPENAI_API_KEY is not set: using a fake provider that asks for tools forever.")
	}
	if err := run(ctx, oc, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// run answers one question.
func run(ctx context.Context, oc openai.ClientConfig, out io.Writer) error {
	b, err := budget.New(budget.Config{
		Prices: prices,
		Limits: []budget.Limit{{Name: "all agents, a day", Cost: 5 * budget.Unit, Window: budget.Day}},
	})
	if err != nil {
		return err
	}
	client, err := aiguard.NewClient(oc, aiguard.Config{Budget: b})
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	// Tools have a guard of their own: they cost nothing, and take no slot of the provider's.
	tools, err := aiguard.New(aiguard.Config{CallTimeout: 500 * time.Millisecond, Retry: aiguard.Retry{MaxAttempts: 1}})
	if err != nil {
		return err
	}
	defer tools.Close()

	ctx = budget.WithRun(ctx, budget.Run{Name: "agent", Calls: 20, Cost: 0.002 * budget.Unit, Time: time.Minute})
	a := agent{client: client, toolbox: toolbox{tools}, out: out}
	answer, err := a.ask(ctx, "Which of the pages about Rome is the best?")
	if err != nil {
		answer = aiguard.UserMessage(err)
	}
	fmt.Fprintln(out, answer)
	spent := budget.Spent(ctx)
	fmt.Fprintf(out, "spent: %d calls, %d tokens, %v\n", spent.Calls, spent.Tokens, spent.Cost)
	if errors.Is(err, aiguard.ErrBudget) {
		return nil // as it should be
	}
	return err
}
