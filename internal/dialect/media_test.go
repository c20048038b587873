package dialect

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
)

// The texts of a prompt count. The bytes of its images, sounds, videos and files do not count, in any place that an API
// allows: in a message, in a tool result, or beside the messages. T is a text of 5 characters, D has 5,000 characters
// of base64, and N is a name of 1 character, such as a file name.
func TestMediaBytesDoNotCountAsText(t *testing.T) {
	const (
		chat     = "/v1/chat/completions"
		respond  = "/v1/responses"
		message  = "/v1/messages"
		gemini   = "/v1beta/models/m:generateContent"
		converse = "/model/m/converse"
		nova     = "/model/us.amazon.nova-lite-v1:0/invoke"
	)
	for _, c := range []struct {
		name, path, body string
		want             int
	}{
		{"openai image URL", chat, `{"messages":[{"role":"user","content":[{"type":"text","text":"T"},{"type":"image_url","image_url":{"url":"data:image/png;base64,D","detail":"low"}}]}]}`, 5},
		{"openai image URL as a string", chat, `{"messages":[{"role":"user","content":[{"image_url":"data:image/png;base64,D","type":"image_url"},{"type":"text","text":"T"}]}]}`, 5},
		{"openai audio", chat, `{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"D","format":"wav"}},{"type":"text","text":"T"}]}]}`, 5},
		{"openai file", chat, `{"messages":[{"role":"user","content":[{"type":"file","file":{"filename":"N","file_data":"data:application/pdf;base64,D"}},{"type":"text","text":"T"}]}]}`, 5},
		{"openai video of compatible servers", chat, `{"messages":[{"role":"user","content":[{"type":"video_url","video_url":{"url":"data:video/mp4;base64,D"}},{"type":"text","text":"T"}]}]}`, 5},
		{"mistral document", chat, `{"messages":[{"role":"user","content":[{"type":"document_url","document_url":"data:application/pdf;base64,D"},{"type":"text","text":"T"}]}]}`, 5},
		{"openrouter images of an answer sent back", chat, `{"messages":[{"role":"assistant","content":"T","images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,D"}}]}]}`, 5},
		{"openai audio of an answer sent back", chat, `{"messages":[{"role":"assistant","content":"T","audio":{"id":"N"}}]}`, 5},

		{"responses image", respond, `{"input":[{"role":"user","content":[{"type":"input_text","text":"T"},{"type":"input_image","image_url":"data:image/png;base64,D"}]}]}`, -5},
		{"responses file", respond, `{"input":[{"role":"user","content":[{"file_data":"data:application/pdf;base64,D","filename":"N","type":"input_file"},{"type":"input_text","text":"T"}]}]}`, -5},
		{"responses audio", respond, `{"input":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"D","format":"mp3"}},{"type":"input_text","text":"T"}]}]}`, -5},
		{"responses screenshot", respond, `{"input":[{"type":"computer_call_output","call_id":"N","output":{"type":"computer_screenshot","image_url":"data:image/png;base64,D"}},{"role":"user","content":"T"}]}`, -5},
		{"responses image of a tool", respond, `{"input":[{"type":"function_call_output","call_id":"N","output":[{"type":"input_image","image_url":"data:image/png;base64,D"},{"type":"input_text","text":"T"}]}]}`, -5},
		{"responses generated image sent back", respond, `{"input":[{"type":"image_generation_call","id":"N","result":"D","status":"completed"},{"role":"user","content":"T"}]}`, -5},
		{"responses compaction", respond, `{"input":[{"type":"compaction","id":"N","encrypted_content":"D"},{"role":"user","content":"T"}]}`, -5},
		{"responses reasoning", respond, `{"input":[{"type":"reasoning","id":"N","summary":[],"encrypted_content":"D"},{"role":"user","content":"T"}]}`, -5},

		{"anthropic image", message, `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"D"}},{"type":"text","text":"T"}]}]}`, -5},
		{"anthropic image, data first", message, `{"messages":[{"role":"user","content":[{"source":{"data":"D","media_type":"image/png","type":"base64"},"type":"image"},{"type":"text","text":"T"}]}]}`, -5},
		{"anthropic document", message, `{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"D"}},{"type":"text","text":"T"}]}]}`, -5},
		{"anthropic document of blocks", message, `{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"content","content":[{"type":"image","source":{"type":"base64","data":"D"}},{"type":"text","text":"T"}]}}]}]}`, -5},
		{"anthropic image of a tool", message, `{"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"N","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"D"}},{"type":"text","text":"T"}]}]}]}`, -5},
		{"anthropic redacted thinking", message, `{"messages":[{"role":"assistant","content":[{"type":"redacted_thinking","data":"D"},{"type":"text","text":"T"}]}]}`, 5},
		{"anthropic signature", message, `{"messages":[{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"D"},{"type":"text","text":"T"}]}]}`, 5},
		{"anthropic encrypted search result", message, `{"messages":[{"role":"assistant","content":[{"type":"web_search_tool_result","tool_use_id":"N","content":[{"type":"web_search_result","title":"T","url":"N","encrypted_content":"D"}]}]}]}`, 5},

		{"gemini inline data", gemini, `{"contents":[{"parts":[{"inlineData":{"mimeType":"image/png","data":"D"}},{"text":"T"}]}]}`, 5},
		{"gemini inline data, snake case", gemini, `{"contents":[{"parts":[{"inline_data":{"mime_type":"image/png","data":"D"}},{"text":"T"}]}]}`, 5},
		{"gemini thought signature", gemini, `{"contents":[{"parts":[{"text":"T","thoughtSignature":"D"}]}]}`, 5},
		{"gemini image of a tool", gemini, `{"contents":[{"parts":[{"functionResponse":{"name":"T","parts":[{"inlineData":{"mimeType":"image/png","data":"D"}}]}}]}]}`, 5},
		{"gemini embedding", "/v1beta/models/m:embedContent", `{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"D"}},{"text":"T"}]}}`, 5},

		{"converse image", converse, `{"messages":[{"role":"user","content":[{"image":{"format":"png","source":{"bytes":"D"}}},{"text":"T"}]}]}`, 5},
		{"converse document", converse, `{"messages":[{"role":"user","content":[{"document":{"format":"pdf","name":"N","source":{"bytes":"D"}}},{"text":"T"}]}]}`, 5},
		{"converse video", converse, `{"messages":[{"role":"user","content":[{"video":{"format":"mp4","source":{"bytes":"D"}}},{"text":"T"}]}]}`, 5},
		{"converse image of a tool", converse, `{"messages":[{"role":"user","content":[{"toolResult":{"toolUseId":"N","content":[{"image":{"format":"png","source":{"bytes":"D"}}},{"text":"T"}]}}]}]}`, 5},
		{"converse guarded image", converse, `{"messages":[{"role":"user","content":[{"guardContent":{"image":{"format":"png","source":{"bytes":"D"}}}},{"guardContent":{"text":{"text":"T"}}}]}]}`, -5},
		{"converse redacted reasoning", converse, `{"messages":[{"role":"assistant","content":[{"reasoningContent":{"redactedContent":"D"}},{"text":"T"}]}]}`, 5},

		{"nova image", nova, `{"schemaVersion":"messages-v1","messages":[{"role":"user","content":[{"image":{"format":"png","source":{"bytes":"D"}}},{"text":"T"}]}]}`, -5},
		{"nova video", nova, `{"messages":[{"role":"user","content":[{"video":{"format":"mp4","source":{"bytes":"D"}}},{"text":"T"}]}]}`, -5},
		{"nova document", nova, `{"messages":[{"role":"user","content":[{"document":{"format":"pdf","name":"N","source":{"bytes":"D"}}},{"text":"T"}]}]}`, -5},
		{"nova canvas", "/model/amazon.nova-canvas-v1:0/invoke", `{"taskType":"IMAGE_VARIATION","imageVariationParams":{"images":["D"],"text":"T"}}`, -5},
		{"titan image embedding", "/model/amazon.titan-embed-image-v1/invoke", `{"inputText":"T","inputImage":"D"}`, -5},
		{"titan inpainting", "/model/amazon.titan-image-generator-v2:0/invoke", `{"taskType":"INPAINTING","inPaintingParams":{"image":"D","maskImage":"D","text":"T"}}`, -5},
		{"stability", "/model/stability.sd3-large-v1:0/invoke", `{"prompt":"T","image":"D","mode":"image-to-image"}`, -5},
		{"stability, old", "/model/stability.stable-diffusion-xl-v1/invoke", `{"text_prompts":[{"text":"T"}],"init_image":"D"}`, -5},
		{"pixtral", "/model/mistral.pixtral-large-2502-v1:0/invoke", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,D"}},{"type":"text","text":"T"}]}]}`, -5},
		{"llama 3.2", "/model/meta.llama3-2-11b-instruct-v1:0/invoke", `{"prompt":"T","images":["D"]}`, -5},
		{"claude", "/model/anthropic.claude-haiku-4-5/invoke", `{"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"D"}},{"type":"text","text":"T"}]}]}`, -5},
		{"cohere on bedrock", "/model/cohere.embed-v4:0/invoke", `{"input_type":"image","images":["data:image/png;base64,D"],"texts":["T"]}`, -5},

		{"ollama chat", "/api/chat", `{"messages":[{"role":"user","content":"T","images":["D"]}]}`, 5},
		{"ollama generate", "/api/generate", `{"prompt":"T","images":["D"]}`, 5},

		{"cohere chat", "/v2/chat", `{"messages":[{"role":"user","content":[{"type":"text","text":"T"},{"type":"image_url","image_url":{"url":"data:image/png;base64,D"}}]}]}`, 5},
		{"cohere embed", "/v2/embed", `{"images":["data:image/png;base64,D"],"texts":["T"]}`, 5},
		{"cohere embed, mixed", "/v2/embed", `{"inputs":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,D"}},{"type":"text","text":"T"}]}]}`, 5},

		{"embedding of an image", "/v1/embeddings", `{"input":["T","data:image/png;base64,D"]}`, 5},
		{"embedding of one image", "/v1/embeddings", `{"input":"data:image/png;base64,D"}`, 0},
		{"voyage multimodal", "/v1/embeddings", `{"input":[{"content":[{"type":"image_base64","image_base64":"data:image/png;base64,D"},{"type":"text","text":"T"}]}]}`, -5},
		{"jina images", "/v1/embeddings", `{"input":[{"image":"D"},{"text":"T"}]}`, -5},
		{"moderation of an image", "/v1/moderations", `{"input":[{"type":"image_url","image_url":{"url":"data:image/png;base64,D"}},{"type":"text","text":"T"}]}`, -5},
		{"image edit", "/v1/images/edits", `{"prompt":"T","images":[{"image_url":"data:image/png;base64,D"}],"mask":{"image_url":"data:image/png;base64,D"}}`, 5},
		{"groq transcription", "/v1/audio/transcriptions", `{"prompt":"T","url":"data:audio/wav;base64,D"}`, 5},
	} {
		body := strings.ReplaceAll(c.body, `"T"`, `"Hello"`)
		body = strings.ReplaceAll(body, `D"`, strings.Repeat("QUJD", 1250)+`"`)
		chars := 0
		post(c.path).Read([]byte(body), func(p Part) bool {
			chars += p.Runes()
			return true
		})
		if c.want >= 0 {
			assert.Equal(t, c.want, chars, c.name)
			continue
		}
		// If the model reads all strings of the request, its names and types count too.
		assert.GreaterOrEqual(t, chars, -c.want, c.name)
		assert.Less(t, chars, 150, c.name)
	}
}

// Text that only looks like an image counts as text, so it cannot bypass the limit.
func TestTextAfterADataURICountsAsText(t *testing.T) {
	long := strings.Repeat("All work and no play. ", 100)
	for _, input := range []string{"data:image/png;base64," + long, "data:text/plain;base64,QUJD", "data:,;base64," + long, long + "data:image/png;base64,QUJD",
		"data:image/png;base64,\\u003c\\u003c"} {
		for _, body := range []string{`{"input":"` + input + `"}`, `{"input":["` + input + `"]}`} {
			chars := 0
			post("/v1/embeddings").Read([]byte(body), func(p Part) bool {
				chars += p.Runes()
				return true
			})
			assert.Equal(t, utf8.RuneCountInString(strings.ReplaceAll(input, `\u003c`, "<")), chars, "%.40s", body)
		}
	}
}
