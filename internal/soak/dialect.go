package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// dialect is one API: a request and the parts of a good streamed answer. The last part completes the answer.
type dialect struct {
	name, path, media string // path may contain %s for the model
	body              string // may contain %s for the model
	parts             []string
}

const eventStream = "text/event-stream"

var dialects = []dialect{
	{"chat", "/v1/chat/completions", eventStream, `{"model":"%s","stream":true,"messages":[{"role":"user","content":"Hi"}]}`,
		[]string{events(`{"choices":[{"index":0,"delta":{"content":"Hello"}}]}`), events(`{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`)}},
	{"responses", "/v1/responses", eventStream, `{"model":"%s","stream":true,"store":false,"input":"Hi"}`,
		[]string{events(`{"type":"response.output_text.delta","delta":"Hello"}`), events(`{"type":"response.completed","response":{"id":"r"}}`)}},
	{"images", "/v1/images/generations", eventStream, `{"model":"%s","stream":true,"prompt":"Hi"}`,
		[]string{events(`{"type":"image_generation.partial_image","b64_json":"Hello"}`), events(`{"type":"image_generation.completed","b64_json":"Hello"}`)}},
	{"speech", "/v1/audio/speech", eventStream, `{"model":"%s","stream_format":"sse","input":"Hi"}`,
		[]string{events(`{"type":"speech.audio.delta","audio":"Hello"}`), events(`{"type":"speech.audio.done"}`)}},
	{"Anthropic", "/v1/messages", eventStream, `{"model":"%s","stream":true,"max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}`,
		[]string{events(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}`), events(`{"type":"message_stop"}`)}},
	{"Gemini", "/v1beta/models/%s:streamGenerateContent?alt=sse", eventStream, `{"contents":[{"parts":[{"text":"Hi"}]}]}`,
		[]string{events(`{"candidates":[{"content":{"parts":[{"text":"Hello"}]}}]}`), events(`{"candidates":[{"content":{"parts":[]},"finishReason":"STOP"}]}`)}},
	{"Gemini, an array", "/v1beta/models/%s:streamGenerateContent", "application/json", `{"contents":[{"parts":[{"text":"Hi"}]}]}`,
		[]string{`[{"candidates":[{"content":{"parts":[{"text":"Hello"}]}}]}`, `,{"candidates":[{"content":{"parts":[]},"finishReason":"STOP"}]}]`}},
	{"Bedrock", "/model/%s/converse-stream", "application/vnd.amazon.eventstream", `{"messages":[{"role":"user","content":[{"text":"Hi"}]}]}`,
		[]string{frame("contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":"Hello"}}`), frame("messageStop", `{"stopReason":"end_turn"}`)}},
	{"Cohere", "/v2/chat", eventStream, `{"model":"%s","stream":true,"messages":[{"role":"user","content":"Hi"}]}`,
		[]string{events(`{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hello"}}}}`), events(`{"type":"message-end","delta":{"finish_reason":"COMPLETE"}}`)}},
	{"Ollama", "/api/chat", "application/x-ndjson", `{"model":"%s","messages":[{"role":"user","content":"Hi"}]}`,
		[]string{`{"message":{"role":"assistant","content":"Hello"},"done":false}` + "\n", `{"message":{"content":""},"done":true,"done_reason":"stop"}` + "\n"}},
}

func events(payload string) string { return "data: " + payload + "\n\n" }

// frame encodes an event in the AWS event stream format.
func frame(name, payload string) string {
	var headers []byte
	for _, pair := range [][2]string{{":message-type", "event"}, {":event-type", name}} {
		headers = append(append(headers, byte(len(pair[0]))), pair[0]...)
		headers = append(binary.BigEndian.AppendUint16(append(headers, 7), uint16(len(pair[1]))), pair[1]...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(16+len(headers)+len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(headers)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, headers...), payload...)
	return string(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

// These request headers name the dialect and the kind of answer.
const (
	dialectHeader = "X-Soak-Dialect"
	answerHeader  = "X-Soak-Answer"
)

// Kinds of answers in addition to the faults.
const (
	answerWhole = "whole"
	answerCut   = "cut"
	answerStall = "stall"
)

// answerIn returns the reply to a request in a dialect.
func answerIn(r *aiguardtest.Request) aiguardtest.Reply {
	name, how := r.Header.Get(dialectHeader), r.Header.Get(answerHeader)
	if f, ok := requestFaults[how]; ok {
		return f.Reply()
	}
	for _, d := range dialects {
		if d.name != name {
			continue
		}
		switch how {
		case answerWhole:
			return d.reply(d.parts)
		case answerCut:
			return d.reply(d.parts[:1])
		case answerStall:
			return aiguardtest.HangAfter(d.reply(d.parts[:1]))
		}
	}
	panic("soak: no answer " + how + " in " + name)
}

func (d dialect) reply(parts []string) aiguardtest.Reply {
	return func(w http.ResponseWriter, r *aiguardtest.Request) {
		w.Header().Set("Content-Type", d.media)
		for _, part := range parts {
			if _, err := io.WriteString(w, part); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// inDialect makes a call through the guard's transport, as the SDK of any API does.
func (s *soak) inDialect(ctx context.Context, rng *rand.Rand) {
	d := dialects[rng.IntN(len(dialects))]
	how := []string{answerWhole, answerWhole, answerCut, answerStall, requestFaultNames[rng.IntN(len(requestFaultNames))]}[rng.IntN(5)]
	what := "the dialect of " + d.name + ", " + how
	began := time.Now()
	text, err := s.sendIn(ctx, d, how, rng)
	s.took(what, began, config.TotalTimeout+config.StreamTimeout)
	switch {
	case err == nil && how == answerWhole && text != strings.Join(d.parts, ""):
		s.failf("%s: unexpected answer %q", what, text)
	case err == nil && (how == answerCut || how == answerStall):
		s.failf("%s: looks complete: %q", what, text)
	case err != nil && ctx.Err() == nil && aiguard.KindOf(err) == "":
		s.failf("%s: the error has no kind: %T %v", what, err, err)
	}
	switch {
	case err == nil:
		s.count("ok in a dialect")
	case ctx.Err() != nil:
		s.count("left by caller")
	default:
		s.count(string(aiguard.KindOf(err)))
	}
}

// sendIn returns the answer unchanged. A failure status is an error.
func (s *soak) sendIn(ctx context.Context, d dialect, how string, rng *rand.Rand) (string, error) {
	model := fmt.Sprintf("%s-%d", how, rng.IntN(modelsAFault))
	fill := func(pattern string) string {
		return strings.Replace(pattern, "%s", strings.ReplaceAll(model, "/", "-"), 1)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(s.main.URL, "/v1")+fill(d.path), strings.NewReader(fill(d.body)))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sk-secret-key")
	req.Header.Set(dialectHeader, d.name)
	req.Header.Set(answerHeader, how)
	resp, err := s.guard.Transport(nil).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = &statusError{resp}
	}
	return string(text), err
}

// statusError is an SDK's error for a failure status, in a form that aiguard.Explain understands.
type statusError struct{ Response *http.Response }

func (e *statusError) Error() string { return e.Response.Status }
