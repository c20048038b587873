package aiguard_test

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// wire is one exchange through Guard.Transport, as an SDK would have it.
type wire struct {
	method  string // POST
	path    string // behind the host; query and all
	body    string
	header  []string // name, value, …
	unread  bool     // the body cannot be read twice
	reply   aiguardtest.Reply
	config  aiguard.Config
	kind    aiguard.Kind // of the failure; "": none
	phase   string
	want    string // of the body, before the failure if there is one; "*": anything
	sent    int    // requests; 0: one
	media   string
	usage   *aiguard.Usage
	waits   time.Duration // how long all of it takes; 0: not looked at
	handed  bool          // the failure comes from the body, not from RoundTrip
	retries bool          // it may be tried again
}

func (x wire) run(t *testing.T) {
	t.Helper()
	rec := &recorder{}
	cfg := x.config
	cfg.OnEvent = rec.OnEvent
	if !x.retries && cfg.Retry.MaxAttempts == 0 {
		cfg.Retry.BaseDelay = time.Millisecond
	}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(x.reply)
		base := srv.Transport()
		defer base.CloseIdleConnections()
		method := x.method
		if method == "" {
			method = http.MethodPost
		}
		var body io.Reader
		if x.body != "" {
			body = strings.NewReader(x.body)
			if x.unread {
				body = io.MultiReader(body)
			}
		}
		host, _ := strings.CutSuffix(srv.URL, "/v1")
		req, err := http.NewRequestWithContext(t.Context(), method, host+x.path, body)
		require.NoError(t, err)
		if x.unread {
			req.ContentLength = int64(len(x.body))
		}
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(x.header); i += 2 {
			req.Header.Set(x.header[i], x.header[i+1])
		}
		start := time.Now()
		resp, err := c.Guard().Transport(base).RoundTrip(req)
		got := []byte(nil)
		if x.handed {
			require.NoError(t, err, "it is handed over")
		}
		if err == nil {
			got, err = io.ReadAll(resp.Body)
			require.NoError(t, resp.Body.Close())
			if x.media != "" {
				require.Equal(t, x.media, resp.Header.Get("Content-Type"))
			}
		}
		if x.waits != 0 {
			took(t, start, x.waits)
		}
		if x.kind == "" {
			require.NoError(t, err)
		} else {
			e := facts(t, err, x.kind)
			require.Equal(t, x.phase, e.Phase)
		}
		if x.want != "*" {
			require.Equal(t, x.want, string(got))
		}
		require.Equal(t, max(x.sent, 1), srv.Count(), "requests")
		if x.usage != nil {
			require.Equal(t, *x.usage, rec.all(aiguard.EventDone)[0].Usage)
		}
	})
}

const sseType = "text/event-stream"

// lines is a stream of server-sent events.
func lines(events ...string) string {
	var b strings.Builder
	for _, ev := range events {
		b.WriteString("data: " + ev + "\n\n")
	}
	return b.String()
}

var (
	goodChat   = lines(hello, finished, "[DONE]")
	goodAnswer = `{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}`
)

const askChat = `{"model":"m","messages":[{"role":"user","content":"Hi"}]}`
const askStream = `{"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]}`

func TestWhatWasAskedForIsAHint(t *testing.T) {
	for name, x := range map[string]wire{
		"stream, body unreadable, Accept JSON": {path: "/v1/chat/completions", body: askStream, unread: true,
			header: []string{"Accept", "application/json"}, reply: aiguardtest.Raw(200, sseType, goodChat), want: goodChat},
		"stream, body unreadable, Accept anything": {path: "/v1/chat/completions", body: askStream, unread: true,
			header: []string{"Accept", "*/*"}, reply: aiguardtest.Raw(200, sseType, goodChat), want: goodChat},
		"stream, long body unreadable": {path: "/v1/chat/completions", body: `{"stream":true,"x":"` + strings.Repeat("x", 1<<20) + `"}`, unread: true,
			header: []string{"Accept", "application/json"}, reply: aiguardtest.Raw(200, sseType, goodChat), want: goodChat},
		"event stream of weight 0": {path: "/v1/chat/completions", body: askChat,
			header: []string{"Accept", "application/json;q=1, text/event-stream;q=0"}, reply: aiguardtest.JSON(200, goodAnswer), want: goodAnswer},
		"either, JSON comes": {path: "/v1/chat/completions", body: askChat,
			header: []string{"Accept", "application/json, text/event-stream"}, reply: aiguardtest.JSON(200, goodAnswer), want: goodAnswer},
		"either, a stream comes": {path: "/v1/chat/completions", body: askChat,
			header: []string{"Accept", "application/json, text/event-stream"}, reply: aiguardtest.Raw(200, sseType, goodChat), want: goodChat},
		"stream asked, JSON comes": {path: "/v1/chat/completions", body: askStream, reply: aiguardtest.JSON(200, goodAnswer), want: goodAnswer},
		"JSON asked, stream comes": {path: "/v1/chat/completions", body: askChat, reply: aiguardtest.Raw(200, sseType, goodChat), want: goodChat},
		"an error in JSON where a stream was asked for": {path: "/v1/chat/completions", body: askStream,
			reply: aiguardtest.JSON(200, `{"error":{"message":"x","code":"insufficient_quota"}}`), kind: aiguard.ErrQuota},
		"JSON that is no answer where a stream was asked for": {path: "/v1/chat/completions", body: askStream,
			reply: aiguardtest.JSON(200, `{"hello":"world"}`), kind: aiguard.ErrInvalidResponse, sent: 3},
		"a cut stream where JSON was asked for": {path: "/v1/chat/completions", body: askChat,
			reply: aiguardtest.Raw(200, sseType, lines(hello)), kind: aiguard.ErrTruncated, want: lines(hello), handed: true},
		"stored response, taken up again": {method: "GET", path: "/v1/responses/resp_1?stream=true&starting_after=1",
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"response.output_text.delta","delta":"x"}`, `{"type":"response.completed","response":{"id":"r"}}`)),
			want:  lines(`{"type":"response.output_text.delta","delta":"x"}`, `{"type":"response.completed","response":{"id":"r"}}`)},
		"stored response, cut": {method: "GET", path: "/v1/responses/resp_1?stream=true&starting_after=1",
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"response.output_text.delta","delta":"x"}`)), kind: aiguard.ErrTruncated, want: "*", handed: true},
		"multipart image edit, streamed": {path: "/v1/images/edits", body: "--x--", header: []string{"Content-Type", "multipart/form-data; boundary=x"},
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"image_edit.partial_image","b64_json":"x"}`, `{"type":"image_edit.completed","b64_json":"x"}`)),
			want:  lines(`{"type":"image_edit.partial_image","b64_json":"x"}`, `{"type":"image_edit.completed","b64_json":"x"}`)},
		"multipart image edit, cut": {path: "/v1/images/edits", body: "--x--", header: []string{"Content-Type", "multipart/form-data; boundary=x"},
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"image_edit.partial_image","b64_json":"x"}`)), kind: aiguard.ErrTruncated, want: "*", handed: true},
		"multipart transcription, streamed": {path: "/v1/audio/transcriptions", body: "--x--", header: []string{"Content-Type", "multipart/form-data; boundary=x", "Accept", "application/json"},
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"transcript.text.delta","delta":"x"}`, `{"type":"transcript.text.done","text":"x"}`)),
			want:  lines(`{"type":"transcript.text.delta","delta":"x"}`, `{"type":"transcript.text.done","text":"x"}`)},
		"multipart transcription, cut": {path: "/v1/audio/transcriptions", body: "--x--", header: []string{"Content-Type", "multipart/form-data; boundary=x"},
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"transcript.text.delta","delta":"x"}`)), kind: aiguard.ErrTruncated, want: "*", handed: true},
		"speech, streamed and cut": {path: "/v1/audio/speech", body: `{"input":"x","stream_format":"sse"}`,
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"speech.audio.delta","audio":"x"}`)), kind: aiguard.ErrTruncated, want: "*", handed: true},
	} {
		t.Run(name, x.run)
	}
}

// A transcription that streams is not bound by CallTimeout.
func TestStreamThatWasNotAskedForMayBeLong(t *testing.T) {
	deltas := make([]string, 10)
	for i := range deltas {
		deltas[i] = `{"type":"transcript.text.delta","delta":"x"}`
	}
	all := append(deltas, `{"type":"transcript.text.done","text":"x"}`)
	wire{path: "/v1/audio/transcriptions", body: "--x--", header: []string{"Content-Type", "multipart/form-data; boundary=x"},
		reply: aiguardtest.Slowly(10*time.Second, aiguardtest.Events(all...)), want: lines(all...), waits: 110 * time.Second}.run(t)
}

func TestLabelsAreHints(t *testing.T) {
	for name, x := range map[string]wire{
		"events as JSON":                {body: askStream, reply: aiguardtest.Raw(200, "application/json", goodChat), want: goodChat},
		"events as HTML":                {body: askStream, reply: aiguardtest.Raw(200, "text/html", goodChat), want: goodChat},
		"events as nothing":             {body: askStream, reply: aiguardtest.Raw(200, "", goodChat), want: goodChat},
		"events as JSON, not asked for": {body: askChat, reply: aiguardtest.Raw(200, "application/json", goodChat), want: goodChat},
		"cut events as JSON, not asked for": {body: askChat, reply: aiguardtest.Raw(200, "application/json", lines(hello)), kind: aiguard.ErrTruncated,
			sent: 3},
		"JSON as events":            {body: askChat, reply: aiguardtest.Raw(200, sseType, goodAnswer), want: goodAnswer},
		"JSON as events, asked for": {body: askStream, reply: aiguardtest.Raw(200, sseType, goodAnswer), want: goodAnswer},
		"JSON as text/json":         {body: askChat, reply: aiguardtest.Raw(200, "text/json", goodAnswer), want: goodAnswer},
		"JSON as HTML":              {body: askChat, reply: aiguardtest.Raw(200, "text/html", goodAnswer), want: goodAnswer},
		"JSON as a picture":         {body: askChat, reply: aiguardtest.Raw(200, "image/png", goodAnswer), kind: aiguard.ErrInvalidResponse, sent: 3},
		"events as a picture":       {body: askStream, reply: aiguardtest.Raw(200, "image/png", goodChat), kind: aiguard.ErrInvalidResponse, sent: 3},
		"HTML":                      {body: askStream, reply: aiguardtest.Raw(200, "application/json", "<html>"), kind: aiguard.ErrInvalidResponse, sent: 3},
		"no compression, by name":   {body: askChat, reply: aiguardtest.JSON(200, goodAnswer, "Content-Encoding", "none"), want: goodAnswer},
		"compression unknown":       {body: askChat, reply: aiguardtest.JSON(200, goodAnswer, "Content-Encoding", "br"), kind: aiguard.ErrInvalidResponse, phase: "headers"},
	} {
		x.path = "/v1/chat/completions"
		t.Run(name, x.run)
	}
}

// Ollama and Gemini stream JSON texts. Some servers ignore that no stream was asked for, and label it as JSON.
func TestStreamOfJSONInPlaceOfAWholeAnswerIsJudgedAsAStream(t *testing.T) {
	const begin, end = "{\"message\":{\"content\":\"Hi\"},\"done\":false}\n", "{\"message\":{\"content\":\"!\"},\"done\":true,\"prompt_eval_count\":3,\"eval_count\":2}\n"
	const half, stop = `{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}]}`, `{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2}}`
	used := &aiguard.Usage{Input: 3, Output: 2}
	for name, x := range map[string]wire{
		"Ollama":            {path: "/api/chat", reply: aiguardtest.JSON(200, begin+end), want: begin + end, usage: used},
		"Ollama, cut":       {path: "/api/chat", reply: aiguardtest.JSON(200, begin), kind: aiguard.ErrTruncated, sent: 3},
		"Ollama, half":      {path: "/api/generate", reply: aiguardtest.JSON(200, begin+end[:9]), kind: aiguard.ErrTruncated, sent: 3},
		"Ollama, failed":    {path: "/api/chat", reply: aiguardtest.JSON(200, begin+`{"error":"x"}`), kind: aiguard.ErrUnavailable, sent: 3},
		"Ollama, garbage":   {path: "/api/chat", reply: aiguardtest.JSON(200, begin+"<html>"), kind: aiguard.ErrInvalidResponse, sent: 3},
		"Gemini":            {path: "/v1/models/g:generateContent", reply: aiguardtest.JSON(200, "["+half+","+stop+"]"), want: "[" + half + "," + stop + "]", usage: used},
		"Gemini, cut":       {path: "/v1/models/g:generateContent", reply: aiguardtest.JSON(200, "["+half+"]"), kind: aiguard.ErrTruncated, sent: 3},
		"Gemini, an error":  {path: "/v1/models/g:generateContent", reply: aiguardtest.JSON(200, `[{"error":{"code":403,"status":"PERMISSION_DENIED"}}]`), kind: aiguard.ErrUnauthorized},
		"Gemini, no answer": {path: "/v1/models/g:generateContent", reply: aiguardtest.JSON(200, `[1]`), kind: aiguard.ErrInvalidResponse, sent: 3},
	} {
		x.body = `{"model":"m","stream":false}`
		t.Run(name, x.run)
	}
}

func TestWhatNoDialectKnowsPassesUnchanged(t *testing.T) {
	plainText := "data: Hello\n\ndata:  world\n\ndata:  \n\nid: 7\nretry: 10\ndata: !\n\ndata: x\nevent: late\n\n: ping\n\n"
	for name, x := range map[string]wire{
		"plain text events":           {path: "/v1/agents/run", body: `{"stream":true}`, reply: aiguardtest.Raw(200, sseType, plainText), want: plainText, media: sseType},
		"NDJSON of a pull":            {path: "/api/pull", body: `{"stream":true}`, reply: aiguardtest.Raw(200, "application/x-ndjson", "{\"status\":\"a\"}\n{\"status\":\"b\"}\n"), want: "{\"status\":\"a\"}\n{\"status\":\"b\"}\n"},
		"Cohere's first version":      {path: "/v1/chat", body: `{"stream":true}`, reply: aiguardtest.Raw(200, "application/stream+json", "{\"event_type\":\"x\"}\n"), want: "{\"event_type\":\"x\"}\n"},
		"address of a stream":         {path: "/v1/predictions", body: `{"stream":true}`, reply: aiguardtest.JSON(201, `{"urls":{"stream":"https://x"}}`), want: `{"urls":{"stream":"https://x"}}`},
		"Ollama's older embeddings":   {path: "/api/embeddings", body: `{"prompt":"x"}`, reply: aiguardtest.JSON(200, `{"embedding":[1,2]}`), want: `{"embedding":[1,2]}`},
		"watsonx's embeddings":        {path: "/ml/v1/text/embeddings", body: `{"inputs":["x"]}`, reply: aiguardtest.JSON(200, `{"results":[{"embedding":[1]}]}`), want: `{"results":[{"embedding":[1]}]}`},
		"ticket of a later answer":    {path: "/v1/async/chat/completions", body: askChat, reply: aiguardtest.JSON(200, `{"id":"x","status":"IN_PROGRESS"}`), want: `{"id":"x","status":"IN_PROGRESS"}`},
		"llama.cpp's own embeddings":  {path: "/embeddings", body: `{"content":"x"}`, reply: aiguardtest.JSON(200, `[{"index":0,"embedding":[[1,2]]}]`), want: `[{"index":0,"embedding":[[1,2]]}]`},
		"llama.cpp's own completions": {path: "/completions", body: `{"prompt":"x"}`, reply: aiguardtest.JSON(200, `{"index":0,"content":"Hi","stop":true}`), want: `{"index":0,"content":"Hi","stop":true}`},
		"Vertex's count of Claude's tokens": {path: "/v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict", body: `{"model":"claude","messages":[]}`,
			reply: aiguardtest.JSON(200, `{"input_tokens":14}`), want: `{"input_tokens":14}`},
		"deferred":                  {path: "/v1/chat/completions", body: `{"model":"m","deferred":true}`, reply: aiguardtest.JSON(200, `{"request_id":"x"}`), want: `{"request_id":"x"}`},
		"deferred, refused":         {path: "/v1/chat/completions", body: `{"model":"m","deferred":true}`, reply: aiguardtest.Drop(), kind: aiguard.ErrUnavailable},
		"another API's completions": {path: "/v1/completions", body: `{"stream":true}`, reply: aiguardtest.Raw(200, sseType, lines(`{"value":"a"}`, `{"value":"b"}`)), want: lines(`{"value":"a"}`, `{"value":"b"}`)},
		"file of JSON lines":        {method: "GET", path: "/v1/files/f/content", header: []string{"Accept", "application/json"}, reply: aiguardtest.JSON(200, "{\"a\":1}\n{\"b\":2}\n"), want: "{\"a\":1}\n{\"b\":2}\n"},
		"file of text":              {method: "GET", path: "/v1/files/f/content", header: []string{"Accept", "application/json"}, reply: aiguardtest.Raw(200, "text/plain", "hello"), want: "hello"},
		"deletion answered in text": {method: "DELETE", path: "/v1/things/1", header: []string{"Accept", "application/json"}, reply: aiguardtest.Raw(200, "text/plain", "gone"), want: "gone"},
		"transcript of silence":     {path: "/v1/audio/transcriptions", body: "--x--", header: []string{"Content-Type", "multipart/form-data", "Accept", "application/json"}, reply: aiguardtest.Raw(200, "text/plain", "\n"), want: "\n"},
		"subtitles": {path: "/v1/audio/transcriptions", body: "--x--", header: []string{"Content-Type", "multipart/form-data", "Accept", "application/json"},
			reply: aiguardtest.Raw(200, "application/x-subrip", "1\n00:00:00,000 --> 00:00:01,000\nHi\n"), want: "1\n00:00:00,000 --> 00:00:01,000\nHi\n"},
		"web subtitles": {path: "/v1/audio/transcriptions", body: "--x--", header: []string{"Content-Type", "multipart/form-data", "Accept", "application/json"},
			reply: aiguardtest.Raw(200, "text/vtt", "WEBVTT\n"), want: "WEBVTT\n"},
		"events although JSON was asked for": {method: "GET", path: "/v1/sessions/s/events/stream", header: []string{"Accept", "application/json"},
			reply: aiguardtest.Raw(200, sseType, lines(`{"type":"x"}`)), want: lines(`{"type":"x"}`)},
		"error inside a success": {method: "GET", path: "/v1/jobs/j", header: []string{"Accept", "application/json"}, reply: aiguardtest.JSON(200, `{"error":{"code":"x"}}`), want: `{"error":{"code":"x"}}`},
		"text as JSON":           {method: "GET", path: "/v1/jobs/j", header: []string{"Accept", "application/json"}, reply: aiguardtest.JSON(200, `oops`), want: `oops`},
	} {
		t.Run(name, x.run)
	}
}

// On an endpoint that nobody knows a server may wait for the client, which waits for the headers.
func TestUnknownStreamIsHandedOverWithItsHeaders(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		said := make(chan struct{})
		srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
			if r.Method == http.MethodPost {
				close(said)
				return
			}
			w.Header().Set("Content-Type", sseType)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-said:
			case <-r.Context().Done():
				return
			}
			_, _ = io.WriteString(w, "data: now\n\n")
		})
		base := srv.Transport()
		defer base.CloseIdleConnections()
		hc := &http.Client{Transport: c.Guard().Transport(base)}
		resp, err := hc.Get(srv.URL + "/mcp")
		require.NoError(t, err)
		defer resp.Body.Close()
		sent, err := hc.Post(srv.URL+"/mcp", "application/json", strings.NewReader("{}"))
		require.NoError(t, err)
		require.NoError(t, sent.Body.Close())
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "data: now\n\n", string(body))
	})
}

// A bound that runs out, a Close and a reset are never the end of a body whose end nobody knows.
func TestUnknownStreamThatIsEndedIsNotComplete(t *testing.T) {
	first := "data: one\n\n"
	for range 20 { // it was a race once
		for name, x := range map[string]wire{
			"idle":   {reply: aiguardtest.HangAfter(aiguardtest.Bytes(first)), kind: aiguard.ErrTimeout, phase: "stream_idle", want: first, handed: true},
			"length": {reply: every(time.Second, "data: x\n\n"), config: aiguard.Config{StreamTimeout: 10 * time.Second}, kind: aiguard.ErrTimeout, phase: "stream", want: "*", handed: true},
			"cut":    {reply: aiguardtest.Cut(len(first), aiguardtest.Bytes(first, first)), kind: aiguard.ErrTruncated, want: first, handed: true},
			"size":   {reply: every(time.Millisecond, "data: x\n\n"), config: aiguard.Config{MaxResponseBytes: 100}, kind: aiguard.ErrResponseTooLarge, phase: "response", want: "*", handed: true},
		} {
			x.path, x.body = "/v1/agents/run", `{"stream":true}`
			t.Run(name, x.run)
		}
		inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Bytes(first)))
			base := srv.Transport()
			defer base.CloseIdleConnections()
			g, err := aiguard.New(aiguard.Config{})
			require.NoError(t, err)
			req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/agents/run", strings.NewReader("{}"))
			require.NoError(t, err)
			resp, err := g.Transport(base).RoundTrip(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			time.AfterFunc(time.Second, func() { g.Close() })
			_, err = io.ReadAll(resp.Body)
			facts(t, err, aiguard.ErrClosed)
		})
	}
}

func TestLongEventsAndManyNumbersPass(t *testing.T) {
	image := `{"type":"image_generation.partial_image","b64_json":"` + strings.Repeat("A", 1_400_000) + `"}`
	stream := lines(image, `{"type":"image_generation.completed","b64_json":"x"}`)
	wire{path: "/v1/images/generations", body: `{"prompt":"x","stream":true}`, reply: aiguardtest.Raw(200, sseType, stream), want: stream}.run(t)
	wire{path: "/v1/images/generations", body: `{"prompt":"x","stream":true}`, reply: aiguardtest.Raw(200, sseType, stream), config: aiguard.Config{MaxEventBytes: 1 << 20},
		kind: aiguard.ErrResponseTooLarge, phase: "event"}.run(t)
	wire{path: "/v1/images/generations", body: `{"prompt":"x","stream":true}`, reply: aiguardtest.Raw(200, sseType, stream), config: aiguard.Config{MaxEventBytes: aiguard.Off},
		want: stream}.run(t)

	token := `{"token":" the","logprob":-0.25,"bytes":[32,116,104,101]}`
	top := `{"token":" the","logprob":-0.25,"bytes":[32,116,104,101],"top_logprobs":[` + strings.Repeat(token+",", 19) + token + `]}`
	answer := `{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop","logprobs":{"content":[` + strings.Repeat(top+",", 2399) + top + `]}}]}`
	wire{path: "/v1/chat/completions", body: askChat, reply: aiguardtest.JSON(200, answer), want: answer}.run(t)
}

func TestSuccessWithoutAnAnswerIsAFailure(t *testing.T) {
	for name, x := range map[string]wire{
		"images":               {path: "/v1/images/generations", body: `{"prompt":"x"}`, reply: aiguardtest.JSON(200, "{}"), kind: aiguard.ErrInvalidResponse, sent: 3},
		"speech with an error": {path: "/v1/audio/speech", body: `{"input":"x"}`, reply: aiguardtest.JSON(200, `{"error":{"message":"x","code":"insufficient_quota"}}`), kind: aiguard.ErrQuota},
		"speech of JSON":       {path: "/v1/audio/speech", body: `{"input":"x"}`, reply: aiguardtest.JSON(200, `{}`), kind: aiguard.ErrInvalidResponse, sent: 3},
		"speech":               {path: "/v1/audio/speech", body: `{"input":"x"}`, reply: aiguardtest.Raw(200, "audio/mpeg", "sound"), want: "sound"},
		"MiniMax without money": {path: "/v1/chat/completions", body: askChat,
			reply: aiguardtest.JSON(200, `{"choices":null,"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}`), kind: aiguard.ErrQuota},
		"402 by code":              {path: "/v1/chat/completions", body: askChat, reply: aiguardtest.JSON(200, `{"error":{"code":402,"message":"x"}}`), kind: aiguard.ErrQuota},
		"402 by code, in a stream": {path: "/v1/chat/completions", body: askStream, reply: aiguardtest.Raw(200, sseType, lines(hello, `{"error":{"code":402,"message":"x"}}`)), kind: aiguard.ErrQuota, want: lines(hello), handed: true},
		"Gemini":                   {path: "/v1beta/models/g:generateContent", body: `{}`, reply: aiguardtest.JSON(200, `{}`), kind: aiguard.ErrInvalidResponse, sent: 3},
		"Gemini, declined": {path: "/v1beta/models/g:generateContent", body: `{}`, reply: aiguardtest.JSON(200, `{"promptFeedback":{"blockReason":"SAFETY"}}`),
			want: `{"promptFeedback":{"blockReason":"SAFETY"}}`},
		"Ollama": {path: "/api/generate", body: `{"stream":false}`, reply: aiguardtest.JSON(200, `{}`), kind: aiguard.ErrInvalidResponse, sent: 3},
		"Cohere": {path: "/v2/chat", body: `{}`, reply: aiguardtest.JSON(200, `{}`), kind: aiguard.ErrInvalidResponse, sent: 3},
	} {
		t.Run(name, x.run)
	}
}

func TestErrorThatSaysNothingIsNone(t *testing.T) {
	for _, nothing := range []string{`{"message":"","type":"","code":null}`, `{}`, `""`, `false`, `null`} {
		answer := strings.Replace(goodAnswer, `{"id"`, `{"error":`+nothing+`,"id"`, 1)
		wire{path: "/v1/chat/completions", body: askChat, reply: aiguardtest.JSON(200, answer), want: answer}.run(t)
		stream := strings.ReplaceAll(goodChat, `{"id"`, `{"error":`+nothing+`,"id"`)
		wire{path: "/v1/chat/completions", body: askStream, reply: aiguardtest.Raw(200, sseType, stream), want: stream}.run(t)
	}
}

func TestEndsOfKnownStreams(t *testing.T) {
	const messages, responses, chat = "/v1/messages", "/v1/responses", "/v1/chat/completions"
	start := "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n"
	text := "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n"
	stop := "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	gemini := `{"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"index":0}]}`
	geminiEnd := `{"candidates":[{"content":{"parts":[{"text":""}],"role":"model"},"finishReason":"STOP","index":0}],"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":5,"thoughtsTokenCount":2,"cachedContentTokenCount":1}}`
	vertex := "/v1/projects/p/locations/l/publishers/anthropic/models/claude:streamRawPredict"
	const geminiPath = "/v1beta/models/gemini-pro:streamGenerateContent"
	ollama := "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"Hi\"},\"done\":false}\n"
	ollamaEnd := "{\"model\":\"m\",\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":3,\"eval_count\":4}\n"
	ollamaCut := `{"error":"` + aiguard.UserMessage(&aiguard.Error{Kind: aiguard.ErrTruncated}) + "\"}\n"
	generated := "{\"model\":\"m\",\"response\":\"Hi\",\"done\":false}\n"
	cohere := `{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"Hi"}}}}`
	cohereEnd := `{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"tokens":{"input_tokens":3,"output_tokens":4}}}}`
	for name, x := range map[string]wire{
		"cut inside [DONE]":              {path: chat, reply: aiguardtest.Raw(200, sseType, lines(hello, finished)+"data: [DO"), want: lines(hello, finished)},
		"[DONE] behind a response's end": {path: responses, reply: aiguardtest.Raw(200, sseType, lines(`{"type":"response.completed","response":{"id":"r"}}`, "[DONE]")), want: lines(`{"type":"response.completed","response":{"id":"r"}}`, "[DONE]")},
		"[DONE] for a response's end":    {path: responses, reply: aiguardtest.Raw(200, sseType, lines(`{"type":"response.output_text.delta","delta":"x"}`, "[DONE]")), kind: aiguard.ErrTruncated, want: "*", handed: true},
		"[DONE] for a message's end":     {path: messages, reply: aiguardtest.Raw(200, sseType, start+text+lines("[DONE]")), kind: aiguard.ErrTruncated, want: start + text, handed: true},
		"[DONE] without a choice":        {path: chat, reply: aiguardtest.Raw(200, sseType, lines(`{"choices":[]}`, "[DONE]")), kind: aiguard.ErrInvalidResponse, sent: 3},
		"error field":                    {path: chat, reply: aiguardtest.Raw(200, sseType, lines(hello)+"error: {\"code\":500,\"message\":\"x\",\"type\":\"server_error\"}\n\n"+lines("[DONE]")), kind: aiguard.ErrUnavailable, want: lines(hello), handed: true},
		"late name of an event":          {path: chat, reply: aiguardtest.Bytes("data: " + hello + "\nevent: chunk\n\n" + lines(finished, "[DONE]")), want: "data: " + hello + "\nevent: chunk\n\n" + lines(finished, "[DONE]")},
		"id and retry":                   {path: chat, reply: aiguardtest.Bytes("id: 1\nretry: 5\ndata:" + hello + "\r\n\r\n" + lines(finished, "[DONE]")), want: "id: 1\nretry: 5\ndata:" + hello + "\r\n\r\n" + lines(finished, "[DONE]")},

		"finish reason error":     {path: chat, reply: aiguardtest.Raw(200, sseType, lines(hello, strings.ReplaceAll(finished, "stop", "error"), "[DONE]")), kind: aiguard.ErrUnavailable, want: "*", handed: true},
		"finish reason overload":  {path: chat, reply: aiguardtest.Raw(200, sseType, lines(strings.ReplaceAll(finished, "stop", "engine_overloaded"), "[DONE]")), kind: aiguard.ErrUnavailable, sent: 3},
		"finish reason of future": {path: chat, reply: aiguardtest.Raw(200, sseType, lines(hello, strings.ReplaceAll(finished, "stop", "bored"), "[DONE]")), want: "*"},
		"error of a choice":       {path: chat, reply: aiguardtest.Raw(200, sseType, lines(hello, `{"choices":[{"index":0,"error":{"code":429,"message":"x"},"finish_reason":"error"}]}`)), kind: aiguard.ErrRateLimited, want: "*", handed: true},

		"message":                 {path: messages, reply: aiguardtest.Raw(200, sseType, start+text+stop), want: start + text + stop, usage: &aiguard.Usage{Input: 25, Output: 15}},
		"message, cut":            {path: messages, reply: aiguardtest.Raw(200, sseType, start+text), kind: aiguard.ErrTruncated, want: start + text, handed: true},
		"message, on Vertex":      {path: vertex, reply: aiguardtest.Raw(200, sseType, start+text+stop), want: start + text + stop},
		"message, on Vertex, cut": {path: vertex, reply: aiguardtest.Raw(200, sseType, start+text), kind: aiguard.ErrTruncated, want: start + text, handed: true},
		"overload before a text": {path: messages, reply: aiguardtest.Raw(200, sseType, start+"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"x\"}}\n\n"),
			kind: aiguard.ErrUnavailable, sent: 3},

		"Gemini": {path: geminiPath + "?alt=sse", reply: aiguardtest.Raw(200, sseType, "data: "+gemini+"\r\n\r\ndata: "+geminiEnd+"\r\n\r\n"),
			want: "data: " + gemini + "\r\n\r\ndata: " + geminiEnd + "\r\n\r\n", usage: &aiguard.Usage{Input: 4, Output: 7, Reasoning: 2, CacheRead: 1}},
		"Gemini, cut":        {path: geminiPath + "?alt=sse", reply: aiguardtest.Raw(200, sseType, lines(gemini)), kind: aiguard.ErrTruncated, want: lines(gemini), handed: true},
		"Gemini, array":      {path: geminiPath, reply: aiguardtest.JSON(200, "["+gemini+"\n,\r\n"+geminiEnd+"\n]\n"), want: "[" + gemini + "\n,\r\n" + geminiEnd + "\n]\n"},
		"Gemini, array, cut": {path: geminiPath, reply: aiguardtest.JSON(200, "["+gemini+"\n,\r\n"), kind: aiguard.ErrTruncated, want: "*", handed: true},
		"Gemini, error in an array": {path: geminiPath, reply: aiguardtest.JSON(200, `[{"error":{"code":503,"status":"UNAVAILABLE","message":"x"}}]`),
			kind: aiguard.ErrUnavailable, sent: 3},

		"Ollama":      {path: "/api/chat", reply: aiguardtest.Raw(200, "application/x-ndjson", ollama+ollamaEnd), want: ollama + ollamaEnd, usage: &aiguard.Usage{Input: 3, Output: 4}},
		"Ollama, cut": {path: "/api/chat", reply: aiguardtest.Raw(200, "application/x-ndjson", ollama), kind: aiguard.ErrTruncated, want: ollama + ollamaCut, handed: true},
		"Ollama, cut before a line end": {path: "/api/chat", reply: aiguardtest.Raw(200, "application/x-ndjson", strings.TrimSpace(ollama)), kind: aiguard.ErrTruncated,
			want: ollama + ollamaCut, handed: true},
		"Ollama, half": {path: "/api/chat", reply: aiguardtest.Raw(200, "application/x-ndjson", ollama+`{"mod`), kind: aiguard.ErrTruncated, want: ollama + ollamaCut, handed: true},
		"Ollama, failed": {path: "/api/chat", reply: aiguardtest.Raw(200, "application/x-ndjson", ollama+`{"error":"model runner has unexpectedly stopped"}`), kind: aiguard.ErrUnavailable,
			want: ollama + `{"error":"model runner has unexpectedly stopped"}`, handed: true},
		"Ollama, generate": {path: "/api/generate", reply: aiguardtest.Raw(200, "application/x-ndjson", generated), kind: aiguard.ErrTruncated, want: generated + ollamaCut, handed: true},
		"Ollama, no stream": {path: "/api/chat", body: `{"model":"m","stream":false,"messages":[]}`, reply: aiguardtest.JSON(200, ollamaEnd), want: ollamaEnd,
			usage: &aiguard.Usage{Input: 3, Output: 4}},
		"Ollama, embed": {path: "/api/embed", body: `{"model":"m","input":"x"}`, reply: aiguardtest.JSON(200, `{"embeddings":[[1]]}`), want: `{"embeddings":[[1]]}`},

		"Cohere":      {path: "/v2/chat", reply: aiguardtest.Raw(200, sseType, lines(cohere, cohereEnd)), want: lines(cohere, cohereEnd), usage: &aiguard.Usage{Input: 3, Output: 4}},
		"Cohere, cut": {path: "/v2/chat", reply: aiguardtest.Raw(200, sseType, lines(cohere)), kind: aiguard.ErrTruncated, want: lines(cohere), handed: true},
		"Cohere, failed": {path: "/v2/chat", reply: aiguardtest.Raw(200, sseType, lines(cohere, strings.Replace(cohereEnd, "COMPLETE", "ERROR", 1))), kind: aiguard.ErrUnavailable,
			want: "*", handed: true},

		"run":      {path: "/v1/threads/runs", reply: aiguardtest.Bytes("event: thread.run.created\ndata: {\"object\":\"thread.run\"}\n\nevent: done\ndata: [DONE]\n\n"), want: "event: thread.run.created\ndata: {\"object\":\"thread.run\"}\n\nevent: done\ndata: [DONE]\n\n"},
		"run, cut": {path: "/v1/threads/runs", reply: aiguardtest.Bytes("event: thread.run.created\ndata: {\"object\":\"thread.run\"}\n\n"), kind: aiguard.ErrTruncated, want: "*", handed: true},
	} {
		if x.body == "" {
			x.body = askStream
		}
		t.Run(name, x.run)
	}
}

func TestModelMayBeExcusedFromTheFinishReason(t *testing.T) {
	excused := aiguard.Config{Models: map[string]aiguard.Call{"m*": {EndsWithoutFinish: true}}}
	cut := aiguardtest.Cut(len(lines(hello)), aiguardtest.Bytes(lines(hello), lines(finished)))
	for name, x := range map[string]wire{
		"not excused":         {body: askStream, reply: aiguardtest.Raw(200, sseType, lines(hello)), kind: aiguard.ErrTruncated, want: lines(hello), handed: true},
		"excused":             {body: askStream, config: excused, reply: aiguardtest.Raw(200, sseType, lines(hello)), want: lines(hello)},
		"excused, cut":        {body: askStream, config: excused, reply: cut, kind: aiguard.ErrTruncated, want: lines(hello), handed: true},
		"excused, no text":    {body: askStream, config: excused, reply: aiguardtest.Raw(200, sseType, ": ping\n\n"), kind: aiguard.ErrTruncated, sent: 3},
		"another one excused": {body: strings.Replace(askStream, `"m"`, `"x"`, 1), config: excused, reply: aiguardtest.Raw(200, sseType, lines(hello)), kind: aiguard.ErrTruncated, want: lines(hello), handed: true},
		"excused, no stream asked for": {body: askChat, config: excused, reply: aiguardtest.Raw(200, "application/json", lines(hello)),
			want: lines(hello)},
	} {
		x.path = "/v1/chat/completions"
		t.Run(name, x.run)
	}
}

// frame is a message of application/vnd.amazon.eventstream.
func frame(kind, name, payload string) string {
	var h []byte
	for _, pair := range [...][2]string{{":message-type", kind}, {":" + kind + "-type", name}, {":content-type", "application/json"}} {
		h = append(append(h, byte(len(pair[0]))), pair[0]...)
		h = append(binary.BigEndian.AppendUint16(append(h, 7), uint16(len(pair[1]))), pair[1]...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(16+len(h)+len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, h...), payload...)
	return string(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

func TestStreamsInFramesKnowTheirEnd(t *testing.T) {
	const media = "application/vnd.amazon.eventstream"
	chunk := func(event string) string {
		return frame("event", "chunk", `{"bytes":"`+base64.StdEncoding.EncodeToString([]byte(event))+`"}`)
	}
	begin := frame("event", "messageStart", `{"role":"assistant"}`)
	text := frame("event", "contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":"Hi"}}`)
	end := frame("event", "messageStop", `{"stopReason":"end_turn"}`) + frame("event", "metadata", `{"usage":{"inputTokens":3,"outputTokens":4,"cacheReadInputTokens":5}}`)
	claude := chunk(`{"type":"message_start","message":{"usage":{"input_tokens":3}}}`) + chunk(`{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hi"}}`)
	claudeEnd := chunk(`{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}`) + chunk(`{"type":"message_stop"}`)
	const claudePath = "/model/anthropic.claude-v1/invoke-with-response-stream"
	for name, x := range map[string]wire{
		"converse":       {path: "/model/amazon.nova/converse-stream", reply: aiguardtest.Raw(200, media, begin+text+end), want: begin + text + end, usage: &aiguard.Usage{Input: 8, Output: 4, CacheRead: 5}},
		"converse, cut":  {path: "/model/amazon.nova/converse-stream", reply: aiguardtest.Raw(200, media, begin+text), kind: aiguard.ErrTruncated, want: begin + text, handed: true},
		"converse, half": {path: "/model/amazon.nova/converse-stream", reply: aiguardtest.Raw(200, media, begin+text+end[:20]), kind: aiguard.ErrTruncated, want: begin + text, handed: true},
		"converse, throttled": {path: "/model/amazon.nova/converse-stream", reply: aiguardtest.Raw(200, media, begin+frame("exception", "throttlingException", `{"message":"x"}`)),
			kind: aiguard.ErrRateLimited, sent: 3},
		"converse, broken later": {path: "/model/amazon.nova/converse-stream", reply: aiguardtest.Raw(200, media, begin+text+frame("exception", "modelStreamErrorException", `{"message":"x"}`)),
			kind: aiguard.ErrUnavailable, want: begin + text, handed: true},
		"converse, garbage": {path: "/model/amazon.nova/converse-stream", reply: aiguardtest.Raw(200, media, begin+text+strings.Repeat("x", 40)), kind: aiguard.ErrInvalidResponse, want: begin + text, handed: true},
		"claude":            {path: claudePath, reply: aiguardtest.Raw(200, media, claude+claudeEnd), want: claude + claudeEnd, usage: &aiguard.Usage{Input: 3, Output: 4}},
		"claude, cut":       {path: claudePath, reply: aiguardtest.Raw(200, media, claude), kind: aiguard.ErrTruncated, want: claude, handed: true},
		"another":           {path: "/model/meta.llama/invoke-with-response-stream", reply: aiguardtest.Raw(200, media, chunk(`{"generation":"Hi"}`)), want: chunk(`{"generation":"Hi"}`)},
		"another, half":     {path: "/model/meta.llama/invoke-with-response-stream", reply: aiguardtest.Raw(200, media, chunk(`{"generation":"Hi"}`)+"\x00\x00"), kind: aiguard.ErrTruncated, want: chunk(`{"generation":"Hi"}`), handed: true},
		"converse, whole": {path: "/model/amazon.nova/converse", reply: aiguardtest.JSON(200, `{"output":{"message":{"role":"assistant","content":[{"text":"Hi"}]}},"stopReason":"end_turn"}`),
			want: `{"output":{"message":{"role":"assistant","content":[{"text":"Hi"}]}},"stopReason":"end_turn"}`},
		"converse, nothing": {path: "/model/amazon.nova/converse", reply: aiguardtest.JSON(200, `{}`), kind: aiguard.ErrInvalidResponse, sent: 3},
	} {
		x.body = `{"messages":[{"role":"user","content":[{"text":"Hi"}]}]}`
		x.unread = true // the AWS SDK's can be read once
		t.Run(name, x.run)
	}
}

func TestOnlyProgressKeepsAStreamAlive(t *testing.T) {
	const idle, first = "stream_idle", "first_event"
	thinking := "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"thinking\"}}\n\n"
	ping := "event: ping\ndata: {\"type\":\"ping\"}\n\n"
	for name, x := range map[string]wire{
		"pings":             {path: "/v1/messages", reply: every(100*time.Millisecond, ping), phase: first},
		"keepalives":        {path: "/v1/responses", reply: every(100*time.Millisecond, "data: {\"type\":\"keepalive\"}\n\n"), phase: first},
		"empty objects":     {path: "/v1/chat/completions", reply: every(100*time.Millisecond, "data: {}\n\n"), phase: first},
		"empty deltas":      {path: "/v1/chat/completions", reply: every(100*time.Millisecond, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"}}]}\n\n"), phase: first},
		"pings behind text": {path: "/v1/chat/completions", reply: every(100*time.Millisecond, "data: {}\n\n", hello), phase: idle, handed: true},
		"empty text like the one before": {path: "/v1/chat/completions", reply: every(100*time.Millisecond, "data: "+strings.Replace(hello, "Hello", "", 1)+"\n\n", hello),
			phase: idle, handed: true},
		"pings while it thinks": {path: "/v1/messages", reply: func(w http.ResponseWriter, r *aiguardtest.Request) {
			w.Header().Set("Content-Type", sseType)
			_, _ = io.WriteString(w, thinking)
			every(100*time.Millisecond, ping)(w, r)
		}, config: aiguard.Config{StreamTimeout: 5 * time.Minute}, phase: "stream", waits: 5 * time.Minute, handed: true},
	} {
		x.body, x.kind, x.want = askStream, aiguard.ErrTimeout, "*"
		if x.waits == 0 {
			x.waits = 30 * time.Second
		}
		t.Run(name, x.run)
	}
}

// Events that bring the answer nowhere take no memory, however many there are.
func TestFloodOfPingsIsBounded(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxResponseBytes: aiguard.Off}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Bytes(strings.Repeat("data: {}\n\n", 1_000_000), goodChat))
		text, err := streamChat(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "Hello", text)
		require.Zero(t, c.Guard().Stats().BufferedBytes)
	})
}

func TestAnswerThatGoOpenAICannotDecodeIsATypedError(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for _, broken := range []string{`{"choices":[{"index":"zero","delta":{"content":"x"}}]}`, `{"choices":[{"index":1.5,"delta":{"content":"x"}}]}`,
			`{"choices":[{"index":0,"delta":{"content":{}}}]}`, `{"id":7,"choices":[{"index":0,"delta":{"content":"x"}}]}`,
			`{"created":99999999999999999999,"choices":[{"index":0,"delta":{"content":"x"}}]}`} {
			srv.SetDefault(aiguardtest.Events(hello, broken, finished, "[DONE]"))
			text, err := streamChat(t.Context(), c)
			e := facts(t, err, aiguard.ErrInvalidResponse)
			require.Equal(t, "Hello", text)
			require.Equal(t, "chat.completions", e.Op)
			require.Equal(t, 502, aiguard.HTTPStatus(err))
		}
		srv.SetDefault(aiguardtest.JSON(200, `{"data":[{"embedding":"!!!"}]}`))
		_, err := c.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: "m", Input: "x", EncodingFormat: openai.EmbeddingEncodingFormatBase64})
		facts(t, err, aiguard.ErrInvalidResponse)
		srv.SetDefault(aiguardtest.JSON(200, `[{"index":0,"embedding":[[1,2]]}]`)) // of another API at the same path
		_, err = c.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: "m", Input: "x"})
		facts(t, err, aiguard.ErrInvalidResponse)
		srv.SetDefault(aiguardtest.JSON(200, `{"index":0,"content":"Hi","stop":true}`))
		_, err = c.CreateCompletion(t.Context(), openai.CompletionRequest{Model: "m", Prompt: "x"})
		facts(t, err, aiguard.ErrInvalidResponse)
	})
}

func TestCodeKeepsItsJSONTypeForGoOpenAI(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for text, want := range map[string]any{`"429"`: "429", `429`: 429, `null`: nil, `"x"`: "x"} {
			srv.SetDefault(aiguardtest.JSON(400, `{"error":{"message":"x","code":`+text+`}}`))
			_, err := chat(t.Context(), c)
			var ae *openai.APIError
			require.ErrorAs(t, err, &ae)
			require.Equal(t, want, ae.Code, text)
		}
	})
}

func TestWaitInTheBodyIsHonoured(t *testing.T) {
	for body, want := range map[string]time.Duration{
		`{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"30s"}]}}`: 30 * time.Second,
		`{"error":{"message":"x","resets_in_seconds":40}}`:                    40 * time.Second,
		`{"error":{"message":"x"},"retry_after_ms":2500}`:                     2500 * time.Millisecond,
		`{"error":{"message":"x","type":"requests","retry_after_ms":"1e99"}}`: 0,
		`{"error":{"message":"x","retry_after_ms":-5}}`:                       0,
	} {
		inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.JSON(429, body))
			_, err := chat(t.Context(), c)
			require.Equal(t, want, facts(t, err, aiguard.ErrRateLimited).RetryAfter, body)
			srv.SetDefault(aiguardtest.JSON(429, body, "Retry-After", "7"))
			another := chatRequest
			another.Model = "another"
			_, err = c.CreateChatCompletion(t.Context(), another)
			require.NotZero(t, facts(t, err, aiguard.ErrRateLimited).RetryAfter, "a header comes first")
		})
	}
}

// A rate limit that the request by itself is over pauses nobody.
func TestRequestOverTheRateLimitByItselfPausesNobody(t *testing.T) {
	for name, reply := range map[string]aiguardtest.Reply{
		"in words": aiguardtest.JSON(429, `{"error":{"type":"tokens","code":"rate_limit_exceeded","message":"Request too large for gpt-4o: Limit 30000, Requested 36278. The input must be reduced."}}`),
		"413":      aiguardtest.JSON(413, `{"error":{"type":"tokens","code":"rate_limit_exceeded","message":"Request too large"}}`),
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.Enqueue(reply)
				start := time.Now()
				_, err := chat(t.Context(), c)
				facts(t, err, aiguard.ErrPromptTooLarge)
				require.Equal(t, 413, aiguard.HTTPStatus(err))
				_, err = chat(t.Context(), c)
				require.NoError(t, err)
				took(t, start, 0)
				require.Equal(t, 2, srv.Count())
			})
		})
	}
}

func TestMisconfigurationIsNeverRetriedNorBlamedOnTheUser(t *testing.T) {
	said := map[string]string{
		"no scheme":      `the URL has the scheme "" and the host ""; want http or https, and a host`,
		"another scheme": `the URL has the scheme "htp" and the host "api.example.com"; want http or https, and a host`,
	}
	for name, oc := range map[string]func(*openai.ClientConfig){
		"no scheme":      func(oc *openai.ClientConfig) { oc.BaseURL = "api.example.com/v1" },
		"another scheme": func(oc *openai.ClientConfig) { oc.BaseURL = "htp://api.example.com/v1" },
		"revoked token": func(oc *openai.ClientConfig) {
			oc.HTTPClient = &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
				return nil, &refreshError{Response: &http.Response{StatusCode: 400}}
			})}
		},
	} {
		config := openai.DefaultConfig("sk-secret-key")
		oc(&config)
		c := newGuard(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: time.Millisecond}}).Client(config)
		_, err := chat(t.Context(), c)
		e := facts(t, err, aiguard.ErrMisconfigured)
		require.LessOrEqual(t, e.Attempts, 1, name)
		require.Equal(t, 500, aiguard.HTTPStatus(err))
		require.NotContains(t, aiguard.UserMessage(err), "check your input")
		require.NotContains(t, err.Error(), "secret")
		require.Contains(t, err.Error(), said[name])
	}
}

// refreshError has the form of golang.org/x/oauth2's.
type refreshError struct{ Response *http.Response }

func (e *refreshError) Error() string { return "oauth2: cannot fetch token" }

func TestUsageHasCachedAndReasoningTokens(t *testing.T) {
	for path, tc := range map[string]struct {
		answer string
		want   aiguard.Usage
	}{
		"/v1/chat/completions": {strings.Replace(goodAnswer, `{"id"`, `{"usage":{"prompt_tokens":10,"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":8}},"id"`, 1),
			aiguard.Usage{Input: 10, Output: 20, CacheRead: 4, Reasoning: 8}},
		"/v1/responses": {`{"id":"r","status":"completed","output":[],"usage":{"input_tokens":10,"output_tokens":20,"input_tokens_details":{"cached_tokens":4},"output_tokens_details":{"reasoning_tokens":8}}}`,
			aiguard.Usage{Input: 10, Output: 20, CacheRead: 4, Reasoning: 8}},
		"/v1/messages": {`{"type":"message","content":[],"stop_reason":"end_turn","usage":{"input_tokens":25,"cache_read_input_tokens":1000,"cache_creation_input_tokens":7,"output_tokens":15}}`,
			aiguard.Usage{Input: 1032, Output: 15, CacheRead: 1000, CacheWrite: 7}},
		"/v1beta/models/g:generateContent": {`{"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":9,"candidatesTokenCount":5,"thoughtsTokenCount":3}}`,
			aiguard.Usage{Input: 9, Output: 8, Reasoning: 3}},
	} {
		wire{path: path, body: `{"model":"m"}`, reply: aiguardtest.JSON(200, tc.answer), want: tc.answer, usage: &tc.want}.run(t)
	}
}
