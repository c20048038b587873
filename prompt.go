package aiguard

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// CheckPrompt reports whether texts, taken together, are within MaxPromptChars (in characters: runes) and, if
// there is a CountTokens, within MaxPromptTokens for model. The error is an *Error of kind
// ErrPromptTooLarge that says the size and the limit, or what CountTokens returned. Client does this by itself;
// call it before using another SDK over Transport. Counting is exact for text; of invalid UTF-8 no more than four bytes
// for each character allowed are let through.
func (g *Guard) CheckPrompt(model string, texts ...string) error {
	g.must("CheckPrompt")
	s := &g.call
	if model != "" {
		own := g.settle(g.own.over(Call{Model: model}))
		s = &own
	}
	return g.checkTexts(s, texts, 0)
}

// prompt gathers the texts of a request.
type prompt struct {
	texts []string
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
	case json.RawMessage:
		p.add(string(v))
	default:
		if b, err := json.Marshal(v); err == nil {
			p.add(string(b))
		}
	}
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

func (g *Guard) checkTexts(s *settings, texts []string, ids int) error {
	cfg := &g.cfg
	if limit := g.promptLimit(s); limit != Off && ids+sum(texts, length) > limit { // characters <= bytes: most prompts need no count
		chars := ids + sum(texts, countRunes)
		if chars <= limit && sum(texts, length) > utf8.UTFMax*limit {
			chars = ids + sum(texts, utf8.RuneCountInString) // invalid UTF-8, of which each byte is sent as a character
		}
		if chars > limit {
			return tooLarge(s, phasePrompt, int64(chars), int64(limit))
		}
	}
	if limit := cfg.MaxPromptTokens; limit > 0 && ids+sum(texts, length)+maxTextOverhead*len(texts) > limit {
		tokens := ids
		for _, t := range texts {
			n, err := cfg.CountTokens(s.Model, t)
			if err != nil {
				return fmt.Errorf("aiguard: counting tokens of the prompt: %w", err)
			}
			if tokens += n; tokens > limit {
				break
			}
		}
		if tokens > limit {
			return tooLarge(s, phaseTokens, int64(tokens), int64(limit))
		}
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

func tooLarge(s *settings, phase string, size, limit int64) error {
	return &Error{Kind: ErrPromptTooLarge, Op: s.Op, Model: s.Model, Phase: phase, Size: size, Max: limit}
}

// countRunes counts the bytes that begin a character, 32 at a time: utf8.RuneCountInString takes ten times as long over
// Chinese. In invalid UTF-8 it may count too few.
func countRunes(s string) int {
	n := len(s)
	for ; len(s) >= 32; s = s[32:] {
		c := continuations(word(s)) + continuations(word(s[8:])) + continuations(word(s[16:])) + continuations(word(s[24:]))
		n -= int(c * everyByte >> 56) // the sum of its bytes
	}
	for i := range len(s) {
		if s[i]&0xC0 == 0x80 {
			n--
		}
	}
	return n
}

const everyByte = 0x0101010101010101

// word is the first eight bytes of s in one load: the compiler knows this form.
func word(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// continuations has a 1 in each byte in which x has a continuation byte, 10xxxxxx.
func continuations(x uint64) uint64 { return x >> 7 & (^x >> 6) & everyByte }

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
		p.add(r.Text.Format.Name)
		p.add(r.Text.Format.Description)
		p.addJSON(r.Text.Format.Schema)
	}
	if r.Prompt != nil {
		p.input(r.Prompt.Variables)
	}
	p.input(r.ExtraBody)
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
			p.items(v)
		}
	default:
		p.items(v)
	}
}

// items adds every text at any depth of structured input but for what carries an image or a file.
func (p *prompt) items(v any) {
	if b, err := json.Marshal(v); err == nil { // else the client fails on it with its own words
		p.walk(b, false)
	}
}

func (p *prompt) walk(value []byte, media bool) {
	if text, ok := jsonscan.Text(value); ok {
		p.add(text)
		return
	}
	for e := range jsonscan.Elements(value) {
		p.walk(e, media)
	}
	media = media || isMedia(value)
	for key, v := range jsonscan.Members(value) {
		switch string(key) {
		case "image_url", "file_data", "file_url", "data":
			if media {
				continue
			}
		}
		p.walk(v, media)
	}
}

// isMedia reports whether an object is the part of a message that carries an image, a sound or a file.
func isMedia(object []byte) bool {
	for key, v := range jsonscan.Members(object) {
		if string(key) == "type" {
			kind, _ := jsonscan.Text(v)
			return strings.Contains(kind, "image") || strings.Contains(kind, "file") || strings.Contains(kind, "audio") ||
				strings.Contains(kind, "screenshot")
		}
	}
	return false
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
	case needsMaxCompletionTokens(r.Model):
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

// needsMaxCompletionTokens reports whether model refuses max_tokens: the o series, and GPT from 5 on.
func needsMaxCompletionTokens(model string) bool {
	model = strings.TrimPrefix(model, "ft:")
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
