package aiguard_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestPromptLimitCountsCharactersInEveryScript(t *testing.T) {
	for name, unit := range map[string]struct {
		text string
		size int
	}{
		"ASCII":     {"x", 1},
		"Latin":     {"é", 1},
		"CJK":       {"中", 1},
		"emoji":     {"😀", 1},
		"combining": {"e\u0301", 2}, // characters are runes, not what a reader sees as one
		"family":    {"👨‍👩‍👧", 5},
		"mixed":     {"aé中😀", 4},
	} {
		t.Run(name, func(t *testing.T) {
			const units = 1000
			g := newGuard(t, aiguard.Config{MaxPromptChars: units * unit.size})
			exact := strings.Repeat(unit.text, units)
			assert.NoError(t, g.CheckPrompt("m", exact), "at the limit")
			assert.NoError(t, g.CheckPrompt("m", "", exact, ""))

			e := facts(t, g.CheckPrompt("m", exact+"x"), aiguard.ErrPromptTooLarge)
			assert.Equal(t, "prompt", e.Phase)
			assert.EqualValues(t, units*unit.size+1, e.Size)
			assert.EqualValues(t, units*unit.size, e.Max)
			assert.Equal(t, "m", e.Model)
			assert.Equal(t, 413, aiguard.HTTPStatus(e))

			half := strings.Repeat(unit.text, units/2)
			assert.NoError(t, g.CheckPrompt("m", half, half), "several texts at the limit")
			assert.ErrorIs(t, g.CheckPrompt("m", half, "x", half), aiguard.ErrPromptTooLarge, "several texts add up")
		})
	}
}

func TestPromptLimitIs20000ByDefaultAndCanBeOff(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	assert.NoError(t, g.CheckPrompt("m", strings.Repeat("中", 20_000)))
	assert.ErrorIs(t, g.CheckPrompt("m", strings.Repeat("中", 20_001)), aiguard.ErrPromptTooLarge)
	off := newGuard(t, aiguard.Config{MaxPromptChars: aiguard.Off})
	assert.NoError(t, off.CheckPrompt("m", strings.Repeat("中", 1_000_000)))
	assert.NoError(t, g.CheckPrompt("m"), "no text at all")
}

// In JSON each byte of invalid UTF-8 becomes a character. To count those exactly would cost every prompt a validation, so
// that it is the bytes that bound them.
func TestTextIsCountedExactlyAndInvalidUTF8IsBoundedByItsBytes(t *testing.T) {
	const limit = 20
	g := newGuard(t, aiguard.Config{MaxPromptChars: limit})
	pieces := []string{"a", "é", "中", "😀", "\x80", "\xbf", "\xff", "\xe4", "\xf0\x9f", "\xed\xa0\x80"}
	r := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for i := range 20_000 {
		var texts []string
		chars, bytes, valid := 0, 0, true
		alphabet := pieces[:4]
		if i%2 == 0 {
			alphabet = pieces
		}
		for range 1 + r.IntN(3) {
			var b strings.Builder
			for range r.IntN(40) {
				b.WriteString(alphabet[r.IntN(len(alphabet))])
			}
			texts = append(texts, b.String())
			chars += utf8.RuneCountInString(b.String())
			bytes += b.Len()
			valid = valid && utf8.ValidString(b.String())
		}
		err := g.CheckPrompt("m", texts...)
		if valid {
			require.Equal(t, chars > limit, err != nil, "%q", texts)
		}
		if chars <= limit {
			require.NoError(t, err, "%q", texts)
		}
		if chars > limit && bytes > 4*limit {
			refused++
			require.ErrorIs(t, err, aiguard.ErrPromptTooLarge, "%q", texts)
		}
	}
	require.NotZero(t, refused)
	require.ErrorIs(t, g.CheckPrompt("m", strings.Repeat("\x80", 4*limit+1)), aiguard.ErrPromptTooLarge)
}

func TestTokensAreCountedForTheModelAndSummed(t *testing.T) {
	var models, texts []string
	g := newGuard(t, aiguard.Config{
		MaxPromptTokens: 10,
		CountTokens: func(model, text string) (int, error) {
			models, texts = append(models, model), append(texts, text)
			return len(text), nil
		},
	})
	models, texts = nil, nil // without what New has counted
	require.NoError(t, g.CheckPrompt("gpt-4o", "12345", "67890"))
	assert.Equal(t, []string{"gpt-4o", "gpt-4o"}, models)
	assert.Equal(t, []string{"12345", "67890"}, texts)

	e := facts(t, g.CheckPrompt("gpt-4o", "12345", "67890", "1"), aiguard.ErrPromptTooLarge)
	assert.Equal(t, "prompt_tokens", e.Phase)
	assert.EqualValues(t, 11, e.Size)
	assert.EqualValues(t, 10, e.Max)

	models = nil
	require.NoError(t, g.With(aiguard.Call{Model: "o3"}).CheckPrompt("", "123"))
	assert.Equal(t, []string{"o3"}, models, "the model of With stands in")
	require.NoError(t, g.CheckPrompt("o3", "12"))
	assert.Len(t, models, 1, "a token is a byte at least: what is short enough is not counted")
}

func TestCharactersAreCheckedBeforeTokens(t *testing.T) {
	counted := 0
	g := newGuard(t, aiguard.Config{MaxPromptChars: 5, MaxPromptTokens: 5, CountTokens: func(_, text string) (int, error) {
		counted++
		return len(text), nil
	}})
	counted = 0 // without what New has counted
	defer func() { assert.Zero(t, counted, "a tokenizer must not be fed an oversized prompt") }()
	assert.ErrorIs(t, g.CheckPrompt("m", "123456"), aiguard.ErrPromptTooLarge)
}

func TestErrorOfCountTokensIsReturnedAndNamed(t *testing.T) {
	own := errors.New("no vocabulary for this model")
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{MaxPromptTokens: 5, CountTokens: func(string, string) (int, error) { return 0, own }})
	_, err := chat(t.Context(), c)
	for _, err := range []error{err, c.Guard().CheckPrompt("m", "x")} {
		require.ErrorIs(t, err, own)
		assert.Contains(t, err.Error(), "aiguard")
		assert.Contains(t, err.Error(), "counting tokens")
		assert.NotErrorIs(t, err, aiguard.ErrPromptTooLarge)
	}
	assert.Zero(t, srv.Count())
}

func TestClientCountsTokensOfItsRequestsModel(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	var models []string
	c := newClient(t, srv, aiguard.Config{MaxPromptTokens: 5, CountTokens: func(model, text string) (int, error) {
		models = append(models, model)
		return len(text), nil
	}})
	models = nil // without what New has counted
	_, err := chat(t.Context(), c.With(aiguard.Call{Model: "another"}))
	e := facts(t, err, aiguard.ErrPromptTooLarge)
	assert.EqualValues(t, len(chatRequest.Messages[0].Content), e.Size)
	assert.Equal(t, []string{openai.GPT4oMini}, models, "what is sent decides, not With")
	assert.Equal(t, openai.GPT4oMini, e.Model)
	assert.Zero(t, srv.Count())
}

// Tokens that the caller has made already are tokens, whatever CountTokens thinks of text.
func TestTokenIDsCountAsTokens(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{MaxPromptTokens: 100, CountTokens: func(_, text string) (int, error) {
		return len(text) / 4, nil // a common estimate
	}})
	embed := func(n int) error {
		_, err := c.CreateEmbeddings(t.Context(), openai.EmbeddingRequestTokens{Model: "text-embedding-3-small", Input: [][]int{make([]int, n)}})
		return err
	}
	assert.NoError(t, embed(100))
	assert.ErrorIs(t, embed(101), aiguard.ErrPromptTooLarge)
	assert.Equal(t, 1, srv.Count())
}

// raw is a JSON value for fields that take a json.Marshaler.
type raw = json.RawMessage

func quoted(text string) raw {
	data, _ := json.Marshal(map[string]string{"description": text})
	return data
}

func userMessage(m openai.ChatCompletionMessage) openai.ChatCompletionRequest {
	m.Role = "user"
	return openai.ChatCompletionRequest{Model: "gpt-4o", Messages: []openai.ChatCompletionMessage{m}}
}

// chatFields puts a text into each field of a chat request that a model reads.
var chatFields = map[string]func(text string) openai.ChatCompletionRequest{
	"content": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{Content: s})
	},
	"last of many messages": func(s string) openai.ChatCompletionRequest {
		r := userMessage(openai.ChatCompletionMessage{Content: s})
		r.Messages = append(make([]openai.ChatCompletionMessage, 40), r.Messages...)
		return r
	},
	"parts": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{MultiContent: []openai.ChatMessagePart{{Type: "text", Text: "a"}, {Type: "text", Text: s}}})
	},
	"part beside an image": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{MultiContent: []openai.ChatMessagePart{
			{Type: "image_url", ImageURL: &openai.ChatMessageImageURL{URL: "data:image/png;base64,AAAA"}}, {Type: "text", Text: s}}})
	},
	"name": func(s string) openai.ChatCompletionRequest { return userMessage(openai.ChatCompletionMessage{Name: s}) },
	"refusal": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{Refusal: s})
	},
	"reasoning": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{ReasoningContent: s})
	},
	"function call name": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{FunctionCall: &openai.FunctionCall{Name: s}})
	},
	"function call arguments": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{FunctionCall: &openai.FunctionCall{Name: "f", Arguments: s}})
	},
	"tool call name": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{ToolCalls: []openai.ToolCall{{Function: openai.FunctionCall{Name: s}}}})
	},
	"tool call arguments": func(s string) openai.ChatCompletionRequest {
		return userMessage(openai.ChatCompletionMessage{ToolCalls: []openai.ToolCall{{}, {Function: openai.FunctionCall{Name: "f", Arguments: s}}}})
	},
	"tool name": func(s string) openai.ChatCompletionRequest { return withTool(openai.FunctionDefinition{Name: s}) },
	"tool description": func(s string) openai.ChatCompletionRequest {
		return withTool(openai.FunctionDefinition{Description: s})
	},
	"tool parameters": func(s string) openai.ChatCompletionRequest {
		return withTool(openai.FunctionDefinition{Parameters: map[string]any{"properties": map[string]any{"a": map[string]string{"description": s}}}})
	},
	"tool parameters, raw": func(s string) openai.ChatCompletionRequest {
		return withTool(openai.FunctionDefinition{Parameters: quoted(s)})
	},
	"tool parameters, struct": func(s string) openai.ChatCompletionRequest {
		return withTool(openai.FunctionDefinition{Parameters: struct{ Description string }{s}})
	},
	"tool parameter name": func(s string) openai.ChatCompletionRequest {
		return withTool(openai.FunctionDefinition{Parameters: map[string]any{"properties": map[string]any{s: 1}}})
	},
	"inline tool": func(s string) openai.ChatCompletionRequest {
		r := userMessage(openai.ChatCompletionMessage{Content: "a"})
		r.Tools = []openai.Tool{openai.NewResponseFunctionTool(openai.FunctionDefinition{Name: "f", Description: s})}
		return r
	},
	"function description": func(s string) openai.ChatCompletionRequest {
		r := userMessage(openai.ChatCompletionMessage{Content: "a"})
		r.Functions = []openai.FunctionDefinition{{Name: "f", Description: s}}
		return r
	},
	"function parameters": func(s string) openai.ChatCompletionRequest {
		r := userMessage(openai.ChatCompletionMessage{Content: "a"})
		r.Functions = []openai.FunctionDefinition{{Name: "f", Parameters: quoted(s)}}
		return r
	},
	"schema": func(s string) openai.ChatCompletionRequest {
		return withSchema(openai.ChatCompletionResponseFormatJSONSchema{Schema: quoted(s)})
	},
	"schema name": func(s string) openai.ChatCompletionRequest {
		return withSchema(openai.ChatCompletionResponseFormatJSONSchema{Name: s, Schema: quoted("a")})
	},
	"schema description": func(s string) openai.ChatCompletionRequest {
		return withSchema(openai.ChatCompletionResponseFormatJSONSchema{Description: s, Schema: quoted("a")})
	},
	"prediction": func(s string) openai.ChatCompletionRequest {
		r := userMessage(openai.ChatCompletionMessage{Content: "a"})
		r.Prediction = &openai.Prediction{Type: "content", Content: s}
		return r
	},
}

func withTool(f openai.FunctionDefinition) openai.ChatCompletionRequest {
	r := userMessage(openai.ChatCompletionMessage{Content: "a"})
	r.Tools = []openai.Tool{{Type: "function", Function: &f}}
	return r
}

func withSchema(f openai.ChatCompletionResponseFormatJSONSchema) openai.ChatCompletionRequest {
	r := userMessage(openai.ChatCompletionMessage{Content: "a"})
	r.ResponseFormat = &openai.ChatCompletionResponseFormat{Type: "json_schema", JSONSchema: &f}
	return r
}

var completionFields = map[string]func(text string) openai.CompletionRequest{
	"prompt":          func(s string) openai.CompletionRequest { return openai.CompletionRequest{Prompt: s} },
	"prompts":         func(s string) openai.CompletionRequest { return openai.CompletionRequest{Prompt: []string{"a", s}} },
	"prompts, as any": func(s string) openai.CompletionRequest { return openai.CompletionRequest{Prompt: []any{"a", s}} },
	"suffix":          func(s string) openai.CompletionRequest { return openai.CompletionRequest{Prompt: "a", Suffix: s} },
}

var responseFields = map[string]func(text string) openai.CreateResponseRequest{
	"input": func(s string) openai.CreateResponseRequest { return openai.CreateResponseRequest{Input: s} },
	"instructions": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", Instructions: s}
	},
	"messages": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: []openai.ResponseInputMessage{{Role: "user", Content: "a"}, {Role: "user", Content: s}}}
	},
	"parts": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: []openai.ResponseInputMessage{{Role: "user", Content: []any{
			openai.ResponseInputText{Type: "input_text", Text: "a"}, openai.ResponseInputText{Type: "input_text", Text: s}}}}}
	},
	"part beside an image": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: []any{openai.ResponseInputMessage{Role: "user", Content: []any{
			openai.ResponseInputImage{Type: "input_image", ImageURL: "data:image/png;base64,AAAA"}, openai.ResponseInputText{Type: "input_text", Text: s}}}}}
	},
	"maps": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: []map[string]any{{"role": "user", "content": []map[string]string{{"type": "input_text", "text": s}}}}}
	},
	"raw JSON": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: raw(`[{"role":"user","content":"` + s + `"}]`)}
	},
	"function call output": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: []any{openai.ResponseFunctionCallOutput{Type: "function_call_output", CallID: "c", Output: s}}}
	},
	"tool description": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", Tools: []openai.ResponseTool{openai.NewResponseFunctionTool(openai.FunctionDefinition{Name: "f", Description: s})}}
	},
	"tool parameters": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", Tools: []openai.ResponseTool{openai.NewResponseFunctionTool(openai.FunctionDefinition{Name: "f", Parameters: quoted(s)})}}
	},
	"schema": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", Text: &openai.ResponseTextConfig{Format: &openai.ResponseTextFormat{Type: "json_schema", Name: "n", Schema: quoted(s)}}}
	},
	"schema description": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", Text: &openai.ResponseTextConfig{Format: &openai.ResponseTextFormat{Type: "json_schema", Name: "n", Description: s, Schema: quoted("a")}}}
	},
	"prompt variable": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", Prompt: &openai.ResponsePrompt{ID: "p", Variables: map[string]any{"city": s}}}
	},
	"prompt variable named data": func(s string) openai.CreateResponseRequest { // a name is no reason not to count it
		return openai.CreateResponseRequest{Input: "a", Prompt: &openai.ResponsePrompt{ID: "p", Variables: map[string]any{"data": s}}}
	},
	"extra body": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{ExtraBody: map[string]any{"input": s}}
	},
	"extra body, structured": func(s string) openai.CreateResponseRequest {
		return openai.CreateResponseRequest{Input: "a", ExtraBody: map[string]any{"x": []any{map[string]any{"y": s}}}}
	},
}

var embeddingFields = map[string]func(text string) openai.EmbeddingRequestConverter{
	"string": func(s string) openai.EmbeddingRequestConverter { return openai.EmbeddingRequest{Input: s} },
	"strings": func(s string) openai.EmbeddingRequestConverter {
		return openai.EmbeddingRequestStrings{Input: []string{"a", s}}
	},
	"any": func(s string) openai.EmbeddingRequestConverter { return openai.EmbeddingRequest{Input: []any{"a", s}} },
	"tokens": func(s string) openai.EmbeddingRequestConverter {
		return openai.EmbeddingRequestTokens{Input: [][]int{{1}, make([]int, len(s))}}
	},
	"one tokens": func(s string) openai.EmbeddingRequestConverter {
		return openai.EmbeddingRequest{Input: make([]int, len(s))}
	},
	"extra body": func(s string) openai.EmbeddingRequestConverter {
		return openai.EmbeddingRequestStrings{Input: []string{"a"}, ExtraBody: map[string]any{"instruction": s}}
	},
}

// guardedCall is one call of an overridden method with a text in one of its fields.
type guardedCall struct {
	op   string
	call func(ctx context.Context, c *aiguard.Client, text string) error
}

func everyField() map[string]guardedCall {
	all := map[string]guardedCall{}
	for name, request := range chatFields {
		all["chat/"+name] = guardedCall{"chat.completions", func(ctx context.Context, c *aiguard.Client, text string) error {
			_, err := c.CreateChatCompletion(ctx, request(text))
			return err
		}}
		all["chat stream/"+name] = guardedCall{"chat.completions", func(ctx context.Context, c *aiguard.Client, text string) error {
			s, err := c.CreateChatCompletionStream(ctx, request(text))
			if err == nil {
				s.Close()
			}
			return err
		}}
	}
	for name, request := range completionFields {
		build := func(text string) openai.CompletionRequest {
			r := request(text)
			r.Model = openai.GPT3Dot5TurboInstruct
			return r
		}
		all["completion/"+name] = guardedCall{"completions", func(ctx context.Context, c *aiguard.Client, text string) error {
			_, err := c.CreateCompletion(ctx, build(text))
			return err
		}}
		all["completion stream/"+name] = guardedCall{"completions", func(ctx context.Context, c *aiguard.Client, text string) error {
			s, err := c.CreateCompletionStream(ctx, build(text))
			if err == nil {
				s.Close()
			}
			return err
		}}
	}
	for name, request := range responseFields {
		build := func(text string) openai.CreateResponseRequest {
			r := request(text)
			r.Model = "gpt-5"
			return r
		}
		all["response/"+name] = guardedCall{"responses", func(ctx context.Context, c *aiguard.Client, text string) error {
			_, err := c.CreateResponse(ctx, build(text))
			return err
		}}
		all["response stream/"+name] = guardedCall{"responses", func(ctx context.Context, c *aiguard.Client, text string) error {
			s, err := c.CreateResponseStream(ctx, build(text))
			if err == nil {
				s.Close()
			}
			return err
		}}
	}
	for name, request := range embeddingFields {
		all["embeddings/"+name] = guardedCall{"embeddings", func(ctx context.Context, c *aiguard.Client, text string) error {
			_, err := c.CreateEmbeddings(ctx, request(text))
			return err
		}}
	}
	return all
}

func TestOverlongTextInAnyFieldIsRefusedBeforeItIsSent(t *testing.T) {
	const limit = 500
	srv := aiguardtest.NewServer(t)
	for name, field := range everyField() {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, srv, aiguard.Config{MaxPromptChars: limit})
			srv.Reset()
			e := facts(t, field.call(t.Context(), c, strings.Repeat("x", limit+1)), aiguard.ErrPromptTooLarge)
			assert.Equal(t, "prompt", e.Phase)
			assert.EqualValues(t, limit, e.Max)
			assert.Greater(t, e.Size, e.Max)
			assert.Equal(t, field.op, e.Op)
			assert.Zero(t, e.Attempts)
			assert.Zero(t, srv.Count(), "nothing was sent")
			st := c.Guard().Stats()
			assert.EqualValues(t, 1, st.Calls)
			assert.EqualValues(t, 1, st.Refused)

			// The control: short, the same request goes through, so that it was refused for its length.
			require.NoError(t, field.call(t.Context(), c, "short"))
			assert.Equal(t, 1, srv.Count())
		})
	}
}

func TestImagesAndFilesAreNotText(t *testing.T) {
	data := "data:image/png;base64," + strings.Repeat("A", 50_000)
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{MaxPromptChars: 100})
	_, err := c.CreateChatCompletion(t.Context(), userMessage(openai.ChatCompletionMessage{MultiContent: []openai.ChatMessagePart{
		{Type: "text", Text: "What is this?"}, {Type: "image_url", ImageURL: &openai.ChatMessageImageURL{URL: data}}}}))
	assert.NoError(t, err)
	for name, part := range map[string]any{
		"image": openai.ResponseInputImage{Type: "input_image", ImageURL: data},
		"file":  openai.ResponseInputFile{Type: "input_file", FileData: data, Filename: "a.pdf"},
		"maps":  map[string]any{"type": "input_image", "image_url": data},
		"audio": map[string]any{"type": "input_audio", "input_audio": map[string]any{"format": "wav", "data": data}},
	} {
		input := []openai.ResponseInputMessage{{Role: "user", Content: []any{openai.ResponseInputText{Type: "input_text", Text: "What is this?"}, part}}}
		_, err := c.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: "gpt-5", Input: input})
		assert.NoError(t, err, name)
	}
	assert.Equal(t, 5, srv.Count())
}

func TestRequestBytesAreBoundedImagesIncluded(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	request := userMessage(openai.ChatCompletionMessage{MultiContent: []openai.ChatMessagePart{
		{Type: "image_url", ImageURL: &openai.ChatMessageImageURL{URL: "data:image/png;base64," + strings.Repeat("A", 5000)}}}})
	body, err := json.Marshal(request)
	require.NoError(t, err)
	size := int64(len(body))

	_, err = newClient(t, srv, aiguard.Config{MaxRequestBytes: size}).CreateChatCompletion(t.Context(), request)
	require.NoError(t, err, "at the limit")
	require.Len(t, srv.Requests()[0].Body, int(size), "the test's own premise")

	srv.Reset()
	_, err = newClient(t, srv, aiguard.Config{MaxRequestBytes: size - 1}).CreateChatCompletion(t.Context(), request)
	e := facts(t, err, aiguard.ErrPromptTooLarge)
	assert.Equal(t, "request", e.Phase)
	assert.Equal(t, size, e.Size)
	assert.Equal(t, size-1, e.Max)
	assert.Equal(t, "chat.completions", e.Op)
	assert.Zero(t, srv.Count())

	_, err = newClient(t, srv, aiguard.Config{MaxRequestBytes: aiguard.Off}).CreateChatCompletion(t.Context(), request)
	assert.NoError(t, err)
}

// sentLimits returns the output limits in the body that the server received last.
func sentLimits(t *testing.T, srv *aiguardtest.Server) map[string]any {
	t.Helper()
	requests := srv.Requests()
	require.NotEmpty(t, requests)
	var body map[string]any
	require.NoError(t, json.Unmarshal(requests[len(requests)-1].Body, &body))
	maps.DeleteFunc(body, func(key string, _ any) bool { return !strings.HasPrefix(key, "max_") })
	return body
}

func TestOutputTokensOfChatAreSetInTheFieldTheModelTakes(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{MaxOutputTokens: 100})
	fields := map[string]string{
		"o1": "max_completion_tokens", "o3-mini": "max_completion_tokens", "o4-mini": "max_completion_tokens", "gpt-5": "max_completion_tokens",
		"gpt-5.1": "max_completion_tokens", "gpt-6-sol": "max_completion_tokens", "gpt-10": "max_completion_tokens",
		"openai/o3": "max_completion_tokens", "openai/gpt-5": "max_completion_tokens",
		"gpt-4o": "max_tokens", "gpt-4.1": "max_tokens", "gpt-3.5-turbo": "max_tokens", "gpt-35-turbo": "max_tokens", "gpt-oss-120b": "max_tokens",
		"llama-3": "max_tokens", "omni": "max_tokens", "o": "max_tokens", "": "max_tokens", "openai/gpt-4o": "max_tokens", "gpt-": "max_tokens",
	}
	for model, field := range fields {
		for _, stream := range []bool{false, true} {
			r := openai.ChatCompletionRequest{Model: model, Messages: chatRequest.Messages}
			if stream {
				s, err := c.CreateChatCompletionStream(t.Context(), r)
				require.NoError(t, err, model)
				s.Close()
			} else {
				_, err := c.CreateChatCompletion(t.Context(), r)
				require.NoError(t, err, model)
			}
			assert.Equal(t, map[string]any{field: 100.0}, sentLimits(t, srv), model)
		}
	}
}

func TestOutputTokensAreLoweredAndSmallerOnesKept(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	capped := newClient(t, srv, aiguard.Config{MaxOutputTokens: 100})
	free := newClient(t, srv, aiguard.Config{})
	chatSent := func(c *aiguard.Client, r openai.ChatCompletionRequest) map[string]any {
		r.Messages = chatRequest.Messages
		_, err := c.CreateChatCompletion(t.Context(), r)
		require.NoError(t, err)
		return sentLimits(t, srv)
	}
	for _, c := range []struct {
		asked openai.ChatCompletionRequest
		sent  map[string]any
	}{
		{openai.ChatCompletionRequest{Model: "gpt-4o", MaxTokens: 101}, map[string]any{"max_tokens": 100.0}},
		{openai.ChatCompletionRequest{Model: "gpt-4o", MaxTokens: 100}, map[string]any{"max_tokens": 100.0}},
		{openai.ChatCompletionRequest{Model: "gpt-4o", MaxTokens: 7}, map[string]any{"max_tokens": 7.0}},
		{openai.ChatCompletionRequest{Model: "gpt-4o", MaxCompletionTokens: 5000}, map[string]any{"max_completion_tokens": 100.0}},
		{openai.ChatCompletionRequest{Model: "gpt-4o", MaxCompletionTokens: 7}, map[string]any{"max_completion_tokens": 7.0}},
		{openai.ChatCompletionRequest{Model: "gpt-5", MaxCompletionTokens: 5000}, map[string]any{"max_completion_tokens": 100.0}},
		{openai.ChatCompletionRequest{Model: "gpt-5", MaxCompletionTokens: 7}, map[string]any{"max_completion_tokens": 7.0}},
		{openai.ChatCompletionRequest{Model: "gpt-4o", MaxTokens: 7, MaxCompletionTokens: 5000}, map[string]any{"max_tokens": 7.0, "max_completion_tokens": 100.0}},
	} {
		assert.Equal(t, c.sent, chatSent(capped, c.asked), "%s %d %d", c.asked.Model, c.asked.MaxTokens, c.asked.MaxCompletionTokens)
	}
	assert.Empty(t, chatSent(free, openai.ChatCompletionRequest{Model: "gpt-4o"}), "no limit configured, none sent")
	assert.Equal(t, map[string]any{"max_tokens": 5000.0}, chatSent(free, openai.ChatCompletionRequest{Model: "gpt-4o", MaxTokens: 5000}))

	for asked, sent := range map[int]float64{0: 100, 7: 7, 100: 100, 5000: 100} {
		_, err := capped.CreateCompletion(t.Context(), openai.CompletionRequest{Model: openai.GPT3Dot5TurboInstruct, Prompt: "a", MaxTokens: asked})
		require.NoError(t, err)
		assert.Equal(t, map[string]any{"max_tokens": sent}, sentLimits(t, srv), "completion, asked %d", asked)
		s, err := capped.CreateCompletionStream(t.Context(), openai.CompletionRequest{Model: openai.GPT3Dot5TurboInstruct, Prompt: "a", MaxTokens: asked})
		require.NoError(t, err)
		s.Close()
		assert.Equal(t, map[string]any{"max_tokens": sent}, sentLimits(t, srv), "completion stream, asked %d", asked)
		_, err = capped.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: "gpt-5", Input: "a", MaxOutputTokens: asked})
		require.NoError(t, err)
		assert.Equal(t, map[string]any{"max_output_tokens": sent}, sentLimits(t, srv), "response, asked %d", asked)
		rs, err := capped.CreateResponseStream(t.Context(), openai.CreateResponseRequest{Model: "gpt-5", Input: "a", MaxOutputTokens: asked})
		require.NoError(t, err)
		rs.Close()
		assert.Equal(t, map[string]any{"max_output_tokens": sent}, sentLimits(t, srv), "response stream, asked %d", asked)
	}
}

func TestOutputTokensInExtraBodyAreBoundedToo(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{MaxOutputTokens: 100})
	for name, k := range map[string]struct {
		field int
		extra any
		sent  float64
	}{
		"larger":                  {0, 5000, 100},
		"smaller":                 {0, 7, 7},
		"wins over the field":     {50, 7, 7}, // as it does in go-openai
		"decoded JSON, larger":    {0, 5000.0, 100},
		"decoded JSON, smaller":   {0, 7.0, 7},
		"json.Number, smaller":    {0, json.Number("7"), 7},
		"int64, smaller":          {0, int64(7), 7},
		"nonsense":                {0, "unlimited", 100},
		"null":                    {0, nil, 100},
		"field larger, extra too": {9000, 5000, 100},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: "gpt-5", Input: "a", MaxOutputTokens: k.field,
				ExtraBody: map[string]any{"max_output_tokens": k.extra}})
			require.NoError(t, err)
			assert.Equal(t, map[string]any{"max_output_tokens": k.sent}, sentLimits(t, srv))
		})
	}
}

func TestTheCallersRequestIsLeftAsItIs(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{MaxOutputTokens: 100})
	extra := map[string]any{"max_output_tokens": 5000, "metadata": map[string]any{"a": "b"}}
	response := openai.CreateResponseRequest{Model: "gpt-5", Input: "a", MaxOutputTokens: 9000, ExtraBody: extra}
	_, err := c.CreateResponse(t.Context(), response)
	require.NoError(t, err)
	assert.Equal(t, map[string]any{"max_output_tokens": 5000, "metadata": map[string]any{"a": "b"}}, extra)
	assert.Equal(t, 9000, response.MaxOutputTokens)

	request := userMessage(openai.ChatCompletionMessage{Content: "a"})
	request.MaxTokens = 5000
	before, err := json.Marshal(request)
	require.NoError(t, err)
	_, err = c.CreateChatCompletion(t.Context(), request)
	require.NoError(t, err)
	after, err := json.Marshal(request)
	require.NoError(t, err)
	assert.JSONEq(t, string(before), string(after))

	tokens := [][]int{{1, 2, 3}}
	_, err = c.CreateEmbeddings(t.Context(), openai.EmbeddingRequestTokens{Model: "text-embedding-3-small", Input: tokens})
	require.NoError(t, err)
	assert.Equal(t, [][]int{{1, 2, 3}}, tokens)
}
