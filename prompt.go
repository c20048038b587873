package aiguard

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/bits"
	"strings"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// CheckPrompt reports whether texts, taken together, are within MaxPromptChars (in characters: runes) and, if
// there is a CountTokens, within MaxPromptTokens for model. The error is an *Error of kind
// ErrPromptTooLarge that says the size and the limit, or what CountTokens returned. Client does this by itself;
// call it before using another SDK over Transport.
func (g *Guard) CheckPrompt(model string, texts ...string) error {
	if model == "" {
		model = g.call.Model
	}
	var p prompt
	for _, t := range texts {
		p.add(t)
	}
	return g.checkPrompt(g.call.Op, model, &p)
}

// prompt gathers the texts of a request. Most fit in first, so that gathering allocates nothing.
type prompt struct {
	texts []string
	first [16]string
	bytes int
}

func (p *prompt) add(text string) {
	if text == "" {
		return
	}
	if p.texts == nil {
		p.texts = p.first[:0]
	}
	p.texts = append(p.texts, text)
	p.bytes += len(text)
}

// addJSON adds a value as the provider will see it. One that cannot be encoded is left to the client, which
// fails on it with its own words.
func (p *prompt) addJSON(v any) {
	switch v := v.(type) {
	case nil:
	case string:
		p.add(v)
	case json.RawMessage:
		p.add(string(v))
	default:
		if b, err := json.Marshal(v); err == nil {
			p.add(string(b))
		}
	}
}

func (g *Guard) checkPrompt(op, model string, p *prompt) error {
	cfg := &g.cfg
	if limit := cfg.MaxPromptChars; limit != Off && p.bytes > limit { // characters <= bytes: most prompts need no count
		chars := 0
		for _, t := range p.texts {
			chars += countRunes(t)
		}
		if p.bytes > utf8.UTFMax*limit && chars <= limit {
			chars = 0 // invalid UTF-8 that countRunes does not see: each bad byte is sent as a character
			for _, t := range p.texts {
				chars += utf8.RuneCountInString(t)
			}
		}
		if chars > limit {
			return g.tooLarge(op, model, phasePrompt, int64(chars), int64(limit))
		}
	}
	if limit := cfg.MaxPromptTokens; limit > 0 {
		tokens := 0
		for _, t := range p.texts {
			n, err := cfg.CountTokens(model, t)
			if err != nil {
				return fmt.Errorf("aiguard: counting tokens of the prompt: %w", err)
			}
			tokens += n
		}
		if tokens > limit {
			return g.tooLarge(op, model, phaseTokens, int64(tokens), int64(limit))
		}
	}
	return nil
}

func (g *Guard) tooLarge(op, model, phase string, size, limit int64) error {
	return &Error{Kind: ErrPromptTooLarge, Op: op, Model: model, Phase: phase, Size: size, Max: limit}
}

// countRunes counts the bytes that begin a character, eight at a time: utf8.RuneCountInString takes seven times
// as long over Chinese. In invalid UTF-8 it may count too few.
func countRunes(s string) int {
	n := len(s)
	i := 0
	for ; i+8 <= len(s); i += 8 {
		x := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		n -= bits.OnesCount64(x >> 7 & (^x >> 6) & 0x0101010101010101) // continuation bytes are 10xxxxxx
	}
	for ; i < len(s); i++ {
		if s[i]&0xC0 == 0x80 {
			n--
		}
	}
	return n
}

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
	if len(t.Parameters) > 0 {
		p.addJSON(t.Parameters)
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
		p.addJSON(r.Text.Format.Schema)
	}
	if r.Prompt != nil {
		p.input(r.Prompt.Variables)
	}
	p.input(r.ExtraBody)
}

// input adds the texts of a free-form field: a string, strings, or structured items. A token that the
// caller has encoded already counts as one character at least.
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
		p.tokens(len(v))
	case [][]int:
		for _, ids := range v {
			p.tokens(len(ids))
		}
	case map[string]any:
		if len(v) > 0 {
			p.items(v)
		}
	default:
		p.items(v)
	}
}

func (p *prompt) tokens(n int) { p.add(strings.Repeat("0", n)) }

// items adds every text at any depth of structured input but for what carries an image or a file.
func (p *prompt) items(v any) {
	if b, err := json.Marshal(v); err == nil { // else the client fails on it with its own words
		p.walk(b)
	}
}

func (p *prompt) walk(value []byte) {
	if text, ok := jsonscan.Text(value); ok {
		p.add(text)
		return
	}
	for e := range jsonscan.Elements(value) {
		p.walk(e)
	}
	for key, v := range jsonscan.Members(value) {
		switch string(key) {
		case "image_url", "file_data", "file_url", "data":
		default:
			p.walk(v)
		}
	}
}

// capChat sets or lowers the output limit of r, which is the client's own copy.
func (g *Guard) capChat(r *openai.ChatCompletionRequest) {
	limit := g.cfg.MaxOutputTokens
	if limit <= 0 {
		return
	}
	if r.MaxTokens == 0 && r.MaxCompletionTokens == 0 {
		if needsMaxCompletionTokens(r.Model) {
			r.MaxCompletionTokens = limit
		} else {
			r.MaxTokens = limit
		}
	}
	r.MaxTokens = min(r.MaxTokens, limit)
	r.MaxCompletionTokens = min(r.MaxCompletionTokens, limit)
}

func (g *Guard) capCompletion(r *openai.CompletionRequest) {
	r.MaxTokens = g.capped(r.MaxTokens)
}

func (g *Guard) capResponse(r *openai.CreateResponseRequest) {
	r.MaxOutputTokens = g.capped(r.MaxOutputTokens)
	if n, ok := r.ExtraBody["max_output_tokens"]; ok && g.cfg.MaxOutputTokens > 0 { // it would win over the field
		r.ExtraBody = maps.Clone(r.ExtraBody)
		delete(r.ExtraBody, "max_output_tokens")
		if n, ok := n.(int); ok && n > 0 {
			r.MaxOutputTokens = g.capped(n)
		}
	}
}

func (g *Guard) capped(n int) int {
	limit := g.cfg.MaxOutputTokens
	if limit > 0 && (n == 0 || n > limit) {
		return limit
	}
	return n
}

// needsMaxCompletionTokens reports whether model refuses max_tokens: the o series, and GPT from 5 on.
func needsMaxCompletionTokens(model string) bool {
	model = model[strings.LastIndexByte(model, '/')+1:] // "openai/o3" at a router
	if rest, ok := strings.CutPrefix(model, "gpt-"); ok {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		return n == 1 && rest[0] >= '5' || n > 1 && rest[:n] != "35" // Azure writes gpt-35-turbo
	}
	return len(model) > 1 && model[0] == 'o' && model[1] >= '1' && model[1] <= '9'
}
