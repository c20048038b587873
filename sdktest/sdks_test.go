package sdktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	einoopenai "github.com/cloudwego/eino-ext/components/model/openai"
	"github.com/cloudwego/eino/schema"
	ollama "github.com/ollama/ollama/api"
	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/tmc/langchaingo/llms"
	langchain "github.com/tmc/langchaingo/llms/openai"
	"google.golang.org/genai"
)

// sdk is an SDK with the answers of its provider.
type sdk struct {
	chat, stream func(ctx context.Context, c conn) (string, error)
	api          api
	own          func(error) (status int) // status in the SDK's own error type; 0: err has none
	carries      bool                     // the SDK's error contains the response and the guard's facts
	swallows     bool                     // the SDK drops the error of a RoundTripper
	deaf         bool                     // the SDK ignores an error of Read in a stream, and gets it as an event
	retries      bool                     // the SDK retries by default
}

// conn defines how an SDK reaches its provider.
type conn struct {
	http    *http.Client
	url     string
	retries bool // keeps the SDK's own retries
}

// api has the answers of a provider in its own format. All answers contain "Hello there".
type api struct {
	answer    string
	events    []string // a whole stream; its first two events give the SDK some text
	media     string   // content type of the stream
	errorBody string
}

var openaiAPI = api{
	answer: `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",` +
		`"content":"Hello there"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}`,
	events: []string{
		`data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"}}]}` + "\n\n",
		`data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" there"}}]}` + "\n\n",
		`data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n",
		"data: [DONE]\n\n",
	},
	media:     "text/event-stream",
	errorBody: `{"error":{"message":"PROVIDER WORDS","type":"some_type","param":null,"code":null}}`,
}

var anthropicAPI = api{
	answer: `{"id":"m","type":"message","role":"assistant","model":"m","content":[{"type":"text","text":"Hello there"}],` +
		`"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":2}}`,
	events: []string{
		"event: message_start\ndata: " + `{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","model":"m","content":[],` +
			`"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":1}}}` + "\n\n" +
			"event: content_block_start\ndata: " + `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}` + "\n\n",
		"event: content_block_delta\ndata: " + `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello there"}}` + "\n\n",
		"event: content_block_stop\ndata: " + `{"type":"content_block_stop","index":0}` + "\n\n",
		"event: message_delta\ndata: " + `{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":2}}` + "\n\n",
		"event: message_stop\ndata: " + `{"type":"message_stop"}` + "\n\n",
	},
	media:     "text/event-stream",
	errorBody: `{"type":"error","error":{"type":"some_error","message":"PROVIDER WORDS"}}`,
}

var geminiAPI = api{
	answer: `{"candidates":[{"content":{"parts":[{"text":"Hello there"}],"role":"model"},"finishReason":"STOP","index":0}],` +
		`"usageMetadata":{"promptTokenCount":1,"candidatesTokenCount":2,"totalTokenCount":3}}`,
	events: []string{
		`data: {"candidates":[{"content":{"parts":[{"text":"Hello"}],"role":"model"},"index":0}]}` + "\r\n\r\n",
		`data: {"candidates":[{"content":{"parts":[{"text":" there"}],"role":"model"},"index":0}]}` + "\r\n\r\n",
		`data: {"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},"finishReason":"STOP","index":0}]}` + "\r\n\r\n",
	},
	media:     "text/event-stream",
	errorBody: `{"error":{"code":%d,"message":"PROVIDER WORDS","status":"SOME_STATUS"}}`,
}

var ollamaAPI = api{
	answer: `{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"Hello there"},"done":true,"done_reason":"stop"}`,
	events: []string{
		`{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"Hello"},"done":false}` + "\n",
		`{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":" there"},"done":false}` + "\n",
		`{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}` + "\n",
	},
	media:     "application/x-ndjson",
	errorBody: `{"error":"PROVIDER WORDS"}`,
}

var sdks = map[string]sdk{
	"openai-go": {
		chat: func(ctx context.Context, c conn) (string, error) {
			client := openaiClient(c)
			r, err := client.Chat.Completions.New(ctx, openaiParams())
			if err != nil {
				return "", err
			}
			return r.Choices[0].Message.Content, nil
		},
		stream: func(ctx context.Context, c conn) (text string, err error) {
			client := openaiClient(c)
			s := client.Chat.Completions.NewStreaming(ctx, openaiParams())
			defer s.Close()
			for s.Next() {
				for _, choice := range s.Current().Choices {
					text += choice.Delta.Content
				}
			}
			return text, s.Err()
		},
		api: openaiAPI,
		own: func(err error) int {
			var e *openai.Error
			if errors.As(err, &e) {
				return e.StatusCode
			}
			return 0
		},
		carries: true, retries: true,
	},
	"anthropic-sdk-go": {
		chat: func(ctx context.Context, c conn) (string, error) {
			client := anthropicClient(c)
			r, err := client.Messages.New(ctx, anthropicParams())
			if err != nil {
				return "", err
			}
			return r.Content[0].Text, nil
		},
		stream: func(ctx context.Context, c conn) (text string, err error) {
			client := anthropicClient(c)
			s := client.Messages.NewStreaming(ctx, anthropicParams())
			defer s.Close()
			for s.Next() {
				text += s.Current().Delta.Text
			}
			return text, s.Err()
		},
		api: anthropicAPI,
		own: func(err error) int {
			var e *anthropic.Error
			if errors.As(err, &e) {
				return e.StatusCode
			}
			return 0
		},
		carries: true, retries: true,
	},
	"genai": {
		chat: func(ctx context.Context, c conn) (string, error) {
			client, err := genaiClient(ctx, c)
			if err != nil {
				return "", err
			}
			r, err := client.Models.GenerateContent(ctx, "m", genai.Text("Hi"), nil)
			if err != nil {
				return "", err
			}
			return r.Text(), nil
		},
		stream: func(ctx context.Context, c conn) (text string, err error) {
			client, err := genaiClient(ctx, c)
			if err != nil {
				return "", err
			}
			for r, err := range client.Models.GenerateContentStream(ctx, "m", genai.Text("Hi"), nil) {
				if err != nil {
					return text, err
				}
				text += r.Text()
			}
			return text, nil
		},
		api: geminiAPI,
		own: func(err error) int {
			var e genai.APIError
			if errors.As(err, &e) {
				return e.Code
			}
			return 0
		},
	},
	"ollama": {
		chat:   func(ctx context.Context, c conn) (string, error) { return ollamaChat(ctx, c, false) },
		stream: func(ctx context.Context, c conn) (string, error) { return ollamaChat(ctx, c, true) },
		api:    ollamaAPI,
		own: func(err error) int {
			var e ollama.StatusError
			var unauthorized ollama.AuthorizationError
			if errors.As(err, &e) {
				return e.StatusCode
			}
			if errors.As(err, &unauthorized) {
				return unauthorized.StatusCode
			}
			return 0
		},
		deaf: true,
	},
	"langchaingo": {
		chat: func(ctx context.Context, c conn) (string, error) {
			model, err := langchainModel(c)
			if err != nil {
				return "", err
			}
			return llms.GenerateFromSinglePrompt(ctx, model, "Hi")
		},
		stream: func(ctx context.Context, c conn) (text string, err error) {
			model, err := langchainModel(c)
			if err != nil {
				return "", err
			}
			_, err = llms.GenerateFromSinglePrompt(ctx, model, "Hi", llms.WithStreamingFunc(func(_ context.Context, chunk []byte) error {
				text += string(chunk)
				return nil
			}))
			return text, err
		},
		api: openaiAPI,
		own: func(err error) int { // the SDK has no type with a status, only a text
			var status int
			_, words, _ := strings.Cut(err.Error(), "unexpected status code: ")
			_, _ = fmt.Sscan(words, &status)
			return status
		},
		swallows: true,
	},
	"eino-ext": {
		chat: func(ctx context.Context, c conn) (string, error) {
			model, err := einoModel(ctx, c)
			if err != nil {
				return "", err
			}
			m, err := model.Generate(ctx, []*schema.Message{schema.UserMessage("Hi")})
			if err != nil {
				return "", err
			}
			return m.Content, nil
		},
		stream: func(ctx context.Context, c conn) (text string, err error) {
			model, err := einoModel(ctx, c)
			if err != nil {
				return "", err
			}
			s, err := model.Stream(ctx, []*schema.Message{schema.UserMessage("Hi")})
			if err != nil {
				return "", err
			}
			defer s.Close()
			for {
				m, err := s.Recv()
				if errors.Is(err, io.EOF) {
					return text, nil
				}
				if err != nil {
					return text, err
				}
				text += m.Content
			}
		},
		api: openaiAPI,
		own: func(err error) int {
			var e *einoopenai.APIError
			if errors.As(err, &e) {
				return e.HTTPStatusCode
			}
			return 0
		},
	},
}

func openaiClient(c conn) openai.Client {
	opts := []openaioption.RequestOption{openaioption.WithBaseURL(c.url + "/v1"), openaioption.WithAPIKey("KEY"), openaioption.WithHTTPClient(c.http)}
	if !c.retries {
		opts = append(opts, openaioption.WithMaxRetries(0))
	}
	return openai.NewClient(opts...)
}

func openaiParams() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: "m", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hi")}}
}

func anthropicClient(c conn) anthropic.Client {
	opts := []anthropicoption.RequestOption{anthropicoption.WithBaseURL(c.url), anthropicoption.WithAPIKey("KEY"), anthropicoption.WithHTTPClient(c.http)}
	if !c.retries {
		opts = append(opts, anthropicoption.WithMaxRetries(0))
	}
	return anthropic.NewClient(opts...)
}

func anthropicParams() anthropic.MessageNewParams {
	return anthropic.MessageNewParams{Model: "m", MaxTokens: 16, Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock("Hi"))}}
}

func genaiClient(ctx context.Context, c conn) (*genai.Client, error) {
	return genai.NewClient(ctx, &genai.ClientConfig{APIKey: "KEY", Backend: genai.BackendGeminiAPI, HTTPClient: c.http,
		HTTPOptions: genai.HTTPOptions{BaseURL: c.url}})
}

func ollamaChat(ctx context.Context, c conn, stream bool) (text string, err error) {
	base, err := url.Parse(c.url)
	if err != nil {
		return "", err
	}
	err = ollama.NewClient(base, c.http).Chat(ctx, &ollama.ChatRequest{Model: "m", Stream: &stream,
		Messages: []ollama.Message{{Role: "user", Content: "Hi"}}}, func(r ollama.ChatResponse) error {
		text += r.Message.Content
		return nil
	})
	return text, err
}

func langchainModel(c conn) (*langchain.LLM, error) {
	return langchain.New(langchain.WithToken("KEY"), langchain.WithModel("m"), langchain.WithBaseURL(c.url+"/v1"), langchain.WithHTTPClient(c.http))
}

func einoModel(ctx context.Context, c conn) (*einoopenai.ChatModel, error) {
	return einoopenai.NewChatModel(ctx, &einoopenai.ChatModelConfig{APIKey: "KEY", BaseURL: c.url + "/v1", Model: "m", HTTPClient: c.http})
}
