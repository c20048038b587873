package aiguard

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/runes"
)

// CheckPrompt reports whether texts, taken together, are within MaxPromptChars (in characters: runes) and, if
// there is a CountTokens, within MaxPromptTokens for model. The error is an *Error of kind
// ErrPromptTooLarge that says the size and the limit, or what CountTokens returned. Client and Transport do this
// by themselves, for every endpoint that a dialect knows. Counting is exact for text; of invalid UTF-8 no more than four bytes
// for each character allowed are let through.
func (g *Guard) CheckPrompt(model string, texts ...string) error {
	g.must("CheckPrompt")
	s := &g.call
	if model != "" {
		own := g.settle(g.own.over(Call{Model: model}))
		s = &own
	}
	return g.checkPrompt(s, &prompt{texts: texts})
}

// limits are what a request may have.
type limits struct {
	chars, tokens int // of a prompt; Off or 0: no limit
	output        int // tokens of an answer
}

func (g *Guard) limits(s *settings) limits {
	return limits{g.promptLimit(s), g.cfg.MaxPromptTokens, g.outputLimit(s)}
}

// prompt gathers the texts of a request.
type prompt struct {
	texts []string
	json  int // of texts: so many characters less, since a model reads no white space between values, and no escapes
	ids   int // tokens that the caller has encoded already: one token each, and a character at least
}

// newPrompt has room for the texts of most requests.
func newPrompt() prompt { return prompt{texts: make([]string, 0, 4)} }

func (p *prompt) add(text string) {
	if text != "" {
		p.texts = append(p.texts, text)
	}
}

// addJSON adds a value as the provider will see it. One that cannot be encoded is left to the client, which
// fails on it with its own words.
func (p *prompt) addJSON(v any) {
	switch v := v.(type) {
	case nil:
	case string:
		p.add(v)
	default:
		b, ok := v.(json.RawMessage)
		if !ok {
			b, _ = json.Marshal(v)
		}
		if len(b) == 0 || string(b) == "null" {
			return
		}
		p.part(dialect.Part{Value: b})
	}
}

// part adds a part of a request's JSON.
func (p *prompt) part(part dialect.Part) {
	p.ids += part.IDs
	if len(part.Value) == 0 {
		return
	}
	text, ok := jsonscan.Text(part.Value)
	if !ok {
		text = string(part.Value)
		p.json += runes.Count(text) - part.Runes()
	}
	p.add(text)
}

// maxTextOverhead is what CountTokens may add to each text. A token is a byte at least, so that most prompts need no count.
const maxTextOverhead = 8

// countReaches finds a counter that stops counting below MaxPromptTokens, and so would let every prompt pass: it counts a text
// that has more tokens than that by any measure. A counter that fails does not tell; it may not know the model "".
func (c *Config) countReaches() (n, of int, ok bool) {
	const words = "a1 "  // two tokens or more; a count of bytes may take four for a token
	const most = 1 << 17 // tokens: counting must not hold up a start
	if c.MaxPromptTokens <= 0 || c.CountTokens == nil {
		return 0, 0, true
	}
	of = min(c.MaxPromptTokens, most)
	n, err := c.CountTokens("", strings.Repeat(words, 2*(of+1)))
	return n, of, err != nil || n > of
}

func (g *Guard) checkPrompt(s *settings, p *prompt) error {
	limit := g.promptLimit(s)
	if limit != Off && p.ids+sum(p.texts, length) > limit { // characters <= bytes: most prompts need no count
		if chars := p.ids + sum(p.texts, runes.Count) - p.json; chars > limit {
			return promptTooLarge(s, phasePrompt, int64(chars), int64(limit))
		}
	}
	return g.checkTokens(s, p)
}

func (g *Guard) checkTokens(s *settings, p *prompt) error {
	limit := g.cfg.MaxPromptTokens
	if limit <= 0 || p.ids+sum(p.texts, length)+maxTextOverhead*len(p.texts) <= limit {
		return nil
	}
	tokens := p.ids
	for _, t := range p.texts {
		n, err := g.cfg.CountTokens(s.Model, t)
		if err != nil {
			return fmt.Errorf("aiguard: counting tokens of the prompt: %w", err)
		}
		if tokens += n; tokens > limit {
			break
		}
	}
	if tokens > limit {
		return promptTooLarge(s, phaseTokens, int64(tokens), int64(limit))
	}
	return nil
}

func sum(texts []string, count func(string) int) (n int) {
	for _, t := range texts {
		n += count(t)
	}
	return n
}

func length(s string) int { return len(s) }

func promptTooLarge(s *settings, phase string, size, limit int64) error {
	return &Error{Kind: ErrPromptTooLarge, Op: s.Op, Model: s.Model, Phase: phase, Size: size, Max: limit}
}

// tally counts the prompts of a request without a copy of them. It stops where one is over the limit of characters.
type tally struct {
	limits
	chars int // of this prompt
	most  int // bytes of the greatest one, with what CountTokens may add
	bytes int
}

func (t *tally) part() func(dialect.Part) bool {
	if t.limits.chars <= 0 && t.limits.tokens <= 0 {
		return nil
	}
	return func(p dialect.Part) bool {
		if p.New {
			t.chars, t.bytes = 0, 0
		}
		t.bytes += p.IDs + len(p.Value) + maxTextOverhead
		t.most = max(t.most, t.bytes)
		if t.limits.chars > 0 {
			t.chars += p.Runes()
		}
		return t.limits.chars <= 0 || t.chars <= t.limits.chars
	}
}

// over is the refusal of a prompt with too many characters, or nil.
func (t *tally) over(s *settings) error {
	if limit := t.limits.chars; limit > 0 && t.chars > limit {
		return promptTooLarge(s, phasePrompt, int64(t.chars), int64(limit))
	}
	return nil
}

// longest reports whether a prompt may have more than limit tokens: a token is a byte at least.
func (t *tally) longest(limit int) bool { return t.most > limit }

// What each request sends as text. Images and files are bounded by MaxRequestBytes alone.

func (p *prompt) chat(r *openai.ChatCompletionRequest) {
	for i := range r.Messages {
		m := &r.Messages[i]
		p.add(m.Content)
		p.add(m.Name)
		p.add(m.Refusal)
		p.add(m.ReasoningContent)
		for _, part := range m.MultiContent {
			p.add(part.Text)
		}
		if m.FunctionCall != nil {
			p.function(m.FunctionCall)
		}
		for j := range m.ToolCalls {
			p.function(&m.ToolCalls[j].Function)
		}
	}
	for i := range r.Functions {
		p.definition(&r.Functions[i])
	}
	for i := range r.Tools {
		p.tool(&r.Tools[i])
	}
	if f := r.ResponseFormat; f != nil && f.JSONSchema != nil {
		p.add(f.JSONSchema.Name)
		p.add(f.JSONSchema.Description)
		p.addJSON(f.JSONSchema.Schema)
	}
	if r.Prediction != nil {
		p.add(r.Prediction.Content)
	}
	for _, choice := range r.GuidedChoice {
		p.add(choice)
	}
}

func (p *prompt) function(f *openai.FunctionCall) {
	p.add(f.Name)
	p.add(f.Arguments)
}

func (p *prompt) definition(f *openai.FunctionDefinition) {
	p.add(f.Name)
	p.add(f.Description)
	p.addJSON(f.Parameters)
}

func (p *prompt) tool(t *openai.Tool) {
	if t.Function != nil {
		p.definition(t.Function)
	}
	for _, setting := range t.Parameters {
		p.addJSON(setting)
	}
}

func (p *prompt) completion(r *openai.CompletionRequest) {
	p.input(r.Prompt)
	p.add(r.Suffix)
}

func (p *prompt) response(r *openai.CreateResponseRequest) {
	p.add(r.Instructions)
	p.input(r.Input)
	for i := range r.Tools {
		p.tool(&r.Tools[i])
	}
	if r.Text != nil && r.Text.Format != nil {
		p.add(r.Text.Format.Name)
		p.add(r.Text.Format.Description)
		p.addJSON(r.Text.Format.Schema)
	}
	if r.Prompt != nil && len(r.Prompt.Variables) > 0 {
		p.items("prompt", map[string]any{"variables": r.Prompt.Variables})
	}
	p.extra(r.ExtraBody)
}

// input adds the texts of a free-form field: a string, strings, tokens, or structured items.
func (p *prompt) input(v any) {
	switch v := v.(type) {
	case nil:
	case string:
		p.add(v)
	case []string:
		for _, s := range v {
			p.add(s)
		}
	case []int:
		p.ids += len(v)
	case [][]int:
		for _, ids := range v {
			p.ids += len(ids)
		}
	case map[string]any:
		if len(v) > 0 {
			p.items("input", v)
		}
	default:
		p.items("input", v)
	}
}

// items adds the texts of structured input as the transport would read them in the field of that name.
func (p *prompt) items(field string, v any) {
	if b, err := json.Marshal(map[string]any{field: v}); err == nil { // else the client fails on it with its own words
		responsesEndpoint.Read(b, func(part dialect.Part) bool {
			p.part(part)
			return true
		})
	}
}

// extra adds the texts of the members that a caller adds to a request.
func (p *prompt) extra(members map[string]any) {
	for name, v := range members {
		p.items(name, v)
	}
}

var (
	responsesEndpoint  = dialect.Of(http.MethodPost, "/responses", "")
	embeddingsEndpoint = dialect.Of(http.MethodPost, "/embeddings", "")
)

// embeddings returns the prompts of an embeddings request: each of its inputs is one.
func embeddings(r *openai.EmbeddingRequest) (prompts []prompt) {
	one := func(text string) {
		if strings.HasPrefix(text, "data:") { // perhaps an image
			prompts = append(prompts, embeddingPrompts("input", text)...)
			return
		}
		prompts = append(prompts, prompt{texts: []string{text}})
	}
	switch v := r.Input.(type) {
	case string:
		one(v)
	case []string:
		for _, s := range v {
			one(s)
		}
	case []int:
		prompts = append(prompts, prompt{ids: len(v)})
	case [][]int:
		for _, ids := range v {
			prompts = append(prompts, prompt{ids: len(ids)})
		}
	case nil:
	default:
		prompts = append(prompts, embeddingPrompts("input", v)...)
	}
	for name, v := range r.ExtraBody {
		prompts = append(prompts, embeddingPrompts(name, v)...)
	}
	return prompts
}

func embeddingPrompts(field string, v any) (prompts []prompt) {
	b, err := json.Marshal(map[string]any{field: v})
	if err != nil {
		return nil
	}
	embeddingsEndpoint.Read(b, func(part dialect.Part) bool {
		if part.New || len(prompts) == 0 {
			prompts = append(prompts, prompt{})
		}
		prompts[len(prompts)-1].part(part)
		return true
	})
	return prompts
}

// capChat sets or lowers the output limit of r, which is the client's own copy.
func capChat(r *openai.ChatCompletionRequest, limit int) {
	if limit <= 0 {
		return
	}
	switch {
	case r.MaxTokens != 0 || r.MaxCompletionTokens != 0:
		if r.MaxTokens != 0 {
			r.MaxTokens = capped(r.MaxTokens, limit)
		}
		if r.MaxCompletionTokens != 0 {
			r.MaxCompletionTokens = capped(r.MaxCompletionTokens, limit)
		}
	case dialect.MaxTokensName(r.Model) == "max_completion_tokens":
		r.MaxCompletionTokens = limit
	default:
		r.MaxTokens = limit
	}
}

func capResponse(r *openai.CreateResponseRequest, limit int) {
	r.MaxOutputTokens = capped(r.MaxOutputTokens, limit)
	if n, ok := r.ExtraBody["max_output_tokens"]; ok && limit > 0 { // it would win over the field
		r.ExtraBody = maps.Clone(r.ExtraBody)
		delete(r.ExtraBody, "max_output_tokens")
		if n, err := strconv.Atoi(fmt.Sprint(n)); err == nil && n > 0 { // an int, a float64 or a json.Number
			r.MaxOutputTokens = capped(n, limit)
		}
	}
}

// capped is n within the limit; absent, or negative, which some servers take for unlimited, becomes the limit.
func capped(n, limit int) int {
	if limit > 0 && (n <= 0 || n > limit) {
		return limit
	}
	return n
}
