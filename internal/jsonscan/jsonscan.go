// Package jsonscan checks JSON from an untrusted peer before it is decoded. Most callers need only [Check]. It makes
// one pass without allocation and reports whether the text is valid JSON or truncated. It also rejects a shape that
// would cost a decoder far more memory than its size suggests.
//
// [Members], [Elements] and [Text] then read single values of a checked text without decoding the rest.
package jsonscan

import (
	"encoding/binary"
	"math"
	"math/bits"
	"unsafe"
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

	// The keys and values of a value that ends in its first line, for Read.
	tokens []token
	count  int   // number of them; if it is more than len(tokens), tokens is incomplete
	inner  int32 // index of the innermost container in tokens
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

// token is a key or a value of a text. A key has its quotes.
type token struct {
	start, end int32
	next       int32 // index after the value and all that is in it. While a container is open: the index of its parent
}

// maxTokens limits the tokens that a Scanner records. Together they take 6 KiB.
const maxTokens = 512

// Reset prepares s for the first line of a new value.
func (s *Scanner) Reset(lim Limits) {
	if s.count > len(s.tokens) && s.count <= maxTokens {
		s.tokens = make([]token, min(2*s.count, maxTokens)) // for the next value
	}
	// low and high need no reset, because push writes a bit before pop reads it.
	s.lim, s.containers, s.depth, s.phase, s.count, s.inner = lim, 0, 0, inValue, 0, 0
	s.object, s.numbers = false, false
}

// Read returns a Cursor at the value that Line has just checked. text is that line. If the value began in this line, the
// Cursor does not scan it again. It is valid until the next call of Reset.
func (s *Scanner) Read(text []byte) Cursor {
	c := Read(text)
	if s.count <= len(s.tokens) {
		c.tokens = s.tokens[:s.count]
	}
	return c
}

// Size returns the number of bytes that s holds.
func (s *Scanner) Size() int { return len(s.tokens) * int(unsafe.Sizeof(token{})) }

// Line checks the next line, given without its line end. A nil error means that the value ended in this line at
// offset end. ErrIncomplete asks for the next line. Any other error is final, as in Check.
func (s *Scanner) Line(data []byte) (end int, err error) {
	i, ph := 0, s.phase
	s.phase = inRuin // replaced below unless an error is found
	tokens, n := s.tokens, s.count
	if len(data) > math.MaxInt32 {
		n = maxTokens + 1
	}
	for {
		for i < len(data) && isSpace(data[i]) {
			i++
		}
		if ph == inRuin {
			return i, ErrSyntax
		}
		if i >= len(data) {
			s.phase, s.count = ph, maxTokens+1
			return i, ErrIncomplete
		}
		c := data[i]
		switch ph {
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
			s.pop(i, n)

		case inFirstKey, inKey:
			if c == '}' && ph == inFirstKey {
				i++
				s.pop(i, n)
				break
			}
			if c != '"' {
				return i, ErrSyntax
			}
			start := i
			if i, err = scanString(data, i+1); err != nil {
				return i, err
			}
			if n < len(tokens) {
				tokens[n] = token{int32(start), int32(i), int32(n) + 1}
			}
			n++
			if len(data)-i < 2 || data[i] != ':' || data[i+1] <= ' ' { // rare
				ph = inColon
				continue
			}
			i++
			c, ph = data[i], inValue
			fallthrough

		default: // inValue, inFirstValue
			number, start := false, i
			switch c {
			case '"':
				i, err = scanString(data, i+1)
			case '{', '[':
				if s.containers == s.lim.Containers || s.depth == s.lim.Depth {
					return i, ErrTooBig
				}
				s.containers++
				s.push(c == '{')
				if n < len(tokens) {
					tokens[n] = token{start: int32(i), next: s.inner}
					s.inner = int32(n)
				}
				n++
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
				s.pop(i, n)
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
			if c != ']' {
				if n < len(tokens) {
					tokens[n] = token{int32(start), int32(i), int32(n) + 1}
				}
				n++
			}
		}

		// After a value.
		if s.depth == 0 {
			s.count = n
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

// pop leaves a container that ends at offset end, with n tokens so far.
func (s *Scanner) pop(end, n int) {
	if n <= len(s.tokens) {
		t := &s.tokens[s.inner]
		t.end, t.next, s.inner = int32(end), int32(n), t.next
	}
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
