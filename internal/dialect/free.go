package dialect

import "github.com/aiguard-go/aiguard/internal/jsonscan"

// free holds the positions of the free values of an event. See Stream.Free.
type free struct {
	spans [jsonscan.MaxFree]jsonscan.Span
	n     int
}

// add records the value that c has just read. some is true if the value must not be empty.
func (f *free) add(c *jsonscan.Cursor, value []byte, some bool) {
	if f.n < len(f.spans) {
		f.spans[f.n] = jsonscan.Span{Start: c.Offset() - len(value), End: c.Offset(), Some: some}
		f.n++
	}
}

// vary reads a value. A string or a whole number counts as a free value.
func (f *free) vary(c *jsonscan.Cursor) {
	value := c.Value()
	if len(value) > 0 && (value[0] == '"' || natural(value)) {
		f.add(c, value, false)
	}
}

func natural(value []byte) bool {
	for _, d := range value {
		if d < '0' || d > '9' {
			return false
		}
	}
	return true
}
