package aiguard

import (
	"encoding/json"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// decodable finds events that go-openai cannot decode, because go-openai's streams return the decoder's raw error. It
// decodes one event of each shape, since most events of a stream have the same shape.
type decodable struct{ shapes map[uint64]struct{} }

// maxShapes is the number of shapes remembered per stream.
const maxShapes = 64

// check returns the error that go-openai would return for an event of a stream of op.
func (d *decodable) check(op string, data []byte) error {
	shape := shapeOf(data)
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

// shapeOf returns a hash of everything that decides whether JSON can be decoded: names, kinds of values and nesting.
func shapeOf(data []byte) uint64 {
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
