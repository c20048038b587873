package answer

import (
	"encoding/json"
	"net/http"
	"strings"
)

// ErrorBody returns an error in the form of the API that a request to path was made to, for its SDK to decode: Anthropic's,
// Google's, Ollama's, or OpenAI's for all the rest.
func ErrorBody(e Endpoint, path string, status int, code, message string) []byte {
	type object map[string]any
	var body object
	switch {
	case e == Messages:
		body = object{"type": "error", "error": object{"type": anthropicType(status), "message": message}}
	case strings.Contains(path, ":generateContent"), strings.Contains(path, ":streamGenerateContent"),
		strings.Contains(path, ":embedContent"), strings.Contains(path, ":batchEmbedContents"), strings.Contains(path, ":countTokens"):
		body = object{"error": object{"code": status, "message": message, "status": googleStatus(status)}}
	case strings.HasSuffix(path, "/api/chat"), strings.HasSuffix(path, "/api/generate"), strings.HasSuffix(path, "/api/embed"):
		body = object{"error": message}
	default:
		body = object{"error": object{"message": message, "type": code, "param": nil, "code": code}}
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic("answer: " + err.Error()) // strings and numbers do not fail
	}
	return b
}

func anthropicType(status int) string {
	switch status {
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return "invalid_request_error"
	}
	return "api_error"
}

func googleStatus(status int) string {
	switch status {
	case http.StatusTooManyRequests:
		return "RESOURCE_EXHAUSTED"
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		return "UNAVAILABLE"
	case http.StatusGatewayTimeout:
		return "DEADLINE_EXCEEDED"
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return "INVALID_ARGUMENT"
	}
	return "INTERNAL"
}
