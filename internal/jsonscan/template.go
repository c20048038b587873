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
	if len(t.text) == 0 {
		return false
	}
	from := 0
	for _, s := range t.free[:t.n] {
		before := t.text[from : s.Start+1]
		number := t.text[s.Start] != '"'
		if number {
			before = before[:len(before)-1]
		}
		if !bytes.HasPrefix(text, before) {
			return false
		}
		end, err := 0, error(nil)
		if number {
			end, err = scanNatural(text, len(before))
		} else {
			end, err = scanString(text, len(before))
		}
		if err != nil || s.Some && end == len(before)+1 {
			return false
		}
		text, from = text[end:], s.End
	}
	return bytes.Equal(text, t.text[from:])
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
