// Package jsonscan looks at JSON from a peer that may be hostile before
// anybody decodes it. Most callers need only [Check]: one pass without
// allocation that says whether the text is JSON, ends too early, or has a
// shape that would cost a decoder far more memory than its size suggests.
//
// [Members], [Elements] and [Text] then read single values out of a
// checked text without decoding the rest.
package jsonscan

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"iter"
	"math/bits"
	"unicode/utf8"
)

// Error is why a text was not accepted. It never quotes the text.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

const (
	// ErrSyntax means that the text is not JSON, whatever may follow it.
	ErrSyntax Error = "jsonscan: not valid JSON"
	// ErrIncomplete means that the text is fine but ends too early. Empty text
	// and mere white space count as that.
	ErrIncomplete Error = "jsonscan: JSON ends too early"
	// ErrTooBig means that the text goes beyond its Limits.
	ErrTooBig Error = "jsonscan: too many or too deeply nested objects and arrays"
)

// Limits bounds the shape of a value. A limit of zero admits no object or
// array at all, a negative one is no limit.
type Limits struct {
	Containers int // objects and arrays in the value, itself included, but for arrays of numbers alone
	Depth      int // how many of them may be inside each other
}

// Check validates the first JSON value in data and returns the offset just
// behind it. White space may precede the value; what follows it is not looked
// at. Check is exactly as strict as encoding/json, which also means that it
// lets invalid UTF-8 in strings pass.
//
// The error is ErrIncomplete iff data is a proper prefix of some JSON text; a
// number at the very end of data counts as complete. It is ErrTooBig as soon
// as lim is passed, without a look at the rest. With an error, end is where
// the scan stopped.
//
// Check allocates nothing up to a depth of 256.
func Check(data []byte, lim Limits) (end int, err error) {
	var s Scanner
	s.lim = lim
	return s.Line(data)
}

// Scanner is Check for a value that arrives line by line. No JSON token spans
// two lines, so what must be remembered from one line to the next is only
// where in the grammar it ended: every byte is looked at once, however many
// lines there are. Reset it before use.
type Scanner struct {
	lim        Limits
	containers int
	depth      int
	phase      phase
	object     bool // the innermost container is an object
	numbers    bool // the innermost container is an array in which there have been numbers alone

	// One bit for each container around the innermost: is it an object? The
	// levels that do not fit into low are in high.
	low  [4]uint64
	high []uint64
}

// phase is what may come next.
type phase uint8

const (
	inValue phase = iota // a value
	inFirstValue
	inFirstKey
	inKey
	inColon
	inNext // a comma or the end of the container
	inRuin // nothing can make this JSON any more
)

// Reset prepares s for the first line of another value.
func (s *Scanner) Reset(lim Limits) {
	*s = Scanner{lim: lim, high: s.high[:0]}
}

// Line checks the next line, given without its line end. A nil error means
// that the value ended in this line, at offset end. ErrIncomplete asks for
// the next line. Any other error is final, as in Check.
func (s *Scanner) Line(data []byte) (end int, err error) {
	i, ph := 0, s.phase
	s.phase = inRuin // until we know better
	for {
		for i < len(data) && isSpace(data[i]) {
			i++
		}
		if ph == inRuin {
			return i, ErrSyntax
		}
		if i >= len(data) {
			s.phase = ph
			return i, ErrIncomplete
		}
		c := data[i]
		switch ph {
		case inFirstKey, inKey:
			if c == '}' && ph == inFirstKey {
				i++
				s.pop()
				break
			}
			if c != '"' {
				return i, ErrSyntax
			}
			if i, err = scanString(data, i+1); err != nil {
				return i, err
			}
			ph = inColon
			if i < len(data) && data[i] == ':' { // nearly always
				i++
				ph = inValue
			}
			continue

		case inColon:
			if c != ':' {
				return i, ErrSyntax
			}
			i++
			ph = inValue
			continue

		case inNext:
			if c == ',' {
				i++
				ph = inValue
				if s.object {
					ph = inKey
				}
				continue
			}
			if s.object && c != '}' || !s.object && c != ']' {
				return i, ErrSyntax
			}
			i++
			if s.numbers { // it costs a decoder no more than its bytes
				s.containers--
			}
			s.pop()

		default: // inValue, inFirstValue
			number := false
			switch c {
			case '"':
				i, err = scanString(data, i+1)
			case '{', '[':
				if s.containers == s.lim.Containers || s.depth == s.lim.Depth {
					return i, ErrTooBig
				}
				s.containers++
				s.push(c == '{')
				i++
				ph = inFirstValue
				if s.object {
					ph = inFirstKey
				}
				continue
			case ']':
				if ph != inFirstValue {
					return i, ErrSyntax
				}
				i++
				s.pop()
			case 't':
				i, err = scanWord(data, i, "true")
			case 'f':
				i, err = scanWord(data, i, "false")
			case 'n':
				i, err = scanWord(data, i, "null")
			default:
				number = true
				i, err = scanNumber(data, i)
			}
			if err != nil {
				return i, err
			}
			s.numbers = number && !s.object && (s.numbers || ph == inFirstValue)
		}

		// Behind a value.
		if s.depth == 0 {
			return i, nil
		}
		ph = inNext
		if i < len(data) && data[i] == ',' { // nearly always
			i++
			ph = inValue
			if s.object {
				ph = inKey
			}
		}
	}
}

// push enters a container.
func (s *Scanner) push(object bool) {
	s.numbers = false
	if s.depth > 0 { // what is around the outermost needs no bit
		at := s.depth - 1
		word := &s.low[at/64%len(s.low)]
		if at >= 64*len(s.low) {
			at -= 64 * len(s.low)
			if at/64 == len(s.high) {
				s.high = append(s.high, 0)
			}
			word = &s.high[at/64]
		}
		*word &^= 1 << (at % 64)
		if s.object {
			*word |= 1 << (at % 64)
		}
	}
	s.object = object
	s.depth++
}

// pop leaves a container.
func (s *Scanner) pop() {
	s.numbers = false
	s.depth--
	if s.depth == 0 {
		return
	}
	at := s.depth - 1
	word := s.low[at/64%len(s.low)]
	if at >= 64*len(s.low) {
		at -= 64 * len(s.low)
		word = s.high[at/64]
	}
	s.object = word>>(at%64)&1 != 0
}

func isSpace(c byte) bool {
	return c <= ' ' && (c == ' ' || c == '\n' || c == '\r' || c == '\t')
}

func skipSpace(data []byte, i int) int {
	for i < len(data) && isSpace(data[i]) {
		i++
	}
	return i
}

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// scanString returns the offset behind the string whose opening quote is just
// before i. Text is nearly all strings, so it takes eight bytes at a time.
func scanString(data []byte, i int) (int, error) {
	for {
		for len(data)-i >= 8 {
			w := binary.LittleEndian.Uint64(data[i:])
			// The high bit of a byte is set if it is a backslash, or a quote or
			// below 0x20, both of which are below 0x21 once a quote has changed
			// places with the blank. A borrow can also set it above such a byte,
			// never below: the lowest is right.
			m := ((w ^ '\\'*ones - ones) | (w ^ ('"'^' ')*ones - 0x21*ones)) &^ w & highs
			if m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		if i >= len(data) {
			return len(data), ErrIncomplete
		}
		switch c := data[i]; {
		case c == '"':
			return i + 1, nil
		case c < 0x20:
			return i, ErrSyntax
		case c != '\\':
			i++ // in the last eight bytes
			continue
		}
		i++
		if i == len(data) {
			return i, ErrIncomplete
		}
		switch data[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			i++
		case 'u':
			i++
			for end := i + 4; i < end; i++ {
				if i == len(data) {
					return i, ErrIncomplete
				}
				if hex(data[i]) < 0 {
					return i, ErrSyntax
				}
			}
		default:
			return i, ErrSyntax
		}
	}
}

func hex(c byte) rune {
	switch {
	case '0' <= c && c <= '9':
		return rune(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return rune(c|0x20-'a') + 10
	}
	return -1
}

func scanWord(data []byte, i int, word string) (int, error) {
	for j := range len(word) {
		if i+j == len(data) {
			return i + j, ErrIncomplete
		}
		if data[i+j] != word[j] {
			return i + j, ErrSyntax
		}
	}
	return i + len(word), nil
}

func scanNumber(data []byte, i int) (end int, err error) {
	if data[i] == '-' {
		i++
	}
	if i < len(data) && data[i] == '0' {
		i++ // and no digit may follow: it would be another value
	} else if i, err = scanDigits(data, i); err != nil {
		return i, err
	}
	if i < len(data) && data[i] == '.' {
		if i, err = scanDigits(data, i+1); err != nil {
			return i, err
		}
	}
	if i < len(data) && data[i]|0x20 == 'e' {
		i++
		if i < len(data) && (data[i] == '+' || data[i] == '-') {
			i++
		}
		return scanDigits(data, i)
	}
	return i, nil
}

// scanDigits wants at least one.
func scanDigits(data []byte, i int) (int, error) {
	if i == len(data) {
		return i, ErrIncomplete
	}
	if data[i]-'0' > 9 {
		return i, ErrSyntax
	}
	for i < len(data) && data[i]-'0' <= 9 {
		i++
	}
	return i, nil
}

// Members iterates over the members of an object that has passed [Check]: the
// key as it is between its quotes, escapes and all, and the value without the
// white space around it. It yields nothing if value is not an object. On
// text that has not passed Check it stops somewhere.
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

// Elements iterates over the elements of an array that has passed [Check],
// each without the white space around it. It yields nothing if value is not
// an array. On text that has not passed Check it stops somewhere.
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

// Cursor reads a text that has passed [Check] from front to back, however
// deep: unlike [Members] of [Members] it passes over no byte twice. It stands
// at a value, which one of its methods may read. On text that has not passed
// Check it stops somewhere.
type Cursor struct {
	text []byte
	at   int
}

// Read returns a Cursor that stands at the value that text is.
func Read(text []byte) Cursor { return Cursor{text: text} }

// Offset is where in its text the Cursor stands.
func (c *Cursor) Offset() int { return c.at }

// Members iterates over the keys of the object that the Cursor stands at, as
// [Members] does. In the body of the loop it stands at the member's value, to
// read it or leave it unread. It yields nothing, and stays where it is, if
// the value is no object. A Cursor whose loop was left early is of no more use.
func (c *Cursor) Members() iter.Seq[[]byte] {
	return func(yield func(key []byte) bool) { c.members(yield) }
}

func (c *Cursor) members(yield func(key []byte) bool) {
	v, i, ok := c.text, skipSpace(c.text, c.at), false
	if i == len(v) || v[i] != '{' {
		return
	}
	for {
		i = skipSpace(v, i+1)
		if i == len(v) || v[i] != '"' {
			break
		}
		end, err := scanString(v, i+1)
		if err != nil {
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

// Elements does for an array what [Cursor.Members] does for an object.
func (c *Cursor) Elements() func(yield func() bool) {
	return func(yield func() bool) { c.elements(yield) }
}

func (c *Cursor) elements(yield func() bool) {
	v, i, ok := c.text, skipSpace(c.text, c.at), false
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

// passed returns the offset behind the value at i, which may have been read.
func (c *Cursor) passed(i int) (end int, ok bool) {
	if c.at != i {
		return c.at, true
	}
	return skipValue(c.text, i)
}

// Value returns the value that the Cursor stands at and steps over it. It is
// nil if there is none, which cannot be in a text that has passed Check.
func (c *Cursor) Value() []byte {
	start := skipSpace(c.text, c.at)
	end, ok := skipValue(c.text, start)
	if !ok {
		return nil
	}
	c.at = end
	return c.text[start:end:end]
}

// skipValue returns the offset behind the value that starts at i. It trusts
// Check to have paired the brackets, and only counts them.
func skipValue(v []byte, i int) (end int, ok bool) {
	if i == len(v) {
		return i, false
	}
	start, depth := i, 0
	switch v[i] {
	case '"':
		end, err := scanString(v, i+1)
		return end, err == nil
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
			end, err := scanString(v, i+1)
			if err != nil {
				return i, false
			}
			i = end
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

// Text returns the text of a JSON string, unescaped, and whether value is a
// string at all.
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
