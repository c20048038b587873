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
	embeddings  = api{op: "embeddings", untyped: true, member: embeddingMember, event: embeddingEvent}
	moderations = api{op: "moderations", member: embeddingMember, event: moderationEvent}
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

func (u *Usage) readOpenAI(c *jsonscan.Cursor) {
	var output, reasoning, total int64
	for key := range c.Members() {
		switch string(key) {
		case "prompt_tokens", "input_tokens":
			u.Input = number(c.Value())
		case "completion_tokens", "output_tokens":
			output = number(c.Value())
			u.Output = output
		case "total_tokens":
			total = number(c.Value())
		case "prompt_cache_hit_tokens", "cached_tokens": // DeepSeek, Moonshot
			u.CacheRead = number(c.Value())
		case "prompt_tokens_details", "input_tokens_details":
			for key := range c.Members() {
				switch string(key) {
				case "cached_tokens":
					u.CacheRead = number(c.Value())
				case "cache_write_tokens", "cache_creation_tokens":
					u.CacheWrite = number(c.Value())
				}
			}
		case "completion_tokens_details", "output_tokens_details":
			for key := range c.Members() {
				if string(key) == "reasoning_tokens" {
					reasoning = number(c.Value())
					u.Reasoning = reasoning
				}
			}
		}
	}
	switch {
	case reasoning > output, reasoning > 0 && total == u.Input+output+reasoning: // xAI and some gateways count it separately
		u.Output = output + reasoning
	case u.Input == 0 && u.Output == 0: // embeddings of Voyage and Jina
		u.Input = total
	}
}

// errorMember reads a member that may mark the object as an error.
func errorMember(s *Stream, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "error":
		s.err = s.err || !empty(c.Value())
	case "type", "object":
		s.err = s.err || string(c.Value()) == `"error"`
	}
}

// runEvent reads an event of an Assistants run, or a run object. The object may contain an error that is not an error
// of the request.
func runEvent(s *Stream, name []byte, c jsonscan.Cursor) {
	data := c.Text()
	s.any, s.progress = true, !empty(data)
	if usage := member(data, "usage"); first(usage) == '{' {
		c = jsonscan.Read(usage)
		s.usage.readOpenAI(&c)
	}
	f, failed := ErrorIn(data)
	s.err = string(name) == "error" || failed && s.answer && member(data, "object") == nil && f != Failure{}
}

// Object returns the Endpoint of all other operations of this API. They answer with JSON objects, which may contain an
// error that is not an error of the request.
func Object() Endpoint { return Endpoint{api: &object} }

func objectEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	data := c.Text()
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
		"1113":                         Quota, // z.ai; the next four are limits of a day and more
		"1304":                         Quota, "1308": Quota, "1309": Quota, "1310": Quota,
		"budget_exceeded": Quota, // LiteLLM

		"rate_limit_exceeded": RateLimited, "slow_down": RateLimited, "tokens": RateLimited, "requests": RateLimited,
		"rate_limit_reached_error": RateLimited, "Throttling": RateLimited, "Throttling.RateQuota": RateLimited,
		"Throttling.AllocationQuota": RateLimited, "1302": RateLimited,

		"context_length_exceeded": PromptTooLarge, "string_above_max_length": PromptTooLarge, "tokens_limit_reached": PromptTooLarge,
		"exceed_context_size_error": PromptTooLarge, // llama.cpp
		"too_many_prompt_tokens":    PromptTooLarge, // Perplexity
		"context_window_exceeded":   PromptTooLarge,
		"max_tokens_per_request":    PromptTooLarge, "model_max_prompt_tokens_exceeded": PromptTooLarge, // embeddings, Copilot
		"1261": PromptTooLarge, // z.ai

		"server_error": Unavailable, "internal_server_error": Unavailable, "engine_overloaded": Unavailable, "engine_overloaded_error": Unavailable,
		"server_overloaded": Unavailable, "ServerOverloaded": Unavailable, "service_unavailable": Unavailable, "overloaded": Unavailable,
		"error": Unavailable, "abort": Unavailable, "aborted": Unavailable, "network_error": Unavailable, "internal_error": Unavailable,
		"insufficient_system_resource": Unavailable, "timeout": Unavailable,
		"capacity_exceeded": Unavailable, // Groq, with status 498

		"invalid_api_key": Unauthorized, "InvalidApiKey": Unauthorized, "invalid_authentication_error": Unauthorized,
		"AuthenticationError": Unauthorized,

		"model_not_found": Misconfigured, "DeploymentNotFound": Misconfigured, "ModelNotFound": Misconfigured, "unknown_model": Misconfigured,
		"ModelNotOpen": Misconfigured, "InvalidEndpointOrModel.NotFound": Misconfigured, "OperationNotSupported": Misconfigured,
		"model_decommissioned": Misconfigured, "model_terms_required": Misconfigured, // Groq
		"model_not_supported": Misconfigured, "model_not_available": Misconfigured,
		"invalid_model": Misconfigured, "1211": Misconfigured, // Mistral and Perplexity, z.ai
		"unsupported_country_region_territory": Unauthorized,

		"invalid_prompt": Rejected, "string_too_long": PromptTooLarge,
		"content_policy_violation": ContentPolicy, "content_filter": ContentPolicy, "moderation_blocked": ContentPolicy,
		"ResponsibleAIPolicyViolation": ContentPolicy, "DataInspectionFailed": ContentPolicy, "data_inspection_failed": ContentPolicy,
		"SensitiveContentDetected": ContentPolicy, "1301": ContentPolicy,
	},
	numbers: map[string]Class{ // MiniMax
		"1008": Quota, "1002": RateLimited, "1041": RateLimited, "1039": PromptTooLarge,
		"1000": Unavailable, "1001": Unavailable, "1013": Unavailable, "1024": Unavailable, "1033": Unavailable,
		"1004": Unauthorized, "2049": Unauthorized, "2013": Rejected, "1026": ContentPolicy, "1027": ContentPolicy,
	},
	// Phrases for errors without a code, or with a vague one.
	phrases: []phrase{
		{"maximum context length", PromptTooLarge, 0}, // vLLM, DeepSeek, OpenRouter, Mistral, Fireworks
		{"context length exceeded", PromptTooLarge, 0},
		{"exceeds the context window", PromptTooLarge, 0},
		{"exceeds the available context size", PromptTooLarge, 0},
		{"exceeds the maximum allowed token", PromptTooLarge, 0},
		{"exceeds the maximum allowed input length", PromptTooLarge, 0},
		{"longer than the model's context length", PromptTooLarge, 0},     // SGLang
		{"maximum prompt length", PromptTooLarge, 0},                      // xAI
		{"[input_too_large]", PromptTooLarge, 0},                          // xAI
		{"exceeded model token limit", PromptTooLarge, 0},                 // Moonshot
		{"range of input length should be", PromptTooLarge, 0},            // DashScope
		{"context window exceeds limit", PromptTooLarge, 0},               // MiniMax
		{"exceed max message tokens", PromptTooLarge, 0},                  // Volcengine
		{"greater than the context length", PromptTooLarge, 0},            // LM Studio
		{"loaded with context length of only", PromptTooLarge, 0},         // LM Studio
		{"`inputs` must have less than", PromptTooLarge, 0},               // TGI
		{"`inputs` tokens + `max_new_tokens` must be", PromptTooLarge, 0}, // TGI, Together
		{"contextwindowexceedederror", PromptTooLarge, 0},                 // LiteLLM
		{"key limit exceeded", Quota, 403},                                // OpenRouter
		{"insufficient balance", Quota, 0},                                // DeepSeek, one-api
		{"insufficient credits", Quota, 0},
		{"all available credits", Quota, 0},  // xAI
		{"have any credits", Quota, 403},     // xAI
		{"run out of credits", Quota, 403},   // xAI
		{"monthly spending limit", Quota, 0}, // xAI, Fireworks
		{"budget has been exceeded", Quota, 0},
		{"exceededbudget:", Quota, 0},                       // LiteLLM
		{"incorrect api key provided", Unauthorized, 400},   // xAI
		{"is not a valid model id", Misconfigured, 0},       // OpenRouter
		{"model not exist", Misconfigured, 0},               // DeepSeek
		{"model does not exist", Misconfigured, 0},          // SiliconFlow
		{"invalid model name", Misconfigured, 0},            // LiteLLM
		{"unexpected endpoint or method", Misconfigured, 0}, // LM Studio, with status 200
		{"moderation", ContentPolicy, 403},
		{"content exists risk", ContentPolicy, 0},         // DeepSeek
		{"contentpolicyviolationerror", ContentPolicy, 0}, // LiteLLM
		{"violates usage guidelines", ContentPolicy, 403}, // xAI
	},
}
