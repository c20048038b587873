package answer

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

func TestEndpointIsKnownUnderAnyBaseURL(t *testing.T) {
	for path, want := range map[string]Endpoint{
		"/v1/chat/completions":                      Chat,
		"/openai/deployments/gpt4/chat/completions": Chat,
		"/v1/chat/completions/":                     Chat,
		"/completions":                              Completions,
		"/v1/responses":                             Responses,
		"/v1/responses/resp_1/cancel":               Other,
		"/v1/embeddings":                            Embeddings,
		"/v1/messages":                              Messages,
		"/v1/threads/thread_1/messages":             Other,
		"/v1/threads/runs":                          Other,
		"/v1/moderations":                           Moderations,
		"/v1/images/generations":                    Images,
		"/v1/audio/transcriptions":                  Audio,
		"/v1/files":                                 Other,
		"":                                          Other,
	} {
		require.Equal(t, want, EndpointOf(path), path)
		require.Equal(t, want != Other, EndpointOf(path).Inference(), path)
		require.Equal(t, want == Other, EndpointOf(path).Op() == "", path)
	}
}

func TestErrorIsFoundInEveryForm(t *testing.T) {
	for body, want := range map[string]*Failure{
		`{"error":{"message":"m","type":"t","param":"p","code":"c"}}`:               {Code: "c", Type: "t", Message: "m", Param: "p"},
		`{"error":{"message":"m","code":null,"type":null}}`:                         {Message: "m"},
		`{"error":{"code":429}}`:                                                    {Code: "429"},
		`{"error":{"code":"content_filter","innererror":{"code":"Policy","x":{}}}}`: {Code: "content_filter", InnerCode: "Policy"},
		`{"error":"text"}`:                                                   {Message: "text"},
		`{"type":"error","code":"c","message":"m"}`:                          {Code: "c", Message: "m"},
		`{"type":"error","error":{"type":"overloaded_error","message":"m"}}`: {Type: "overloaded_error", Message: "m"},
		`{"object":"error","message":"m","code":400}`:                        {Code: "400", Message: "m"},
		`[{"error":{"code":503}}]`:                                           {Code: "503"},
		`{"error":null}`:                                                     nil,
		`{"choices":[{"error":{}}]}`:                                         nil,
		`{"detail":"not found"}`:                                             nil,
		`[]`:                                                                 nil,
		`null`:                                                               nil,
	} {
		f, ok := ErrorIn([]byte(body))
		if require.Equal(t, want != nil, ok, body); ok {
			require.Equal(t, *want, f, body)
		}
	}
}

func TestAnswerIsToldFromNoAnswer(t *testing.T) {
	for _, tc := range []struct {
		endpoint   Endpoint
		body       string
		failed, ok bool
	}{
		{Chat, `{"choices":[{}]}`, false, true},
		{Chat, `{"choices":[{}],"error":null}`, false, true},
		{Chat, `{"choices":[]}`, false, false},
		{Chat, `{"choices":{}}`, false, false},
		{Chat, `{}`, false, false},
		{Chat, `[]`, false, false},
		{Chat, `[{"choices":[{}]}]`, false, false},
		{Chat, `{"choices":[],"choices":[{}]}`, false, false},
		{Chat, `{"usage":{"choices":[{}]}}`, false, false},
		{Chat, `{"choices" : [ ] }`, false, false},
		{Chat, `{"choices":[{}],"error":{"code":"x"}}`, true, false},
		{Embeddings, `{"data":[{}]}`, false, true},
		{Embeddings, `{"data":[]}`, false, false},
		{Moderations, `{"results":[{}]}`, false, true},
		{Messages, `{"type":"message","content":[]}`, false, true},
		{Messages, `{"type":"error","error":{"type":"api_error"}}`, true, false},
		{Images, `{"created":1,"data":[]}`, false, true},
		{Responses, `{"id":"r","status":"completed","error":null,"output":[]}`, false, true},
		{Responses, `{"id":"r","status":"failed"}`, true, false},
		{Responses, `{"id":"r","status":"failed","error":{"code":"x"}}`, true, false},
		{Responses, `{"hello":1}`, false, false},
		{Other, `{"object":"fine_tuning.job","error":{"code":"x"}}`, false, true},
		{Other, `{"error":{"code":"x"}}`, true, false},
		{Other, `{"object":"error","error":{"code":"x"}}`, true, false},
		{Other, `[1]`, false, true},
	} {
		_, failed, ok := Judge(tc.endpoint, []byte(tc.body))
		require.Equal(t, tc.failed, failed, tc.body)
		require.Equal(t, tc.ok, ok, tc.body)
	}
}

func TestUsageIsReadInEveryAPIsWords(t *testing.T) {
	for _, body := range []string{
		`{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}`,
		`{"usage":{"input_tokens":3,"output_tokens":4}}`,
		`{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":4}}}`,
	} {
		in, out := Usage([]byte(body))
		require.EqualValues(t, 3, in)
		require.EqualValues(t, 4, out)
	}
	in, out := Usage([]byte(`{"usage":null}`))
	require.Zero(t, in+out)
}

func TestRequestIsRead(t *testing.T) {
	require.Equal(t, Request{Model: "m", Stream: true, Transient: true}, ReadRequest([]byte(`{"model":"m","messages":[{"stream":false}],"stream":true,"store":false}`)))
	for _, creates := range []string{`{"store":true}`, `{"background":true}`, `{"conversation":"c"}`, `{"conversation":{"id":"c"}}`} {
		require.True(t, ReadRequest([]byte(creates)).Creates, creates)
	}
	require.Zero(t, ReadRequest([]byte(`{"conversation":null,"store":null}`)))
}

func TestProgressKnowsTheEnd(t *testing.T) {
	chunk := func(index, reason string) string {
		return `{"choices":[{"index":` + index + `,"finish_reason":` + reason + `}]}`
	}
	for _, tc := range []struct {
		name     string
		endpoint Endpoint
		events   []string
		complete bool
	}{
		{"nothing", Chat, nil, false},
		{"unfinished", Chat, []string{chunk("0", "null")}, false},
		{"finished", Chat, []string{chunk("0", "null"), chunk("0", `"stop"`)}, true},
		{"empty reason", Chat, []string{chunk("0", `""`)}, false},
		{"one of two", Completions, []string{chunk("0", "null"), chunk("1", "null"), chunk("1", `"stop"`)}, false},
		{"both", Chat, []string{chunk("0", "null"), chunk("1", `"stop"`), chunk("0", `"length"`)}, true},
		{"high index", Chat, []string{chunk("99", "null"), chunk("99", `"stop"`)}, true},
		{"beyond", Chat, []string{chunk("500", `"stop"`), chunk("0", `"stop"`)}, false},
		{"usage only", Chat, []string{`{"choices":[],"usage":{}}`}, false},
		{"responses", Responses, []string{`{"type":"response.created"}`}, false},
		{"responses completed", Responses, []string{`{"type":"response.completed"}`}, true},
		{"responses incomplete", Responses, []string{`{"type":"response.incomplete"}`}, true},
		{"messages", Messages, []string{`{"type":"message_delta","delta":{"stop_reason":"end_turn"}}`}, false},
		{"messages stop", Messages, []string{`{"type":"message_stop"}`}, true},
		{"unknown", Other, []string{`{"anything":1}`}, true},
	} {
		p := Progress{Endpoint: tc.endpoint}
		for _, ev := range tc.events {
			_, failed := p.Event(nil, []byte(ev))
			require.False(t, failed, tc.name)
		}
		require.Equal(t, tc.complete, p.Complete(), tc.name)
		p.Done()
		require.True(t, p.Complete(), tc.name)
		require.True(t, p.Terminal(), tc.name)
	}
	p := Progress{Endpoint: Responses}
	_, failed := p.Event(nil, []byte(`{"type":"response.failed","response":{"error":{"code":"server_error"}}}`))
	require.False(t, failed, "it is an event of the API")
	require.Equal(t, &Failure{Code: "server_error"}, p.Failed())
}

func TestProgressKnowsWhichStringsAreFree(t *testing.T) {
	for _, tc := range []struct {
		endpoint Endpoint
		event    string
		free     []string
	}{
		{Chat, `{"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi \"you\""},"finish_reason":null}],"usage":null}`, []string{`"Hi \"you\""`}},
		{Chat, ` { "choices" : [ { "delta" : { "content" : "" } } ] , "obfuscation" : "x" } `, []string{`""`, `"x"`}},
		{Chat, `{"choices":[{"delta":{"content":"one"}},{"delta":{"content":"two"}}],"obfuscation":"x"}`, []string{`"one"`, `"two"`}},
		{Chat, `{"choices":[{"delta":{"reasoning_content":"hm"}}]}`, []string{`"hm"`}},
		{Completions, `{"choices":[{"text":" word","index":0}]}`, []string{`" word"`}},
		{Chat, `{"choices":[{"delta":{"content":null}}],"obfuscation":1}`, nil},
		{Chat, `{"choices":[{"delta":{"content":["x"]}}]}`, nil},
		{Chat, `{"choices":[{"delta":"content","finish_reason":"stop"}]}`, nil},
		{Chat, `{"delta":{"content":"x"},"text":"x"}`, nil},
		{Chat, `{"choices":[{"delta":{"content":`, nil},
		{Responses, `{"type":"response.output_text.delta","delta":"x"}`, nil},
	} {
		p := Progress{Endpoint: tc.endpoint}
		p.Event(nil, []byte(`{"choices":[{"delta":{"content":"the one before"}}]}`))
		p.Event(nil, []byte(tc.event))
		var free []string
		for _, s := range p.Free() {
			free = append(free, tc.event[s.Start:s.End])
		}
		require.Equal(t, tc.free, free, tc.event)
	}
}

func TestProgressAllocatesNothing(t *testing.T) {
	p := Progress{Endpoint: Chat}
	ev := []byte(`{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}`)
	require.Zero(t, testing.AllocsPerRun(100, func() { p.Event(nil, ev) }))
}

// Whatever JSON comes, reading it neither panics nor allocates without bound.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"choices":[{"index":0,"finish_reason":"stop"}],"error":{"code":1,"innererror":{}},"usage":{"prompt_tokens":1}}`), 1)
	f.Add([]byte(`[[{"error":"x"}]]`), 0)
	f.Fuzz(func(t *testing.T, body []byte, endpoint int) {
		e := Endpoint(uint(endpoint) % uint(Audio+1))
		broken := Progress{Endpoint: e}
		broken.Event([]byte("error"), body) // whatever it is
		if _, err := jsonscan.Check(body, jsonscan.Limits{Containers: 1000, Depth: 50}); err != nil {
			return
		}
		f, ok := ErrorIn(body)
		require.LessOrEqual(t, max(len(f.Message), len(f.Code), len(f.Type)), maxMessage)
		require.True(t, ok || f == Failure{})
		_, failed, good := Judge(e, body)
		require.False(t, failed && good)
		ReadRequest(body)
		Usage(body)
		p := Progress{Endpoint: e}
		p.Event(nil, body)
		p.Complete()
		for _, free := range p.Free() {
			_, ok := jsonscan.Text(body[free.Start:free.End])
			require.True(t, ok)
			again := p
			again.Event(nil, slices.Concat(body[:free.Start], []byte(`"other"`), body[free.End:]))
			again.free = p.free
			require.Equal(t, p, again, "whatever the text says")
		}
	})
}

func BenchmarkProgress(b *testing.B) {
	p := Progress{Endpoint: Chat}
	ev := []byte(`{"id":"chatcmpl-9xKQm2wVbTz0","object":"chat.completion.chunk","created":1712345678,"model":"gpt-4o-mini-2024-07-18","system_fingerprint":"fp_0123456789","choices":[{"index":0,"delta":{"content":" The answer"},"logprobs":null,"finish_reason":null}]}`)
	b.ReportAllocs()
	for b.Loop() {
		p.Event(nil, ev)
	}
}

func BenchmarkJudge(b *testing.B) {
	body := []byte(`{"id":"chatcmpl-1","object":"chat.completion","created":1754000000,"model":"gpt-4o-mini-2024-07-18",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":"Paris is the capital of France.","refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":50,"completion_tokens":7,"total_tokens":57},"system_fingerprint":"fp_1"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, failed, ok := Judge(Chat, body); failed || !ok {
			b.Fatal("no answer")
		}
	}
}
