package jsonscan

import "bytes"

// maxTemplate bounds what a Template holds on to.
const maxTemplate = 4 << 10

// Template recognizes texts that differ from a known one only in what one of
// its strings says: the chunks of an answer are like that, thousands of them.
// Whatever [Check] and a [Cursor] would find in such a text but for that
// string, they have found in the known one already. The zero Template knows
// none, and it allocates only to learn a longer one.
type Template struct {
	text       []byte
	start, end int // the string, quotes included
}

// Learn makes text, which has passed Check up to its end, the known one, if it
// is not long. text[start:end] must be a string value in it.
func (t *Template) Learn(text []byte, start, end int) {
	t.Forget()
	if len(text) <= maxTemplate {
		t.text = append(t.text, text...)
		t.start, t.end = start, end
	}
}

// Forget makes t know no text.
func (t *Template) Forget() { t.text = t.text[:0] }

// Fits reports whether text is the known one with some other string in that
// place, or with the same.
func (t *Template) Fits(text []byte) bool {
	if len(t.text) == 0 || !bytes.HasPrefix(text, t.text[:t.start+1]) || !bytes.HasSuffix(text, t.text[t.end-1:]) {
		return false
	}
	end, err := scanString(text, t.start+1)
	return err == nil && len(text)-end == len(t.text)-t.end
}

// Size returns how many bytes the Template holds on to.
func (t *Template) Size() int { return cap(t.text) }
