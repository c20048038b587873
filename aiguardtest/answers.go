package aiguardtest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"unicode/utf8"
)

const (
	fewChunks    = 4 // of Text's streams, if the text is long enough
	defaultModel = "fake-model"
)

// Text is a correct and complete answer on whatever endpoint was asked:
//
//   - OpenAI's POST /chat/completions, /completions and /responses, Anthropic's
//     /v1/messages, Gemini's /models/{model}:generateContent and
//     :streamGenerateContent, Ollama's /api/chat and /api/generate: the text,
//     whole or streamed in a few chunks, as the request asks. OpenAI's n is
//     honoured, and a usage chunk is sent if the request asks for one.
//   - POST /embeddings: a vector for each input, which depends on the input
//     only, of as many dimensions as asked (8 if not), as floats or base64
//   - POST /moderations: nothing flagged
//   - GET /models and /models/{id}: any id exists
//
// Azure's paths (/openai/deployments/{name}/…) work too. On any other path it
// is a 404, and a 405 for the wrong method, as an error of the API. Token
// counts are estimates: one for each four bytes.
func Text(text string) Reply {
	return TextN(text, min(fewChunks, utf8.RuneCountInString(text)))
}

// TextN is Text with streams of exactly that many chunks of text (at least
// one). Chunks are empty when the text runs out. A stream has more events, as
// its API has them: OpenAI's chat has two for the finish_reason and [DONE], and
// one for the usage if asked for.
func TextN(text string, chunks int) Reply {
	chunks = max(chunks, 1)
	return func(w http.ResponseWriter, r *Request) {
		a := newAnswer(w, r, text, chunks)
		a.respond(a)
	}
}

// answer is one answer in the making.
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

// ask is what Text heeds of a request's body.
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
	// What does not parse is as good as absent: checking requests is not our job.
	_ = json.Unmarshal(r.Body, &a.ask)
	if a.model == "" {
		a.model = defaultModel
	}
	return a
}

// generate answers where an API has one operation, which is whole or a stream.
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

// send sends a part of a stream.
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
		// The last one is sent by the reply's return, so that whoever has it
		// finds the request no longer active.
		a.err = flush(a.w)
	}
}

// tokens is about as many as a tokenizer would find.
func tokens[T ~string | ~[]byte](text T) int { return (len(text) + 3) / 4 }
