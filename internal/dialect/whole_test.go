package dialect

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// An answer that the provider stopped, filtered or paused is valid, but must not be cached for other calls.
func TestOnlyAnswersThatEndedByThemselvesAreWhole(t *testing.T) {
	const (
		messages = `{"type":"message","content":[{"type":"text","text":"Hi"}],"stop_reason":%s}`
		gemini   = `{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":%s}]}`
		converse = `{"output":{"message":{"role":"assistant","content":[{"text":"Hi"}]}},"stopReason":%s}`
		cohere   = `{"id":"1","message":{"role":"assistant","content":[{"type":"text","text":"Hi"}]},"finish_reason":%s}`
		ollama   = `{"message":{"role":"assistant","content":"Hi"},"done":%s}`
	)
	for _, tc := range []struct {
		path, body string
		whole      []string
		not        []string
	}{
		{"/v1/messages", messages, []string{`"end_turn"`, `"stop_sequence"`, `"tool_use"`, `"max_tokens"`, `"new"`}, []string{`"refusal"`, `"pause_turn"`, "null", `""`}},
		{"/v1beta/models/g:generateContent", gemini, []string{`"STOP"`, `"MAX_TOKENS"`},
			[]string{`"SAFETY"`, `"RECITATION"`, `"OTHER"`, `"new"`, `"FINISH_REASON_UNSPECIFIED"`, "null"}},
		{"/model/m/converse", converse, []string{`"end_turn"`, `"tool_use"`, `"max_tokens"`, `"stop_sequence"`}, []string{`"guardrail_intervened"`, `"content_filtered"`}},
		{"/v2/chat", cohere, []string{`"COMPLETE"`, `"MAX_TOKENS"`, `"TOOL_CALL"`}, []string{`"ERROR_TOXIC"`, `"TIMEOUT"`, "null"}},
		{"/api/chat", ollama, []string{"true"}, []string{"false"}},
	} {
		for want, reasons := range map[bool][]string{true: tc.whole, false: tc.not} {
			for _, reason := range reasons {
				a := post(tc.path).Judge(fmt.Appendf(nil, tc.body, reason))
				require.Equal(t, want, a.Whole, "%s %s: %+v", tc.path, reason, a)
			}
		}
	}
}

// A stream whose last event has no finish reason, or one that means "continues", is not complete.
func TestEventWithoutAReasonDoesNotEndAStream(t *testing.T) {
	for path, events := range map[string][]string{
		"/v1beta/models/g:streamGenerateContent": {
			`{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":"FINISH_REASON_UNSPECIFIED"}]}`,
			`{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":null}]}`,
			`{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":""}]}`,
		},
		"/v1/messages":  {`{"type":"message_delta","delta":{"stop_reason":"end_turn"}}`, `{"type":"content_block_stop"}`},
		"/v2/chat":      {`{"type":"content-end","index":0}`, `{"type":"content-delta","delta":{"message":{"content":{"text":"Hi"}}}}`},
		"/api/chat":     {`{"message":{"content":"Hi"},"done":false}`, `{"message":{"content":"Hi"}}`},
		"/api/generate": {`{"response":"Hi","done":false}`},
	} {
		for _, event := range events {
			s := post(path).Follow()
			_, failed := s.Event(nil, []byte(event))
			require.False(t, failed, event)
			require.False(t, s.Complete(true, false), event)
		}
	}
}
