// Package jsonseq reads a sequence of JSON texts from an untrusted peer: JSON lines, the elements of one array while
// it is being written, or a single text. It uses bounded memory, and time linear in the bytes received.
package jsonseq

import (
	"io"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

const (
	minBuffer = 4 << 10
	large     = 1 << 20 // from this size on a buffer is doubled
)

// Reader splits a stream into JSON texts. It is not safe for concurrent use.
type Reader struct {
	r   io.Reader
	max int
	lim jsonscan.Limits
	ask func(size int) bool
	err error // from r, or sse.ErrLineTooLong or sse.ErrNoRoom

	buf        []byte
	start, end int // buf[start:end] has been read from r and not yet returned
	at         int // buf[start:at] has been scanned

	scan   jsonscan.Scanner
	begun  int // start of the current text; negative: none
	depth  int
	quoted bool // in a string
	escape bool // after a backslash
	word   bool // in a number or a word
	array  bool // in the array around all texts
	opened bool // something other than white space has come
}

// NewReader returns a Reader of r. A text, including the separators before it, may have up to maxText bytes (at least
// 1). lim limits each text.
func NewReader(r io.Reader, maxText int, lim jsonscan.Limits) *Reader {
	return &Reader{r: r, max: max(maxText, 1), lim: lim, begun: -1}
}

// Ask sets a function that the Reader calls before it allocates more memory, like sse.Reader.Ask.
func (r *Reader) Ask(room func(size int) bool) { r.ask = room }

// Next returns the next text as soon as its last byte has arrived, as an event without a name. Raw also has the
// separators before the text, and the line end after it if that has arrived. At the end of the stream, an incomplete
// text is returned first, as an event with an Err. Then the error is io.EOF. Slices are valid until the next call.
func (r *Reader) Next() (sse.Event, error) {
	for {
		for r.at < r.end {
			if r.take(r.buf[r.at]) {
				return r.text(), nil
			}
		}
		if r.err != nil {
			return r.last()
		}
		r.fill()
	}
}

// take scans the next byte and reports whether it ends a text. The text then ends before at.
func (r *Reader) take(c byte) (done bool) {
	switch {
	case r.quoted:
		r.at++
		switch {
		case r.escape:
			r.escape = false
		case c == '\\':
			r.escape = true
		case c == '"':
			r.quoted = false
			return r.depth == 0
		}
		return false
	case r.word:
		if c != ',' && c != ']' && c > ' ' {
			r.at++
			return false
		}
		r.word = false
		return true // the separator belongs to the next text
	}
	r.at++
	if r.begun < 0 {
		switch c {
		case ' ', '\t', '\r', '\n', ',':
			return false
		case '[':
			if !r.opened {
				r.opened, r.array = true, true
				return false
			}
		case ']':
			if r.array {
				r.array = false
				return false
			}
		}
		r.opened = true
		r.begun = r.at - 1
		switch c {
		case '{', '[', '"':
		default:
			r.word = true
			return false
		}
	}
	switch c {
	case '"':
		r.quoted = true
	case '{', '[':
		r.depth++
	case '}', ']':
		r.depth--
		return r.depth <= 0
	}
	return false
}

// text returns the text that ends at at.
func (r *Reader) text() sse.Event {
	data := r.buf[r.begun:r.at]
	ev := sse.Event{Data: data, Bare: true, Scan: &r.scan}
	r.scan.Reset(r.lim)
	if ev.End, ev.Err = r.scan.Line(data); ev.Err != nil {
		ev.End = 0
	}
	for i := r.at; i < r.end && i < r.at+2; i++ { // the line end
		if r.buf[i] == '\n' {
			r.at = i + 1
			break
		}
		if r.buf[i] != '\r' {
			break
		}
	}
	ev.Raw = r.buf[r.start:r.at]
	r.start, r.begun, r.depth = r.at, -1, 0
	return ev
}

// last returns an incomplete text at the end of the stream, once.
func (r *Reader) last() (sse.Event, error) {
	if r.err != io.EOF || r.begun < 0 {
		return sse.Event{}, r.err
	}
	return r.text(), nil
}

// Learn does nothing, because each text is checked by itself.
func (r *Reader) Learn(sse.Event, []jsonscan.Span) {}

// Size returns the number of bytes that the Reader holds.
func (r *Reader) Size() int { return cap(r.buf) + r.scan.Size() }

// Trim drops a buffer of more than size bytes, like sse.Reader.Trim.
func (r *Reader) Trim(size int) {
	if size = max(size-r.scan.Size(), minBuffer); len(r.buf) <= size || r.end-r.start >= size || r.begun >= 0 {
		return
	}
	buf := make([]byte, size)
	r.end, r.at = copy(buf, r.buf[r.start:r.end]), r.at-r.start
	r.buf, r.start = buf, 0
}

// Rest returns what has been read and not yet returned.
func (r *Reader) Rest() []byte { return r.buf[r.start:r.end] }

// fill reads once from r and appends to the buffer.
func (r *Reader) fill() {
	if r.at-r.start > r.max {
		r.err = sse.ErrLineTooLong
		r.start, r.at, r.end, r.begun = 0, 0, 0, -1
		return
	}
	if r.start > 0 {
		moved := r.start
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start, r.at = 0, r.at-moved
		if r.begun >= 0 {
			r.begun -= moved
		}
	}
	if r.end == len(r.buf) {
		size := max(minBuffer, min(16*len(r.buf), max(large, 2*len(r.buf)), r.max+2))
		if size > r.max/8 {
			size = max(minBuffer, r.max+2)
		}
		if r.ask != nil && !r.ask(size) {
			r.err = sse.ErrNoRoom
			return
		}
		r.buf = append(make([]byte, 0, size), r.buf...)[:size]
	}
	for range 100 {
		n, err := r.r.Read(r.buf[r.end:])
		r.end += n
		r.err = err
		if n > 0 || err != nil {
			return
		}
	}
	r.err = io.ErrNoProgress
}
