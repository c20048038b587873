package cacheguard_test

import (
	"context"
	"fmt"
	"log"
	"math"
	"net/http"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

func Example() {
	provider := aiguardtest.Start() // a fake provider
	defer provider.Close()

	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	cache, err := cacheguard.New(guard.Transport(nil), cacheguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()
	oc := openai.DefaultConfig("any key")
	oc.BaseURL, oc.HTTPClient = provider.URL, &http.Client{Transport: cache}
	client := openai.NewClientWithConfig(oc)

	for range 3 {
		answer, err := client.CreateChatCompletion(context.Background(), openai.ChatCompletionRequest{
			Model:       openai.GPT4oMini,
			Temperature: math.SmallestNonzeroFloat32, // go-openai leaves a 0 out
			Messages:    []openai.ChatCompletionMessage{{Role: "user", Content: "Say hello."}},
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer.Header().Get(cacheguard.Header), answer.Choices[0].Message.Content)
	}
	fmt.Println("requests:", provider.Count(), "calls of the guard:", guard.Stats().Calls)
	// Output:
	// miss Hello!
	// hit Hello!
	// hit Hello!
	// requests: 1 calls of the guard: 1
}

func ExampleWithPolicy() {
	ctx := cacheguard.WithPolicy(context.Background(), cacheguard.Policy{Refresh: true}) // for example for a "regenerate" button
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.openai.com/v1/embeddings", nil)
	fmt.Println(req.Method, err) // an SDK passes its context to the request
	// Output: POST <nil>
}

func ExampleSimilar() {
	provider := aiguardtest.Start() // a fake provider, whose vectors say nothing about meaning
	defer provider.Close()

	guard, err := aiguard.New(aiguard.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = provider.URL
	embedder, err := cacheguard.NewEmbedder(guard.Client(oc), cacheguard.EmbedderConfig{})
	if err != nil {
		log.Fatal(err)
	}
	cache, err := cacheguard.New(guard.Transport(nil), cacheguard.Config{
		Similar: cacheguard.Similar{Embed: embedder.Embed, Threshold: 0.001}, // with a real model, such as 0.9
	})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()
	oc.HTTPClient = &http.Client{Transport: cache}
	client := openai.NewClientWithConfig(oc)

	for _, question := range []string{
		"How do I reset my password?",
		"What is the best way to reset the password?",
		"How do I change my password?",
		"How do I not reset my password?",
	} {
		answer, err := client.CreateChatCompletion(context.Background(), openai.ChatCompletionRequest{
			Model:       openai.GPT4oMini,
			Temperature: math.SmallestNonzeroFloat32, // go-openai leaves a 0 out
			Messages:    []openai.ChatCompletionMessage{{Role: "user", Content: question}},
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer.Header().Get(cacheguard.Header), question)
	}
	// Output:
	// miss How do I reset my password?
	// similar What is the best way to reset the password?
	// miss How do I change my password?
	// miss How do I not reset my password?
}
