// Package jsonscan checks JSON from an untrusted peer before it is decoded. Most callers need only [Check]. It makes
// one pass without allocation and reports whether the text is valid JSON or truncated. It also rejects a shape that
// would cost a decoder far more memory than its size suggests.
//
// [Members], [Elements] and [Text] then read single values of a checked text without decoding the rest.
package jsonscan

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"iter"
	"math/bits"
	"unicode/utf8"
)

// Error is the reason why a text was rejected. It never quotes the text.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

const (
	// ErrSyntax means that the text is not valid JSON, whatever follows it.
	ErrSyntax Error = "jsonscan: not valid JSON"
	// ErrIncomplete means that the text is valid so far but truncated. Empty text and white space count as truncated.
	ErrIncomplete Error = "jsonscan: truncated JSON"
	// ErrTooBig means that the text exceeds its Limits.
	ErrTooBig Error = "jsonscan: too many or too deeply nested objects and arrays"
)

// Limits limits the shape of a value. Zero allows no object or array, and a negative value means no limit.
type Limits struct {
	// Containers is the number of objects and arrays, including the value itself. Arrays that contain only numbers do
	// not count.
	Containers int

	Depth int // nesting depth
}

// Check validates the first JSON value in data and returns the offset after it. White space may precede the value.
// Check ignores what follows the value. It is exactly as strict as encoding/json, so it also accepts invalid UTF-8 in
// strings.
//
// The error is ErrIncomplete if and only if data is a proper prefix of some JSON text. A number at the very end of
// data counts as complete. The error is ErrTooBig as soon as lim is exceeded, and the rest is not checked. On error,
// end is the offset where the scan stopped.
//
// Check does not allocate up to a depth of 256.
func Check(data []byte, lim Limits) (end int, err error) {
	var s Scanner
	s.lim = lim
	return s.Line(data)
}

// Scanner checks a value like Check, but line by line. It looks at each byte once, however many lines there are. No
// JSON token spans two lines, so it only has to remember its position in the grammar. Call Reset before use.
type Scanner struct {
	lim        Limits
	containers int
	depth      int
	phase      phase
	object     bool // the innermost container is an object
	numbers    bool // the innermost container is an array with only numbers so far

	// One bit per container around the innermost: 1 for an object. The levels that do not fit into low are in high.
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
	inRuin // not valid JSON, whatever follows
)

// Reset prepares s for the first line of a new value.
func (s *Scanner) Reset(lim Limits) {
	*s = Scanner{lim: lim, high: s.high[:0]}
}

// Line checks the next line, given without its line end. A nil error means that the value ended in this line at
// offset end. ErrIncomplete asks for the next line. Any other error is final, as in Check.
func (s *Scanner) Line(data []byte) (end int, err error) {
	i, ph := 0, s.phase
	s.phase = inRuin // replaced below unless an error is found
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
			if i < len(data) && data[i] == ':' { // most common
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

		// After a value.
		if s.depth == 0 {
			return i, nil
		}
		ph = inNext
		if i < len(data) && data[i] == ',' { // most common
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
	if s.depth > 0 { // the outermost container has nothing around it
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

// scanString returns the offset after the string whose opening quote is before i. It processes eight bytes at a time,
// because most JSON consists of strings.
func scanString(data []byte, i int) (int, error) {
	for {
		for len(data)-i >= 8 {
			w := binary.LittleEndian.Uint64(data[i:])
			// The high bit of a byte in m is set if the byte is a backslash, a quote or below 0x20. The XOR swaps the
			// quote with the space, so that both of the latter are below 0x21. A borrow can set the bit in a higher
			// byte, but never in a lower one, so the lowest set bit is correct.
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
		i++ // no digit may follow a leading zero
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

// scanDigits requires at least one digit.
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
// however deep the text is. It stands at a value, and one of its methods may read that value. On text that has not
// passed Check it may stop anywhere.
type Cursor struct {
	text []byte
	at   int
}

// Read returns a Cursor at the value text.
func Read(text []byte) Cursor { return Cursor{text: text} }

// Offset returns the Cursor's position in the text.
func (c *Cursor) Offset() int { return c.at }

// Members iterates over the keys of the object at the Cursor, as [Members] does. In the loop body the Cursor stands
// at the member's value, which the body may read or skip. Members yields nothing, and does not move, if the value is
// not an object. Do not use a Cursor after breaking out of its loop.
func (c *Cursor) Members() iter.Seq[[]byte] {
	return func(yield func(key []byte) bool) { c.members(yield) }
}

func (c *Cursor) members(yield func(key []byte) bool) {
	v, i := c.text, skipSpace(c.text, c.at)
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
	start := skipSpace(c.text, c.at)
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
