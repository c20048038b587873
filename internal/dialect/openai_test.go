package dialect

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func post(path string) Endpoint { return Of("POST", path, "") }

func TestOpenAIEndpointIsKnownUnderAnyBaseURL(t *testing.T) {
	for path, want := range map[string]string{
		"/v1/chat/completions":                      "chat.completions",
		"/openai/deployments/gpt4/chat/completions": "chat.completions",
		"/api/paas/v4/chat/completions":             "chat.completions",
		"/v1beta/openai/chat/completions":           "chat.completions",
		"/v1/chat/completions/":                     "chat.completions",
		"/completions":                              "completions",
		"/v1/responses":                             "responses",
		"/v1/responses/resp_1/cancel":               "",
		"/v1/embeddings":                            "embeddings",
		"/v1/threads/thread_1/messages":             "",
		"/v1/threads/runs":                          "threads",
		"/v1/threads/t/runs/r/submit_tool_outputs":  "threads",
		"/v1/moderations":                           "moderations",
		"/v1/images/generations":                    "images",
		"/v1/images/edits":                          "images",
		"/v1/audio/transcriptions":                  "audio",
		"/v1/audio/speech":                          "audio",
		"/v1/files":                                 "",
		"/v1/async/chat/completions":                "",
		"/ml/v1/text/embeddings":                    "",
		"/v1/text/generations":                      "",
		"":                                          "",
	} {
		e := post(path)
		require.Equal(t, want, e.Op(), path)
		require.Equal(t, want != "", e.Known(), path)
		require.Equal(t, want != "" && want != "threads", e.Inference(), path)
		require.False(t, Of("GET", path, "").Known(), path)
	}
	require.Equal(t, "gpt4", post("/openai/deployments/gpt4/chat/completions").Model())
	require.Equal(t, "A", post("/base/deployments/A/embeddings").Model())
	e := Of("GET", "/v1/responses/resp_1", "stream=true&starting_after=3")
	require.Equal(t, "responses", e.Op())
	require.True(t, e.InPath().Stream)
	require.False(t, Of("GET", "/v1/responses/resp_1", "").Known(), "to read about a failure is no failure")
	require.False(t, Of("GET", "/v1/responses/resp_1/input_items", "stream=true").Known())
}

func TestErrorIsFoundInEveryForm(t *testing.T) {
	for body, want := range map[string]*Failure{
		`{"error":{"message":"m","type":"t","param":"p","code":"c"}}`:               {Code: "c", Type: "t", Message: "m", Param: "p"},
		`{"error":{"message":"m","code":null,"type":null}}`:                         {Message: "m"},
		`{"error":{"code":429}}`:                                                    {Code: "429", Number: true},
		`{"error":{"code":"429"}}`:                                                  {Code: "429"},
		`{"error":{"code":"content_filter","innererror":{"code":"Policy","x":{}}}}`: {Code: "content_filter", InnerCode: "Policy"},
		`{"error":"text"}`:                                                          {Message: "text"},
		`{"type":"error","code":"c","message":"m"}`:                                 {Code: "c", Message: "m"},
		`{"type":"error","error":{"type":"overloaded_error","message":"m"}}`:        {Type: "overloaded_error", Message: "m"},
		`{"object":"error","message":"m","code":400}`:                               {Code: "400", Message: "m", Number: true},
		`[{"error":{"code":503}}]`:                                                  {Code: "503", Number: true},
		`{"base_resp":{"status_code":1008,"status_msg":"m"}}`:                       {Code: "1008", Message: "m", Number: true},
		`{"base_resp":{"status_code":0,"status_msg":"success"}}`:                    nil,
		`{"error":null}`:  nil,
		`{"error":{}}`:    nil,
		`{"error":""}`:    nil,
		`{"error":false}`: nil,
		`{"error":{"message":"","type":"","code":null}}`: nil,
		`{"choices":[{"error":{}}]}`:                     nil,
		`{"detail":"not found"}`:                         nil,
		`[]`:                                             nil,
		`null`:                                           nil,
	} {
		f, ok := ErrorIn([]byte(body))
		if require.Equal(t, want != nil, ok, body); ok {
			require.Equal(t, *want, f, body)
		}
	}
}

func TestOpenAIAnswersAreRecognized(t *testing.T) {
	const stop = `"finish_reason":"stop"`
	for _, tc := range []struct {
		path, body        string
		failed, ok, whole bool
	}{
		{"/chat/completions", `{"choices":[{}]}`, false, true, true},
		{"/chat/completions", `{"choices":[{"finish_reason":null}]}`, false, true, false},
		{"/chat/completions", `{"choices":[{` + stop + `}]}`, false, true, true},
		{"/chat/completions", `{"choices":[{` + stop + `}],"error":null}`, false, true, true},
		{"/chat/completions", `{"choices":[{` + stop + `}],"error":{"message":"","type":"","code":null}}`, false, true, true},
		{"/chat/completions", `{"choices":[{` + stop + `}],"error":{}}`, false, true, true},
		{"/chat/completions", `{"choices":[{` + stop + `}],"error":""}`, false, true, true},
		{"/chat/completions", `{"choices":[{` + stop + `}],"error":false}`, false, true, true},
		{"/chat/completions", `{"choices":[{` + stop + `}],"base_resp":{"status_code":0}}`, false, true, true},
		{"/chat/completions", `{"choices":null,"base_resp":{"status_code":1008}}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"length"}]}`, false, true, true},
		{"/chat/completions", `{"choices":[{"finish_reason":"content_filter"}]}`, false, true, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"error"}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"abort"}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"network_error"}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"engine_overloaded"}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"insufficient_system_resource"}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"error_finish"}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"finish_reason":"of_tomorrow"}]}`, false, true, true},
		{"/chat/completions", `{"choices":[{"error":{"code":502,"message":"m"},` + stop + `}]}`, true, false, false},
		{"/chat/completions", `{"choices":[{"error":{},` + stop + `}]}`, false, true, true},
		{"/chat/completions", `{"choices":[]}`, false, false, false},
		{"/chat/completions", `{"choices":{}}`, false, false, false},
		{"/chat/completions", `{}`, false, false, false},
		{"/chat/completions", `[]`, false, false, false},
		{"/chat/completions", `{"usage":{"choices":[{}]}}`, false, false, false},
		{"/chat/completions", `{"choices" : [ ] }`, false, false, false},
		{"/chat/completions", `{"choices":[{}],"error":{"code":"x"}}`, true, false, false},
		{"/embeddings", `{"data":[{}]}`, false, true, true},
		{"/embeddings", `{"data":[]}`, false, false, false},
		{"/moderations", `{"results":[{}]}`, false, true, true},
		{"/images/generations", `{"created":1,"data":[{}]}`, false, true, true},
		{"/images/generations", `{"created":1,"data":[]}`, false, true, true},
		{"/images/generations", `{}`, false, false, false},
		{"/audio/speech", `{"error":{"message":"x"}}`, true, false, false},
		{"/audio/transcriptions", `{"text":""}`, false, true, true},
		{"/audio/transcriptions", `{}`, false, false, false},
		{"/responses", `{"id":"r","status":"completed","error":null,"output":[]}`, false, true, true},
		{"/responses", `{"id":"r","status":"incomplete","output":[],"incomplete_details":{"reason":"max_output_tokens"}}`, false, true, true},
		{"/responses", `{"id":"r","status":"incomplete","output":[],"incomplete_details":{"reason":"content_filter"}}`, false, true, false},
		{"/responses", `{"id":"r","status":"cancelled","output":[]}`, false, true, false},
		{"/responses", `{"id":"r","status":"in_progress","output":[]}`, false, true, false},
		{"/responses", `{"id":"r","status":"failed"}`, true, false, false},
		{"/responses", `{"id":"r","status":"failed","error":{"code":"x"}}`, true, false, false},
		{"/responses", `{"hello":1}`, false, false, false},
		{"/completions", `{"index":0,"content":"Hi","stop":true}`, false, true, false},
		{"/completions", `{"hello":1}`, false, false, false},
		{"/completions", `{"content":"Hi","error":{"code":"x"}}`, true, false, false},
		{"/embeddings", `[{"index":0,"embedding":[[1,2]]}]`, false, true, false},
		{"/embeddings", `[{"error":{"code":"x"}}]`, false, false, false},
		{"/embeddings", `[1,2]`, false, false, false},
		{"/anything", `{"error":{"code":"x"}}`, false, true, false},
		{"/anything", `[1]`, false, true, false},
	} {
		a := post(tc.path).Judge([]byte(tc.body))
		require.Equal(t, tc.failed, a.Failed, "%s %s", tc.path, tc.body)
		require.Equal(t, tc.ok, a.OK, "%s %s", tc.path, tc.body)
		require.Equal(t, tc.whole, a.Whole, "%s %s", tc.path, tc.body)
	}
	for body, failed := range map[string]bool{
		`{"object":"fine_tuning.job","error":{"code":"x"}}`: false,
		`{"error":{"code":"x"}}`:                            true,
		`{"object":"error","error":{"code":"x"}}`:           true,
		`{"data":[]}`: false,
		`[1]`:         false,
	} {
		a := Object().Judge([]byte(body))
		require.Equal(t, failed, a.Failed, body)
		require.Equal(t, !failed, a.OK, body)
	}
}

func TestOpenAIRequestIsRead(t *testing.T) {
	r := post("/chat/completions").Read([]byte(`{"model":"m","messages":[{"stream":false}],"stream":true,"store":false}`), nil)
	require.Equal(t, "m", r.Model)
	require.True(t, r.Stream)
	require.False(t, r.Creates)
	for _, creates := range []string{`{"store":true}`, `{"background":true}`, `{"conversation":"c"}`, `{"conversation":{"id":"c"}}`} {
		require.True(t, post("/responses").Read([]byte(creates), nil).Creates, creates)
	}
	require.False(t, post("/responses").Read([]byte(`{"conversation":null,"store":null}`), nil).Creates)
	r = post("/chat/completions").Read([]byte(`{"deferred":true}`), nil)
	require.True(t, r.Later && r.Creates)
}

// events is a stream of events. An event that begins with "name: " has that name.
type events []string

// follow returns the Stream after the events. It fails the test if an event is an error.
func follow(t *testing.T, e Endpoint, evs events) Stream {
	t.Helper()
	s := e.Follow()
	for _, ev := range evs {
		if ev == "[DONE]" {
			s.Done()
			continue
		}
		_, failed := s.Event(nil, []byte(ev))
		require.False(t, failed, ev)
	}
	return s
}

func chunk(index, reason string) string {
	return `{"choices":[{"index":` + index + `,"finish_reason":` + reason + `}]}`
}

func TestOpenAIStreamKnowsItsEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		path            string
		events          events
		complete, clean bool // after a cut, and after a clean end of the body
	}{
		"nothing":               {"/chat/completions", nil, false, false},
		"unfinished":            {"/chat/completions", events{chunk("0", "null")}, false, false},
		"finished":              {"/chat/completions", events{chunk("0", "null"), chunk("0", `"stop"`)}, true, true},
		"a null in quotes":      {"/chat/completions", events{chunk("0", `"null"`)}, false, false},
		"empty reason":          {"/chat/completions", events{chunk("0", `""`)}, false, false},
		"one of two":            {"/completions", events{chunk("0", "null"), chunk("1", "null"), chunk("1", `"stop"`)}, false, false},
		"both":                  {"/chat/completions", events{chunk("0", "null"), chunk("1", `"stop"`), chunk("0", `"length"`)}, true, true},
		"high index":            {"/chat/completions", events{chunk("99", "null"), chunk("99", `"stop"`)}, true, true},
		"beyond":                {"/chat/completions", events{chunk("500", `"stop"`), chunk("0", `"stop"`)}, false, false},
		"usage only":            {"/chat/completions", events{`{"choices":[],"usage":{}}`}, false, false},
		"done without a finish": {"/chat/completions", events{chunk("0", "null"), "[DONE]"}, true, true},
		"done without a choice": {"/chat/completions", events{`{"choices":[]}`, "[DONE]"}, false, false},
		"another API's":         {"/completions", events{`{"value":"x"}`, `{"value":"y"}`}, false, true},
		"responses":             {"/responses", events{`{"type":"response.created"}`}, false, false},
		"responses, [DONE]":     {"/responses", events{`{"type":"response.created"}`, "[DONE]"}, false, false},
		"responses completed":   {"/responses", events{`{"type":"response.completed","response":{"id":"r"}}`}, true, true},
		"responses incomplete":  {"/responses", events{`{"type":"response.incomplete"}`}, true, true},
		"image":                 {"/images/generations", events{`{"type":"image_generation.partial_image","b64_json":"x"}`}, false, false},
		"image completed":       {"/images/edits", events{`{"type":"image_edit.completed","b64_json":"x"}`}, true, true},
		"transcript":            {"/audio/transcriptions", events{`{"type":"transcript.text.delta","delta":"x"}`}, false, false},
		"transcript done":       {"/audio/transcriptions", events{`{"type":"transcript.text.done","text":"x"}`}, true, true},
		"speech done":           {"/audio/speech", events{`{"type":"speech.audio.delta","audio":"x"}`, `{"type":"speech.audio.done"}`}, true, true},
		"run":                   {"/threads/runs", events{`{"object":"thread.run"}`}, false, false},
		"run done":              {"/threads/runs", events{`{"object":"thread.run"}`, "[DONE]"}, true, true},
		"unknown":               {"/anything", events{`{"anything":1}`}, false, true},
	} {
		s := follow(t, post(tc.path), tc.events)
		require.Equal(t, tc.complete, s.Complete(false, false), name)
		require.Equal(t, tc.clean, s.Complete(true, false), name)
	}
	s := follow(t, post("/chat/completions"), events{chunk("0", "null")})
	require.True(t, s.Complete(true, true), "a model that is excused from the finish reason")
	require.False(t, s.Complete(false, true), "but not from a clean end")
}

func TestOpenAIStreamKnowsItsFailures(t *testing.T) {
	for event, want := range map[string]Failure{
		`{"type":"response.failed","response":{"error":{"code":"server_error"}}}`:                         {Code: "server_error"},
		`{"type":"response.failed","response":{"status":"failed"}}`:                                       {},
		`{"type":"response.cancelled","response":{"status":"cancelled"}}`:                                 {},
		`{"type":"response.failed","response":{"error":{"code":"insufficient_quota"},"status":"failed"}}`: {Code: "insufficient_quota"},
	} {
		s := follow(t, post("/responses"), events{event})
		f, failed := s.Failed()
		require.True(t, failed, "it is an event of the API")
		require.True(t, s.Terminal())
		require.False(t, s.Complete(true, true))
		require.Equal(t, want, f, event)
	}
	s := follow(t, post("/chat/completions"), events{chunk("0", `"engine_overloaded"`)})
	f, failed := s.Failed()
	require.True(t, failed)
	require.Equal(t, Unavailable, Classify(0, f))

	s = follow(t, post("/chat/completions"), events{`{"choices":[{"index":0,"delta":{"content":"Hi"}}],"x_groq":{"id":"r","error":null}}`})
	_, failed = s.Failed()
	require.False(t, failed)
	s = follow(t, post("/chat/completions"), events{`{"choices":[{"index":0,"delta":{}}],"x_groq":{"id":"r","error":"over capacity"}}`})
	f, failed = s.Failed()
	require.True(t, failed, "Groq says so beside the choices")
	require.Equal(t, "over capacity", f.Message)
}

func TestEmptyEventsAreNoProgress(t *testing.T) {
	for _, tc := range []struct {
		path, event string
		progress    bool
	}{
		{"/chat/completions", `{}`, false},
		{"/chat/completions", `{"type":"ping"}`, false},
		{"/chat/completions", `{"choices":[]}`, false},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{}}]}`, false},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"content":""}}]}`, false},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"content":null,"tool_calls":[]}}]}`, false},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`, false},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"content":"x"}}]}`, true},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"reasoning_content":"x"}}]}`, true},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c"}]}}]}`, true},
		{"/chat/completions", `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`, true},
		{"/completions", `{"choices":[{"text":""}]}`, false},
		{"/completions", `{"choices":[{"text":"x"}]}`, true},
		{"/responses", `{"type":"keepalive"}`, false},
		{"/responses", `{}`, false},
		{"/responses", `{"type":"response.created","response":{}}`, false},
		{"/responses", `{"type":"response.in_progress","response":{}}`, false},
		{"/responses", `{"type":"response.output_text.delta","delta":""}`, false},
		{"/responses", `{"type":"response.output_text.delta","sequence_number":7,"delta":"","obfuscation":"abc"}`, false},
		{"/responses", `{"type":"response.mcp_call_arguments.delta","sequence_number":7,"delta":{"a":1}}`, true},
		{"/responses", `{"type":"response.output_text.delta","delta":"x"}`, true},
		{"/responses", `{"type":"response.web_search_call.searching"}`, true},
		{"/images/generations", `{"type":"keepalive"}`, false},
	} {
		s := follow(t, post(tc.path), events{tc.event})
		require.Equal(t, tc.progress, s.Progress(), "%s %s", tc.path, tc.event)
	}
}

func TestResponsesStreamThinksWhileAReasoningItemIsOpen(t *testing.T) {
	s := follow(t, post("/responses"), events{`{"type":"response.output_item.added","item":{"type":"reasoning"}}`})
	require.True(t, s.Thinking())
	s.Event(nil, []byte(`{"type":"keepalive"}`))
	require.True(t, s.Thinking())
	s.Event(nil, []byte(`{"type":"response.output_item.done","item":{"type":"reasoning"}}`))
	require.False(t, s.Thinking())
	s.Event(nil, []byte(`{"type":"response.output_item.added","item":{"type":"message"}}`))
	require.False(t, s.Thinking())
}

func TestStreamKnowsWhichValuesAreFree(t *testing.T) {
	for _, tc := range []struct {
		path, event string
		free        []string
	}{
		{"/chat/completions", `{"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi \"you\""},"finish_reason":null}],"usage":null}`, []string{`"Hi \"you\""`}},
		{"/chat/completions", ` { "choices" : [ { "delta" : { "content" : "x" } } ] , "obfuscation" : "y" } `, []string{`"x"`, `"y"`}},
		{"/chat/completions", `{"choices":[{"delta":{"content":"one"}},{"delta":{"content":"two"}}],"obfuscation":"x"}`, []string{`"one"`, `"two"`, `"x"`}},
		{"/chat/completions", `{"choices":[{"delta":{"reasoning_content":"hm"}}]}`, []string{`"hm"`}},
		{"/chat/completions", `{"id":"c1","created":7,"choices":[{"delta":{"content":"x"}}]}`, []string{`"c1"`, "7", `"x"`}},
		{"/completions", `{"choices":[{"text":" word","index":0}]}`, []string{`" word"`}},
		{"/chat/completions", `{"choices":[{"delta":{"content":null}}]}`, nil},
		{"/chat/completions", `{"choices":[{"delta":{"content":["x"]}}]}`, nil},
		{"/chat/completions", `{"choices":[{"delta":"content","finish_reason":"stop"}]}`, nil},
		{"/chat/completions", `{"delta":{"content":"x"},"text":"x"}`, nil},
		{"/chat/completions", `{"choices":[{"delta":{"content":`, nil},
		{"/responses", `{"type":"response.output_text.delta","sequence_number":12,"delta":"x","obfuscation":"abc"}`, []string{"12", `"x"`, `"abc"`}},
		{"/messages", `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}`, []string{`"x"`}},
	} {
		s := post(tc.path).Follow()
		s.Event(nil, []byte(`{"choices":[{"delta":{"content":"the one before"}}]}`))
		s.Event(nil, []byte(tc.event))
		var free []string
		for _, span := range s.Free() {
			free = append(free, tc.event[span.Start:span.End])
		}
		require.Equal(t, tc.free, free, tc.event)
	}
}

func TestFollowingAStreamAllocatesNothing(t *testing.T) {
	for path, event := range map[string]string{
		"/chat/completions": `{"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}`,
		"/responses":        `{"type":"response.output_text.delta","sequence_number":1,"item_id":"m","delta":"Hello"}`,
		"/messages":         `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}`,
		"/api/chat":         `{"model":"m","created_at":"t","message":{"role":"assistant","content":"Hello"},"done":false}`,
		"/v2/chat":          `{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hello"}}}}`,
		"/v1beta/models/gemini:streamGenerateContent": `{"candidates":[{"content":{"parts":[{"text":"Hello"}],"role":"model"},"index":0}]}`,
	} {
		s, data := post(path).Follow(), []byte(event)
		require.Zero(t, testing.AllocsPerRun(100, func() { s.Event(nil, data) }), path)
		require.True(t, s.Progress(), path)
	}
}
