package aiguard

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/runes"
)

// CheckPrompt checks that texts together are within MaxPromptChars (in runes) and, if there is a CountTokens, within
// MaxPromptTokens for model. It returns an *Error of kind ErrPromptTooLarge with the size and the limit, or the error
// of CountTokens. Client and Transport call it for every endpoint they recognize. The count is exact for valid UTF-8.
// Invalid UTF-8 may have at most four bytes per allowed character.
func (g *Guard) CheckPrompt(model string, texts ...string) error {
	g.must("CheckPrompt")
	s := g.usual()
	if model != "" {
		own := s.live.settingsOf(g.own.over(Call{Model: model}))
		s = &own
	}
	return s.checkPrompt(&prompt{texts: texts})
}

// limits are the limits of a request.
type limits struct {
	chars, tokens int // of a prompt; Off or 0: no limit
	output        int // tokens of an answer
}

func (s *settings) limits() limits {
	return limits{s.promptLimit(), s.cfg.MaxPromptTokens, s.outputLimit()}
}

// prompt collects the texts of a request.
type prompt struct {
	texts []string

	// json counts characters of texts that a model does not read: white space between JSON values, and escapes.
	json int

	// ids counts tokens that the caller has already encoded. Each is one token and at least one character.
	ids int
}

func (p *prompt) add(text string) {
	if text != "" {
		p.texts = append(p.texts, text)
	}
}

// addJSON adds a value as the provider will see it. It skips a value that cannot be encoded, because the client will
// fail on it with its own error.
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

// maxTextOverhead is the number of tokens that CountTokens may add to each text. A token has at least one byte, so
// most prompts need no count.
const maxTextOverhead = 8

// countReaches detects a counter that stops counting below MaxPromptTokens, and so would accept every prompt. It lets
// CountTokens count a text that has more tokens by any measure. A counter that returns an error is accepted, because
// it may not know the model "".
func (c *Config) countReaches() (n, of int, ok bool) {
	const words = "a1 "  // at least two tokens; a counter of bytes may count four bytes as a token
	const most = 1 << 17 // tokens: the check must not delay a start
	if c.MaxPromptTokens <= 0 || c.CountTokens == nil {
		return 0, 0, true
	}
	of = min(c.MaxPromptTokens, most)
	n, err := c.CountTokens("", strings.Repeat(words, 2*(of+1)))
	return n, of, err != nil || n > of
}

func (s *settings) checkPrompt(p *prompt) error {
	limit := s.promptLimit()
	if limit != Off && p.ids+sum(p.texts, length) > limit { // characters <= bytes: most prompts need no count
		if chars := p.ids + sum(p.texts, runes.Count) - p.json; chars > limit {
			return promptTooLarge(s, PhasePrompt, int64(chars), int64(limit))
		}
	}
	return s.checkTokens(p)
}

func (s *settings) checkTokens(p *prompt) error {
	limit := s.cfg.MaxPromptTokens
	if limit <= 0 || p.ids+sum(p.texts, length)+maxTextOverhead*len(p.texts) <= limit {
		return nil
	}
	tokens := p.ids
	for _, t := range p.texts {
		n, err := s.cfg.CountTokens(s.Model, t)
		if err != nil {
			return fmt.Errorf("aiguard: counting tokens of the prompt: %w", err)
		}
		if tokens += n; tokens > limit {
			break
		}
	}
	if tokens > limit {
		return promptTooLarge(s, PhasePromptTokens, int64(tokens), int64(limit))
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
	e := &Error{Kind: ErrPromptTooLarge, Op: s.Op, Model: s.Model, Phase: phase, Size: size, Max: limit, setting: "MaxPromptChars"}
	if phase == PhasePromptTokens {
		e.setting = "MaxPromptTokens"
	}
	return e
}

// tally counts the prompts of a request without copying them. It stops at the first prompt over the limit of
// characters.
type tally struct {
	limits
	exact bool // count characters; else their bytes, which are at least as many
	chars int  // of this prompt
	most  int  // bytes of the largest prompt, plus what CountTokens may add
	bytes int

	all   int64 // bytes of all prompts
	count bool  // count them, for a Budget
}

func (t *tally) part() func(dialect.Part) bool {
	if t.limits.chars <= 0 && t.limits.tokens <= 0 && !t.count {
		return nil
	}
	return func(p dialect.Part) bool {
		t.all += int64(p.IDs)*bytesPerToken + int64(len(p.Value))
		if p.New {
			t.chars, t.bytes = 0, 0
		}
		t.bytes += p.IDs + len(p.Value) + maxTextOverhead
		t.most = max(t.most, t.bytes)
		if t.exact {
			t.chars += p.Runes()
		} else {
			t.chars += p.Size()
		}
		return t.limits.chars <= 0 || t.chars <= t.limits.chars
	}
}

// over reports whether a prompt has more characters than the limit. If exact is false, it may have fewer.
func (t *tally) over() bool { return t.limits.chars > 0 && t.chars > t.limits.chars }

// longest reports whether a prompt may have more than limit tokens, because a token has at least one byte.
func (t *tally) longest(limit int) bool { return t.most > limit }
