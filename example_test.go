package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// The examples talk to a fake provider: a service uses openai.DefaultConfig(key) as it is.
func fakeConfig(fake *aiguardtest.Server) openai.ClientConfig {
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = fake.URL
	return oc
}

func question(prompt string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:    openai.GPT4oMini,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: prompt}},
	}
}

// Wrap the client once. Its methods are go-openai's; no call hangs, and a passing failure is retried.
func ExampleNewClient() {
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.Enqueue(
		aiguardtest.Error(503, "service_unavailable"),
		aiguardtest.Text("Paris"),
	)

	client, err := aiguard.NewClient(fakeConfig(fake), aiguard.Config{
		Retry: aiguard.Retry{BaseDelay: 10 * time.Millisecond},
	})
	if err != nil {
		fmt.Println(err) // names the field that is out of range
		return
	}
	defer client.Guard().Close()

	resp, err := client.CreateChatCompletion(context.Background(), question("The capital of France?"))
	if err != nil {
		fmt.Println(aiguard.UserMessage(err))
		return
	}
	fmt.Println(resp.Choices[0].Message.Content)
	fmt.Println("retries:", client.Guard().Stats().Retries)

	// Output:
	// Paris
	// retries: 1
}

// A stream that was cut short does not look complete: its last error is not io.EOF.
func ExampleClient_CreateChatCompletionStream() {
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.SetDefault(aiguardtest.Events( // ends without a finish_reason
		`{"choices":[{"delta":{"content":"Once upon "}}]}`,
		`{"choices":[{"delta":{"content":"a time"}}]}`,
	))

	client, err := aiguard.NewClient(fakeConfig(fake), aiguard.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Guard().Close()

	stream, err := client.CreateChatCompletionStream(context.Background(), question("Tell me a story."))
	if err != nil {
		fmt.Println(aiguard.UserMessage(err))
		return
	}
	defer stream.Close()
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			fmt.Println("complete")
			return
		}
		if err != nil {
			fmt.Println(aiguard.UserMessage(err))
			return
		}
		fmt.Printf("%q\n", event.Choices[0].Delta.Content)
	}

	// Output:
	// "Once upon "
	// "a time"
	// The AI service's answer was cut short. Please try again.
}

// Do bounds any function: here one that asks a provider without an SDK.
func ExampleDo() {
	g, err := aiguard.New(aiguard.Config{Retry: aiguard.Retry{BaseDelay: 10 * time.Millisecond}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()

	tries := 0
	translation, err := aiguard.Do(context.Background(), g, func(ctx context.Context) (string, error) {
		if tries++; tries == 1 {
			return "", io.ErrUnexpectedEOF // the connection broke
		}
		return "bonjour", nil
	})
	fmt.Println(translation, err, tries)

	// Output:
	// bonjour <nil> 2
}

// With gives some calls settings of their own. The limits stay shared.
func ExampleGuard_With() {
	g, err := aiguard.New(aiguard.Config{MaxConcurrent: 5})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()

	hasty := g.With(aiguard.Call{Op: "suggest", Timeout: 20 * time.Millisecond, Attempts: 1})
	_, err = aiguard.Do(context.Background(), hasty, func(ctx context.Context) (string, error) {
		<-ctx.Done() // a provider that is not fast enough
		return "", ctx.Err()
	})
	var e *aiguard.Error
	if errors.As(err, &e) {
		fmt.Println(e.Op, e.Limit, errors.Is(err, aiguard.ErrTimeout))
	}

	heavy := g.With(aiguard.Call{Weight: 5}) // alone, while it runs
	_, err = aiguard.Do(context.Background(), heavy, func(context.Context) (int, error) {
		fmt.Println("in flight:", g.Stats().InFlight)
		return 0, nil
	})
	fmt.Println(err)

	// Output:
	// suggest 20ms true
	// in flight: 5
	// <nil>
}

// RunTask bounds the whole of a task that makes several calls; each call has its own bounds besides.
func ExampleGuard_RunTask() {
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.Enqueue(aiguardtest.Text("a summary"), aiguardtest.Hang())

	client, err := aiguard.NewClient(fakeConfig(fake), aiguard.Config{TaskTimeout: 2 * time.Second})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Guard().Close()

	err = client.Guard().RunTask(context.Background(), func(ctx context.Context) error {
		for _, chapter := range []string{"one", "two", "three"} {
			resp, err := client.CreateChatCompletion(ctx, question("Summarize chapter "+chapter+"."))
			if err != nil {
				return err
			}
			fmt.Println(chapter+":", resp.Choices[0].Message.Content)
		}
		return nil
	})
	var e *aiguard.Error
	if errors.As(err, &e) {
		fmt.Println(string(e.Kind), e.Phase, e.Limit)
	}
	fmt.Println(aiguard.UserMessage(err))

	// Output:
	// one: a summary
	// timeout task 2s
	// This took longer than expected and was stopped. Please try again, or try with a smaller request.
}

// Fallback asks the next model when the one before is down.
func ExampleFallback() {
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		if r.Model == openai.GPT4o {
			return aiguardtest.Error(503, "service_unavailable")
		}
		return aiguardtest.Text("Hello from " + r.Model)
	})

	client, err := aiguard.NewClient(fakeConfig(fake), aiguard.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Guard().Close()

	try := func(model string, attempts int) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			request := question("Say hello.")
			request.Model = model
			resp, err := client.With(aiguard.Call{Attempts: attempts}).CreateChatCompletion(ctx, request)
			if err != nil {
				return "", err
			}
			return resp.Choices[0].Message.Content, nil
		}
	}
	answer, err := aiguard.Fallback(context.Background(),
		try(openai.GPT4o, 1), // the other model is better than a second attempt
		try(openai.GPT4oMini, 3),
	)
	fmt.Println(answer, err)

	// Output:
	// Hello from gpt-4o-mini <nil>
}

// Transport bounds every SDK that takes an http.Client, and plain net/http too. Switch the SDK's own retries off.
func ExampleGuard_Transport() {
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.SetDefault(aiguardtest.Raw(200, "text/html", "<html>Please log in to this network")) // not the provider at all

	g, err := aiguard.New(aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()

	client := &http.Client{Transport: g.Transport(nil)}
	resp, err := client.Post(fake.URL+"/chat/completions", "application/json",
		strings.NewReader(`{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}]}`))
	if err == nil {
		resp.Body.Close()
	}
	fmt.Println(errors.Is(err, aiguard.ErrInvalidResponse))
	fmt.Println(aiguard.UserMessage(err))

	// Output:
	// true
	// The AI service gave an answer we could not use. Please try again.
}

// UserMessage and HTTPStatus are what a handler needs to answer for a failed call.
func ExampleUserMessage() {
	fake := aiguardtest.Start()
	defer fake.Close()
	fake.SetDefault(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "20"))

	client, err := aiguard.NewClient(fakeConfig(fake), aiguard.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Guard().Close()

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // 20 s of waiting don't fit: no retry
	defer cancel()
	_, err = client.CreateChatCompletion(ctx, question("Hi"))
	fmt.Println(aiguard.HTTPStatus(err), aiguard.UserMessage(err))

	// Output:
	// 429 The AI service is receiving too many requests. Please try again in 20 seconds.
}

// HTTPStatus tells a caller's mistake from ours, from the provider's, and from a caller who left.
func ExampleHTTPStatus() {
	for _, err := range []error{
		aiguard.ErrPromptTooLarge,
		aiguard.ErrOverloaded,
		aiguard.ErrTimeout,
		aiguard.ErrUnauthorized, // our key, not our user's
		context.Canceled,
	} {
		fmt.Println(aiguard.HTTPStatus(err), err)
	}

	// Output:
	// 413 prompt_too_large
	// 503 overloaded
	// 504 timeout
	// 502 unauthorized
	// 499 context canceled
}

// KindOf classifies errors from anywhere, also those that no guard has seen.
func ExampleKindOf() {
	quota := fmt.Errorf("asking the model: %w", &openai.APIError{HTTPStatusCode: 429, Code: "insufficient_quota"})
	for _, err := range []error{quota, io.ErrUnexpectedEOF, context.Canceled} {
		switch kind := aiguard.KindOf(err); kind {
		case aiguard.ErrQuota:
			fmt.Println("wake somebody up:", kind)
		case "":
			fmt.Println("not a failure of the call:", err)
		default:
			fmt.Println("try again later:", kind)
		}
	}

	// Output:
	// wake somebody up: quota_exceeded
	// try again later: truncated
	// not a failure of the call: context canceled
}

// CheckPrompt is for other SDKs: Client checks by itself.
func ExampleGuard_CheckPrompt() {
	g, err := aiguard.New(aiguard.Config{MaxPromptChars: 10})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()
	fmt.Println(g.CheckPrompt("gpt-4o-mini", "こんにちは")) // characters, not bytes
	fmt.Println(g.CheckPrompt("gpt-4o-mini", "Hello", " world"))

	// Output:
	// <nil>
	// aiguard: gpt-4o-mini: prompt_too_large: prompt of 11 characters, limit 10 (MaxPromptChars)
}

// Update changes limits while calls run, for example when a signal asks the service to read its settings again.
func ExampleGuard_Update() {
	g, err := aiguard.New(aiguard.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer g.Close()
	cfg := g.Config()
	cfg.MaxConcurrent = 20
	fmt.Println(g.Update(cfg))

	cfg.MaxConcurrent = -5
	fmt.Println(g.Update(cfg)) // nothing is changed by a mistake
	st := g.Stats()
	fmt.Println(st.MaxConcurrent, st.ConfigVersion)

	// Output:
	// <nil>
	// aiguard: Config.MaxConcurrent is -5; want a positive number, 0 for the default, or Off
	// 20 2
}
