package aiguard

import (
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// decodable finds events that go-openai cannot decode. It is needed because go-openai's streams return the decoder's
// raw error. It decodes one event of each shape. Most events of a stream have the same shape.
type decodable struct{ shapes map[uint64]struct{} }

// maxShapes is the number of shapes remembered per stream.
const maxShapes = 64

// check returns the error that go-openai would return for an event of a stream of op.
func (d *decodable) check(op string, data []byte) error {
	var known map[string]struct{}
	if op == "chat.completions" { // the only type here without maps; the names in a map are values
		known = chunkNames()
	}
	shape := shapeOf(data, known)
	if _, ok := d.shapes[shape]; ok {
		return nil
	}
	var into any
	switch op {
	case "chat.completions":
		into = new(openai.ChatCompletionStreamResponse)
	case "completions":
		into = new(openai.CompletionResponse)
	case "responses":
		into = new(openai.ResponseStreamEvent)
	default:
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return err
	}
	if d.shapes == nil {
		d.shapes = make(map[uint64]struct{}, 8)
	}
	if len(d.shapes) < maxShapes {
		d.shapes[shape] = struct{}{}
	}
	return nil
}

// chunkNames returns the names that go-openai decodes in a chunk of a chat, at any depth and in lower case. The decoder
// ignores case and skips members with other names.
var chunkNames = sync.OnceValue(func() map[string]struct{} {
	names := make(map[string]struct{})
	addNames(names, reflect.TypeFor[openai.ChatCompletionStreamResponse]())
	return names
})

func addNames(names map[string]struct{}, t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		addNames(names, t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				name = f.Name
			}
			names[strings.ToLower(name)] = struct{}{}
			addNames(names, f.Type)
		}
	}
}

// isKnown reports whether a name may be in names. A name with an escape or a non-ASCII character may be another
// spelling of a known name.
func isKnown(names map[string]struct{}, name []byte) bool {
	var lower [64]byte
	if len(name) > len(lower) {
		return false
	}
	for i, c := range name {
		switch {
		case c == '\\' || c >= utf8.RuneSelf:
			return true
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	_, ok := names[string(lower[:len(name)])]
	return ok
}

// shapeOf returns a hash of everything that decides whether JSON can be decoded: names, kinds of values, and nesting.
// It leaves out members that are not in known. If known is nil, it includes all members.
func shapeOf(data []byte, known map[string]struct{}) uint64 {
	const prime = 1099511628211 // FNV-1a
	h := uint64(14695981039346656037)
	add := func(b byte) { h = (h ^ uint64(b)) * prime }
	for i := 0; i < len(data); {
		switch c := data[i]; {
		case c == '"':
			end, ok := jsonscan.SkipString(data, i)
			if !ok {
				return h
			}
			next := end
			for next < len(data) && data[next] <= ' ' {
				next++
			}
			if next < len(data) && data[next] == ':' {
				if known != nil && !isKnown(known, data[i+1:end-1]) {
					if i, ok = jsonscan.Skip(data, next+1); !ok {
						return h
					}
					continue
				}
				for _, b := range data[i:end] {
					add(b)
				}
			} else {
				add('"')
			}
			i = end
		case c == '-' || c >= '0' && c <= '9':
			start, kind := i, byte('0')
			for ; i < len(data) && data[i] != ',' && data[i] != ']' && data[i] != '}' && data[i] > ' '; i++ {
				switch data[i] {
				case '.':
					kind = '.'
				case 'e', 'E':
					kind = 'e'
				}
			}
			if i-start > 18 || kind == 'e' { // may be out of range
				for _, b := range data[start:i] {
					add(b)
				}
			}
			add(kind)
			if c == '-' {
				add('-')
			}
		default:
			if c > ' ' {
				add(c)
			}
			i++
		}
	}
	return h
}
