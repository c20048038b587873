package dialect

import (
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Each API reports usage in its own form. In a stream, several events report it, and the usage is complete at the end.
func TestUsageIsReadInEveryForm(t *testing.T) {
	const (
		chat     = "/v1/chat/completions"
		messages = "/v1/messages"
		gemini   = "/v1beta/models/m:generateContent"
		stream   = "/v1beta/models/m:streamGenerateContent"
		nova     = "/model/amazon.nova-lite-v1:0/invoke"
	)
	frame := func(payload string) string {
		return `{"bytes":"` + base64.StdEncoding.EncodeToString([]byte(payload)) + `"}`
	}
	metrics := `"amazon-bedrock-invocationMetrics":{"inputTokenCount":25,"outputTokenCount":15,"invocationLatency":900,"firstByteLatency":80}`
	for _, c := range []struct {
		name, path string
		events     []string // one event: a whole answer
		want       Usage
	}{
		{"openai", chat, []string{`{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":15,"total_tokens":40,` +
			`"prompt_tokens_details":{"cached_tokens":20,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":5,"audio_tokens":0}}}`}, Usage{25, 15, 20, 0, 5}},
		{"openai, stream", chat, []string{`{"choices":[{"delta":{"content":"Hi"}}],"usage":null}`, `{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}`,
			`{"choices":[],"usage":{"prompt_tokens":25,"completion_tokens":15,"total_tokens":40,"prompt_tokens_details":{"cached_tokens":20}}}`}, Usage{25, 15, 20, 0, 0}},
		{"groq, stream", chat, []string{`{"choices":[{"delta":{"content":"Hi"}}],"x_groq":{"id":"req_1"}}`,
			`{"choices":[{"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"req_1","usage":{"queue_time":0.01,"prompt_tokens":25,"prompt_time":0.001,"completion_tokens":15,"total_tokens":40}}}`},
			Usage{25, 15, 0, 0, 0}},
		{"groq, both forms", chat, []string{`{"choices":[{"delta":{},"finish_reason":"stop"}],"x_groq":{"usage":{"prompt_tokens":25,"completion_tokens":15}},"usage":{"prompt_tokens":25,"completion_tokens":15,` +
			`"prompt_tokens_details":{"cached_tokens":3}}}`, `{"choices":[]}`}, Usage{25, 15, 3, 0, 0}},
		{"openrouter", chat, []string{`{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":15,"total_tokens":40,"cost":0.0001,"is_byok":false,` +
			`"prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":6,"audio_tokens":0},"cost_details":{"upstream_inference_cost":null},"completion_tokens_details":{"reasoning_tokens":5,"image_tokens":0}}}`},
			Usage{25, 15, 4, 6, 5}},
		{"deepseek", chat, []string{`{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":15,"prompt_cache_hit_tokens":20,"prompt_cache_miss_tokens":5,` +
			`"completion_tokens_details":{"reasoning_tokens":5}}}`}, Usage{25, 15, 20, 0, 5}},
		{"moonshot, stream", chat, []string{`{"choices":[{"delta":{"content":"Hi"}}]}`,
			`{"choices":[{"delta":{},"finish_reason":"stop","usage":{"prompt_tokens":25,"completion_tokens":15,"total_tokens":40,"cached_tokens":20}}]}`}, Usage{25, 15, 20, 0, 0}},
		{"perplexity, in each chunk", chat, []string{`{"choices":[{"delta":{"content":"Hi"}}],"usage":{"prompt_tokens":25,"completion_tokens":1,"total_tokens":26}}`,
			`{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":15,"total_tokens":40,"search_context_size":"low"}}`}, Usage{25, 15, 0, 0, 0}},
		{"xai", chat, []string{`{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":2,"total_tokens":344,"completion_tokens_details":{"reasoning_tokens":317}}}`},
			Usage{25, 319, 0, 0, 317}},
		{"xai, little reasoning", chat, []string{`{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":50,"total_tokens":105,"completion_tokens_details":{"reasoning_tokens":30}}}`},
			Usage{25, 80, 0, 0, 30}},
		{"vercel's gateway, gemini", chat, []string{`{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":14,"total_tokens":39,"completion_tokens_details":{"reasoning_tokens":112}}}`},
			Usage{25, 126, 0, 0, 112}},
		{"openai, only reasoning", chat, []string{`{"choices":[{"finish_reason":"length"}],"usage":{"completion_tokens_details":{"reasoning_tokens":15},"prompt_tokens":25,"completion_tokens":15,"total_tokens":40}}`},
			Usage{25, 15, 0, 0, 15}},
		{"voyage", "/v1/embeddings", []string{`{"data":[{"embedding":[0.1]}],"usage":{"total_tokens":25}}`}, Usage{25, 0, 0, 0, 0}},
		{"none", chat, []string{`{"choices":[{"finish_reason":"stop"}]}`}, Usage{}},
		{"completions", "/v1/completions", []string{`{"choices":[{"text":"Hi","finish_reason":"stop"}],"usage":{"prompt_tokens":25,"completion_tokens":15}}`}, Usage{25, 15, 0, 0, 0}},
		{"responses", "/v1/responses", []string{`{"id":"r","status":"completed","output":[],"usage":{"input_tokens":25,"input_tokens_details":{"cached_tokens":20},"output_tokens":15,` +
			`"output_tokens_details":{"reasoning_tokens":5},"total_tokens":40}}`}, Usage{25, 15, 20, 0, 5}},
		{"responses, stream", "/v1/responses", []string{`{"type":"response.created","response":{"id":"r","usage":null}}`,
			`{"type":"response.completed","response":{"id":"r","output":[],"usage":{"input_tokens":25,"output_tokens":15,"output_tokens_details":{"reasoning_tokens":5}}}}`}, Usage{25, 15, 0, 0, 5}},
		{"embeddings", "/v1/embeddings", []string{`{"data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":25,"total_tokens":25}}`}, Usage{25, 0, 0, 0, 0}},
		{"images", "/v1/images/generations", []string{`{"created":1,"data":[{"b64_json":"QUJD"}],"usage":{"input_tokens":25,"output_tokens":15,"total_tokens":40,"input_tokens_details":{"text_tokens":25,"image_tokens":0}}}`},
			Usage{25, 15, 0, 0, 0}},
		{"transcript", "/v1/audio/transcriptions", []string{`{"text":"Hi","usage":{"type":"tokens","input_tokens":25,"output_tokens":15,"total_tokens":40}}`}, Usage{25, 15, 0, 0, 0}},
		{"transcript, by duration", "/v1/audio/transcriptions", []string{`{"text":"Hi","usage":{"type":"duration","seconds":3}}`}, Usage{}},
		{"assistants, stream", "/v1/threads/runs", []string{`{"object":"thread.message.delta","delta":{}}`,
			`{"object":"thread.run","status":"completed","usage":{"prompt_tokens":25,"completion_tokens":15,"total_tokens":40}}`}, Usage{25, 15, 0, 0, 0}},

		{"anthropic", messages, []string{`{"type":"message","content":[],"stop_reason":"end_turn","usage":{"input_tokens":5,"cache_creation_input_tokens":8,"cache_read_input_tokens":12,` +
			`"cache_creation":{"ephemeral_5m_input_tokens":8},"output_tokens":15,"service_tier":"standard"}}`}, Usage{25, 15, 12, 8, 0}},
		{"anthropic, stream", messages, []string{`{"type":"message_start","message":{"content":[],"usage":{"input_tokens":5,"cache_creation_input_tokens":8,"cache_read_input_tokens":12,"output_tokens":1}}}`,
			`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}`, `{"type":"message_stop"}`}, Usage{25, 15, 12, 8, 0}},
		{"anthropic, stream, totals again", messages, []string{`{"type":"message_start","message":{"content":[],"usage":{"input_tokens":3,"output_tokens":1}}}`,
			`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":5,"cache_creation_input_tokens":0,"cache_read_input_tokens":20,"output_tokens":15}}`}, Usage{25, 15, 20, 0, 0}},

		{"gemini", gemini, []string{`{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":25,"candidatesTokenCount":10,"totalTokenCount":40,"cachedContentTokenCount":20,"thoughtsTokenCount":5,` +
			`"promptTokensDetails":[{"modality":"TEXT","tokenCount":25}]}}`}, Usage{25, 15, 20, 0, 5}},
		{"gemini, stream", stream, []string{`{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}],"usageMetadata":{"promptTokenCount":25,"totalTokenCount":30,"thoughtsTokenCount":5}}`,
			`{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":25,"candidatesTokenCount":10,"totalTokenCount":40,"thoughtsTokenCount":5}}`}, Usage{25, 15, 0, 0, 5}},
		{"gemini, results of tools", gemini, []string{`{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":20,"toolUsePromptTokenCount":5,"candidatesTokenCount":15,"totalTokenCount":40}}`},
			Usage{25, 15, 0, 0, 0}},
		{"gemini embedding", "/v1beta/models/m:embedContent", []string{`{"embedding":{"values":[0.1]},"usageMetadata":{"promptTokenCount":25}}`}, Usage{25, 0, 0, 0, 0}},

		{"converse", "/model/m/converse", []string{`{"output":{"message":{}},"stopReason":"end_turn","usage":{"inputTokens":5,"outputTokens":15,"totalTokens":40,"cacheReadInputTokens":12,"cacheWriteInputTokens":8}}`},
			Usage{25, 15, 12, 8, 0}},
		{"converse, stream", "/model/m/converse-stream", []string{`{"role":"assistant"}`, `{"stopReason":"end_turn"}`, `{"usage":{"inputTokens":25,"outputTokens":15,"totalTokens":40},"metrics":{"latencyMs":900}}`},
			Usage{25, 15, 0, 0, 0}},
		{"nova", nova, []string{`{"output":{"message":{}},"stopReason":"end_turn","usage":{"inputTokens":5,"outputTokens":15,"totalTokens":20,"cacheReadInputTokenCount":20,"cacheWriteInputTokenCount":0}}`},
			Usage{25, 15, 20, 0, 0}},
		{"nova, stream", nova + "-with-response-stream", []string{frame(`{"contentBlockDelta":{"delta":{"text":"Hi"}}}`), frame(`{"metadata":{"usage":{"inputTokens":25,"outputTokens":15}},` + metrics + `}`)},
			Usage{25, 15, 0, 0, 0}},
		{"llama on bedrock", "/model/meta.llama3-8b/invoke", []string{`{"generation":"Hi","prompt_token_count":25,"generation_token_count":15,"stop_reason":"stop"}`}, Usage{25, 15, 0, 0, 0}},
		{"llama on bedrock, stream", "/model/meta.llama3-8b/invoke-with-response-stream", []string{frame(`{"generation":"Hi","prompt_token_count":25,"generation_token_count":1}`),
			frame(`{"generation":"","prompt_token_count":null,"generation_token_count":15,"stop_reason":"stop",` + metrics + `}`)}, Usage{25, 15, 0, 0, 0}},
		{"titan embedding", "/model/amazon.titan-embed-text-v2:0/invoke", []string{`{"embedding":[0.1],"inputTextTokenCount":25}`}, Usage{25, 0, 0, 0, 0}},
		{"claude on bedrock, stream", "/model/anthropic.claude/invoke-with-response-stream", []string{frame(`{"type":"message_start","message":{"content":[],"usage":{"input_tokens":5,"cache_read_input_tokens":20,"output_tokens":1}}}`),
			frame(`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":15}}`), frame(`{"type":"message_stop",` + metrics + `}`)}, Usage{25, 15, 20, 0, 0}},

		{"cohere", "/v2/chat", []string{`{"id":"c","message":{"role":"assistant"},"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":5,"output_tokens":15},"tokens":{"input_tokens":25,"output_tokens":15},"cached_tokens":20}}`},
			Usage{25, 15, 20, 0, 0}},
		{"cohere, what is billed", "/v2/chat", []string{`{"id":"c","message":{"role":"assistant"},"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":25,"output_tokens":15}}}`}, Usage{25, 15, 0, 0, 0}},
		{"cohere, stream", "/v2/chat", []string{`{"type":"message-start","id":"c"}`, `{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"tokens":{"input_tokens":25,"output_tokens":15},"billed_units":{"input_tokens":5,"output_tokens":15}}}}`},
			Usage{25, 15, 0, 0, 0}},
		{"cohere embed", "/v2/embed", []string{`{"embeddings":{"float":[[0.1]]},"meta":{"billed_units":{"input_tokens":25}}}`}, Usage{25, 0, 0, 0, 0}},

		{"ollama chat", "/api/chat", []string{`{"message":{"content":"Hi"},"done":false}`, `{"message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":25,"eval_count":15,"eval_duration":9}`}, Usage{25, 15, 0, 0, 0}},
		{"ollama generate", "/api/generate", []string{`{"response":"Hi","done":true,"prompt_eval_count":25,"eval_count":15}`}, Usage{25, 15, 0, 0, 0}},
		{"ollama embed", "/api/embed", []string{`{"embeddings":[[0.1]],"prompt_eval_count":25}`}, Usage{25, 0, 0, 0, 0}},
	} {
		e := post(c.path)
		if len(c.events) == 1 {
			assert.Equal(t, c.want, e.Judge([]byte(c.events[0])).Usage, c.name)
			continue
		}
		s := e.Follow()
		for _, event := range c.events {
			s.Event(nil, []byte(event))
		}
		assert.Equal(t, c.want, s.Usage(), c.name)
	}
}
