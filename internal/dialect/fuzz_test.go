package dialect

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/linear"
)

// everyEndpoint has one endpoint for each operation.
var everyEndpoint = []Endpoint{
	post("/v1/chat/completions"), post("/v1/completions"), post("/v1/responses"), post("/v1/embeddings"), post("/v1/moderations"),
	post("/v1/images/generations"), post("/v1/audio/speech"), post("/v1/threads/runs"), Object(), {}, post("/v1/messages"),
	post("/v1beta/models/g:generateContent"), post("/v1beta/models/g:embedContent"), post("/model/m/converse"), post("/model/m/invoke"),
	post("/model/anthropic.c/invoke"), post("/v2/chat"), post("/v2/embed"), post("/api/chat"), post("/api/generate"), post("/api/embed"),
}

// Reading any JSON neither panics nor returns contradictory results.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"choices":[{"index":0,"finish_reason":"stop"}],"error":{"code":1,"innererror":{}},"usage":{"prompt_tokens":1}}`), 0)
	f.Add([]byte(`[[{"error":"x"}]]`), 8)
	f.Add([]byte(`{"type":"content_block_delta","delta":{"text":"x"},"usage":{"input_tokens":1e400}}`), 10)
	f.Add([]byte(`{"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}]}`), 11)
	f.Add([]byte(`{"bytes":"eyJ0eXBlIjoibWVzc2FnZV9zdG9wIn0="}`), 15)
	f.Fuzz(func(t *testing.T, body []byte, endpoint int) {
		e := everyEndpoint[uint(endpoint)%uint(len(everyEndpoint))]
		broken := e.Follow()
		broken.Event([]byte("error"), body) // any JSON is allowed
		if _, err := jsonscan.Check(body, jsonscan.Limits{Containers: 1000, Depth: 50}); err != nil {
			return
		}
		failure, ok := ErrorIn(body)
		require.LessOrEqual(t, max(len(failure.Message), len(failure.Code), len(failure.Type)), maxMessage)
		require.GreaterOrEqual(t, failure.RetryAfter, time.Duration(0))
		require.True(t, ok || failure == Failure{})
		refusal, _ := Refusal(body)
		Classify(429, refusal)
		a := e.Judge(body)
		var scan jsonscan.Scanner
		for range 2 { // the second time with tokens
			scan.Reset(jsonscan.Limits{Containers: 1000, Depth: 50})
			end, err := scan.Line(body)
			require.NoError(t, err)
			require.Equal(t, a, e.JudgeWith(new(Stream), scan.Read(body[:end])))
		}
		require.False(t, a.Failed && a.OK)
		require.False(t, a.Whole && !a.OK)
		s := e.Follow()
		if _, failed := s.Event(nil, body); failed {
			return
		}
		require.False(t, s.Complete(false, false) && !s.Complete(true, true))
		for _, free := range s.Free() {
			again := s
			other := `"other"`
			if body[free.Start] != '"' {
				other = "7"
			}
			again.Event(nil, slices.Concat(body[:free.Start], []byte(other), body[free.End:]))
			again.free, again.scratch = s.free, s.scratch
			require.Equal(t, s, again, "whatever it says")
		}
	})
}

// Reading a request neither panics nor invents text: the parts are in the body, in order. A lowered body is JSON if the
// body was JSON, and requests no more tokens than the limit.
func FuzzRequest(f *testing.F) {
	for i, body := range []string{
		`{"model":"m","messages":[{"role":"user","content":"Hi"}],"max_tokens":5000,"tools":[{"function":{"parameters":{}}}]}`,
		`{"input":[{"type":"input_image","image_url":"x"},{"data":"x","type":"image"}],"max_output_tokens":null}`,
		`{"contents":[{"parts":[{"text":"x"}]}],"generationConfig":{"maxOutputTokens":-1}}`,
		`{"options":{}}`, `{}`, ` [`, `{"options":null,"generationConfig":null,"inferenceConfig":7}`, `{"input":[1,2,[3]]}`,
	} {
		for j := range everyEndpoint {
			f.Add([]byte(body), i+j)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, endpoint int) {
		e := everyEndpoint[uint(endpoint)%uint(len(everyEndpoint))]
		runes, parts := 0, 0
		r := e.Read(body, func(p Part) bool {
			parts++
			runes += p.Runes()
			require.LessOrEqual(t, p.Runes(), p.Size())
			require.True(t, p.IDs > 0 || len(p.Value) > 0)
			return true
		})
		if !json.Valid(body) {
			return
		}
		require.LessOrEqual(t, runes, len(body), "no more text than there is")
		stopped := 0
		e.Read(body, func(Part) bool { stopped++; return false })
		require.LessOrEqual(t, stopped, 1)
		const most = 100
		lowered, ok := e.Lower(body, &r, most)
		if !ok {
			require.False(t, strings.HasPrefix(strings.TrimSpace(string(body)), "{") && len(e.api.output.within) == 0)
			return
		}
		require.True(t, json.Valid(lowered), "%s", lowered)
		again := e.Read(lowered, nil)
		if e.api == nil || len(e.api.output.names) == 0 || again.nLimits == len(again.limits) {
			return
		}
		require.NotZero(t, again.nLimits, "%s", lowered)
		limited := false
		for _, l := range again.limits[:again.nLimits] {
			n := number(lowered[l.start:l.end])
			require.LessOrEqual(t, n, int64(most), "%s", lowered)
			limited = limited || n > 0
		}
		require.True(t, limited, "%s", lowered)
		twice, _ := e.Lower(lowered, &again, most)
		require.Equal(t, string(lowered), string(twice), "once is enough")
	})
}

// Every path matches at most one operation and never causes a panic.
func FuzzRoute(f *testing.F) {
	for _, path := range []string{"/v1/chat/completions", "/openai/deployments/d/embeddings", "/model/a%2Fb/converse", "/models/:", "/model//", "/threads/", ""} {
		f.Add("POST", path, "stream=true")
	}
	f.Fuzz(func(t *testing.T, method, path, query string) {
		e := Of(method, path, query)
		require.Equal(t, e.Known(), e.Op() != "")
		require.Contains(t, path, e.Model())
		NameOf(path)
	})
}

func nested(n int) []byte {
	inner := strings.Repeat("x", 1<<20-9*n)
	return []byte(`{"model":"m","input":` + strings.Repeat(`{"data":`, n) + `"` + inner + `"` + strings.Repeat("}", n) + `}`)
}

// The time limit per byte is generous. Code that is not linear exceeds it by orders of magnitude.
func TestReadingNestedInputIsLinear(t *testing.T) {
	body := nested(10_000)
	for _, e := range everyEndpoint {
		t.Run(e.Op(), func(t *testing.T) {
			linear.Within(t, time.Second, func() { e.Read(body, func(Part) bool { return true }) })
		})
	}
}

func BenchmarkReadRequest(b *testing.B) {
	word := "All work and no play makes Jack a dull boy. "
	message := `{"role":"user","content":"` + strings.Repeat(word, 100) + `\nNext line."}`
	chat := `{"model":"gpt-4o","messages":[` + strings.Repeat(message+",", 1<<20/len(message)) + message + `],"max_tokens":100}`
	for name, bench := range map[string]struct {
		e    Endpoint
		body []byte
	}{
		"1 MiB of messages":        {post("/v1/chat/completions"), []byte(chat)},
		"1 MiB, one text":          {post("/v1/chat/completions"), []byte(`{"messages":[{"content":"` + strings.Repeat("x", 1<<20) + `"}]}`)},
		"1 MiB, Chinese":           {post("/v1/messages"), []byte(`{"messages":[{"content":"` + strings.Repeat("中", 1<<20/3) + `"}]}`)},
		"1 MiB nested 10,000 deep": {post("/v1/responses"), nested(10_000)},
		"20,000 characters":        {post("/v1/chat/completions"), []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 20_000) + `"}]}`)},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(bench.body)))
			b.ReportAllocs()
			for b.Loop() {
				n := 0
				bench.e.Read(bench.body, func(p Part) bool { n += p.Runes(); return true })
			}
		})
	}
}

func BenchmarkFollow(b *testing.B) {
	for path, event := range map[string]string{
		"/chat/completions": `{"id":"chatcmpl-9xKQm2wVbTz0","object":"chat.completion.chunk","created":1712345678,"model":"gpt-4o-mini-2024-07-18","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":" The answer"},"logprobs":null,"finish_reason":null}]}`,
		"/responses":        `{"type":"response.output_text.delta","sequence_number":12,"item_id":"msg_0123456789","output_index":0,"content_index":0,"delta":" The answer","logprobs":[]}`,
		"/messages":         `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" The answer"}}`,
	} {
		b.Run(path, func(b *testing.B) {
			s, data := post(path).Follow(), []byte(event)
			b.ReportAllocs()
			for b.Loop() {
				s.Event(nil, data)
			}
		})
	}
}

func BenchmarkJudge(b *testing.B) {
	body := []byte(`{"id":"chatcmpl-1","object":"chat.completion","created":1754000000,"model":"gpt-4o-mini-2024-07-18",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":"Paris is the capital of France.","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":50,"completion_tokens":7,"total_tokens":57},"system_fingerprint":"fp_1"}`)
	e := post("/v1/chat/completions")
	var s Stream
	b.ReportAllocs()
	for b.Loop() {
		if a := e.JudgeWith(&s, jsonscan.Read(body)); !a.OK {
			b.Fatal("no answer")
		}
	}
}
