// Othersdk puts a guard's transport into OpenAI's official SDK, github.com/openai/openai-go. One option sets the
// transport, and another turns off the SDK's own retries.
//
//	go run .
//
// With OPENAI_API_KEY set, the program calls the provider at OPENAI_BASE_URL (OpenAI by default) with OPENAI_MODEL.
// Otherwise it starts a fake provider.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func main() {
	flag.Parse() // exits with an error if a flag is given, because none is defined
	if flag.NArg() > 0 {
		log.Fatalf("unexpected argument %q", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

// newClient returns the SDK's client. g guards all of its requests.
func newClient(g *aiguard.Guard, opts ...option.RequestOption) openai.Client {
	return openai.NewClient(append(opts,
		option.WithHTTPClient(g.HTTPClient()),
		option.WithMaxRetries(0), // the guard retries
	)...)
}

func run(ctx context.Context) error {
	g, err := aiguard.New(aiguard.Config{})
	if err != nil {
		return err
	}
	defer g.Close()

	model := "gpt-4o-mini"
	if m := os.Getenv("OPENAI_MODEL"); m != "" {
		model = m
	}
	var opts []option.RequestOption // the SDK reads the key and the base URL from the environment
	if os.Getenv("OPENAI_API_KEY") == "" {
		fake := aiguardtest.Start()
		defer fake.Close()
		fake.Enqueue(nil, nil, aiguardtest.Hang()) // two correct answers, then silence
		opts = append(opts, option.WithBaseURL(fake.URL), option.WithAPIKey("any key"))
		fmt.Println("OPENAI_API_KEY is not set: using a fake provider on this machine.")
	}
	client := newClient(g, opts...)

	const prompt = "Say hello."
	// The transport checks the prompts of the endpoints that it knows. CheckPrompt works with any endpoint.
	if err := g.CheckPrompt(model, prompt); err != nil {
		return err
	}
	params := openai.ChatCompletionNewParams{
		Model:               model,
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
		MaxCompletionTokens: openai.Int(16),
	}
	completion, err := client.Chat.Completions.New(ctx, params)
	if err != nil {
		return err
	}
	fmt.Println("answer:", completion.Choices[0].Message.Content)

	fmt.Print("stream: ")
	stream := client.Chat.Completions.NewStreaming(ctx, params)
	defer stream.Close()
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			if choice.Delta.Content != "" {
				fmt.Printf("[%s]", choice.Delta.Content)
			}
		}
	}
	fmt.Println()
	if err := stream.Err(); err != nil { // nil only if the answer is complete
		return err
	}

	// No provider answers within this timeout. With returns a guard that shares all state with g and has a different
	// timeout.
	hasty := newClient(g.With(aiguard.Call{Timeout: time.Microsecond}), opts...)
	_, err = hasty.Chat.Completions.New(ctx, params)
	fmt.Println("kind:", string(aiguard.KindOf(err)))
	fmt.Println("user:", aiguard.UserMessage(err))
	if !errors.Is(err, aiguard.ErrTimeout) {
		return fmt.Errorf("want a timeout, got %w", err)
	}
	return nil
}
