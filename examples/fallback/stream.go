package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// whole returns an alternative that collects a stream and returns the complete answer. If the stream breaks, Do
// retries it from the start. The attempts inside count as attempts of the Do. limit is the timeout of each attempt.
//
// A stream helps even so. StreamIdleTimeout ends a silent call early, and proxies do not drop a long call as idle.
func whole(client *aiguard.Client, model, question string, limit time.Duration) func(context.Context) (string, error) {
	call := aiguard.Call{Op: "whole stream", Model: model, Timeout: limit}
	return func(ctx context.Context) (string, error) {
		var finish openai.FinishReason
		text, err := aiguard.Do(ctx, client.Guard().With(call), func(ctx context.Context) (string, error) {
			var text strings.Builder
			var err error
			finish, err = read(ctx, client, request(model, question), func(part string) error {
				text.WriteString(part)
				return nil
			})
			return text.String(), err
		})
		if err == nil && finish == openai.FinishReasonLength { // the answer reached max_tokens; a retry would not help
			err = &aiguard.Error{Kind: aiguard.ErrTruncated, Op: call.Op, Model: model, Phase: "max_tokens"}
		}
		if err != nil {
			return "", err // without the truncated text
		}
		return text, nil
	}
}

// read reads a stream to its end and passes its text to send. It returns the finish reason. A guarded stream ends
// with io.EOF only if the answer is complete.
func read(ctx context.Context, client *aiguard.Client, r openai.ChatCompletionRequest, send func(string) error) (finish openai.FinishReason, err error) {
	stream, err := client.CreateChatCompletionStream(ctx, r)
	if err != nil {
		return "", err
	}
	defer stream.Close()
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return finish, nil
		case err != nil:
			return "", err
		}
		for _, choice := range event.Choices {
			if choice.FinishReason != "" {
				finish = choice.FinishReason
			}
			if choice.Delta.Content == "" {
				continue
			}
			if err := send(choice.Delta.Content); err != nil {
				return "", err
			}
		}
	}
}

func wholeStream(ctx context.Context, p *providers, out io.Writer) error {
	client, err := aiguard.NewClient(config(p.openai), aiguard.Config{Retry: quick})
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	cut := aiguardtest.Cut(600, aiguardtest.TextN("Rome was not built in a day.", 8))
	const question = "Tell me about Rome."
	show := func(what string, reply func(model string) aiguardtest.Reply) {
		p.openai.Reset()
		p.openai.Handle(func(r *aiguardtest.Request) aiguardtest.Reply { return reply(r.Model) })
		answer, err := aiguard.Fallback(ctx,
			whole(client, "gpt-4o", question, time.Minute), whole(client, "gpt-4o-mini", question, time.Minute))
		fmt.Fprintf(out, "%s: %d requests to gpt-4o, %d to gpt-4o-mini\n", what,
			count(p.openai, "gpt-4o"), count(p.openai, "gpt-4o-mini"))
		report(out, answer, err)
	}
	once := aiguardtest.FailFirst(1, cut, aiguardtest.TextN("Rome, in one piece.", 8))
	show("cut once", func(string) aiguardtest.Reply { return once })
	show("cut always", func(model string) aiguardtest.Reply {
		if model == "gpt-4o" {
			return cut
		}
		return aiguardtest.TextN("Rome, by the small model, from the start.", 8)
	})
	show("both cut", func(string) aiguardtest.Reply { return cut })
	return nil
}
