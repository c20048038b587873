package dialect

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// OpenAI's API, which most providers and gateways use too: chat, text completions, Responses, embeddings, moderations,
// images and audio.

var (
	chat = api{op: "chat.completions", ends: finished, member: chatMember, event: chatEvent,
		output: output{names: []string{"max_tokens", "max_completion_tokens"}, name: maxTokensName}}
	completions = api{op: "completions", ends: finished, member: completionMember, event: completionEvent,
		output: output{names: []string{"max_tokens"}}}
	responses = api{op: "responses", ends: marked, member: responseMember, event: responseEvent,
		output: output{names: []string{"max_output_tokens"}}}
	embeddings  = api{op: "embeddings", untyped: true, member: embeddingMember, event: listEvent("data")}
	moderations = api{op: "moderations", member: embeddingMember, event: listEvent("results")}
	images      = api{op: "images", ends: finished, member: imageMember, event: imageEvent}
	runs        = api{op: "threads", ends: marked, marks: true, creates: true, event: runEvent}
	object      = api{creates: true, event: objectEvent}
	audio       = api{op: "audio", ends: marked, plain: true, member: audioMember, event: audioEvent}
)

func openaiRoute(method, path, query string) (e Endpoint, ok bool) {
	if in, ok := strings.CutPrefix(path, "/openai/deployments/"); ok || strings.Contains(path, "/deployments/") {
		if !ok {
			_, in, _ = strings.Cut(path, "/deployments/")
		}
		e.model, _, _ = strings.Cut(in, "/")
	}
	if method == "GET" {
		// A resumed stream of a stored response. Without stream=true the answer is a stored object, which is not
		// judged.
		if i := strings.LastIndex(path, "/responses/"); i >= 0 && !strings.Contains(path[i+len("/responses/"):], "/") &&
			strings.Contains("&"+query+"&", "&stream=true&") {
			return Endpoint{api: &responses, stream: true}, true
		}
		return e, false
	}
	if method != "POST" {
		return e, false
	}
	if strings.Contains(path, "/threads/") {
		if name := last(path); name == "runs" || name == "submit_tool_outputs" {
			e.api = &runs
		}
		return e, e.api != nil
	}
	switch last(path) {
	case "completions":
		rest, chats := before(strings.TrimSuffix(path, "/completions"), "chat")
		switch {
		case !chats:
			e.api = &completions
		case last(rest) != "async": // its answers are tickets
			e.api = &chat
		}
	case "responses":
		e.api = &responses
	case "embeddings":
		if rest, _ := before(path, "embeddings"); last(rest) != "text" { // watsonx
			e.api = &embeddings
		}
	case "moderations":
		e.api = &moderations
	case "generations", "edits", "variations":
		if rest, _ := before(path, last(path)); last(rest) == "images" {
			e.api = &images
		}
	case "speech", "transcriptions", "translations":
		if rest, _ := before(path, last(path)); last(rest) == "audio" {
			e.api = &audio
		}
	}
	return e, e.api != nil
}

func chatMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "messages":
		for range c.Elements() {
			for key := range c.Members() {
				q.messageMember(key, c)
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

func (q *query) messageMember(key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "content":
		q.content(c)
	case "name", "refusal", "reasoning_content", "reasoning", "thinking", "tool_plan", "tool_name":
		q.text(c)
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
			case "text", "refusal", "thinking":
				q.text(c)
			case "document": // document of a tool result
				q.strings(c)
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
	}
}

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

func embeddingMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "input":
		q.inputs(c)
	case "user", "encoding_format", "dimensions":
	default:
		q.next = true
		q.strings(c)
	}
}

func imageMember(q *query, key []byte, c *jsonscan.Cursor) {
	if string(key) == "prompt" {
		q.text(c)
	}
}

func audioMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "input", "instructions", "prompt":
		q.text(c)
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

func chatEvent(s *Stream, _, data []byte) { s.choices(data) }

func completionEvent(s *Stream, _, data []byte) {
	s.choices(data)
	// Other APIs have completions at this path in a different form.
	if !s.answer && !s.any && !s.err && !s.failed && !empty(data) && member(data, "choices") == nil && member(data, "object") == nil {
		s.foreign, s.any, s.progress = true, true, true
	}
}

// choices reads a chunk or a whole answer, which have the same members.
func (s *Stream) choices(data []byte) {
	c := jsonscan.Read(data)
	for key := range c.Members() {
		switch string(key) {
		case "choices":
			for range c.Elements() {
				s.any = true
				s.chatChoice(&c)
			}
		case "id", "created", "obfuscation":
			s.varies(&c)
		case "usage":
			s.openaiUsage(&c)
		case "x_groq":
			s.groq(&c)
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

func (s *Stream) chatChoice(c *jsonscan.Cursor) {
	at, ended := uint64(0), s.answer // a whole answer is complete without a finish reason
	for key := range c.Members() {
		switch string(key) {
		case "index":
			at = index(c.Value())
		case "finish_reason":
			if reason := c.Value(); !said(reason) {
				ended = false
			} else {
				ended = true
				s.finish(reason)
			}
		case "text": // text of a completion
			s.text(c)
		case "usage": // Moonshot
			s.openaiUsage(c)
		case "error":
			if value := c.Value(); !empty(value) {
				s.fail(failureIn(value))
			}
		case "delta":
			for key := range c.Members() {
				switch string(key) {
				case "content", "reasoning_content", "reasoning", "refusal":
					s.delta(c)
				case "role", "name":
				default: // tool calls, audio, images
					s.some(c)
				}
			}
		}
	}
	s.progress = s.progress || ended
	s.choice(at, ended)
}

// groq reads the extension that Groq adds to the last chunk: the usage, or the reason for an early stop.
func (s *Stream) groq(c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "usage":
			s.openaiUsage(c)
		case "error":
			if value := c.Value(); !empty(value) {
				s.fail(failureIn(value))
			}
		}
	}
}

// delta reads a text or a list of parts.
func (s *Stream) delta(c *jsonscan.Cursor) {
	for range c.Elements() {
		s.progress = true
	}
	s.text(c)
}

// finish reads a finish reason. An unknown reason counts as a good end.
func (s *Stream) finish(reason []byte) {
	switch string(reason) {
	case `"error"`, `"abort"`, `"aborted"`, `"network_error"`, `"engine_overloaded"`, `"insufficient_system_resource"`,
		`"server_error"`, `"internal_error"`, `"overloaded"`, `"timeout"`:
		if !s.failed {
			s.fail(Failure{Code: string(reason[1 : len(reason)-1])})
		}
	case `"content_filter"`, `"sensitive"`:
		s.cut = true
	}
}

func (s *Stream) openaiUsage(c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "prompt_tokens", "input_tokens":
			s.usage.Input = number(c.Value())
		case "completion_tokens", "output_tokens":
			s.usage.Output = number(c.Value())
		case "prompt_cache_hit_tokens", "cached_tokens": // DeepSeek, Moonshot
			s.usage.CacheRead = number(c.Value())
		case "prompt_tokens_details", "input_tokens_details":
			for key := range c.Members() {
				switch string(key) {
				case "cached_tokens":
					s.usage.CacheRead = number(c.Value())
				case "cache_write_tokens", "cache_creation_tokens":
					s.usage.CacheWrite = number(c.Value())
				}
			}
		case "completion_tokens_details", "output_tokens_details":
			for key := range c.Members() {
				if string(key) == "reasoning_tokens" {
					s.usage.Reasoning = number(c.Value())
				}
			}
		}
	}
}

// responseEvent reads an event of a Responses stream or a whole response.
func responseEvent(s *Stream, name, data []byte) {
	if s.answer {
		s.response(data)
		return
	}
	c := jsonscan.Read(data)
	var kind, item []byte
	for key := range c.Members() {
		switch string(key) {
		case "type":
			kind = c.Value()
		case "delta", "obfuscation":
			if value := c.Value(); said(value) {
				s.span(&c, value, string(key) == "delta")
			}
		case "sequence_number":
			s.varies(&c)
		case "item":
			item = c.Value()
		case "error":
			s.err = s.err || !empty(c.Value())
		}
	}
	if len(kind) < 2 {
		s.nFree = 0
		return
	}
	switch s.any = true; string(kind[1 : len(kind)-1]) {
	case "error":
		s.err = true
	case "response.created", "response.in_progress", "response.queued", "keepalive", "ping":
	case "response.completed", "response.incomplete":
		s.response(member(data, "response"))
		s.done = true
	case "response.failed", "response.cancelled":
		s.response(member(data, "response"))
		if !s.failed {
			s.fail(Failure{})
		}
	case "response.output_item.added":
		s.progress, s.thinking = true, string(member(item, "type")) == `"reasoning"`
	case "response.output_item.done":
		s.progress, s.thinking = true, false
	default:
		s.progress = s.nFree > 0 || member(data, "delta") == nil
		if !s.progress {
			s.nFree = 0
		}
	}
}

// response reads a response object.
func (s *Stream) response(object []byte) {
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
			s.openaiUsage(&c)
		}
	}
}

// listEvent returns a reader for answers with a list in the member called name. Such answers are never streamed.
func listEvent(name string) func(s *Stream, _, data []byte) {
	return func(s *Stream, _, data []byte) {
		c := jsonscan.Read(data)
		for key := range c.Members() {
			switch {
			case string(key) == name:
				s.any = hasElement(c.Value())
			case string(key) == "usage":
				s.openaiUsage(&c)
			default:
				s.disguise(key, &c)
			}
		}
		s.progress = s.any
		s.cut = !s.answer
	}
}

// disguise reads a member that may mark the object as an error.
func (s *Stream) disguise(key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "error":
		s.err = s.err || !empty(c.Value())
	case "type", "object":
		s.err = s.err || string(c.Value()) == `"error"`
	}
}

// imageEvent reads an event of a streamed image or a list of images.
func imageEvent(s *Stream, _, data []byte) {
	c := jsonscan.Read(data)
	for key := range c.Members() {
		switch string(key) {
		case "type":
			switch string(c.Value()) {
			case `"error"`:
				s.err = true
			case `"image_generation.completed"`, `"image_edit.completed"`: // another image may follow
				s.choice(0, true)
			case `"keepalive"`, `"ping"`:
				return
			default:
				s.choice(0, false)
			}
			s.any, s.progress = true, true
		case "data", "created":
			if s.answer {
				s.any = true
				s.choice(0, true)
			}
			c.Value()
		case "usage":
			s.openaiUsage(&c)
		default:
			s.disguise(key, &c)
		}
	}
}

// audioEvent reads an event of a streamed transcript or speech, or a whole transcript.
func audioEvent(s *Stream, _, data []byte) {
	c := jsonscan.Read(data)
	for key := range c.Members() {
		switch string(key) {
		case "type":
			switch string(c.Value()) {
			case `"error"`:
				s.err = true
			case `"transcript.text.done"`, `"speech.audio.done"`:
				s.any, s.done = true, true
			case `"keepalive"`, `"ping"`:
				return
			default:
				s.any = true
			}
		case "text": // text of a transcript; silence has none
			s.any = true
			s.some(&c)
		case "delta", "audio":
			s.any = true
			s.some(&c)
		case "usage":
			s.openaiUsage(&c)
		default:
			s.disguise(key, &c)
		}
	}
}

// runEvent reads an event of an Assistants run, or a run object. The object may contain an error that is not an error
// of the request.
func runEvent(s *Stream, name, data []byte) {
	s.any, s.progress = true, !empty(data)
	if usage := member(data, "usage"); first(usage) == '{' {
		c := jsonscan.Read(usage)
		s.openaiUsage(&c)
	}
	f, failed := ErrorIn(data)
	s.err = string(name) == "error" || failed && s.answer && member(data, "object") == nil && f != Failure{}
}

// Object returns the Endpoint of all other operations of this API. They answer with JSON objects, which may contain an
// error that is not an error of the request.
func Object() Endpoint { return Endpoint{api: &object} }

func objectEvent(s *Stream, _, data []byte) {
	_, failed := ErrorIn(data)
	kind := member(data, "object")
	s.err = failed && (kind == nil || string(kind) == `"error"`)
	s.any, s.progress = true, true
}

// openaiErrors maps the codes of OpenAI, Azure and compatible providers to classes.
var openaiErrors = vocabulary{
	codes: map[string]Class{
		"insufficient_quota": Quota, "billing_not_active": Quota, "billing_hard_limit_reached": Quota, "credit_balance_exhausted": Quota,
		"usage_limit_reached":          Quota,                                                                         // ChatGPT plans, if the window is long
		"exceeded_current_quota_error": Quota,                                                                         // Moonshot
		"insufficient_user_quota":      Quota, "insufficient_balance": Quota, "pre_consume_token_quota_failed": Quota, // one-api, new-api
		"AccountOverdueError":          Quota, // Volcengine
		"Arrearage":                    Quota, // DashScope
		"AllocationQuota.FreeTierOnly": Quota, // DashScope
		"1113":                         Quota, // z.ai
		"1008":                         Quota, // MiniMax

		"rate_limit_exceeded": RateLimited, "slow_down": RateLimited, "tokens": RateLimited, "requests": RateLimited,
		"rate_limit_reached_error": RateLimited, "Throttling": RateLimited, "Throttling.RateQuota": RateLimited,
		"Throttling.AllocationQuota": RateLimited, "1302": RateLimited, "1002": RateLimited,

		"context_length_exceeded": PromptTooLarge, "string_above_max_length": PromptTooLarge, "tokens_limit_reached": PromptTooLarge,
		"exceed_context_size_error": PromptTooLarge, // llama.cpp
		"too_many_prompt_tokens":    PromptTooLarge, // Perplexity
		"context_window_exceeded":   PromptTooLarge,
		"1039":                      PromptTooLarge, "1261": PromptTooLarge,

		"server_error": Unavailable, "internal_server_error": Unavailable, "engine_overloaded": Unavailable, "engine_overloaded_error": Unavailable,
		"server_overloaded": Unavailable, "ServerOverloaded": Unavailable, "service_unavailable": Unavailable, "overloaded": Unavailable,
		"error": Unavailable, "abort": Unavailable, "aborted": Unavailable, "network_error": Unavailable, "internal_error": Unavailable,
		"insufficient_system_resource": Unavailable, "timeout": Unavailable, "1000": Unavailable, "1001": Unavailable, "1013": Unavailable,

		"invalid_api_key": Unauthorized, "InvalidApiKey": Unauthorized, "invalid_authentication_error": Unauthorized,
		"AuthenticationError": Unauthorized, "1004": Unauthorized,

		"model_not_found": Misconfigured, "DeploymentNotFound": Misconfigured, "ModelNotFound": Misconfigured, "unknown_model": Misconfigured,
		"ModelNotOpen": Misconfigured, "InvalidEndpointOrModel.NotFound": Misconfigured, "OperationNotSupported": Misconfigured,
		"model_decommissioned": Misconfigured, "model_terms_required": Misconfigured, // Groq
		"model_not_supported": Misconfigured, "model_not_available": Misconfigured, "unsupported_country_region_territory": Unauthorized,

		"invalid_prompt": Rejected, "string_too_long": PromptTooLarge,
		"content_policy_violation": ContentPolicy, "content_filter": ContentPolicy, "moderation_blocked": ContentPolicy,
		"ResponsibleAIPolicyViolation": ContentPolicy, "DataInspectionFailed": ContentPolicy, "data_inspection_failed": ContentPolicy,
		"SensitiveContentDetected": ContentPolicy, "1301": ContentPolicy, "1026": ContentPolicy, "1027": ContentPolicy,
	},
	// Phrases for errors without a code: vLLM, DeepSeek and OpenRouter for the length, DeepSeek and one-api for the
	// balance.
	phrases: []phrase{
		{"maximum context length", PromptTooLarge, 0},
		{"context length exceeded", PromptTooLarge, 0},
		{"exceeds the context window", PromptTooLarge, 0},
		{"exceeds the available context size", PromptTooLarge, 0},
		{"exceeds the maximum allowed token", PromptTooLarge, 0},
		{"longer than the model's context length", PromptTooLarge, 0}, // SGLang
		{"key limit exceeded", Quota, 403},                            // OpenRouter
		{"insufficient balance", Quota, 0},
		{"insufficient credits", Quota, 0},
		{"moderation", ContentPolicy, 403},
	},
}
