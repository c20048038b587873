package jsonscan

import "bytes"

// maxTemplate limits the size of the text that a Template keeps.
const maxTemplate = 4 << 10

// MaxFree is the maximum number of values in a Template that may vary. In a chunk these are the text, its id, number
// and time, and the random "obfuscation" with which OpenAI hides the length of the text.
const MaxFree = 5

// Span is the position of a string (with its quotes) or a number in a text.
type Span struct {
	Start, End int
	Some       bool // an empty string here is another kind of text
}

// Template recognizes texts that differ from a known text only in some of its strings and numbers. Thousands of
// chunks of a streamed answer are like that. For such a text, the results of [Check] and a [Cursor] are those of the
// known text, except for the free values. The zero Template knows no text. It allocates only to learn a longer text.
type Template struct {
	text []byte
	free [MaxFree]Span
	n    int
}

// Learn makes text the known text, if it is short enough. text must have passed Check up to its end. The free values,
// at least one and at most MaxFree, must be strings or numbers in it, in order.
func (t *Template) Learn(text []byte, free []Span) {
	t.Forget()
	if len(text) <= maxTemplate {
		t.text = append(t.text, text...)
		t.n = copy(t.free[:], free)
	}
}

// Forget clears the known text.
func (t *Template) Forget() { t.text = t.text[:0] }

// Fits reports whether text equals the known text, except for the free values.
func (t *Template) Fits(text []byte) bool {
	end := t.Match(text)
	return end > 0 && end == len(text)
}

// Match returns the offset after a text at the start of data that equals the known text, except for the free values.
// It returns 0 if there is no such text.
func (t *Template) Match(data []byte) (end int) {
	if len(t.text) == 0 {
		return 0
	}
	from := 0
	for i := range t.free[:t.n] {
		s := &t.free[i]
		before := t.text[from:s.Start]
		if !bytes.HasPrefix(data[end:], before) {
			return 0
		}
		start, err := end+len(before), error(nil)
		if t.text[s.Start] != '"' {
			end, err = scanNatural(data, start)
		} else if start < len(data) && data[start] == '"' {
			end, err = scanString(data, start+1)
		} else {
			return 0
		}
		if err != nil || s.Some && end == start+len(`""`) {
			return 0
		}
		from = s.End
	}
	if after := t.text[from:]; bytes.HasPrefix(data[end:], after) {
		return end + len(after)
	}
	return 0
}

// maxDigits limits the digits of a free number, because a longer one may be out of a decoder's range.
const maxDigits = 15

// scanNatural returns the offset after the natural number at i.
func scanNatural(data []byte, i int) (int, error) {
	if i < len(data) && data[i] == '0' {
		return i + 1, nil
	}
	end, err := scanDigits(data, i)
	if end-i > maxDigits {
		err = ErrSyntax
	}
	return end, err
}

// Size returns how many bytes the Template holds on to.
func (t *Template) Size() int { return cap(t.text) }
