package aiguardtest

import (
	"net/http"
	"strings"
)

// Google's Gemini API, also on Vertex AI: generateContent, and streamGenerateContent as an event stream (?alt=sse) or
// as a JSON array.

func geminiOf(r *Request) (dialect, bool) {
	model, verb, ok := geminiPath(r.Path)
	if !ok {
		return dialect{}, false
	}
	array := verb == "streamGenerateContent" && r.Query.Get("alt") != "sse"
	f := serverSent("\r\n", false)
	f.errorEvent = func(data string) string { return data + "\r\n\r\n" } // without "data:"
	if array {
		f = framing{
			media: "application/json; charset=UTF-8",
			frame: func(n int, data string) string {
				if n == 0 {
					return "[" + data
				}
				return ",\r\n" + data
			},
			mark: "]",
			ping: func(s *stream) { s.events(s.a.delta(s.a, "")) },
			pad:  blanks,
		}
	}
	return dialect{
		model:     model,
		streams:   verb == "streamGenerateContent",
		requestID: "X-Request-Id",
		known:     verb == "generateContent" || verb == "streamGenerateContent",
		respond:   (*answer).generate,
		whole:     func(a *answer) object { return geminiCandidate(a, a.text, "STOP") },
		failed:    func(a *answer) object { return geminiCandidate(a, "", "ERROR") },
		delta:     func(a *answer, text string) string { return encode(geminiCandidate(a, text, "")) },
		finish:    func(a *answer) []string { return []string{encode(geminiCandidate(a, "", "STOP"))} },
		framing:   f,
		failure:   geminiError,
		listed:    array,
		limited:   refusal{http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."},
		refusals: func() map[Fault]refusal {
			return map[Fault]refusal{
				FaultInsufficientQuota: {http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."},
				FaultBillingNotActive:  {http.StatusForbidden, "BILLING_DISABLED", "This API method requires billing to be enabled."},
				FaultCreditExhausted:   {http.StatusTooManyRequests, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."},
				FaultPromptTooLong: {http.StatusBadRequest, "INVALID_ARGUMENT",
					"The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."},
				FaultStatus401: {http.StatusBadRequest, "API_KEY_INVALID", "API key not valid. Please pass a valid API key."},
			}
		},
		objects: func(bool) string { return `{"candidates":[` + gap + `]}` },
	}, true
}

// geminiCandidate returns a whole answer or an event, which have the same form.
func geminiCandidate(a *answer, text, finish string) object {
	c := object{"content", object{"parts", []object{{"text", text}}, "role", "model"}}
	in, out := tokens(a.ask.Contents), 0
	if finish != "" {
		c = append(c, "finishReason", finish)
		out = tokens(a.text)
	}
	return object{
		"candidates", []object{append(c, "index", 0)},
		"usageMetadata", object{"promptTokenCount", in, "candidatesTokenCount", out, "totalTokenCount", in + out},
		"modelVersion", a.model, "responseId", a.id("resp"),
	}
}

// geminiError returns an error. The code is a status of Google's APIs, or a reason, which becomes part of the details.
func geminiError(status int, code, message string) string {
	name := map[int]string{
		http.StatusBadRequest:          "INVALID_ARGUMENT",
		http.StatusUnauthorized:        "UNAUTHENTICATED",
		http.StatusForbidden:           "PERMISSION_DENIED",
		http.StatusNotFound:            "NOT_FOUND",
		http.StatusConflict:            "ABORTED",
		http.StatusTooManyRequests:     "RESOURCE_EXHAUSTED",
		499:                            "CANCELLED",
		http.StatusInternalServerError: "INTERNAL",
		http.StatusNotImplemented:      "UNIMPLEMENTED",
		http.StatusServiceUnavailable:  "UNAVAILABLE",
		http.StatusGatewayTimeout:      "DEADLINE_EXCEEDED",
	}[status]
	if name == "" {
		name = "UNKNOWN"
	}
	failure := object{"code", status, "message", message, "status", name}
	switch code {
	case "", name:
	case "FAILED_PRECONDITION", "OUT_OF_RANGE", "ALREADY_EXISTS", "DATA_LOSS", "INTERNAL", "UNAVAILABLE":
		failure = object{"code", status, "message", message, "status", code}
	default:
		failure = append(failure, "details", []object{{
			"@type", "type.googleapis.com/google.rpc.ErrorInfo", "reason", code, "domain", "googleapis.com",
		}})
	}
	return encode(object{"error", failure})
}

// geminiPath returns the model and the verb in the path of a request. A colon is not enough, because names of OpenAI's
// models may contain one.
func geminiPath(path string) (model, verb string, ok bool) {
	_, rest, _ := strings.Cut(path, "/models/")
	model, verb, _ = strings.Cut(rest, ":")
	switch verb {
	case "generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents":
		return model, verb, true
	}
	return "", "", false
}
