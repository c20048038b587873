package aiguard

import (
	"bytes"
	"cmp"
	"encoding/json"
	"hash/maphash"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// decodable finds events that go-openai cannot decode. It is needed because go-openai's streams return the decoder's
// raw error. It decodes one event of each shape. Most events of a stream have the same shape.
type decodable struct {
	seed   maphash.Seed
	shapes map[uint64]struct{}
}

// maxShapes is the number of shapes remembered per stream.
const maxShapes = 64

// check returns the error that go-openai would return for an event of a stream of op.
func (d *decodable) check(op string, data []byte) error {
	if d.shapes == nil {
		d.seed, d.shapes = maphash.MakeSeed(), make(map[uint64]struct{}, 8)
	}
	var known *names
	if op == "chat.completions" { // the only type here without maps; the names in a map are values
		known = chunkNames()
	}
	shape := shapeOf(d.seed, data, known)
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
	if len(d.shapes) < maxShapes {
		d.shapes[shape] = struct{}{}
	}
	return nil
}

// names is a set of names in lower case.
type names [256][]string

// chunkNames returns the names that go-openai decodes in a chunk of a chat, at any depth. The decoder ignores case and
// skips members with other names.
var chunkNames = sync.OnceValue(func() *names {
	known := new(names)
	known.addAll(reflect.TypeFor[openai.ChatCompletionStreamResponse]())
	return known
})

// addAll adds the names of the fields of a type.
func (n *names) addAll(t reflect.Type) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		n.addAll(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name = strings.ToLower(cmp.Or(name, f.Name)); !n.has([]byte(name)) {
				place := n.place([]byte(name))
				*place = append(*place, name)
			}
			n.addAll(f.Type)
		}
	}
}

// place returns the names that may equal name, which are few.
func (n *names) place(name []byte) *[]string {
	if len(name) == 0 {
		return &n[0]
	}
	return &n[uint8(len(name))*61+name[0]*7+name[len(name)-1]]
}

func (n *names) has(name []byte) bool {
	for _, known := range *n.place(name) {
		if string(name) == known {
			return true
		}
	}
	return false
}

// mayHave reports whether the decoder may treat name as one of n. A name with an escape or a non-ASCII character may be
// another spelling of a known name.
func (n *names) mayHave(name []byte) bool {
	if n.has(name) {
		return true
	}
	upper := false
	for _, c := range name {
		if c == '\\' || c >= utf8.RuneSelf {
			return true
		}
		upper = upper || c >= 'A' && c <= 'Z'
	}
	return upper && n.has(bytes.ToLower(name))
}

// shapeOf returns a hash of everything that decides whether JSON can be decoded: names, kinds of values, and nesting.
// It leaves out members that are not in known. If known is nil, it includes all members.
func shapeOf(seed maphash.Seed, data []byte, known *names) uint64 {
	const prime = 1099511628211 // FNV-1a
	h := uint64(14695981039346656037)
	add := func(v uint64) { h = (h ^ v) * prime }
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
			if next == len(data) || data[next] != ':' {
				add('"')
			} else if name := data[i+1 : end-1]; known == nil || known.mayHave(name) {
				add(maphash.Bytes(seed, name))
			} else if end, ok = jsonscan.Skip(data, next+1); !ok {
				return h
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
				add(maphash.Bytes(seed, data[start:i]))
			}
			add(uint64(kind))
			if c == '-' {
				add('-')
			}
		case c == '{', c == '}', c == '[', c == ']', c == 't', c == 'f', c == 'n':
			add(uint64(c))
			i++
		default: // the rest of a word, or what follows from the other tokens
			i++
		}
	}
	return h
}
