package dialect

import "github.com/aiguard-go/aiguard/internal/jsonscan"

// Cohere's API, version 2: chat and embed.

var (
	cohereChat = api{op: "chat", refusal: messageError, ends: marked, member: cohereMember, event: cohereEvent,
		output: output{names: []string{"max_tokens"}}}
	cohereEmbed = api{op: "embed", refusal: messageError, member: cohereEmbedMember, event: cohereEmbedEvent}
)

func cohereRoute(method, path, _ string) (e Endpoint, ok bool) {
	if method != "POST" {
		return e, false
	}
	if rest, ok := before(path, "chat"); ok && last(rest) == "v2" {
		return Endpoint{api: &cohereChat}, true
	}
	if rest, ok := before(path, "embed"); ok && last(rest) == "v2" {
		return Endpoint{api: &cohereEmbed}, true
	}
	return e, false
}

func cohereMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "documents":
		q.strings(c)
	case "response_format":
		for key := range c.Members() {
			switch string(key) {
			case "json_schema", "schema":
				q.json(c)
			}
		}
	default:
		chatMember(q, key, c)
	}
}

func cohereEmbedMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "texts":
		q.inputs(c)
	case "inputs":
		for range c.Elements() {
			q.next = true
			for range c.Members() {
				q.content(c)
			}
		}
	}
}

func cohereEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	var kind []byte
	for key := range c.Members() {
		switch string(key) {
		case "type":
			kind = c.Value()
		case "delta":
			cohereDelta(s, &c)
		case "message": // message of a whole answer, or text of an error
			value := c.Value()
			s.any = s.any || first(value) == '{'
		case "finish_reason":
			cohereFinish(s, c.Value())
		case "usage":
			s.usage.readCohere(&c)
		case "error":
			s.err = s.err || !empty(c.Value())
		}
	}
	switch string(kind) {
	case `"error"`:
		s.err = true
	case `"message-start"`:
		s.any = true
	case `"message-end"`:
		s.any, s.done = true, true
	case `"content-start"`, "":
	case `"content-delta"`, `"tool-plan-delta"`, `"tool-call-delta"`, `"citation-start"`: // progress depends on their text
	default:
		s.progress = true
	}
	s.any = s.any || s.progress
}

func cohereDelta(s *Stream, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "finish_reason":
			cohereFinish(s, c.Value())
		case "usage":
			s.usage.readCohere(c)
		case "error":
			if value := c.Value(); !empty(value) {
				s.fail(failureIn(value))
			}
		case "message":
			for key := range c.Members() {
				switch string(key) {
				case "content":
					for key := range c.Members() {
						switch string(key) {
						case "text", "thinking":
							s.text(c)
						}
					}
				case "tool_plan":
					s.text(c)
				case "tool_calls", "citations":
					s.some(c)
				}
			}
		}
	}
}

func cohereFinish(s *Stream, reason []byte) {
	switch string(reason) {
	case `"ERROR"`, `"TIMEOUT"`, `"ERROR_LIMIT"`:
		if !s.failed {
			s.fail(Failure{Code: "error"})
		}
	case `"ERROR_TOXIC"`, "null", `""`:
		s.cut = true
	}
}

func (u *Usage) readCohere(c *jsonscan.Cursor) {
	counted := false
	for key := range c.Members() {
		switch string(key) {
		case "tokens":
			u.readOpenAI(c)
			counted = true
		case "billed_units": // fewer than all tokens
			if !counted {
				u.readOpenAI(c)
			}
		case "cached_tokens":
			u.CacheRead = number(c.Value())
		}
	}
}

func cohereEmbedEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key, value := range jsonscan.Members(c.Text()) {
		switch string(key) {
		case "embeddings":
			s.any, s.progress = first(value) == '{' || hasElement(value), true
		case "meta":
			s.usage.Input = number(member(member(value, "billed_units"), "input_tokens"))
		case "error":
			s.err = s.err || !empty(value)
		}
	}
}

// cohereErrors matches messages, because most of Cohere's errors have no code.
var cohereErrors = vocabulary{
	codes: map[string]Class{
		"TOO_MANY_TOKENS": PromptTooLarge,
	},
	phrases: []phrase{
		{"too many tokens", PromptTooLarge, 400}, // Bedrock's rate limit begins with the same words
		{"api calls / month", Quota, 429},        // trial key
		{"model not found", Misconfigured, 0},
	},
}
