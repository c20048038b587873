package cacheguard_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

func Example() {
	provider := aiguardtest.Start() // a fake one
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
	client := openai.NewClient(option.WithBaseURL(provider.URL), option.WithAPIKey("any key"),
		option.WithHTTPClient(&http.Client{Transport: cache}), option.WithMaxRetries(0))

	for range 3 {
		var resp *http.Response
		answer, err := client.Chat.Completions.New(context.Background(), openai.ChatCompletionNewParams{
			Model:       "gpt-4o-mini",
			Temperature: openai.Float(0),
			Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Say hello.")},
		}, option.WithResponseInto(&resp))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(resp.Header.Get(cacheguard.Header), answer.Choices[0].Message.Content)
	}
	fmt.Println("requests:", provider.Count(), "calls of the guard:", guard.Stats().Calls)
	// Output:
	// miss Hello!
	// hit Hello!
	// hit Hello!
	// requests: 1 calls of the guard: 1
}

func ExampleWithPolicy() {
	ctx := cacheguard.WithPolicy(context.Background(), cacheguard.Policy{Refresh: true}) // a button "ask again"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://api.openai.com/v1/embeddings", nil)
	fmt.Println(req.Method, err) // any SDK hands the context of a call on to its request
	// Output: POST <nil>
}
