package dialect

import "github.com/aiguard-go/aiguard/internal/jsonscan"

// The Responses API of OpenAI.

func responseMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "input":
		q.tokens(c)
	case "instructions":
		q.text(c)
	case "tools":
		q.tools(c)
	case "text":
		for key := range c.Members() {
			if string(key) == "format" {
				q.schema(c)
			}
		}
	case "prompt":
		for key := range c.Members() {
			if string(key) == "variables" {
				q.strings(c)
			}
		}
	case "context_management", "include", "max_tool_calls", "metadata", "moderation", "parallel_tool_calls", "previous_response_id",
		"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier",
		"stream_options", "temperature", "tool_choice", "top_logprobs", "top_p", "truncation", "user":
	default: // an extension with unknown content
		q.strings(c)
	}
}

// responseEvent reads an event of a Responses stream or a whole response.
func responseEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	if s.answer {
		responseObject(s, c.Text())
		return
	}
	var kind, item []byte
	delta, some := false, false // there is a delta, and it has content
	for key := range c.Members() {
		switch string(key) {
		case "type":
			kind = c.Value()
		case "delta":
			value := c.Value()
			delta, some = true, !empty(value)
			if said(value) {
				s.free.add(&c, value, true)
			}
		case "obfuscation":
			s.free.vary(&c)
		case "sequence_number":
			s.free.vary(&c)
		case "item":
			item = c.Value()
		case "error":
			s.err = s.err || !empty(c.Value())
		}
	}
	if len(kind) < 2 {
		s.free.n = 0
		return
	}
	switch s.any = true; string(kind[1 : len(kind)-1]) {
	case "error":
		s.err = true
	case "response.created", "response.in_progress", "response.queued", "keepalive", "ping":
	case "response.completed", "response.incomplete":
		responseObject(s, member(c.Text(), "response"))
		s.done = true
	case "response.failed", "response.cancelled":
		responseObject(s, member(c.Text(), "response"))
		if !s.failed {
			s.fail(Failure{})
		}
	case "response.output_item.added":
		s.progress, s.thinking = true, string(member(item, "type")) == `"reasoning"`
	case "response.output_item.done":
		s.progress, s.thinking = true, false
	default:
		s.progress = some || !delta
		if !s.progress {
			s.free.n = 0
		}
	}
}

// responseObject reads a response object.
func responseObject(s *Stream, object []byte) {
	c := jsonscan.Read(object)
	for key := range c.Members() {
		switch string(key) {
		case "id", "output":
			s.any = true
			c.Value()
		case "status":
			switch string(c.Value()) {
			case `"failed"`:
				if !s.failed {
					s.fail(Failure{})
				}
			case `"cancelled"`, `"in_progress"`, `"queued"`:
				s.cut = true
			}
		case "incomplete_details":
			s.cut = s.cut || string(member(c.Value(), "reason")) == `"content_filter"`
		case "error":
			if value := c.Value(); !empty(value) {
				s.fail(failureIn(value))
			}
		case "usage":
			s.usage.readOpenAI(&c)
		}
	}
}
