package aiguardtest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
)

// OpenAI's API: chat, text completions, Responses, embeddings, moderations and models, also on Azure's paths. Faults
// have the form of chat.

const (
	defaultDimensions = 8 // short, for speed; real vectors have 1,536
	maxDimensions     = 4096
	maxChoices        = 128
)

func openai() dialect {
	f := serverSent("\n", false)
	f.mark = "data: [DONE]\n\n"
	return dialect{
		requestID: "X-Request-Id",
		known:     true,
		respond:   answerOpenAI,
		whole:     func(a *answer) object { return chatCompletion(a, 1) },
		failed: func(a *answer) object {
			return responseObject(a, "failed", object{"code", "server_error", "message", ProviderText}, nil)
		},
		delta:   func(a *answer, text string) string { return chatChunk(a, 0, object{"content", text}, nil) },
		finish:  func(a *answer) []string { return []string{chatChunk(a, 0, object{}, "stop")} },
		framing: f,
		failure: openaiError,
		limited: refusal{http.StatusTooManyRequests, "rate_limit_exceeded", ""},
		refusals: func() map[Fault]refusal {
			return map[Fault]refusal{
				FaultInsufficientQuota: {http.StatusTooManyRequests, "insufficient_quota", ""},
				FaultBillingNotActive:  {http.StatusTooManyRequests, "billing_not_active", ""},
				FaultSpendLimit:        {http.StatusTooManyRequests, "project_spend_limit_exceeded", ""},
				FaultCreditExhausted:   {http.StatusTooManyRequests, "credit_balance_exhausted", ""},
				FaultSlowDown:          {http.StatusTooManyRequests, "slow_down", ""},
				FaultPromptTooLong:     {http.StatusBadRequest, "context_length_exceeded", ""},
				FaultContentPolicy:     {http.StatusBadRequest, "content_policy_violation", ""},
				FaultStatus401:         {http.StatusUnauthorized, "invalid_api_key", ""},
				FaultStatus403:         {http.StatusForbidden, "unsupported_country_region_territory", ""},
			}
		},
		objects: func(bool) string { return `{"choices":[` + gap + `]}` },
	}
}

func openaiError(status int, code, message string) string {
	typ := "invalid_request_error"
	switch {
	case code == "insufficient_quota":
		typ = "insufficient_quota"
	case status == http.StatusTooManyRequests:
		typ = "rate_limit_error"
	case status >= 500:
		typ = "server_error"
	}
	var codeOrNull any
	if code != "" {
		codeOrNull = code
	}
	return encode(object{"error", object{"message", message, "type", typ, "param", nil, "code", codeOrNull}})
}

// answerOpenAI answers on the endpoint named in the path.
func answerOpenAI(a *answer) {
	endpoint, ok := strings.CutPrefix(endpointOf(a.r.Path), "/")
	method := http.MethodPost
	var reply func(*answer)
	switch {
	case !ok:
	case endpoint == "chat/completions":
		reply = answerChat
	case endpoint == "completions":
		reply = answerCompletion
	case endpoint == "responses":
		reply = answerResponse
	case endpoint == "embeddings":
		reply = answerEmbeddings
	case endpoint == "moderations":
		reply = answerModeration
	case endpoint == "models":
		method, reply = http.MethodGet, answerModels
	case strings.HasPrefix(endpoint, "models/"):
		method, reply = http.MethodGet, func(a *answer) { a.json(model(strings.TrimPrefix(endpoint, "models/"))) }
	}
	switch {
	case reply == nil:
		Error(http.StatusNotFound, "unknown_url")(a.w, a.r)
	case a.r.Method != method:
		Error(http.StatusMethodNotAllowed, "method_not_supported", "Allow", method)(a.w, a.r)
	default:
		reply(a)
	}
}

// endpointOf returns the part of path that names the endpoint, without a prefix.
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

// event sends an event in one Write. The event has a name unless name is empty.
func (a *answer) event(name, data string) { a.send(named(name, data), false) }

// last is event for the last event of a stream.
func (a *answer) last(name, data string) { a.send(named(name, data), true) }

func named(name, data string) string {
	if name != "" {
		name = "event: " + name + "\n"
	}
	return name + "data: " + data + "\n\n"
}

// choices returns the number of answers requested.
func (a *ask) choices() int { return min(max(a.N, 1), maxChoices) }

func openaiUsage(a *answer, prompt json.RawMessage, answers int) object {
	in, out := tokens(prompt), answers*tokens(a.text)
	return object{"prompt_tokens", in, "completion_tokens", out, "total_tokens", in + out}
}

func answerChat(a *answer) {
	if !a.r.Stream {
		a.json(chatCompletion(a, a.ask.choices()))
		return
	}
	for i := range a.ask.choices() {
		for j, text := range a.chunks {
			delta := object{"content", text}
			if j == 0 {
				delta = object{"role", "assistant", "content", text}
			}
			a.event("", chatChunk(a, i, delta, nil))
		}
		a.event("", chatChunk(a, i, object{}, "stop"))
	}
	if a.ask.StreamOptions.IncludeUsage {
		usage := openaiUsage(a, a.ask.Messages, a.ask.choices())
		a.event("", encode(append(chatHead(a, "chat.completion.chunk", []object{}), "usage", usage)))
	}
	a.last("", "[DONE]")
}

func chatHead(a *answer, kind string, choices []object) object {
	return object{"id", a.id("chatcmpl"), "object", kind, "created", a.created(), "model", a.model, "choices", choices}
}

// chatCompletion returns a whole answer with n choices.
func chatCompletion(a *answer, n int) object {
	var choices []object
	for i := range n {
		choices = append(choices, object{
			"index", i,
			"message", object{"role", "assistant", "content", a.text, "refusal", nil},
			"logprobs", nil,
			"finish_reason", "stop",
		})
	}
	usage := openaiUsage(a, a.ask.Messages, n)
	return append(chatHead(a, "chat.completion", choices), "system_fingerprint", "fp_fake", "usage", usage)
}

// chatChunk returns an event of a chat stream.
func chatChunk(a *answer, i int, delta object, finish any) string {
	c := chatHead(a, "chat.completion.chunk", []object{{"index", i, "delta", delta, "logprobs", nil, "finish_reason", finish}})
	if a.ask.StreamOptions.IncludeUsage {
		c = append(c, "usage", nil)
	}
	return encode(c)
}

func answerCompletion(a *answer) {
	head := func(choices []object) object {
		return object{"id", a.id("cmpl"), "object", "text_completion", "created", a.created(), "model", a.model, "choices", choices}
	}
	choice := func(i int, text string, finish any) object {
		return object{"text", text, "index", i, "logprobs", nil, "finish_reason", finish}
	}
	// There are n answers for each prompt.
	n := min(max(len(inputs(a.ask.Prompt)), 1)*a.ask.choices(), maxChoices)
	usage := openaiUsage(a, a.ask.Prompt, n)

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

func answerResponse(a *answer) {
	itemID := a.id("msg")
	part := func(text string) object {
		return object{"type", "output_text", "text", text, "annotations", []any{}}
	}
	item := func(status string, content ...object) object {
		return object{"type", "message", "id", itemID, "status", status, "role", "assistant", "content", append([]object{}, content...)}
	}
	in, out := tokens(a.ask.Input), tokens(a.text)
	response := func(status string, usage any, output ...object) object {
		return responseObject(a, status, nil, usage, output...)
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

func responseObject(a *answer, status string, failure, usage any, output ...object) object {
	return object{
		"id", a.id("resp"), "object", "response", "created_at", a.created(),
		"status", status, "error", failure, "incomplete_details", nil,
		"model", a.model, "output", append([]object{}, output...),
		"parallel_tool_calls", true, "store", false, "usage", usage,
	}
}

func answerEmbeddings(a *answer) {
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

// inputs splits a field with one or several inputs. A string or an array of token numbers is one input. An array of
// strings or of such arrays is several.
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

// embed returns a unit vector that depends only on the input.
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

func answerModeration(a *answer) {
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

func answerModels(a *answer) {
	a.json(object{"object", "list", "data", []object{model("gpt-4o-mini"), model("text-embedding-3-small"), model(defaultModel)}})
}

func model(id string) object {
	return object{"id", id, "object", "model", "created", 1700000000, "owned_by", "aiguardtest"}
}
