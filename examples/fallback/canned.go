package main

import (
	"context"
	"fmt"
	"io"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// canned returns an alternative that always succeeds with a prepared text. Use it last.
func canned(text string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return text, nil }
}

func cannedAnswer(ctx context.Context, p *providers, out io.Writer) error {
	client, err := aiguard.NewClient(config(p.openai), aiguard.Config{Retry: quick})
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	const request = "Write a question for beginners about Go's slices."
	prepared := canned("What is the difference between a slice's length and its capacity? [from our collection]")

	p.openai.SetDefault(down())
	answer, err := aiguard.Fallback(ctx, ask(client, "gpt-4o", request), prepared)
	report(out, answer, err)

	// A wrong key is not an outage. Fallback does not hide it behind the canned answer, so the operator sees it.
	p.openai.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
	answer, err = aiguard.Fallback(ctx, ask(client, "gpt-4o", request), prepared)
	report(out, answer, err)
	fmt.Fprintf(out, "for the operator: %v\n", err)
	return nil
}
