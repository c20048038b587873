package cacheguard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/marks"
)

// MaxQuestionBytes is the size of the longest question that Similar compares, as a JSON string. In a longer text a small
// difference changes the meaning, but hardly the vector.
const MaxQuestionBytes = 2048

// question is the last user message of a chat with a single question.
type question struct {
	text      string
	partition string // equal for all questions that may share an answer; reveals nothing about the request
}

// newQuestion returns the question of the canonical body plain, or nil if the request is not a chat with a single
// question. identity is what else identifies the request.
func newQuestion(ctx context.Context, op string, identity, plain []byte) *question {
	switch op {
	case "chat.completions", "messages", "responses":
	default:
		return nil
	}
	start, end, ok := findQuestion(plain)
	if !ok || end-start > MaxQuestionBytes {
		return nil
	}
	text, ok := jsonscan.Text(plain[start:end])
	guard := marks.Of(text)
	if !ok || guard == "" || strings.ContainsRune(text, utf8.RuneError) {
		return nil
	}
	b := appendText(slices.Clip(identity), "similar 2")
	b = appendText(b, callctx.Tenant(ctx))
	b = appendText(b, guard)
	b = appendText(b, string(plain[:start]))
	b = append(b, plain[end:]...)
	sum := sha256.Sum256(b)
	return &question{text, hex.EncodeToString(sum[:])}
}

// findQuestion finds the text of the only question in a request: a string as the field input, or the text of the only
// user message in the field messages or input. Only system and developer messages may precede it. It finds nothing if a
// message has a part or a member that it does not know, such as an image or the result of a tool.
func findQuestion(plain []byte) (start, end int, ok bool) {
	found := false
	c := jsonscan.Read(plain)
	for name := range c.Members() {
		if name := string(name); name != "messages" && name != "input" {
			continue
		}
		if found {
			return 0, 0, false
		}
		found = true
		if start, end, ok = findText(&c); ok {
			continue
		}
		if start, end, ok = findUserMessage(&c); !ok {
			return 0, 0, false
		}
	}
	return start, end, ok
}

// findText reads the value at c if it is a string.
func findText(c *jsonscan.Cursor) (start, end int, ok bool) {
	ahead := *c
	value := ahead.Value()
	if len(value) == 0 || value[0] != '"' {
		return 0, 0, false
	}
	*c = ahead
	return c.Offset() - len(value), c.Offset(), true
}

// findUserMessage reads a list of messages.
func findUserMessage(c *jsonscan.Cursor) (start, end int, ok bool) {
	for range c.Elements() {
		if ok { // the question is not the last message
			return 0, 0, false
		}
		role, from, to, known := readMessage(c)
		switch {
		case role == `"system"`, role == `"developer"`:
		case role == `"user"` && known:
			start, end, ok = from, to, true
		default:
			return 0, 0, false
		}
	}
	return start, end, ok
}

// readMessage reads a message. known means that it consists of one text and of members that do not matter.
func readMessage(c *jsonscan.Cursor) (role string, start, end int, known bool) {
	texts, foreign := 0, false
	for name := range c.Members() {
		switch string(name) {
		case "role":
			role = string(c.Value())
		case "content":
			var ok bool
			if start, end, ok = findText(c); ok {
				texts++
				continue
			}
			for range c.Elements() {
				if start, end, ok = readPart(c); !ok {
					foreign = true
				}
				texts++
			}
		case "type":
			foreign = foreign || string(c.Value()) != `"message"`
		case "name":
		default:
			foreign = true
		}
	}
	return role, start, end, texts == 1 && !foreign
}

// readPart reads a part of a message. ok means that it is a text.
func readPart(c *jsonscan.Cursor) (start, end int, ok bool) {
	text, foreign := false, false
	for name := range c.Members() {
		switch string(name) {
		case "text":
			start, end, text = findText(c)
		case "type":
			value := string(c.Value())
			foreign = foreign || value != `"text"` && value != `"input_text"`
		case "cache_control":
		default:
			foreign = true
		}
	}
	return start, end, text && !foreign
}
