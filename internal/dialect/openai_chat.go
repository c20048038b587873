package dialect

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Chat and text completions of OpenAI's API.

func chatMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "messages":
		for range c.Elements() {
			for key := range c.Members() {
				messageMember(q, key, c)
			}
		}
	case "functions":
		for range c.Elements() {
			q.definition(c)
		}
	case "tools":
		q.tools(c)
	case "response_format":
		for key := range c.Members() {
			if string(key) == "json_schema" {
				q.schema(c)
			}
		}
	case "prediction":
		for key := range c.Members() {
			if string(key) == "content" {
				q.content(c)
			}
		}
	case "guided_choice":
		for range c.Elements() {
			q.text(c)
		}
	}
}

func messageMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "content":
		q.content(c)
	case "name", "refusal", "reasoning_content", "reasoning", "thinking", "tool_plan", "tool_name":
		q.text(c)
	case "reasoning_details": // OpenRouter
		for range c.Elements() {
			for key := range c.Members() {
				switch string(key) {
				case "text", "summary":
					q.text(c)
				}
			}
		}
	case "function_call":
		q.call(c)
	case "tool_calls":
		for range c.Elements() {
			for key := range c.Members() {
				switch string(key) {
				case "function", "custom":
					q.call(c)
				}
			}
		}
	}
}

// content reads a text or a list of parts. Some of the parts may be texts.
func (q *query) content(c *jsonscan.Cursor) {
	some := false
	for range c.Elements() {
		some = true
		for key := range c.Members() {
			switch string(key) {
			case "text", "refusal":
				q.text(c)
			case "thinking": // a text, or Mistral's list of texts
				q.texts(c)
			case "document": // document of a tool result
				q.strings(c)
			}
		}
	}
	if !some {
		q.text(c)
	}
}

// texts reads a text or a list of objects with a text.
func (q *query) texts(c *jsonscan.Cursor) {
	some := false
	for range c.Elements() {
		some = true
		for key := range c.Members() {
			if string(key) == "text" {
				q.text(c)
			}
		}
	}
	if !some {
		q.text(c)
	}
}

func (q *query) call(c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "name", "arguments", "input":
			q.json(c)
		}
	}
}

func (q *query) definition(c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "name", "description":
			q.text(c)
		case "parameters":
			q.json(c)
		}
	}
}

// tools reads the tools of a request: functions, nested in an object or not, and the settings of other tools.
func (q *query) tools(c *jsonscan.Cursor) {
	for range c.Elements() {
		for key := range c.Members() {
			switch string(key) {
			case "type":
			case "function":
				q.definition(c)
			default:
				q.json(c)
			}
		}
	}
}

func (q *query) schema(c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "name", "description":
			q.text(c)
		case "schema":
			q.json(c)
		}
	}
}

func completionMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "prompt":
		q.tokens(c)
	case "suffix":
		q.text(c)
	default: // Mistral's agents have messages at this path
		chatMember(q, key, c)
	}
}

// maxTokensName returns the name of the output limit that model accepts. The o series and GPT from 5 on reject
// max_tokens.
func maxTokensName(model string) string {
	if needsMaxCompletionTokens(model) {
		return "max_completion_tokens"
	}
	return "max_tokens"
}

func needsMaxCompletionTokens(model string) bool {
	model = strings.TrimPrefix(model, "ft:")
	model = model[strings.LastIndexByte(model, '/')+1:] // routers write "openai/o3"
	if rest, ok := strings.CutPrefix(model, "gpt-"); ok {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		return n == 1 && rest[0] >= '5' || n > 1 && rest[:n] != "35" // Azure writes gpt-35-turbo
	}
	return len(model) > 1 && model[0] == 'o' && model[1] >= '1' && model[1] <= '9'
}

// MaxTokensName returns the name of the output limit of a chat for model.
func MaxTokensName(model string) string { return maxTokensName(model) }

func completionEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	chatEvent(s, nil, c)
	data := c.Text()
	// Other APIs have completions at this path in a different form. A whole answer of llama.cpp's own has a content.
	if (!s.answer || first(member(data, "content")) == '"') && !s.any && !s.err && !s.failed && !empty(data) && member(data, "choices") == nil && member(data, "object") == nil {
		s.foreign, s.any, s.progress = true, true, true
	}
}

// chatEvent reads a chunk or a whole answer, which have the same members.
func chatEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "choices":
			for range c.Elements() {
				s.any = true
				chatChoice(s, &c)
			}
		case "id", "created", "obfuscation":
			s.free.vary(&c)
		case "usage":
			s.usage.readOpenAI(&c)
		case "x_groq":
			groqMember(s, &c)
		case "error":
			s.err = s.err || !empty(c.Value())
		case "type", "object":
			s.err = s.err || string(c.Value()) == `"error"`
		case "base_resp": // MiniMax sends it with a 200
			for key := range c.Members() {
				switch string(key) {
				case "status_code":
					s.err = s.err || !hollow(c.Value())
				}
			}
		}
	}
}

func chatChoice(s *Stream, c *jsonscan.Cursor) {
	at, ended := uint64(0), s.answer // a whole answer is complete without a finish reason
	for key := range c.Members() {
		switch string(key) {
		case "index":
			at = index(c.Value())
		case "finish_reason":
			if reason := c.Value(); !said(reason) || string(reason) == `"null"` { // some relays write null as a text
				ended = false
			} else {
				ended = true
				chatFinish(s, reason)
			}
		case "text": // text of a completion
			s.text(c)
		case "usage": // Moonshot
			s.usage.readOpenAI(c)
		case "error":
			if value := c.Value(); !empty(value) {
				s.fail(failureIn(value))
			}
		case "delta":
			for key := range c.Members() {
				switch string(key) {
				case "content", "reasoning_content", "reasoning", "refusal":
					chatDelta(s, c)
				case "role", "name":
				default: // tool calls, audio, images
					s.some(c)
				}
			}
		}
	}
	s.progress = s.progress || ended
	s.choices.note(at, ended)
}

// groqMember reads the extension that Groq adds to the last chunk: the usage, or the reason for an early stop.
func groqMember(s *Stream, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "usage":
			s.usage.readOpenAI(c)
		case "error":
			if value := c.Value(); !empty(value) {
				s.fail(failureIn(value))
			}
		}
	}
}

// chatDelta reads a text or a list of parts.
func chatDelta(s *Stream, c *jsonscan.Cursor) {
	for range c.Elements() {
		s.progress = true
	}
	s.text(c)
}

// chatFinish reads a finish reason. An unknown reason counts as a good end.
func chatFinish(s *Stream, reason []byte) {
	switch string(reason) {
	case `"error"`, `"error_finish"`, `"abort"`, `"aborted"`, `"network_error"`, `"engine_overloaded"`, `"insufficient_system_resource"`,
		`"server_error"`, `"internal_error"`, `"overloaded"`, `"timeout"`:
		if !s.failed {
			s.fail(Failure{Code: string(reason[1 : len(reason)-1])})
		}
	case `"content_filter"`, `"sensitive"`:
		s.cut = true
	}
}
