// Fallback shows what to do when a model does not answer. It asks another model, asks another provider, repeats an
// earlier answer, or gives a prepared one. It also shows fallbacks with streams.
//
//	cd examples/fallback && go run . -recipe model|provider|cached|canned|stream|relay
//
// Without -recipe it runs all recipes. The providers are local fakes, so no key is needed.
//
// There is no recipe for a circuit breaker, because the guard detects outages itself. After five failures in a row it
// rejects calls and sends one probe at a time. aiguard.Fallback skips the first choice at once while that is down or
// paused.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// recipe runs one fallback against providers that it makes fail, and prints the result to out.
type recipe func(ctx context.Context, p *providers, out io.Writer) error

var recipes = []struct {
	name, title string
	recipe
}{
	{"model", "Another model of the same provider", otherModel},
	{"provider", "Another provider", otherProvider},
	{"cached", "The last answer, marked as old", cachedAnswer},
	{"canned", "A canned answer", cannedAnswer},
	{"stream", "A stream, whole or not at all", wholeStream},
	{"relay", "A stream that is passed on while it arrives", relayedStream},
}

// providers are the fakes: OpenAI, an Azure deployment of the same models, and a self-hosted server with the same
// API.
type providers struct{ openai, azure, local *aiguardtest.Server }

func main() {
	name := flag.String("recipe", "", "recipe to run (default all)")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "fallback: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *name, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "\nfallback: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, name string, out io.Writer) error {
	found := false
	var names []string
	for _, r := range recipes {
		names = append(names, r.name)
		if name != "" && name != r.name {
			continue
		}
		found = true
		fmt.Fprintf(out, "== %s\n", r.title)
		p := startProviders()
		err := r.recipe(ctx, p, out)
		p.close()
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	if !found {
		return fmt.Errorf("-recipe is %q; want %s", name, strings.Join(names, ", "))
	}
	return nil
}

func startProviders() *providers {
	return &providers{openai: aiguardtest.Start(), azure: aiguardtest.Start(), local: aiguardtest.Start()}
}

func (p *providers) close() {
	for _, s := range []*aiguardtest.Server{p.openai, p.azure, p.local} {
		s.Close()
	}
}

// config returns the client configuration for a fake.
func config(s *aiguardtest.Server) openai.ClientConfig {
	oc := openai.DefaultConfig("key")
	oc.BaseURL = s.URL
	return oc
}

// quick keeps the retries of the demonstration short.
var quick = aiguard.Retry{MaxAttempts: 2, BaseDelay: 10 * time.Millisecond, MaxDelay: 10 * time.Millisecond}

// ask returns an alternative for aiguard.Fallback that asks a model.
func ask(client *aiguard.Client, model, question string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		resp, err := client.CreateChatCompletion(ctx, request(model, question))
		if err != nil {
			return "", err
		}
		if len(resp.Choices) == 0 {
			return "", aiguard.ErrInvalidResponse
		}
		return resp.Choices[0].Message.Content, nil
	}
}

func request(model, question string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{Model: model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: question}}}
}

// down returns the reply of a provider during an outage.
func down() aiguardtest.Reply { return aiguardtest.Error(503, "service_unavailable") }

// report prints what the user gets.
func report(out io.Writer, answer string, err error) {
	if err != nil {
		fmt.Fprintf(out, "failed (%s); the user reads: %s\n", string(aiguard.KindOf(err)), aiguard.UserMessage(err))
		return
	}
	fmt.Fprintf(out, "answer: %s\n", answer)
}

// count returns the number of requests that a fake received for a model.
func count(s *aiguardtest.Server, model string) (n int) {
	for _, r := range s.Requests() {
		if r.Model == model {
			n++
		}
	}
	return n
}
