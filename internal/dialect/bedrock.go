package dialect

import (
	"bytes"
	"encoding/base64"
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Amazon Bedrock's runtime: Converse, and InvokeModel with the body format of the model's maker. Streams are binary
// frames.

var (
	converse = api{op: "converse", refusal: messageError, framing: Frames, ends: finished, member: converseMember, event: converseEvent,
		output: output{within: []string{"inferenceConfig"}, names: []string{"maxTokens"}}}
	// invoke covers models of makers other than Anthropic. Their answers are not judged.
	invoke       = api{op: "invoke", refusal: messageError, framing: Frames, untyped: true, member: invokeMember, event: invokeEvent}
	invokeClaude = api{op: "invoke", refusal: messageError, framing: Frames, ends: marked, member: messagesMember, event: invokeMessagesEvent,
		output: output{names: []string{"max_tokens"}, zero: true}}
)

func bedrockRoute(method, path, _ string) (e Endpoint, ok bool) {
	_, rest, ok := strings.Cut(path, "/model/") // an ARN contains slashes too
	if method != "POST" || !ok {
		return e, false
	}
	verb := last(rest)
	model, ok := before(rest, verb)
	if !ok || model == "" {
		return e, false
	}
	by := &invoke
	if strings.Contains(model, "anthropic.") {
		by = &invokeClaude
	}
	switch verb {
	case "converse":
		return Endpoint{api: &converse, model: model}, true
	case "converse-stream":
		return Endpoint{api: &converse, model: model, stream: true}, true
	case "invoke":
		return Endpoint{api: by, model: model}, true
	case "invoke-with-response-stream":
		return Endpoint{api: by, model: model, stream: true}, true
	}
	return e, false
}

func converseMember(q *query, key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "system":
		q.content(c)
	case "messages":
		for range c.Elements() {
			for key := range c.Members() {
				if string(key) == "content" {
					for range c.Elements() {
						converseBlock(q, c)
					}
				}
			}
		}
	case "toolConfig":
		for key := range c.Members() {
			if string(key) != "tools" {
				continue
			}
			for range c.Elements() {
				for key := range c.Members() {
					if string(key) == "toolSpec" {
						converseTool(q, c)
					}
				}
			}
		}
	}
}

func converseTool(q *query, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "name", "description":
			q.text(c)
		case "inputSchema":
			q.json(c)
		}
	}
}

func converseBlock(q *query, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "text":
			q.text(c)
		case "toolUse":
			for key := range c.Members() {
				switch string(key) {
				case "name", "input":
					q.json(c)
				}
			}
		case "toolResult":
			for key := range c.Members() {
				if string(key) != "content" {
					continue
				}
				for range c.Elements() {
					for key := range c.Members() {
						switch string(key) {
						case "text", "json":
							q.json(c)
						case "document", "searchResult":
							converseSource(q, c)
						}
					}
				}
			}
		case "document", "searchResult", "citationsContent":
			converseSource(q, c)
		case "reasoningContent":
			for key := range c.Members() {
				if string(key) == "reasoningText" {
					for key := range c.Members() {
						if string(key) == "text" {
							q.text(c)
						}
					}
				}
			}
		case "guardContent":
			for key := range c.Members() {
				if string(key) != "text" {
					continue
				}
				for key := range c.Members() {
					if string(key) == "text" {
						q.text(c)
					}
				}
			}
		}
	}
}

// converseSource reads the texts of a document or a search result. A document's own are in its source.
func converseSource(q *query, c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "text", "title", "context":
			q.text(c)
		case "content":
			q.content(c)
		case "source":
			for key := range c.Members() {
				switch string(key) {
				case "text":
					q.text(c)
				case "content":
					q.content(c)
				}
			}
		}
	}
}

func invokeMember(q *query, key []byte, c *jsonscan.Cursor) {
	q.walkMember(key, c.Value())
}

// converseEvent reads the payload of a frame with this name, or a whole answer.
func converseEvent(s *Stream, name []byte, c jsonscan.Cursor) {
	ended := false
	for key := range c.Members() {
		switch string(key) {
		case "output":
			s.any = true
			c.Value()
		case "stopReason":
			if reason := c.Value(); said(reason) {
				ended = true
				switch string(reason) {
				case `"guardrail_intervened"`, `"content_filtered"`:
					s.cut = true
				case `"malformed_model_output"`:
					s.fail(Failure{Code: "error"})
				}
			}
		case "delta":
			for key := range c.Members() {
				switch string(key) {
				case "text":
					s.text(&c)
				default:
					s.some(&c)
				}
			}
		case "start":
			s.some(&c)
		case "usage":
			s.usage.readConverse(&c)
		}
	}
	switch {
	case exception(name):
		s.err = true
		return
	case s.answer:
		s.any = s.any || ended
		s.choices.note(0, ended)
		return
	case string(name) == "messageStop":
		s.progress = true
		s.choices.note(0, ended)
	case string(name) == "messageStart":
		s.any = true
		s.choices.note(0, false)
	}
	s.any = s.any || s.progress
}

// exception reports whether a frame with this name is an error.
func exception(name []byte) bool {
	return string(name) == "error" || bytes.HasSuffix(name, []byte("Exception")) || bytes.HasSuffix(name, []byte("exception"))
}

func (u *Usage) readConverse(c *jsonscan.Cursor) {
	var plain int64
	for key := range c.Members() {
		switch string(key) {
		case "inputTokens":
			plain = number(c.Value())
		case "outputTokens":
			u.Output = number(c.Value())
		case "cacheReadInputTokens", "cacheReadInputTokenCount": // Nova
			u.CacheRead = number(c.Value())
		case "cacheWriteInputTokens", "cacheWriteInputTokenCount":
			u.CacheWrite = number(c.Value())
		}
	}
	u.Input = plain + u.CacheRead + u.CacheWrite
}

// payload decodes the base64 payload of a frame of InvokeModelWithResponseStream into buf. The result is empty if the
// payload is not JSON.
func payload(buf, data []byte) []byte {
	coded := member(data, "bytes")
	if len(coded) < 2 || coded[0] != '"' {
		return buf[:0]
	}
	buf, err := base64.StdEncoding.AppendDecode(buf[:0], coded[1:len(coded)-1])
	if err == nil {
		_, err = jsonscan.Check(buf, MaxShape)
	}
	if err != nil {
		return buf[:0]
	}
	return buf
}

func invokeMessagesEvent(s *Stream, name []byte, c jsonscan.Cursor) {
	switch {
	case s.answer:
		messagesEvent(s, nil, c)
	case exception(name):
		s.err = true
	default:
		s.scratch = payload(s.scratch, c.Text())
		messagesEvent(s, nil, jsonscan.Read(s.scratch))
		s.free.n = 0 // the spans refer to the payload, not to the event's data
	}
}

func invokeEvent(s *Stream, name []byte, c jsonscan.Cursor) {
	s.err = !s.answer && exception(name)
	s.any, s.progress = !s.err, !s.err
	s.cut = true // completeness is unknown
	if !s.answer {
		s.scratch = payload(s.scratch, c.Text())
		c = jsonscan.Read(s.scratch)
	}
	s.usage.readInvoke(&c)
}

// readInvoke reads the usage that model makers report and that Bedrock adds at the end of a stream.
func (u *Usage) readInvoke(c *jsonscan.Cursor) {
	for key := range c.Members() {
		switch string(key) {
		case "usage":
			u.readConverse(c)
		case "metadata", "amazon-bedrock-invocationMetrics":
			u.readInvoke(c)
		case "prompt_token_count", "inputTextTokenCount", "inputTokenCount":
			u.Input = max(u.Input, number(c.Value()))
		case "generation_token_count", "outputTokenCount":
			u.Output = max(u.Output, number(c.Value()))
		}
	}
}

// bedrockErrors maps the exceptions of the service to classes.
var bedrockErrors = vocabulary{
	codes: map[string]Class{
		"ThrottlingException":           RateLimited,
		"throttlingException":           RateLimited,
		"TooManyRequestsException":      RateLimited,
		"ServiceQuotaExceededException": RateLimited,
		"AccessDeniedException":         Unauthorized,
		"UnrecognizedClientException":   Unauthorized,
		"InvalidSignatureException":     Unauthorized,
		"ExpiredTokenException":         Unauthorized,
		"ResourceNotFoundException":     Misconfigured,
		"ValidationException":           Rejected,
		"validationException":           Rejected,
		"ServiceUnavailableException":   Unavailable,
		"serviceUnavailableException":   Unavailable,
		"InternalServerException":       Unavailable,
		"internalServerException":       Unavailable,
		"ModelNotReadyException":        Unavailable,
		"ModelTimeoutException":         Unavailable,
		"modelTimeoutException":         Unavailable,
		"ModelErrorException":           Unavailable,
		"ModelStreamErrorException":     Unavailable,
		"modelStreamErrorException":     Unavailable,
	},
	phrases: []phrase{
		{"input is too long", PromptTooLarge, 0},
		{"too many input tokens", PromptTooLarge, 0},
		{"number of input tokens exceeds", PromptTooLarge, 0}, // Nova
		{"expected maxlength:", PromptTooLarge, 0},            // Titan
		{"too many tokens per day", Quota, 0},
		{"model identifier is invalid", Misconfigured, 0},
		{"with on-demand throughput isn", Misconfigured, 0}, // needs an inference profile
	},
}
