package aiguardtest

import "net/http"

// Ollama's API: chat and generate. It streams JSON lines unless a request contains "stream": false.

func ollamaOf(r *Request) (dialect, bool) {
	before, last := lastSegments(r.Path)
	if before != "api" {
		return dialect{}, false
	}
	says := func(a *answer, text string) object {
		return ollamaLine(a, "message", object{"role", "assistant", "content", text})
	}
	if last == "generate" {
		says = func(a *answer, text string) object { return ollamaLine(a, "response", text) }
	}
	done := func(a *answer, text, reason string) object {
		return append(says(a, text), "done", true, "done_reason", reason, "total_duration", 2_000_000, "load_duration", 1_000_000,
			"prompt_eval_count", tokens(a.ask.Messages)+tokens(a.ask.Prompt), "prompt_eval_duration", 500_000,
			"eval_count", tokens(a.text), "eval_duration", 500_000)
	}
	delta := func(a *answer, text string) string { return encode(append(says(a, text), "done", false)) }
	return dialect{
		streams:   true,
		requestID: "X-Request-Id",
		known:     last == "chat" || last == "generate",
		respond:   (*answer).generate,
		whole:     func(a *answer) object { return done(a, a.text, "stop") },
		failed:    func(a *answer) object { return done(a, "", "error") },
		delta:     delta,
		finish:    func(a *answer) []string { return []string{encode(done(a, "", "stop"))} },
		framing: framing{
			media: "application/x-ndjson",
			frame: func(_ int, data string) string { return data + "\n" },
			ping:  func(s *stream) { s.events(delta(s.a, "")) },
			pad:   blanks,
		},
		failure: func(_ int, _, message string) string { return encode(object{"error", message}) }, // Ollama has no codes
		limited: refusal{status: http.StatusTooManyRequests},
		refusals: func() map[Fault]refusal {
			return map[Fault]refusal{
				FaultPromptTooLong: {http.StatusBadRequest, "", "the input length exceeds the context length"},
			}
		},
		objects: func(bool) string {
			return `{"message":{"role":"assistant","tool_calls":[` + gap + `]},"done":false}`
		},
	}, true
}

func ollamaLine(a *answer, name string, value any) object {
	return object{"model", a.model, "created_at", a.r.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), name, value}
}
