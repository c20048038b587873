package cost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	official "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

const (
	model     = "gpt-4o-mini"
	answerIs  = "Paris is the capital of France."
	memoryURL = "http://fake.openai/v1"
)

var (
	prompt = strings.Repeat("What is the capital of France, please? ", 6)[:200]

	request = openai.ChatCompletionRequest{
		Model:    model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: prompt}},
	}
	officialRequest = official.ChatCompletionNewParams{
		Model:    model,
		Messages: []official.ChatCompletionMessageParamUnion{official.UserMessage(prompt)},
	}

	answer = `{"id":"chatcmpl-1","object":"chat.completion","created":1754000000,"model":"gpt-4o-mini-2024-07-18",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":"` + answerIs + `","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":50,"completion_tokens":7,"total_tokens":57},"system_fingerprint":"fp_1"}`
)

// sse returns a stream with this number of events that carry text. As in OpenAI's streams, each event has a different
// text and a padding that hides the length of the text.
func sse(events int) string {
	var b strings.Builder
	event := func(delta, finish, padding string) {
		b.WriteString(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1754000000,"model":"gpt-4o-mini-2024-07-18",` +
			`"system_fingerprint":"fp_1","choices":[{"index":0,"delta":` + delta + `,"logprobs":null,"finish_reason":` + finish + `}],` +
			`"obfuscation":"` + padding + "\"}\n\n")
	}
	for i := range events {
		word := fmt.Sprint(" word", i*i)
		event(`{"content":"`+word+`"}`, "null", "0123456789abcdef"[len(word):])
	}
	event("{}", `"stop"`, "0123456789")
	return b.String() + "data: [DONE]\n\n"
}

// chat makes one call.
type chat func(context.Context) (string, error)

// newChat returns a chat of the contender called name with the provider at url.
func newChat(tb testing.TB, name string, base http.RoundTripper, url string) chat {
	switch name {
	case contender.Bare:
		return content(bareClient(base, url).CreateChatCompletion)
	case contender.Aiguard:
		g := contender.Guard(contender.Bounded)
		tb.Cleanup(func() { _ = g.Close() }) // Close always returns nil
		return content(g.Client(clientConfig(base, url)).CreateChatCompletion)
	case contender.OpenAI:
		client := officialClient(base, url)
		return func(ctx context.Context) (string, error) {
			resp, err := client.Chat.Completions.New(ctx, officialRequest)
			if err != nil {
				return "", err
			}
			return resp.Choices[0].Message.Content, nil
		}
	}
	client, run := bareClient(base, url), start[openai.ChatCompletionResponse](tb, name, contender.Bounded)
	return content(func(ctx context.Context, request openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error) {
		if name == contender.Hand && utf8.RuneCountInString(request.Messages[0].Content) > contender.MaxPromptChars {
			return openai.ChatCompletionResponse{}, errors.New("the prompt is too long")
		}
		return run(ctx, func(ctx context.Context) (openai.ChatCompletionResponse, error) {
			return client.CreateChatCompletion(ctx, request)
		})
	})
}

func content(create func(context.Context, openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error)) chat {
	return func(ctx context.Context) (string, error) {
		resp, err := create(ctx, request)
		if err != nil {
			return "", err
		}
		return resp.Choices[0].Message.Content, nil
	}
}

func clientConfig(base http.RoundTripper, url string) openai.ClientConfig {
	oc := openai.DefaultConfig("any key")
	oc.BaseURL, oc.HTTPClient = url, &http.Client{Transport: base}
	return oc
}

func bareClient(base http.RoundTripper, url string) *openai.Client {
	return openai.NewClientWithConfig(clientConfig(base, url))
}

func officialClient(base http.RoundTripper, url string) official.Client {
	return official.NewClient(option.WithAPIKey("any key"), option.WithBaseURL(url), option.WithHTTPClient(&http.Client{Transport: base}),
		option.WithMaxRetries(contender.Attempts-1), option.WithRequestTimeout(contender.Timeout))
}

// newStream returns a function that reads a stream to its end and returns the number of events with text.
func newStream(tb testing.TB, name string, base http.RoundTripper, url string) func(context.Context) (int, error) {
	var create func(context.Context, openai.ChatCompletionRequest) (*openai.ChatCompletionStream, error)
	switch name {
	case contender.Bare:
		create = bareClient(base, url).CreateChatCompletionStream
	case contender.Aiguard:
		g := contender.Guard(contender.Bounded)
		tb.Cleanup(func() { _ = g.Close() }) // Close always returns nil
		create = g.Client(clientConfig(base, url)).CreateChatCompletionStream
	case contender.OpenAI:
		client := officialClient(base, url)
		return func(ctx context.Context) (events int, err error) {
			stream := client.Chat.Completions.NewStreaming(ctx, officialRequest)
			defer stream.Close()
			for stream.Next() {
				if stream.Current().Choices[0].Delta.Content != "" {
					events++
				}
			}
			return events, stream.Err()
		}
	}
	return func(ctx context.Context) (events int, err error) {
		stream, err := create(ctx, request)
		if err != nil {
			return 0, err
		}
		defer stream.Close()
		for {
			event, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return events, nil
			}
			if err != nil {
				return events, err
			}
			if event.Choices[0].Delta.Content != "" {
				events++
			}
		}
	}
}

// memory is a provider without a network. It reads the request and always returns the same answer.
type memory struct{ contentType, body string }

func (m memory) RoundTrip(req *http.Request) (*http.Response, error) {
	defer req.Body.Close()
	if _, err := io.Copy(io.Discard, req.Body); err != nil {
		return nil, err
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {m.contentType}}, ContentLength: int64(len(m.body)),
		Body: io.NopCloser(strings.NewReader(m.body)),
	}, nil
}

// ServeHTTP serves the same answer over a network.
func (m memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // the client has left
	}
	w.Header().Set("Content-Type", m.contentType)
	w.Header().Set("Content-Length", fmt.Sprint(len(m.body)))
	_, _ = io.WriteString(w, m.body)
}

// chunked is memory without a Content-Length. It sends the final chunk a moment after the others, as a network does. On
// loopback both would often arrive together.
type chunked struct{ memory }

func (c chunked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	w.Header().Set("Content-Type", c.contentType)
	_, _ = io.WriteString(w, c.body)
	_ = http.NewResponseController(w).Flush()
	time.Sleep(time.Millisecond)
}

func jsonAnswer() memory             { return memory{"application/json", answer} }
func streamAnswer(events int) memory { return memory{"text/event-stream", sse(events)} }
