package aiguard

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
	"sync"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// decoder finds events that go-openai cannot decode. It is needed because go-openai's streams return the raw error of
// encoding/json. To avoid decoding each event twice, it compares the event with the form of the type that go-openai
// decodes into.
type decoder struct {
	form   func() *form
	decode func(data []byte) error
}

// decoders has a decoder for each operation whose streams go-openai decodes.
var decoders = map[string]*decoder{
	"chat.completions": newDecoder[openai.ChatCompletionStreamResponse](),
	"completions":      newDecoder[openai.CompletionResponse](),
	"responses":        newDecoder[openai.ResponseStreamEvent](),
}

// newDecoder returns a decoder for a struct. The struct may have a method UnmarshalJSON that decodes the same fields.
func newDecoder[T any]() *decoder {
	return &decoder{
		form:   sync.OnceValue(func() *form { return formOfStruct(reflect.TypeFor[T](), map[reflect.Type]*form{}) }),
		decode: func(data []byte) error { return json.Unmarshal(data, new(T)) },
	}
}

// check returns the error that go-openai would return for an event. The event must have passed jsonscan.Check.
func (d *decoder) check(event jsonscan.Cursor) error {
	if d == nil {
		return nil
	}
	data := event.Text()
	if d.form().fits(&event) {
		return nil
	}
	return d.decode(data)
}

// form describes the JSON values that encoding/json can certainly decode into a type. The zero form has none.
type form struct {
	takes  kinds
	digits int       // maximum digits of an integer; 0: any number
	elem   *form     // elements of a list, values of a map
	fields [][]named // of a struct, by the length of the name
}

type named struct {
	name []byte
	form *form
}

// kinds is a set of kinds of JSON values.
type kinds uint8

const (
	aNull kinds = 1 << iota
	aText
	aBoolean
	aNumber
	aList
	anObject

	anything = aNull | aText | aBoolean | aNumber | aList | anObject
)

// kindOf has the kind of a value by its first byte.
var kindOf = [256]kinds{'n': aNull, '"': aText, 't': aBoolean, 'f': aBoolean, '[': aList, '{': anObject,
	'-': aNumber, '0': aNumber, '1': aNumber, '2': aNumber, '3': aNumber, '4': aNumber, '5': aNumber, '6': aNumber, '7': aNumber, '8': aNumber, '9': aNumber}

// fits reports whether the value at c can certainly be decoded.
func (f *form) fits(c *jsonscan.Cursor) bool {
	switch kind := kindOf[c.Peek()]; {
	case f.takes&kind == 0:
		return false
	case kind == aList:
		for range c.Elements() {
			if !f.elem.fits(c) {
				return false
			}
		}
	case kind == anObject && f.elem != nil:
		for range c.Members() {
			if !f.elem.fits(c) {
				return false
			}
		}
	case kind == anObject:
		for name := range c.Members() {
			if member, ok := f.field(name); !ok || member != nil && !member.fits(c) {
				return false
			}
		}
	case kind == aNumber && f.digits > 0:
		return isWhole(c.Value(), f.digits)
	case kind == aNumber:
		return isModest(c.Value())
	}
	return true
}

// field returns the form of a member of a struct. It returns nil for a member that encoding/json skips. ok is false if
// that is uncertain.
func (f *form) field(name []byte) (form *form, ok bool) {
	var same []named
	if len(name) < len(f.fields) {
		same = f.fields[len(name)]
	}
	for i := range same {
		if string(same[i].name) == string(name) {
			return same[i].form, true
		}
	}
	upper := false
	for _, c := range name {
		if c == '\\' || c >= utf8.RuneSelf { // may be another spelling of a field
			return nil, false
		}
		upper = upper || c >= 'A' && c <= 'Z'
	}
	if upper { // encoding/json ignores case
		for i := range same {
			if bytes.EqualFold(same[i].name, name) {
				return same[i].form, true
			}
		}
	}
	return nil, true
}

// isWhole reports whether a JSON value is a whole number of at most so many digits.
func isWhole(value []byte, digits int) bool {
	value = bytes.TrimPrefix(value, []byte("-"))
	for _, c := range value {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(value) > 0 && len(value) <= digits
}

// isModest reports whether a JSON value is a number that is certainly in the range of a float32.
func isModest(value []byte) bool {
	i := bytes.IndexAny(value, "eE")
	return len(value) <= 38 && (i < 0 || value[i+1] == '-')
}

var (
	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// formOf returns the form of a type. known has the forms of types that contain t.
func formOf(t reflect.Type, known map[reflect.Type]*form) *form {
	if p := reflect.PointerTo(t); p.Implements(unmarshaler) || p.Implements(textUnmarshaler) {
		return &form{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return formOf(t.Elem(), known)
	case reflect.Struct:
		return formOfStruct(t, known)
	case reflect.Slice:
		return &form{takes: aNull | aList, elem: formOf(t.Elem(), known)}
	case reflect.Map:
		if t.Key() == reflect.TypeFor[string]() {
			return &form{takes: aNull | anObject, elem: formOf(t.Elem(), known)}
		}
	case reflect.Interface:
		if t.NumMethod() == 0 {
			f := &form{takes: anything}
			f.elem = f
			return f
		}
	case reflect.String:
		return &form{takes: aNull | aText}
	case reflect.Bool:
		return &form{takes: aNull | aBoolean}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return &form{takes: aNull | aNumber, digits: (t.Bits() - 1) * 3 / 10} // 2¹⁰ > 10³
	case reflect.Float32, reflect.Float64:
		return &form{takes: aNull | aNumber}
	}
	return &form{}
}

// formOfStruct is formOf for a struct. It ignores the struct's own UnmarshalJSON.
func formOfStruct(t reflect.Type, known map[reflect.Type]*form) *form {
	if f, ok := known[t]; ok {
		return f
	}
	f := &form{takes: aNull | anObject}
	known[t] = f
	for i := range t.NumField() {
		sf := t.Field(i)
		tag := sf.Tag.Get("json")
		name, options, _ := strings.Cut(tag, ",")
		switch {
		case sf.Anonymous && (sf.IsExported() || sf.Type.Kind() == reflect.Struct || sf.Type.Kind() == reflect.Pointer):
			f.takes = 0 // its fields may be those of t
			return f
		case !sf.IsExported(), tag == "-":
			continue
		}
		name = cmp.Or(name, sf.Name)
		for len(f.fields) <= len(name) {
			f.fields = append(f.fields, nil)
		}
		same := &f.fields[len(name)]
		for _, other := range *same {
			if strings.EqualFold(string(other.name), name) {
				f.takes = 0
				return f
			}
		}
		member := &form{}
		if !strings.Contains(options, "string") {
			member = formOf(sf.Type, known)
		}
		*same = append(*same, named{[]byte(name), member})
	}
	return f
}
