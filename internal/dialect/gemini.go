package dialect

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Google's Gemini API, also on Vertex AI. The path contains the model and the operation. Field names are in camel case
// or snake case.

var (
	generate = api{op: "generateContent", refusal: geminiError, framing: JSON, ends: finished, member: geminiMember, event: geminiEvent,
		output: output{within: []string{"generationConfig", "generation_config"}, names: []string{"maxOutputTokens", "max_output_tokens"}}}
	geminiEmbed = api{op: "embedContent", refusal: geminiError, member: geminiEmbedMember, event: geminiEmbedEvent}
)

func geminiRoute(method, path, _ string) (e Endpoint, ok bool) {
	rest := ""
	for _, list := range [...]string{"/models/", "/tunedModels/", "/endpoints/"} { // the last two have tuned models
		if i := strings.LastIndex(path, list); i >= 0 {
			rest = path[i+len(list):]
			break
		}
	}
	if method != "POST" || rest == "" {
		return e, false
	}
	model, verb, _ := strings.Cut(rest, ":")
	switch verb {
	case "generateContent":
		return Endpoint{api: &generate, model: model}, true
	case "streamGenerateContent":
		return Endpoint{api: &generate, model: model, stream: true}, true
	case "embedContent", "batchEmbedContents":
		return Endpoint{api: &geminiEmbed, model: model}, true
	}
	return e, false
}

func geminiMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "contents":
		if first(q.body[c.Offset():]) == '{' { // a single object without a list is allowed
			geminiContent(q, c)
			return
		}
		for range c.Elements() {
			geminiContent(q, c)
		}
	case "systemInstruction", "system_instruction":
		geminiContent(q, c)
	case "tools":
		for range c.Elements() {
			for key := range c.Members() {
				switch string(key) {
				case "functionDeclarations", "function_declarations":
					for range c.Elements() {
						geminiDeclaration(q, c)
					}
				}
			}
		}
	case "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema":
		q.json(c)
	}
}

func geminiDeclaration(q *query, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "name", "description":
			q.text(c)
		case "parameters", "parametersJsonSchema", "parameters_json_schema", "response", "responseJsonSchema":
			q.json(c)
		}
	}
}

func geminiContent(q *query, c *jsonscan.Cursor) {
	for key := range c.Members() {
		if string(key) != "parts" {
			continue
		}
		if first(q.body[c.Offset():]) == '{' {
			geminiPart(q, c)
			continue
		}
		for range c.Elements() {
			geminiPart(q, c)
		}
	}
}

func geminiPart(q *query, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "text":
			q.text(c)
		case "functionCall", "function_call", "functionResponse", "function_response", "executableCode", "executable_code",
			"codeExecutionResult", "code_execution_result":
			for key := range c.Members() {
				switch string(key) {
				case "name", "args", "response", "code", "output":
					q.json(c)
				}
			}
		}
	}
}

func geminiEmbedMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "content":
		q.next = true
		geminiContent(q, c)
	case "requests":
		for range c.Elements() {
			q.next = true
			for key := range c.Members() {
				if string(key) == "content" {
					geminiContent(q, c)
				}
			}
		}
	}
}

func geminiEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "candidates":
			for range c.Elements() {
				s.any = true
				geminiCandidate(s, &c)
			}
		case "promptFeedback":
			for key := range c.Members() {
				if string(key) == "blockReason" && said(c.Value()) { // a declined prompt counts as an answer
					s.any, s.progress, s.cut = true, true, true
					s.choices.note(0, true)
				}
			}
		case "usageMetadata":
			s.usage.readGemini(&c)
		case "error":
			s.err = s.err || !empty(c.Value())
		}
	}
}

func geminiCandidate(s *Stream, c *jsonscan.Cursor) {
	at, ended := uint64(0), false
	for key := range c.Members() {
		switch string(key) {
		case "index":
			at = index(c.Value())
		case "finishReason":
			switch reason := c.Value(); string(reason) {
			case `"FINISH_REASON_UNSPECIFIED"`, "null", `""`:
			case `"STOP"`, `"MAX_TOKENS"`:
				ended = true
			case `"ERROR"`:
				s.fail(Failure{Code: "error"})
			default:
				ended, s.cut = true, true
			}
		case "content":
			for key := range c.Members() {
				if string(key) != "parts" {
					continue
				}
				for range c.Elements() {
					for key := range c.Members() {
						switch string(key) {
						case "text":
							s.text(c)
						case "thought", "thoughtSignature":
						default:
							s.some(c)
						}
					}
				}
			}
		}
	}
	s.progress = s.progress || ended
	s.choices.note(at, ended)
}

func (u *Usage) readGemini(c *jsonscan.Cursor) {
	var prompt, results, answer int64
	for key := range c.Members() {
		switch string(key) {
		case "promptTokenCount":
			prompt = number(c.Value())
		case "toolUsePromptTokenCount": // tool results
			results = number(c.Value())
		case "candidatesTokenCount":
			answer = number(c.Value())
		case "cachedContentTokenCount":
			u.CacheRead = number(c.Value())
		case "thoughtsTokenCount":
			u.Reasoning = number(c.Value())
		}
	}
	u.Input, u.Output = prompt+results, answer+u.Reasoning
}

func geminiEmbedEvent(s *Stream, _ []byte, c jsonscan.Cursor) {
	for key, value := range jsonscan.Members(c.Text()) {
		switch string(key) {
		case "embedding":
			s.any, s.progress = first(value) == '{', true
		case "embeddings":
			s.any, s.progress = hasElement(value), true
		case "usageMetadata":
			s.usage.Input = number(member(value, "promptTokenCount"))
		case "error":
			s.err = s.err || !empty(value)
		}
	}
}

// geminiErrors maps the reasons and statuses of Google's APIs to classes. It leaves out INVALID_ARGUMENT, which stands
// for every kind of bad request.
var geminiErrors = vocabulary{
	codes: map[string]Class{
		"API_KEY_INVALID": Unauthorized, "API_KEY_EXPIRED": Unauthorized, "UNAUTHENTICATED": Unauthorized,
		"API_KEY_SERVICE_BLOCKED": Unauthorized, "PERMISSION_DENIED": Unauthorized,
		"SERVICE_DISABLED": Misconfigured, "BILLING_DISABLED": Quota,
		"RESOURCE_EXHAUSTED": RateLimited,
		"UNAVAILABLE":        Unavailable, "INTERNAL": Unavailable, "DEADLINE_EXCEEDED": Unavailable,
	},
	phrases: []phrase{
		{"input token count", PromptTooLarge, 0},
		{"request payload size exceeds the limit", PromptTooLarge, 0},
		{"prepayment credits are depleted", Quota, 0},
		{"user location is not supported", Unauthorized, 0},
		{"api key not valid", Unauthorized, 400},
	},
}
