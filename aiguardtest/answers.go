package aiguardtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"unicode/utf8"
)

const (
	fewChunks    = 4 // of a stream of Text, if the text is long enough
	defaultModel = "fake-model"
)

// Text is a correct and complete answer on every endpoint:
//
//   - OpenAI's POST /chat/completions, /completions and /responses, Anthropic's /v1/messages, Gemini's
//     /models/{model}:generateContent and :streamGenerateContent, Ollama's /api/chat and /api/generate: the text, whole or
//     streamed in a few chunks, as requested. OpenAI's n is supported. A usage chunk is sent if the request asks for one.
//   - POST /embeddings: a vector for each input, as floats or base64. A vector depends only on the input. It has the
//     requested number of dimensions, by default 8.
//   - POST /moderations: nothing flagged
//   - GET /models and /models/{id}: any id exists
//
// Azure's paths (/openai/deployments/{name}/…) work too. Other paths get a 404, and a wrong method gets a 405, as errors of
// the API. Token counts are estimates: one token for four bytes.
func Text(text string) Reply {
	return TextN(text, min(fewChunks, utf8.RuneCountInString(text)))
}

// TextN is Text with exactly that many chunks of text in a stream (at least one). Chunks are empty after the end of the
// text. The stream has further events of its API. OpenAI's chat has two for the finish_reason and [DONE], and one for
// the usage if requested.
func TextN(text string, chunks int) Reply {
	chunks = max(chunks, 1)
	return func(w http.ResponseWriter, r *Request) {
		a := newAnswer(w, r, text, chunks)
		a.respond(a)
	}
}

// answer is the state of one answer.
type answer struct {
	dialect
	w      http.ResponseWriter
	r      *Request
	text   string
	chunks []string
	ask    ask
	model  string

	started bool // the stream
	err     error
}

// ask holds the members of a request's body that Text uses.
type ask struct {
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	N              int             `json:"n"`
	Messages       json.RawMessage `json:"messages"`
	Contents       json.RawMessage `json:"contents"`
	Prompt         json.RawMessage `json:"prompt"`
	Input          json.RawMessage `json:"input"`
	EncodingFormat string          `json:"encoding_format"`
	Dimensions     int             `json:"dimensions"`
}

func newAnswer(w http.ResponseWriter, r *Request, text string, chunks int) *answer {
	a := &answer{dialect: dialectOf(r), w: w, r: r, text: text, chunks: split(text, chunks), model: r.Model}
	// A body that cannot be parsed counts as absent, because Text does not validate requests.
	_ = json.Unmarshal(r.Body, &a.ask)
	if a.model == "" {
		a.model = defaultModel
	}
	return a
}

// generate answers a request of an API with a single operation, whole or streamed.
func (a *answer) generate() {
	switch {
	case !a.known:
		Error(http.StatusNotFound, "")(a.w, a.r)
	case a.r.Method != http.MethodPost:
		Error(http.StatusMethodNotAllowed, "", "Allow", http.MethodPost)(a.w, a.r)
	case !a.r.Stream:
		a.json(a.whole(a))
	default:
		parts := a.stream().says(a.chunks...).ends().parts
		for i, part := range parts {
			a.send(part, i == len(parts)-1)
		}
	}
}

// split cuts text into exactly n parts, between runes. If the text is too short, only the first parts have text.
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

// send sends one part of a stream.
func (a *answer) send(part string, last bool) {
	if a.err != nil {
		return
	}
	if !a.started {
		a.started = true
		startStream(a.w, a.r)
	}
	if last {
		a.r.finishing()
	}
	if _, a.err = io.WriteString(a.w, part); a.err == nil && !last {
		// The last part is sent when the reply returns, so that a client that has it finds the request no longer
		// active.
		a.err = flush(a.w)
	}
}

// tokens returns an estimate of the number of tokens.
func tokens[T ~string | ~[]byte](text T) int { return (len(text) + 3) / 4 }
