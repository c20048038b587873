package cacheguard

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// canonical returns the canonical form of a JSON object. The form has sorted fields, no white space, only necessary
// string escapes, and numbers as written. canonical returns false if body is not a JSON object, has a duplicate name,
// or is too large or too deep to parse. Parsers disagree about duplicate names.
func canonical(body []byte) ([]byte, bool) {
	end, err := jsonscan.Check(body, dialect.MaxShape)
	if err != nil || len(bytes.TrimLeft(body[end:], " \t\r\n")) > 0 {
		return nil, false
	}
	value := bytes.TrimLeft(body[:end], " \t\r\n")
	if value[0] != '{' {
		return nil, false
	}
	return appendValue(make([]byte, 0, len(value)), value)
}

func appendValue(dst, value []byte) ([]byte, bool) {
	switch value[0] {
	case '{':
		return appendObject(dst, value)
	case '[':
		dst = append(dst, '[')
		ok, some := true, false
		for element := range jsonscan.Elements(value) {
			if some {
				dst = append(dst, ',')
			}
			some = true
			if dst, ok = appendValue(dst, element); !ok {
				return nil, false
			}
		}
		return append(dst, ']'), true
	case '"':
		return appendString(dst, value[1:len(value)-1]), true
	}
	return append(dst, value...), true
}

func appendObject(dst, object []byte) ([]byte, bool) {
	type member struct{ name, value []byte }
	var members []member
	for name, value := range jsonscan.Members(object) {
		members = append(members, member{appendString(nil, name), value})
	}
	slices.SortFunc(members, func(a, b member) int { return bytes.Compare(a.name, b.name) })
	dst = append(dst, '{')
	ok := true
	for i, m := range members {
		if i > 0 {
			if bytes.Equal(m.name, members[i-1].name) {
				return nil, false
			}
			dst = append(dst, ',')
		}
		dst = append(append(dst, m.name...), ':')
		if dst, ok = appendValue(dst, m.value); !ok {
			return nil, false
		}
	}
	return append(dst, '}'), true
}

// appendString appends the string with the inner text raw. If raw does not decode to valid Unicode, such as half of a
// surrogate pair, raw stays unchanged, because decoding could make different strings equal.
func appendString(dst, raw []byte) []byte {
	dst = append(dst, '"')
	if bytes.IndexByte(raw, '\\') < 0 {
		return append(append(dst, raw...), '"')
	}
	var text string
	err := json.Unmarshal(slices.Concat([]byte{'"'}, raw, []byte{'"'}), &text)
	if err != nil || strings.ContainsRune(text, utf8.RuneError) {
		return append(append(dst, raw...), '"')
	}
	const digits = "0123456789abcdef"
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"', c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '"')
}
