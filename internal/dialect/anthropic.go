package dialect

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Anthropic's Messages API: on Anthropic's host, on Vertex AI (rawPredict), and on Amazon Bedrock through bedrock.go.

var messages = api{op: "messages", refusal: anthropicError, ends: marked, member: messagesMember, event: messagesEvent,
	output: output{names: []string{"max_tokens"}, zero: true}} // 0 fills the prompt cache

func anthropicRoute(method, path, _ string) (e Endpoint, ok bool) {
	if method != "POST" {
		return e, false
	}
	if rest, ok := before(path, "messages"); ok && (rest == "" || versioned(last(rest)) || last(rest) == "anthropic") {
		return Endpoint{api: &messages}, true
	}
	if _, rest, ok := strings.Cut(path, "/publishers/anthropic/models/"); ok {
		model, verb, _ := strings.Cut(rest, ":")
		if model == "count-tokens" { // an operation in the place of a model
			return e, false
		}
		switch verb {
		case "rawPredict":
			return Endpoint{api: &messages, model: model}, true
		case "streamRawPredict":
			return Endpoint{api: &messages, model: model, stream: true}, true
		}
	}
	return e, false
}

func messagesMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "system":
		q.content(c)
	case "messages":
		for range c.Elements() {
			for key := range c.Members() {
				if string(key) == "content" {
					anthropicBlocks(q, c, 0)
				}
			}
		}
	case "tools":
		for range c.Elements() {
			for key := range c.Members() {
				switch string(key) {
				case "name", "description":
					q.text(c)
				case "input_schema":
					q.json(c)
				}
			}
		}
	}
}

// anthropicBlocks reads a text or a list of content blocks. Blocks may be nested, for example in a tool result.
func anthropicBlocks(q *query, c *jsonscan.Cursor, depth int) {
	if depth > 8 || first(q.body[c.Offset():]) == '{' { // the result of a server tool is an object
		q.strings(c)
		return
	}
	some := false
	for range c.Elements() {
		some = true
		for key := range c.Members() {
			switch string(key) {
			case "text", "thinking", "title", "context", "name":
				q.text(c)
			case "input":
				q.json(c)
			case "content":
				anthropicBlocks(q, c, depth+1)
			case "source": // source of an image or a document; a document may be plain text
				q.strings(c)
			}
		}
	}
	if !some {
		q.text(c)
	}
}

func messagesEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	if s.answer {
		anthropicMessage(s, c.Text(), true)
		return
	}
	var kind, message, block []byte
	for key := range c.Members() {
		switch string(key) {
		case "type":
			kind = c.Value()
		case "message":
			message = c.Value()
		case "content_block":
			block = c.Value()
		case "delta":
			for key := range c.Members() {
				switch string(key) {
				case "text", "thinking", "partial_json", "signature":
					s.text(&c)
				case "stop_reason":
					anthropicStop(s, c.Value())
				case "citation":
					s.some(&c)
				}
			}
		case "usage":
			s.usage.readAnthropic(&c)
		case "error":
			s.err = s.err || !empty(c.Value())
		}
	}
	switch string(kind) {
	case `"error"`:
		s.err = true
	case `"message_start"`:
		s.any = true
		anthropicMessage(s, message, false)
	case `"content_block_start"`:
		switch kind := member(block, "type"); string(kind) {
		case `"text"`:
		case `"thinking"`, `"redacted_thinking"`:
			s.thinking, s.progress = true, true
		default:
			s.progress = true
		}
	case `"content_block_stop"`:
		s.thinking, s.progress = false, true
	case `"message_delta"`:
		s.progress = true
	case `"message_stop"`:
		s.any, s.done = true, true
	}
	s.any = s.any || s.progress
}

// anthropicMessage reads a message object: a whole answer, or the first event of a stream.
func anthropicMessage(s *Stream, object []byte, whole bool) {
	c := jsonscan.Read(object)
	for key := range c.Members() {
		switch string(key) {
		case "content":
			s.any = first(c.Value()) == '[' // it may have nothing to say
		case "stop_reason":
			if value := c.Value(); whole {
				anthropicStop(s, value)
				s.cut = s.cut || !said(value)
			}
		case "usage":
			s.usage.readAnthropic(&c)
		case "error":
			s.err = s.err || !empty(c.Value())
		case "type":
			s.err = s.err || string(c.Value()) == `"error"`
		}
	}
}

func anthropicStop(s *Stream, reason []byte) {
	switch string(reason) {
	case `"refusal"`, `"pause_turn"`:
		s.cut = true
	case `"error"`:
		s.fail(Failure{Code: "error"})
	}
}

// readAnthropic adds cached input to the input, because the API counts it separately. A later event repeats the
// totals.
func (u *Usage) readAnthropic(c *jsonscan.Cursor) {
	plain := u.Input - u.CacheRead - u.CacheWrite
	for key := range c.Members() {
		value := c.Value()
		if first(value) < '0' || first(value) > '9' {
			continue
		}
		switch string(key) {
		case "input_tokens":
			plain = number(value)
		case "output_tokens":
			u.Output = number(value)
		case "cache_read_input_tokens":
			u.CacheRead = number(value)
		case "cache_creation_input_tokens":
			u.CacheWrite = number(value)
		}
	}
	u.Input = plain + u.CacheRead + u.CacheWrite
}

// anthropicErrors maps Anthropic's error types to classes. It leaves out invalid_request_error, which stands for
// everything from a typo to an empty account.
var anthropicErrors = vocabulary{
	codes: map[string]Class{
		"rate_limit_error":     RateLimited,
		"billing_error":        Quota,
		"request_too_large":    PromptTooLarge,
		"overloaded_error":     Unavailable,
		"api_error":            Unavailable,
		"timeout_error":        Unavailable,
		"authentication_error": Unauthorized,
		"permission_error":     Unauthorized,
	},
	phrases: []phrase{
		{"credit balance is too low", Quota, 0},
		{"reached your specified api usage limits", Quota, 0}, // until the end of the month
		{"prompt is too long", PromptTooLarge, 0},
		{"required for long context requests", PromptTooLarge, 429}, // a shorter prompt passes
		{"input length and `max_tokens` exceed context limit", PromptTooLarge, 0},
		{"blocked by content filtering policy", ContentPolicy, 0},
		{"organization has been disabled", Unauthorized, 0},
	},
}
