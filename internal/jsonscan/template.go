package jsonscan

import "bytes"

// maxTemplate bounds what a Template holds on to.
const maxTemplate = 4 << 10

// MaxFree is how many values of a Template may say something else: the text of a chunk, its id, number and time, and the
// random "obfuscation" beside it by which OpenAI hides how long the text is.
const MaxFree = 5

// Span is a string or a number in a text, quotes included.
type Span struct {
	Start, End int
	Some       bool // an empty string there is another kind of text
}

// Template recognizes texts that differ from a known one only in what some of its strings and numbers say: the chunks of an
// answer are like that, thousands of them. Whatever [Check] and a [Cursor] would find in such a text but for those values,
// they have found in the known one already. The zero Template knows none, and it allocates only to learn a longer one.
type Template struct {
	text []byte
	free [MaxFree]Span
	n    int
}

// Learn makes text, which has passed Check up to its end, the known one, if it is not long. The values that are free, at
// least one and MaxFree at the most, must be strings or numbers in it, in order.
func (t *Template) Learn(text []byte, free []Span) {
	t.Forget()
	if len(text) <= maxTemplate {
		t.text = append(t.text, text...)
		t.n = copy(t.free[:], free)
	}
}

// Forget makes t know no text.
func (t *Template) Forget() { t.text = t.text[:0] }

// Fits reports whether text is the known one with some other values in those places, or with the same.
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

// maxDigits is how many digits a free number may have: more may be out of a decoder's range.
const maxDigits = 15

// scanNatural returns the offset behind the whole number at i.
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
