package main

import (
	"context"
	"fmt"
	"io"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// relay returns an alternative that passes a stream to send while it arrives, and returns the finish reason. A
// failure before the first text lets Fallback try the next model. After the first text, another answer would start in
// the middle of the first one. Final therefore tells Fallback to stop.
func relay(client *aiguard.Client, model, question string, send func(string) error) func(context.Context) (openai.FinishReason, error) {
	return func(ctx context.Context) (openai.FinishReason, error) {
		sent := false
		finish, err := read(ctx, client, request(model, question), func(part string) error {
			sent = true
			return send(part)
		})
		if sent {
			err = aiguard.Final(err)
		}
		return finish, err
	}
}

func relayedStream(ctx context.Context, p *providers, out io.Writer) error {
	client, err := aiguard.NewClient(config(p.openai), aiguard.Config{Retry: quick})
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	const question = "Tell me about Rome."
	show := func(what string, big aiguardtest.Reply) {
		p.openai.Reset()
		p.openai.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if r.Model == "gpt-4o" {
				return big
			}
			return aiguardtest.TextN("Rome, by the small model.", 8)
		})
		fmt.Fprintf(out, "%s: ", what)
		send := func(part string) error {
			_, err := io.WriteString(out, part)
			return err
		}
		_, err := aiguard.Fallback(ctx,
			relay(client, "gpt-4o", question, send), relay(client, "gpt-4o-mini", question, send))
		if err != nil {
			fmt.Fprintf(out, " [%s]", aiguard.UserMessage(err))
		}
		fmt.Fprintf(out, "\n%d requests to gpt-4o, %d to gpt-4o-mini\n",
			count(p.openai, "gpt-4o"), count(p.openai, "gpt-4o-mini"))
	}
	show("down", down())
	show("cut", aiguardtest.Cut(1200, aiguardtest.TextN("Rome was not built in a day.", 8)))
	return nil
}
