package jsonscan

import (
	"bytes"

	"github.com/aiguard-go/aiguard/internal/runes"
)

// SkipString returns the offset after the string whose opening quote is at i. ok is false if there is no such string.
func SkipString(data []byte, i int) (end int, ok bool) {
	if i >= len(data) || data[i] != '"' {
		return i, false
	}
	return skipString(data, i+1)
}

// Skip returns the offset after the value that begins at i, after optional white space. ok is false if there is no
// value.
func Skip(data []byte, i int) (end int, ok bool) { return skipValue(data, skipSpace(data, i)) }

// Runes returns the number of characters in the text of a JSON string, and 0 for any other value. It does not
// allocate.
func Runes(value []byte) int {
	if len(value) < 2 || value[0] != '"' {
		return 0
	}
	return rawRunes(value[1 : len(value)-1])
}

// rawRunes counts the characters between the quotes of a string. A surrogate pair counts as one character.
func rawRunes(raw []byte) (n int) {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 || i+1 >= len(raw) {
			return n + runes.Count(raw)
		}
		n += runes.Count(raw[:i]) + 1
		raw = raw[i+1:]
		if raw[0] != 'u' {
			raw = raw[1:]
			continue
		}
		high := len(raw) >= 5 && raw[1]|0x20 == 'd' && (raw[2] == '8' || raw[2] == '9' || raw[2]|0x20 == 'a' || raw[2]|0x20 == 'b')
		raw = raw[min(5, len(raw)):]
		if high && len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' && raw[2]|0x20 == 'd' && raw[3]|0x20 >= 'c' && raw[3]|0x20 <= 'f' {
			raw = raw[6:]
		}
	}
}

// ValueRunes counts the characters of a JSON value without white space and escapes, as a model reads a schema. The
// count does not depend on how the value was encoded.
func ValueRunes(value []byte) (n int) {
	for i := 0; i < len(value); {
		switch c := value[i]; {
		case c == '"':
			end, ok := SkipString(value, i)
			if !ok {
				return n + len(value) - i
			}
			n += 2 + rawRunes(value[i+1:end-1])
			i = end
			continue
		case !isSpace(c):
			n++
		}
		i++
	}
	return n
}
