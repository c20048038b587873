package aiguardtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// Service is the code under test. It asks a model, and asks once more if the provider sends Retry-After.
type Service struct{ client *openai.Client }

func (s Service) Capital(ctx context.Context, country string) (string, error) {
	ask := func() (openai.ChatCompletionResponse, error) {
		return s.client.CreateChatCompletion(ctx, openai.ChatCompletionRequest{
			Model:    openai.GPT4oMini,
			Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "The capital of " + country + "?"}},
		})
	}
	resp, err := ask()
	var apiErr *openai.APIError
	if errors.As(err, &apiErr) && apiErr.HTTPStatusCode == http.StatusTooManyRequests {
		resp, err = ask()
	}
	if err != nil {
		return "", errors.New("no answer today")
	}
	return resp.Choices[0].Message.Content, nil
}

// Test your own service: script what the provider does, then check what the service did. In a test, NewServer(t) closes
// the server.
func Example() {
	fake := aiguardtest.Start()
	defer fake.Close()
	cfg := openai.DefaultConfig("any key")
	cfg.BaseURL = fake.URL
	service := Service{openai.NewClientWithConfig(cfg)}

	fake.Enqueue(
		aiguardtest.Error(429, "rate_limit_exceeded"),
		aiguardtest.Text("Paris"),
	)
	capital, err := service.Capital(context.Background(), "France")
	fmt.Println(capital, err)
	fmt.Println("requests:", fake.Count(), "for", fake.Requests()[0].Model)

	fake.SetDefault(aiguardtest.Hang())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = service.Capital(ctx, "Spain")
	fmt.Println(err)

	// Output:
	// Paris <nil>
	// requests: 2 for gpt-4o-mini
	// no answer today
}

func ExampleServer_Handle() {
	fake := aiguardtest.Start(aiguardtest.Pipe())
	defer fake.Close()
	fake.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		if r.Model == "gpt-4o" {
			return aiguardtest.Error(503, "overloaded")
		}
		return nil // the default: a correct answer
	})

	cfg := openai.DefaultConfig("any key")
	cfg.BaseURL = fake.URL
	cfg.HTTPClient = &http.Client{Transport: fake.Transport()}
	client := openai.NewClientWithConfig(cfg)
	for _, model := range []string{"gpt-4o", "gpt-4o-mini"} {
		_, err := client.CreateChatCompletion(context.Background(), openai.ChatCompletionRequest{Model: model})
		fmt.Println(model, err == nil)
	}

	// Output:
	// gpt-4o false
	// gpt-4o-mini true
}

// The path of a request selects the API of the answer. This path is Anthropic's. Anthropic's SDK takes fake.URL as its
// base URL.
func ExampleServer_Play() {
	fake := aiguardtest.Start()
	defer fake.Close()
	ask := func() {
		resp, err := http.Post(fake.URL+"/messages", "application/json", strings.NewReader(`{"model":"claude"}`))
		if err != nil {
			fmt.Println(err)
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		fmt.Println(resp.StatusCode, string(body), err)
	}

	fake.Play(aiguardtest.FaultStatus529)
	ask()
	fake.Play(aiguardtest.FaultCutAnswer)
	ask()

	// Output:
	// 529 {"type":"error","error":{"type":"overloaded_error","message":"PROVIDER-TEXT do not show this to users"}} <nil>
	// 200 {"id":"msg-fake2","type":"message","role":"assistant","model":"claude","content":[{"type":"text","text" unexpected EOF
}

// Check how your own service copes with an overloaded provider. A test does this in a testing/synctest bubble with
// Pipe, where minutes of virtual time pass at once.
func ExampleProvider() {
	provider := aiguardtest.NewProvider(aiguardtest.ProviderConfig{
		Capacity: 5, // requests at full speed
		RPM:      6, // one every ten seconds; others get a 429
		Work:     func(*aiguardtest.Request) time.Duration { return 10 * time.Millisecond },
	})
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.SetDefault(provider.Reply(aiguardtest.Text("Paris")))

	cfg := openai.DefaultConfig("any key")
	cfg.BaseURL = fake.URL
	service := Service{openai.NewClientWithConfig(cfg)}
	for range 2 {
		capital, err := service.Capital(context.Background(), "France")
		fmt.Printf("%q %v\n", capital, err)
	}
	fmt.Println("requests:", fake.Count())

	// Output:
	// "Paris" <nil>
	// "" no answer today
	// requests: 3
}
