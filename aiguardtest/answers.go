package aiguardtest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"unicode/utf8"
)

const (
	fewChunks         = 4 // of Text's streams, if the text is long enough
	defaultModel      = "fake-model"
	defaultDimensions = 8 // short, for speed; real ones are 1,536
	maxDimensions     = 4096
	maxChoices        = 128
)

// Text is a correct and complete answer on whatever endpoint was asked:
//
//   - POST /chat/completions, /completions, /responses and (Anthropic's)
//     /messages: the text, streamed in a few chunks if the request says
//     "stream": true, with a usage chunk if it asks for one. n is honoured.
//   - POST /embeddings: a vector for each input, which depends on the input
//     only, of as many dimensions as asked (8 if not), as floats or base64
//   - POST /moderations: nothing flagged
//   - GET /models and /models/{id}: any id exists
//
// Azure's paths (/openai/deployments/{name}/…) work too. On any other path it
// is a 404, and a 405 for the wrong method, with an OpenAI error body. Token
// counts are estimates: one for each four bytes.
func Text(text string) Reply {
	return TextN(text, min(fewChunks, utf8.RuneCountInString(text)))
}

// TextN is Text with streams of exactly that many chunks of text (at least
// one). Chunks are empty when the text runs out. A chat stream has two events
// more, for the finish_reason and [DONE], and one for the usage if asked for.
func TextN(text string, chunks int) Reply {
	chunks = max(chunks, 1)
	return func(w http.ResponseWriter, r *Request) {
		a := newAnswer(w, r, text, chunks)
		endpoint, ok := strings.CutPrefix(endpointOf(r.Path), "/")
		method := http.MethodPost
		var answer func()
		switch {
		case !ok:
		case endpoint == "chat/completions":
			answer = a.chat
		case endpoint == "completions":
			answer = a.completion
		case endpoint == "responses":
			answer = a.response
		case endpoint == "messages":
			answer = a.message
		case endpoint == "embeddings":
			answer = a.embeddings
		case endpoint == "moderations":
			answer = a.moderation
		case endpoint == "models":
			method, answer = http.MethodGet, a.models
		case strings.HasPrefix(endpoint, "models/"):
			method, answer = http.MethodGet, func() { a.json(model(strings.TrimPrefix(endpoint, "models/"))) }
		}
		switch {
		case answer == nil:
			Error(http.StatusNotFound, "unknown_url")(w, r)
		case r.Method != method:
			Error(http.StatusMethodNotAllowed, "method_not_supported", "Allow", method)(w, r)
		default:
			answer()
		}
	}
}

// endpointOf returns the part of path that names the endpoint, whatever the
// provider puts before it.
func endpointOf(path string) string {
	if rest, ok := strings.CutPrefix(path, "/openai/deployments/"); ok {
		if _, rest, ok = strings.Cut(rest, "/"); ok {
			return "/" + rest
		}
	}
	path = strings.TrimPrefix(path, "/openai")
	if rest, ok := strings.CutPrefix(path, "/v1/"); ok {
		return "/" + rest
	}
	return path
}

// answer is one answer in the making.
type answer struct {
	w      http.ResponseWriter
	r      *Request
	text   string
	chunks []string
	ask    ask
	model  string

	started bool // the stream
	err     error
}

// ask is what Text heeds of a request's body.
type ask struct {
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	N              int             `json:"n"`
	Messages       json.RawMessage `json:"messages"`
	Prompt         json.RawMessage `json:"prompt"`
	Input          json.RawMessage `json:"input"`
	EncodingFormat string          `json:"encoding_format"`
	Dimensions     int             `json:"dimensions"`
}

func newAnswer(w http.ResponseWriter, r *Request, text string, chunks int) *answer {
	a := &answer{w: w, r: r, text: text, chunks: split(text, chunks), model: r.Model}
	// What does not parse is as good as absent: checking requests is not our job.
	_ = json.Unmarshal(r.Body, &a.ask)
	if a.model == "" {
		a.model = defaultModel
	}
	return a
}

// split cuts text into exactly n parts, between runes. What is too short for
// all of them fills the first ones.
func split(text string, n int) []string {
	runes := []rune(text)
	parts := make([]string, n)
	for i := range parts {
		from, to := len(runes)*i/n, len(runes)*(i+1)/n
		if len(runes) < n {
			from, to = min(i, len(runes)), min(i+1, len(runes))
		}
		parts[i] = string(runes[from:to])
	}
	return parts
}

func (a *answer) json(v any) {
	JSON(http.StatusOK, encode(v))(a.w, a.r)
}

func (a *answer) id(prefix string) string { return fmt.Sprintf("%s-fake%d", prefix, a.r.Number) }

func (a *answer) created() int64 { return a.r.Time.Unix() }

// event sends an event, named unless name is empty, in one Write.
func (a *answer) event(name, data string) { a.send(name, data, false) }

// last is event for the stream's last one.
func (a *answer) last(name, data string) { a.send(name, data, true) }

func (a *answer) send(name, data string, last bool) {
	if a.err != nil {
		return
	}
	if !a.started {
		a.started = true
		startStream(a.w)
	}
	if name != "" {
		name = "event: " + name + "\n"
	}
	if last {
		a.r.finishing()
	}
	if _, a.err = io.WriteString(a.w, name+"data: "+data+"\n\n"); a.err == nil && !last {
		// The last one is sent by the reply's return, so that whoever has it
		// finds the request no longer active.
		a.err = flush(a.w)
	}
}

// choices returns how many answers were asked for.
func (a *answer) choices() int { return min(max(a.ask.N, 1), maxChoices) }

// tokens is about as many as a tokenizer would find.
func tokens[T ~string | ~[]byte](text T) int { return (len(text) + 3) / 4 }

func (a *answer) usage(prompt json.RawMessage, answers int) object {
	in, out := tokens(prompt), answers*tokens(a.text)
	return object{"prompt_tokens", in, "completion_tokens", out, "total_tokens", in + out}
}

func (a *answer) chat() {
	head := func(kind string, choices []object) object {
		return object{"id", a.id("chatcmpl"), "object", kind, "created", a.created(), "model", a.model, "choices", choices}
	}
	usage := a.usage(a.ask.Messages, a.choices())

	if !a.r.Stream {
		var choices []object
		for i := range a.choices() {
			choices = append(choices, object{
				"index", i,
				"message", object{"role", "assistant", "content", a.text, "refusal", nil},
				"logprobs", nil,
				"finish_reason", "stop",
			})
		}
		a.json(append(head("chat.completion", choices), "usage", usage, "system_fingerprint", "fp_fake"))
		return
	}

	for i := range a.choices() {
		chunk := func(delta object, finish any) {
			c := head("chat.completion.chunk", []object{{"index", i, "delta", delta, "logprobs", nil, "finish_reason", finish}})
			if a.ask.StreamOptions.IncludeUsage {
				c = append(c, "usage", nil)
			}
			a.event("", encode(c))
		}
		for j, text := range a.chunks {
			delta := object{"content", text}
			if j == 0 {
				delta = object{"role", "assistant", "content", text}
			}
			chunk(delta, nil)
		}
		chunk(object{}, "stop")
	}
	if a.ask.StreamOptions.IncludeUsage {
		a.event("", encode(append(head("chat.completion.chunk", []object{}), "usage", usage)))
	}
	a.last("", "[DONE]")
}

func (a *answer) completion() {
	head := func(choices []object) object {
		return object{"id", a.id("cmpl"), "object", "text_completion", "created", a.created(), "model", a.model, "choices", choices}
	}
	choice := func(i int, text string, finish any) object {
		return object{"text", text, "index", i, "logprobs", nil, "finish_reason", finish}
	}
	// n answers for each prompt.
	n := min(max(len(inputs(a.ask.Prompt)), 1)*a.choices(), maxChoices)
	usage := a.usage(a.ask.Prompt, n)

	if !a.r.Stream {
		var choices []object
		for i := range n {
			choices = append(choices, choice(i, a.text, "stop"))
		}
		a.json(append(head(choices), "usage", usage))
		return
	}

	for i := range n {
		for _, text := range a.chunks {
			a.event("", encode(head([]object{choice(i, text, nil)})))
		}
		a.event("", encode(head([]object{choice(i, "", "stop")})))
	}
	if a.ask.StreamOptions.IncludeUsage {
		a.event("", encode(append(head([]object{}), "usage", usage)))
	}
	a.last("", "[DONE]")
}

func (a *answer) response() {
	itemID := a.id("msg")
	part := func(text string) object {
		return object{"type", "output_text", "text", text, "annotations", []any{}}
	}
	item := func(status string, content ...object) object {
		return object{"type", "message", "id", itemID, "status", status, "role", "assistant", "content", append([]object{}, content...)}
	}
	in, out := tokens(a.ask.Input), tokens(a.text)
	response := func(status string, usage any, output ...object) object {
		return object{
			"id", a.id("resp"), "object", "response", "created_at", a.created(),
			"status", status, "error", nil, "incomplete_details", nil,
			"model", a.model, "output", append([]object{}, output...),
			"parallel_tool_calls", true, "store", false, "usage", usage,
		}
	}
	whole := response("completed", object{
		"input_tokens", in, "input_tokens_details", object{"cached_tokens", 0},
		"output_tokens", out, "output_tokens_details", object{"reasoning_tokens", 0},
		"total_tokens", in + out,
	}, item("completed", part(a.text)))

	if !a.r.Stream {
		a.json(whole)
		return
	}

	sequence := 0
	event := func(send func(name, data string), name string, fields ...any) {
		send(name, encode(append(object{"type", name, "sequence_number", sequence}, fields...)))
		sequence++
	}
	where := []any{"item_id", itemID, "output_index", 0, "content_index", 0}
	at := func(fields ...any) []any { return append(append([]any{}, where...), fields...) }

	event(a.event, "response.created", "response", response("in_progress", nil))
	event(a.event, "response.in_progress", "response", response("in_progress", nil))
	event(a.event, "response.output_item.added", "output_index", 0, "item", item("in_progress"))
	event(a.event, "response.content_part.added", at("part", part(""))...)
	for _, text := range a.chunks {
		event(a.event, "response.output_text.delta", at("delta", text, "logprobs", []any{})...)
	}
	event(a.event, "response.output_text.done", at("text", a.text, "logprobs", []any{})...)
	event(a.event, "response.content_part.done", at("part", part(a.text))...)
	event(a.event, "response.output_item.done", "output_index", 0, "item", item("completed", part(a.text)))
	event(a.last, "response.completed", "response", whole)
}

// message answers in Anthropic's form.
func (a *answer) message() {
	in, out := tokens(a.ask.Messages), tokens(a.text)
	message := func(content []object, stop any, out int) object {
		return object{
			"id", a.id("msg"), "type", "message", "role", "assistant", "model", a.model,
			"content", content, "stop_reason", stop, "stop_sequence", nil,
			"usage", object{"input_tokens", in, "output_tokens", out},
		}
	}
	if !a.r.Stream {
		a.json(message([]object{{"type", "text", "text", a.text}}, "end_turn", out))
		return
	}

	event := func(send func(name, data string), name string, fields ...any) {
		send(name, encode(append(object{"type", name}, fields...)))
	}
	event(a.event, "message_start", "message", message([]object{}, nil, 1))
	event(a.event, "content_block_start", "index", 0, "content_block", object{"type", "text", "text", ""})
	for _, text := range a.chunks {
		event(a.event, "content_block_delta", "index", 0, "delta", object{"type", "text_delta", "text", text})
	}
	event(a.event, "content_block_stop", "index", 0)
	event(a.event, "message_delta",
		"delta", object{"stop_reason", "end_turn", "stop_sequence", nil},
		"usage", object{"output_tokens", out})
	event(a.last, "message_stop")
}

func (a *answer) embeddings() {
	dimensions := defaultDimensions
	if a.ask.Dimensions > 0 {
		dimensions = min(a.ask.Dimensions, maxDimensions)
	}
	data := []object{}
	for i, input := range inputs(a.ask.Input) {
		var vector any = embed(input, dimensions)
		if a.ask.EncodingFormat == "base64" {
			var b []byte
			for _, f := range embed(input, dimensions) {
				b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
			}
			vector = base64.StdEncoding.EncodeToString(b)
		}
		data = append(data, object{"object", "embedding", "index", i, "embedding", vector})
	}
	in := tokens(a.ask.Input)
	a.json(object{
		"object", "list", "data", data, "model", a.model,
		"usage", object{"prompt_tokens", in, "total_tokens", in},
	})
}

// inputs takes apart a field that may hold one input or several: a string or
// an array of token numbers is one, an array of either is several.
func inputs(field json.RawMessage) []json.RawMessage {
	var several []json.RawMessage
	if len(field) == 0 || string(field) == "null" {
		return nil
	}
	if json.Unmarshal(field, &several) != nil {
		return []json.RawMessage{field}
	}
	if len(several) > 0 && several[0][0] != '"' && several[0][0] != '[' {
		return []json.RawMessage{field}
	}
	return several
}

// embed returns a unit vector that depends on the input only.
func embed(input json.RawMessage, dimensions int) []float32 {
	h := fnv.New64a()
	_, _ = h.Write(bytes.TrimSpace(input))
	random := rand.New(rand.NewPCG(h.Sum64(), 0))
	values := make([]float64, dimensions)
	var length float64
	for i := range values {
		values[i] = random.NormFloat64()
		length += values[i] * values[i]
	}
	vector := make([]float32, dimensions)
	for i, v := range values {
		vector[i] = float32(v / math.Sqrt(length))
	}
	return vector
}

func (a *answer) moderation() {
	categories, scores := object{}, object{}
	for _, name := range []string{
		"harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent",
		"self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
	} {
		categories = append(categories, name, false)
		scores = append(scores, name, 0.0001)
	}
	results := []object{}
	for range inputs(a.ask.Input) {
		results = append(results, object{"flagged", false, "categories", categories, "category_scores", scores})
	}
	a.json(object{"id", a.id("modr"), "model", a.model, "results", results})
}

func (a *answer) models() {
	a.json(object{"object", "list", "data", []object{model("gpt-4o-mini"), model("text-embedding-3-small"), model(defaultModel)}})
}

func model(id string) object {
	return object{"id", id, "object", "model", "created", 1700000000, "owned_by", "aiguardtest"}
}
