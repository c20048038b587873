package dialect

import "github.com/aiguard-go/aiguard/internal/jsonscan"

// Ollama's API: chat, generate and embed. It streams JSON lines unless the request disables streaming.

var (
	ollamaChat = api{op: "chat", refusal: ollamaError, framing: JSON, ends: marked, ignoresReadErrors: true, member: ollamaChatMember, event: ollamaEvent,
		output: output{within: []string{"options"}, names: []string{"num_predict"}}}
	ollamaGenerate = api{op: "generate", refusal: ollamaError, framing: JSON, ends: marked, ignoresReadErrors: true, member: ollamaGenerateMember, event: ollamaEvent,
		output: output{within: []string{"options"}, names: []string{"num_predict"}}}
	ollamaEmbed = api{op: "embed", refusal: ollamaError, member: ollamaEmbedMember, event: ollamaEmbedEvent}
)

func ollamaRoute(method, path, _ string) (e Endpoint, ok bool) {
	if method != "POST" {
		return e, false
	}
	rest, ok := before(path, last(path))
	if !ok || last(rest) != "api" {
		return e, false
	}
	switch last(path) {
	case "chat":
		return Endpoint{api: &ollamaChat, stream: true}, true
	case "generate":
		return Endpoint{api: &ollamaGenerate, stream: true}, true
	case "embed", "embeddings":
		return Endpoint{api: &ollamaEmbed}, true
	}
	return e, false
}

func ollamaChatMember(q *query, key []byte, c *jsonscan.Cursor) {
	if string(key) == "format" { // "json", or a schema
		q.json(c)
		return
	}
	chatMember(q, key, c)
}

func ollamaGenerateMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "prompt", "system", "suffix", "template":
		q.text(c)
	case "context":
		q.tokens(c)
	case "format":
		q.json(c)
	}
}

func ollamaEmbedMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "input", "prompt":
		q.inputs(c)
	}
}

func ollamaEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	begun := false // the first line of a stream in place of a whole answer
	for key := range c.Members() {
		switch string(key) {
		case "message":
			for key := range c.Members() {
				switch string(key) {
				case "content", "thinking":
					s.text(&c)
				case "tool_calls":
					s.some(&c)
				}
			}
			s.any = true
		case "response", "thinking":
			s.any = true
			s.text(&c)
		case "created_at":
			s.free.vary(&c)
		case "done":
			s.done = s.done || isTrue(c.Value())
			begun = s.answer && !s.done
		case "done_reason":
			switch string(c.Value()) {
			case `"error"`:
				s.fail(Failure{Code: "error"})
			}
		case "prompt_eval_count":
			s.usage.Input = number(c.Value())
		case "eval_count":
			s.usage.Output = number(c.Value())
		case "error":
			s.err = s.err || !empty(c.Value())
		}
	}
	if s.free.n > 0 && s.done {
		s.free.n = 0
	}
	s.any = (s.any || s.done) && !begun
}

func ollamaEmbedEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key, value := range jsonscan.Members(c.Text()) {
		switch string(key) {
		case "embedding", "embeddings", "data": // "data" comes from servers that use OpenAI's API at this path
			s.any, s.progress = s.any || first(value) == '[', true
		case "prompt_eval_count":
			s.usage.Input = number(value)
		case "error":
			s.err = s.err || !empty(value)
		}
	}
}

// ollamaErrors matches messages, because Ollama's errors are texts.
var ollamaErrors = vocabulary{
	phrases: []phrase{
		{"the input length exceeds the context length", PromptTooLarge, 0},
		{"input exceeds maximum context", PromptTooLarge, 0},
		{"not found, try pulling it first", Misconfigured, 0},
	},
}
