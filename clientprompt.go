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
)

// This file has the texts and the output limits of go-openai's requests. Only MaxRequestBytes limits images and files.

// The endpoints whose dialects read structured input.
var (
	responsesEndpoint  = dialect.Of(http.MethodPost, "/responses", "")
	embeddingsEndpoint = dialect.Of(http.MethodPost, "/embeddings", "")
)

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

// items adds the texts of structured input, as the transport would read them in the field of that name.
func (p *prompt) items(field string, v any) {
	if b, err := json.Marshal(map[string]any{field: v}); err == nil { // else the client reports its own error
		responsesEndpoint.Read(b, func(part dialect.Part) bool {
			p.part(part)
			return true
		})
	}
}

// extra adds the texts of the extra members of a request.
func (p *prompt) extra(members map[string]any) {
	for name, v := range members {
		p.items(name, v)
	}
}

// embeddings returns one prompt per input of an embeddings request.
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

// capChat sets or lowers the output limit of r. The caller must own r.
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
	if n, ok := r.ExtraBody["max_output_tokens"]; ok && limit > 0 { // it would override the field
		r.ExtraBody = maps.Clone(r.ExtraBody)
		delete(r.ExtraBody, "max_output_tokens")
		if n, err := strconv.Atoi(fmt.Sprint(n)); err == nil && n > 0 { // an int, a float64 or a json.Number
			r.MaxOutputTokens = capped(n, limit)
		}
	}
}

// capped returns n lowered to limit. If n is absent or negative, it returns limit, because some servers treat a
// negative n as unlimited.
func capped(n, limit int) int {
	if limit > 0 && (n <= 0 || n > limit) {
		return limit
	}
	return n
}
