package main

import (
	"context"
	"fmt"
	"io"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// otherModel falls back to a smaller model while the preferred one is overloaded. One guard serves both models,
// because they share an account and its capacity. An error that another model cannot fix, such as a rejected
// question, ends the call.
func otherModel(ctx context.Context, p *providers, out io.Writer) error {
	client, err := aiguard.NewClient(config(p.openai), aiguard.Config{Retry: quick})
	if err != nil {
		return err
	}
	defer client.Guard().Close()

	p.openai.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		if r.Model == "gpt-4o" {
			return down()
		}
		return aiguardtest.Text("Rome, says " + r.Model + ".")
	})
	const question = "What is the capital of Italy?"
	answer, err := aiguard.Fallback(ctx, ask(client, "gpt-4o", question), ask(client, "gpt-4o-mini", question))
	report(out, answer, err)
	fmt.Fprintf(out, "requests: %d to gpt-4o, %d to gpt-4o-mini\n",
		count(p.openai, "gpt-4o"), count(p.openai, "gpt-4o-mini"))

	p.openai.Reset()
	p.openai.Handle(func(*aiguardtest.Request) aiguardtest.Reply {
		return aiguardtest.Error(400, "content_policy_violation")
	})
	answer, err = aiguard.Fallback(ctx, ask(client, "gpt-4o", question), ask(client, "gpt-4o-mini", question))
	report(out, answer, err)
	fmt.Fprintf(out, "requests: %d; another model would reject it too\n", p.openai.Count())
	return nil
}
