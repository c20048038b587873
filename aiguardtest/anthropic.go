package aiguardtest

import "net/http"

// Anthropic's Messages API.

func anthropicOf(r *Request) (dialect, bool) {
	before, last := lastSegments(r.Path)
	if last != "messages" || before != "v1" && r.Path != "/messages" {
		return dialect{}, false
	}
	f := serverSent("\n", true)
	f.mark = f.frame(0, `{"type":"message_stop"}`)
	f.ping = func(s *stream) { s.events(`{"type":"ping"}`) }
	return dialect{
		requestID: "Request-Id",
		known:     true,
		respond:   (*answer).generate,
		whole: func(a *answer) object {
			return anthropicMessage(a, []object{{"type", "text", "text", a.text}}, "end_turn", tokens(a.text))
		},
		failed: func(a *answer) object { return anthropicMessage(a, []object{}, "error", 0) },
		begin: func(a *answer) []string {
			return []string{
				encode(object{"type", "message_start", "message", anthropicMessage(a, []object{}, nil, 1)}),
				encode(object{"type", "content_block_start", "index", 0, "content_block", object{"type", "text", "text", ""}}),
			}
		},
		delta: func(a *answer, text string) string {
			return encode(object{"type", "content_block_delta", "index", 0, "delta", object{"type", "text_delta", "text", text}})
		},
		finish: func(a *answer) []string {
			return []string{
				encode(object{"type", "content_block_stop", "index", 0}),
				encode(object{
					"type", "message_delta",
					"delta", object{"stop_reason", "end_turn", "stop_sequence", nil},
					"usage", object{"output_tokens", tokens(a.text)},
				}),
			}
		},
		framing: f,
		failure: anthropicError,
		limited: refusal{http.StatusTooManyRequests, "rate_limit_error", "This request would exceed your rate limit"},
		refusals: func() map[Fault]refusal {
			invalid := func(message string) refusal { return refusal{http.StatusBadRequest, "invalid_request_error", message} }
			return map[Fault]refusal{
				FaultInsufficientQuota: invalid("Your credit balance is too low to access the Anthropic API"),
				FaultBillingNotActive:  {http.StatusPaymentRequired, "billing_error", "There is an issue with your billing"},
				FaultSpendLimit:        invalid("You have reached your specified API usage limits"),
				FaultCreditExhausted:   invalid("Your credit balance is too low to access the Anthropic API"),
				FaultPromptTooLong:     invalid("prompt is too long: 200001 tokens > 200000 maximum"),
				FaultContentPolicy:     invalid("Output blocked by content filtering policy"),
			}
		},
		objects: func(streamed bool) string {
			message := `{"type":"message","role":"assistant","content":[` + gap + `]}`
			if streamed {
				return `{"type":"message_start","message":` + message + `}`
			}
			return message
		},
	}, true
}

func anthropicMessage(a *answer, content []object, stop any, out int) object {
	return object{
		"id", a.id("msg"), "type", "message", "role", "assistant", "model", a.model,
		"content", content, "stop_reason", stop, "stop_sequence", nil,
		"usage", object{"input_tokens", tokens(a.ask.Messages), "output_tokens", out},
	}
}

func anthropicError(status int, code, message string) string {
	if code == "" {
		code = map[int]string{
			http.StatusUnauthorized:          "authentication_error",
			http.StatusPaymentRequired:       "billing_error",
			http.StatusForbidden:             "permission_error",
			http.StatusNotFound:              "not_found_error",
			http.StatusRequestEntityTooLarge: "request_too_large",
			http.StatusTooManyRequests:       "rate_limit_error",
			http.StatusGatewayTimeout:        "timeout_error",
			529:                              "overloaded_error",
		}[status]
	}
	switch {
	case code != "":
	case status >= 500:
		code = "api_error"
	default:
		code = "invalid_request_error"
	}
	return encode(object{"type", "error", "error", object{"type", code, "message", message}})
}
