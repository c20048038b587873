package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/failsafe-go/failsafe-go/bulkhead"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/failsafe-go/failsafe-go/timeout"
	openaigo "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	peers "github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// contender is a way to call a provider.
type contender struct {
	name string
	ours bool // aiguard
	// client returns ask, which makes one call, and end, which closes the client. limit is the concurrency limit that
	// the operator sets.
	client func(p http.RoundTripper, limit int) (ask func(context.Context) error, end func())
}

var contenders = []contender{
	{peers.Aiguard, true, guarded},
	{peers.Naive, false, naive},
	{peers.OpenAI, false, official},
	{peers.FailsafeBreaker, false, failsafe},
}

// callTimeout and queueTimeout are aiguard's defaults. All clients with such timeouts use them.
const (
	callTimeout  = aiguard.DefaultCallTimeout
	queueTimeout = aiguard.DefaultQueueTimeout
)

var request = openai.ChatCompletionRequest{
	Model:    openai.GPT4oMini,
	Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello."}},
}

func raw(p http.RoundTripper) *openai.Client { return openai.NewClientWithConfig(config(p)) }

func config(p http.RoundTripper) openai.ClientConfig {
	oc := openai.DefaultConfig("any key")
	oc.HTTPClient = &http.Client{Transport: p}
	return oc
}

func nothing() {}

// naive tries three times at intervals of 100 ms, regardless of the error.
func naive(p http.RoundTripper, _ int) (func(context.Context) error, func()) {
	client := raw(p)
	return func(ctx context.Context) (err error) {
		for range 3 {
			if _, err = client.CreateChatCompletion(ctx, request); err == nil || ctx.Err() != nil {
				return err
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return err
	}, nothing
}

// official is openai-go with its own retries (two, exponential, with Retry-After) and a timeout.
func official(p http.RoundTripper, _ int) (func(context.Context) error, func()) {
	client := openaigo.NewClient(option.WithAPIKey("any key"), option.WithRequestTimeout(callTimeout),
		option.WithHTTPClient(&http.Client{Transport: p}))
	params := openaigo.ChatCompletionNewParams{
		Model:    openaigo.ChatModelGPT4oMini,
		Messages: []openaigo.ChatCompletionMessageParamUnion{openaigo.UserMessage("Say hello.")},
	}
	return func(ctx context.Context) error {
		_, err := client.Chat.Completions.New(ctx, params)
		return err
	}, nothing
}

// failsafe is go-openai over failsafe-go's policies, in the order of its documentation: retries (two, with Retry-After,
// backoff and jitter), circuit breaker, bulkhead with a queue, timeout. A rejection by the bulkhead or the breaker is
// not retried and does not count as a failure of the provider.
func failsafe(p http.RoundTripper, limit int) (func(context.Context) error, func()) {
	retry := failsafehttp.NewRetryPolicyBuilder().
		WithBackoff(aiguard.DefaultBaseDelay, aiguard.DefaultMaxDelay).WithJitterFactor(0.25).
		AbortOnErrors(bulkhead.ErrFull, circuitbreaker.ErrOpen, timeout.ErrExceeded).
		ReturnLastFailure().Build()
	breaker := circuitbreaker.NewBuilder[*http.Response]().
		HandleIf(func(r *http.Response, err error) bool {
			if err != nil {
				return !errors.Is(err, context.Canceled) && !errors.Is(err, bulkhead.ErrFull)
			}
			return r.StatusCode >= 500
		}).
		WithFailureThreshold(5).WithDelay(time.Second).Build()
	slots := bulkhead.NewBuilder[*http.Response](uint(limit)).WithMaxWaitTime(queueTimeout).Build()
	limitOf := timeout.New[*http.Response](callTimeout)
	client := raw(failsafehttp.NewRoundTripper(p, retry, breaker, slots, limitOf))
	return func(ctx context.Context) error {
		_, err := client.CreateChatCompletion(ctx, request)
		return err
	}, nothing
}

// guarded is aiguard with its defaults except for the limit.
func guarded(p http.RoundTripper, limit int) (func(context.Context) error, func()) {
	client, err := aiguard.NewClient(config(p), aiguard.Config{MaxConcurrent: int64(limit)})
	if err != nil {
		panic(err)
	}
	return func(ctx context.Context) error {
		_, err := client.CreateChatCompletion(ctx, request)
		return err
	}, func() { client.Guard().Close() }
}

// withFallback uses two providers behind one guard with the same settings.
func withFallback(p http.RoundTripper, limit int) (func(context.Context) error, func()) {
	guard, err := aiguard.New(aiguard.Config{MaxConcurrent: int64(limit)})
	if err != nil {
		panic(err)
	}
	ask := func(host string) func(context.Context) (openai.ChatCompletionResponse, error) {
		oc := config(p)
		oc.BaseURL = "https://" + host + "/v1"
		client := guard.Client(oc)
		return func(ctx context.Context) (openai.ChatCompletionResponse, error) {
			return client.CreateChatCompletion(ctx, request)
		}
	}
	first, second := ask(firstHost), ask("second.example")
	return func(ctx context.Context) error {
		_, err := aiguard.Fallback(ctx, first, second)
		return err
	}, func() { guard.Close() }
}

// firstHost is the host of the first choice of withFallback.
const firstHost = "first.example"

// direct is plain go-openai.
var direct = contender{peers.Bare, false, func(p http.RoundTripper, _ int) (func(context.Context) error, func()) {
	client := raw(p)
	return func(ctx context.Context) error {
		_, err := client.CreateChatCompletion(ctx, request)
		return err
	}, nothing
}}

// withTenant sets the tenant of a call.
func withTenant(ctx context.Context, tenant string) context.Context {
	return aiguard.WithCall(ctx, aiguard.Call{Tenant: tenant})
}
