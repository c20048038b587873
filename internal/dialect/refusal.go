package dialect

import (
	"encoding/json"
	"net/http"
)

// errorObject is a JSON object that this package writes.
type errorObject map[string]any

// ErrorBody returns an error in the form of the operation's API, so that its SDK can decode it. The default is OpenAI's
// form. code is the aiguard.Kind.
func (e Endpoint) ErrorBody(status int, code, message string) []byte {
	form := openaiError
	if e.api != nil && e.api.refusal != nil {
		form = e.api.refusal
	}
	b, err := json.Marshal(form(status, code, message))
	if err != nil {
		panic("dialect: " + err.Error()) // strings and numbers cannot fail
	}
	return b
}

func openaiError(_ int, code, message string) errorObject {
	return errorObject{"error": errorObject{"message": message, "type": code, "param": nil, "code": code}}
}

func anthropicError(status int, _, message string) errorObject {
	name := "api_error"
	switch status {
	case http.StatusTooManyRequests:
		name = "rate_limit_error"
	case http.StatusRequestEntityTooLarge:
		name = "request_too_large"
	case http.StatusServiceUnavailable:
		name = "overloaded_error"
	case http.StatusGatewayTimeout:
		name = "timeout_error"
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		name = "invalid_request_error"
	}
	return errorObject{"type": "error", "error": errorObject{"type": name, "message": message}}
}

func geminiError(status int, _, message string) errorObject {
	name := "INTERNAL"
	switch status {
	case http.StatusTooManyRequests:
		name = "RESOURCE_EXHAUSTED"
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		name = "UNAVAILABLE"
	case http.StatusGatewayTimeout:
		name = "DEADLINE_EXCEEDED"
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		name = "INVALID_ARGUMENT"
	}
	return errorObject{"error": errorObject{"code": status, "message": message, "status": name}}
}

func ollamaError(_ int, _, message string) errorObject { return errorObject{"error": message} }

// messageError returns an error in the form of Bedrock and Cohere.
func messageError(_ int, _, message string) errorObject { return errorObject{"message": message} }
