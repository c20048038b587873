package cost

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	official "github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
	"github.com/aiguard-go/aiguard/internal/dialect"
)

// httpClient returns the SDK's HTTP client: over the guard if name is aiguard, else over base.
func httpClient(tb testing.TB, name string, base http.RoundTripper) *http.Client {
	if name != contender.Aiguard {
		return &http.Client{Transport: base}
	}
	g := contender.Guard(contender.Bounded)
	tb.Cleanup(func() { _ = g.Close() }) // Close always returns nil
	return &http.Client{Transport: g.Transport(base)}
}

// BenchmarkSDKPrompt measures a chat of openai-go with the longest allowed prompt and a provider in memory.
func BenchmarkSDKPrompt(b *testing.B) {
	request := officialRequest
	request.Messages = []official.ChatCompletionMessageParamUnion{official.UserMessage(strings.Repeat("Ten chars.", contender.MaxPromptChars/10))}
	compare(b, prompting, func(b *testing.B, name string) {
		client := sdkClient(b, name, jsonAnswer())
		for b.Loop() {
			resp, err := client.Chat.Completions.New(b.Context(), request)
			if err != nil || resp.Choices[0].Message.Content != answerIs {
				b.Fatal(err)
			}
		}
	})
}

func sdkClient(tb testing.TB, name string, base http.RoundTripper) official.Client {
	return official.NewClient(option.WithAPIKey("any key"), option.WithBaseURL(memoryURL), option.WithHTTPClient(httpClient(tb, name, base)), option.WithMaxRetries(0))
}

// BenchmarkStreamShapes measures streams of other shapes than BenchmarkStream: chunks that all have different shapes,
// and the events of two other APIs.
func BenchmarkStreamShapes(b *testing.B) {
	events := crowd(1000)
	for _, shape := range []struct {
		name       string
		contenders []string
		open       func(tb testing.TB, name string, events int) func(context.Context) (int, error)
	}{
		{"chunks", shaping, func(tb testing.TB, name string, events int) func(context.Context) (int, error) {
			return newStream(tb, name, memory{"text/event-stream", differentChunks(events)}, memoryURL)
		}},
		{"responses", responding, responsesStream},
		{"anthropic", shaping, anthropicStream},
	} {
		b.Run(shape.name, func(b *testing.B) {
			compare(b, shape.contenders, func(b *testing.B, name string) {
				benchmarkStream(b, shape.open(b, name, events), events)
				b.ReportMetric(growthOf(b, events, func(events int) func(context.Context) (int, error) { return shape.open(b, name, events) }), "allocs/event")
			})
		})
	}
}

// differentChunks returns a stream whose chunks have a member with a different name in each, so no two chunks have the
// same shape.
func differentChunks(events int) string {
	var b strings.Builder
	for i := range events {
		fmt.Fprintf(&b, `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1754000000,"model":"gpt-4o-mini-2024-07-18","x%d":true,`+
			`"system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" word%d"},"logprobs":null,"finish_reason":null}]}`+"\n\n", i, i)
	}
	return b.String() + `data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\ndata: [DONE]\n\n"
}

func responsesStream(tb testing.TB, name string, events int) func(context.Context) (int, error) {
	var body strings.Builder
	for i := range events {
		fmt.Fprintf(&body, "event: response.output_text.delta\ndata: "+`{"type":"response.output_text.delta","sequence_number":%d,"item_id":"msg_1","output_index":0,`+
			`"content_index":0,"delta":" word%d","logprobs":[],"obfuscation":"%s"}`+"\n\n", i+1, i*i, "0123456789abcdef"[:1+i%16])
	}
	body.WriteString("event: response.completed\ndata: " + `{"type":"response.completed","sequence_number":9999,"response":{"id":"resp_1","status":"completed","output":[]}}` + "\n\n")
	client := sdkClient(tb, name, memory{"text/event-stream", body.String()})
	return func(ctx context.Context) (n int, err error) {
		stream := client.Responses.NewStreaming(ctx, responses.ResponseNewParams{Model: model, Input: responses.ResponseNewParamsInputUnion{OfString: official.String(prompt)}})
		defer stream.Close()
		for stream.Next() {
			if stream.Current().Delta != "" {
				n++
			}
		}
		return n, stream.Err()
	}
}

// anthropicStream reads a stream of Anthropic's Messages API with net/http and encoding/json.
func anthropicStream(tb testing.TB, name string, events int) func(context.Context) (int, error) {
	var body strings.Builder
	event := func(kind, rest string) { fmt.Fprintf(&body, "event: %s\ndata: {\"type\":\"%[1]s\"%s}\n\n", kind, rest) }
	event("message_start", `,"message":{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"usage":{"input_tokens":50,"output_tokens":1}}`)
	event("content_block_start", `,"index":0,"content_block":{"type":"text","text":""}`)
	for i := range events {
		event("content_block_delta", fmt.Sprintf(`,"index":0,"delta":{"type":"text_delta","text":" word%d"}`, i*i))
	}
	event("content_block_stop", `,"index":0`)
	event("message_delta", `,"delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}`)
	event("message_stop", "")
	client := httpClient(tb, name, memory{"text/event-stream", body.String()})
	return func(ctx context.Context) (n int, err error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, memoryURL+"/messages", strings.NewReader(`{"model":"m","stream":true,"max_tokens":1000}`))
		if err != nil {
			return 0, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
			if !ok {
				continue
			}
			var event struct{ Delta struct{ Text string } }
			if err := json.Unmarshal(data, &event); err != nil {
				return n, err
			}
			if event.Delta.Text != "" {
				n++
			}
		}
		return n, lines.Err()
	}
}

// BenchmarkReadRequest measures reading the texts and limits of a JSON request body of 1 MiB.
func BenchmarkReadRequest(b *testing.B) {
	const size, deep = 1 << 20, 10_000
	message := `{"role":"user","content":"` + strings.Repeat("All work and no play makes Jack a dull boy. ", 100) + `\nNext line."},`
	messages := `{"model":"gpt-4o","messages":[` + strings.TrimSuffix(strings.Repeat(message, size/len(message)), ",") + `],"max_tokens":100}`
	nested := `{"model":"m","input":` + strings.Repeat(`{"data":`, deep) + `"` + strings.Repeat("x", size-9*deep) + `"` + strings.Repeat("}", deep) + `}`
	for _, body := range []struct{ name, path, text string }{{"messages", "/v1/chat/completions", messages}, {"nested", "/v1/responses", nested}} {
		b.Run(body.name, func(b *testing.B) {
			compare(b, reading, func(b *testing.B, _ string) {
				endpoint, data := dialect.Of(http.MethodPost, body.path, ""), bytes.Clone([]byte(body.text))
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					chars := 0
					endpoint.Read(data, func(p dialect.Part) bool {
						chars += p.Runes()
						return true
					})
					if chars < size/2 {
						b.Fatal(chars)
					}
				}
			})
		})
	}
}
