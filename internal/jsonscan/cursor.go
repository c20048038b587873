package jsonscan

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"iter"
	"math/bits"
	"unicode/utf8"
)

// Members iterates over the members of an object that has passed [Check]. The key is the raw text between its quotes,
// including escapes. The value has no white space around it. Members yields nothing if value is not an object. On
// text that has not passed Check it may stop anywhere.
func Members(value []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		c := Read(value)
		for key := range c.Members() {
			if v := c.Value(); v == nil || !yield(key, v) {
				return
			}
		}
	}
}

// Elements iterates over the elements of an array that has passed [Check], each without the white space around it. It
// yields nothing if value is not an array. On text that has not passed Check it may stop anywhere.
func Elements(value []byte) iter.Seq[[]byte] {
	return func(yield func(value []byte) bool) {
		c := Read(value)
		for range c.Elements() {
			if v := c.Value(); v == nil || !yield(v) {
				return
			}
		}
	}
}

// Cursor reads a text that has passed [Check] from front to back. Unlike nested [Members] it reads no byte twice,
// however deep the text is. It stands at a value, and one of its methods may read that value, once. On text that has
// not passed Check it may stop anywhere.
type Cursor struct {
	text []byte
	at   int

	// The tokens of text, from [Scanner.Read]. If they are empty, the Cursor scans the text.
	tokens []token
	token  int // index of the value at the Cursor; len(tokens): the value has been read
}

// Read returns a Cursor at the value text.
func Read(text []byte) Cursor { return Cursor{text: text, at: skipSpace(text, 0)} }

// Text returns the whole text.
func (c *Cursor) Text() []byte { return c.text }

// Offset returns the Cursor's position in the text.
func (c *Cursor) Offset() int { return c.at }

// Peek returns the first byte of the value at the Cursor, which must not have been read. It returns 0 if there is none.
func (c *Cursor) Peek() byte {
	if c.at >= len(c.text) {
		return 0
	}
	return c.text[c.at]
}

// Members iterates over the keys of the object at the Cursor, as [Members] does. In the loop body the Cursor stands
// at the member's value, which the body may read or skip. Members yields nothing, and does not move, if the value is
// not an object. Do not use a Cursor after breaking out of its loop.
func (c *Cursor) Members() iter.Seq[[]byte] {
	return func(yield func(key []byte) bool) { c.members(yield) }
}

func (c *Cursor) members(yield func(key []byte) bool) {
	if len(c.tokens) > 0 {
		c.memberTokens(yield)
		return
	}
	v, i := c.text, c.at
	if i == len(v) || v[i] != '{' {
		return
	}
	for {
		i = skipSpace(v, i+1)
		if i == len(v) || v[i] != '"' {
			break
		}
		end, ok := skipString(v, i+1)
		if !ok {
			return
		}
		key := v[i+1 : end-1 : end-1]
		i = skipSpace(v, end)
		if i == len(v) || v[i] != ':' {
			return
		}
		i = skipSpace(v, i+1)
		c.at = i
		if !yield(key) {
			return
		}
		if i, ok = c.passed(i); !ok {
			return
		}
		i = skipSpace(v, i)
		if i == len(v) || v[i] != ',' {
			break
		}
	}
	c.at = min(i+1, len(v))
}

func (c *Cursor) memberTokens(yield func(key []byte) bool) {
	all, i := c.tokens, c.token
	if i == len(all) || c.text[all[i].start] != '{' {
		return
	}
	object := all[i]
	for i++; i < int(object.next); i = int(all[i+1].next) {
		key := all[i]
		c.at, c.token = int(all[i+1].start), i+1
		if !yield(c.text[key.start+1 : key.end-1 : key.end-1]) {
			return
		}
	}
	c.at, c.token = int(object.end), len(all)
}

// Elements does for an array what [Cursor.Members] does for an object.
func (c *Cursor) Elements() func(yield func() bool) {
	return func(yield func() bool) { c.elements(yield) }
}

func (c *Cursor) elements(yield func() bool) {
	if len(c.tokens) > 0 {
		c.elementTokens(yield)
		return
	}
	v, i, ok := c.text, c.at, false
	if i == len(v) || v[i] != '[' {
		return
	}
	for {
		i = skipSpace(v, i+1)
		if i == len(v) || v[i] == ']' {
			break
		}
		c.at = i
		if !yield() {
			return
		}
		if i, ok = c.passed(i); !ok {
			return
		}
		i = skipSpace(v, i)
		if i == len(v) || v[i] != ',' {
			break
		}
	}
	c.at = min(i+1, len(v))
}

func (c *Cursor) elementTokens(yield func() bool) {
	all, i := c.tokens, c.token
	if i == len(all) || c.text[all[i].start] != '[' {
		return
	}
	array := all[i]
	for i++; i < int(array.next); i = int(all[i].next) {
		c.at, c.token = int(all[i].start), i
		if !yield() {
			return
		}
	}
	c.at, c.token = int(array.end), len(all)
}

// passed returns the offset after the value at i, which may have been read.
func (c *Cursor) passed(i int) (end int, ok bool) {
	if c.at != i {
		return c.at, true
	}
	return skipValue(c.text, i)
}

// Value returns the value at the Cursor and moves past it. It returns nil without a value. In a text that has passed
// Check there always is one.
func (c *Cursor) Value() []byte {
	if len(c.tokens) > 0 {
		if c.token == len(c.tokens) {
			return nil
		}
		t := c.tokens[c.token]
		c.at, c.token = int(t.end), len(c.tokens)
		return c.text[t.start:t.end:t.end]
	}
	start := c.at
	end, ok := skipValue(c.text, start)
	if !ok {
		return nil
	}
	c.at = end
	return c.text[start:end:end]
}

// skipValue returns the offset after the value that starts at i. It only counts brackets, because Check has paired
// them.
func skipValue(v []byte, i int) (end int, ok bool) {
	if i == len(v) {
		return i, false
	}
	start, depth := i, 0
	switch v[i] {
	case '"':
		return skipString(v, i+1)
	case '{', '[':
	default:
		for i < len(v) && v[i] > ' ' && v[i] != ',' && v[i] != ']' && v[i] != '}' {
			i++
		}
		return i, i > start
	}
	for i < len(v) {
		switch v[i] {
		case '"':
			if i, ok = skipString(v, i+1); !ok {
				return i, false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1, true
			}
		}
		i++
	}
	return i, false
}

// skipString returns the offset after the string whose opening quote is before i. It only looks for the end, because
// Check has checked the string.
func skipString(data []byte, i int) (end int, ok bool) {
	short := data[:min(i+32, len(data))] // most strings end in it; for them IndexByte would take longer
	for ; len(short)-i >= 8; i += 8 {
		w := binary.LittleEndian.Uint64(short[i:])
		if m := ((w ^ '\\'*ones - ones) | (w ^ '"'*ones - ones)) &^ w & highs; m != 0 { // as in scanString
			if i += bits.TrailingZeros64(m) / 8; data[i] == '"' {
				return i + 1, true
			}
			break
		}
	}
	for {
		n := bytes.IndexByte(data[i:], '"')
		if n < 0 {
			return len(data), false
		}
		end = i + n
		escapes := end
		for escapes > i && data[escapes-1] == '\\' {
			escapes--
		}
		i = end + 1
		if (end-escapes)%2 == 0 {
			return i, true
		}
	}
}

// Text returns the unescaped text of a JSON string, and whether value is a string.
func Text(value []byte) (string, bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	end, err := scanString(value, 1)
	if err != nil || end != len(value) {
		return "", false
	}
	raw := value[1 : end-1]
	if bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw) {
		return string(raw), true
	}
	var s string
	err = json.Unmarshal(value, &s)
	return s, err == nil
}
