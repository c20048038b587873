// Package sse reads server-sent events from a peer that may be hostile, in
// bounded memory and in time that grows only with what was received.
//
// It follows the WHATWG specification where the peer does, and is lenient
// where providers of language models are not: see [Reader.Next].
package sse

import (
	"bytes"
	"io"
	"math"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Error is the type of this package's errors.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

// ErrLineTooLong means that a line or the data of one event was longer than
// the reader's maxLine, or the name of an event longer than 1 KiB.
const ErrLineTooLong Error = "sse: line too long"

// ErrNoRoom means that there was no room for a buffer.
const ErrNoRoom Error = "sse: no room for a buffer"

const (
	minBuffer = 4 << 10
	large     = 1 << 20 // from here on a buffer is doubled
	maxName   = 1 << 10
	maxOther  = 8 << 10 // of an event's fields that are not data
)

var bom = []byte("\uFEFF")

// Event is one event of a stream.
type Event struct {
	Name []byte // the event: field, nil if there was none
	Data []byte // the data: lines, joined with '\n', without spaces and tabs at either end
	End  int    // offset behind the JSON value in Data if Err is nil and Done is false, else 0
	Err  error  // what jsonscan.Check says of Data; nil if Done
	Done bool   // Data is exactly [DONE]
	Like bool   // Name and Data are what Learn was told of, but for what its free values say
	Bare bool   // Data was outside of any field
	Raw  []byte // the lines of the event as they came, without comments, and the blank line behind them
}

// Reader splits a stream into events. It is not safe for concurrent use.
type Reader struct {
	r   io.Reader
	max int
	lim jsonscan.Limits
	ask func(size int) bool // before buffers of size bytes in all are made; may be nil
	err error               // from r, or ErrLineTooLong; nothing is read any more

	buf      []byte
	pos, end int    // buf[pos:end] has been read from r but not been looked at
	seen     int    // so much of it has no line end
	started  bool   // behind the byte order mark, if there is one
	comment  bool   // in a comment line
	ended    bool   // the blank line behind the event has been taken
	from     int    // buf[from:pos] are lines of the event in the making, if not negative
	raw      []byte // those before them
	other    int    // so much of them is in fields that are not data

	// The event in the making.
	name     []byte
	data     []byte
	open     bool // it has data, if only an empty line of it
	bare     bool // its data began outside of any field
	scan     jsonscan.Scanner
	verdict  error // of scan
	jsonEnd  int
	known    jsonscan.Template
	likeName []byte // of the event that known is from
}

// NewReader returns a Reader of r. A line or the data of one event may have
// up to maxLine bytes (at least 1), and lim applies to the data of each event.
// The Reader holds no more than about twice maxLine plus 9 KiB.
func NewReader(r io.Reader, maxLine int, lim jsonscan.Limits) *Reader {
	return &Reader{r: r, max: min(max(maxLine, 1), math.MaxInt/4), lim: lim, from: -1}
}

// Ask makes the Reader ask room before it holds on to more than it has: to size bytes in all. Without room it fails with
// ErrNoRoom, for good.
func (r *Reader) Ask(room func(size int) bool) { r.ask = room }

func (r *Reader) mayGrow(more int) bool { return r.ask == nil || r.ask(r.Size()+more) }

// Next returns the next event as soon as its bytes have arrived. Its slices
// are valid until the next call.
//
// An event ends at a blank line, but a provider that reports an error and
// then hangs must not hide it: at the end of the line that completes an
// object or array (with nothing but white space behind it), for [DONE], and
// for data beyond the Limits, Next does not wait for more. A line outside of
// any field that begins with '{' is taken for data, and so are the lines
// after it up to a blank one while the value is incomplete: some servers put
// a bare, even pretty-printed error into a stream. Comments are dropped as
// they come, whatever their length; other fields too, but they count as lines.
//
// At the end of the stream the last line needs no line end and the last event
// no blank line; then the error is io.EOF. At any other read error what is
// not complete is dropped. ErrLineTooLong and errors of r are final: Next
// returns them again.
func (r *Reader) Next() (Event, error) {
	for {
		line, err := r.line()
		if err == io.EOF && r.open {
			return r.whole(r.dispatch(r.data, r.verdict, r.jsonEnd)), nil
		}
		if err != nil {
			return Event{}, err
		}
		if ev, ok := r.take(line); ok {
			return r.whole(ev), nil
		}
		if r.err == ErrLineTooLong || r.err == ErrNoRoom {
			return Event{}, r.err
		}
	}
}

// whole gives an event its Raw, with the lines behind its data up to the blank one if those have been read.
func (r *Reader) whole(ev Event) Event {
	if !r.ended {
		r.rest()
	}
	raw := r.buf[max(r.from, 0):r.pos]
	if r.from < 0 {
		raw = nil
	}
	if len(r.raw) > 0 || !r.ended && !ev.Bare {
		r.raw = append(r.raw, raw...)
		raw = r.raw
	}
	if !r.ended && !ev.Bare { // the peer is late with the blank line, or has none
		end := "\n"
		if bytes.HasSuffix(raw, []byte("\r\n")) {
			end = "\r\n"
		}
		if !bytes.HasSuffix(raw, []byte("\n")) {
			raw = append(raw, end...)
		}
		raw = append(raw, end...)
		r.raw = raw
	}
	ev.Raw = raw
	r.forget()
	return ev
}

// rest takes the lines behind the data that belong to the event, if the blank line at their end has been read. A name there
// is not the Event's: it would depend on how the network slices the stream.
func (r *Reader) rest() {
	at := r.pos
	for {
		n := bytes.IndexByte(r.buf[at:r.end], '\n')
		if n < 0 {
			return
		}
		line := r.buf[at : at+n]
		at += n + 1
		if n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		if len(line) == 0 {
			break
		}
		if line[0] == ':' || line[0] == '{' || bytes.HasPrefix(line, []byte("data")) || at-r.pos > maxOther {
			return // a comment is dropped, and the others begin an event
		}
	}
	r.pos, r.seen, r.ended = at, 0, true
}

// forget begins another event.
func (r *Reader) forget() {
	if cap(r.raw) > r.max/2 {
		r.raw = nil
	}
	r.from, r.raw, r.other, r.ended = -1, r.raw[:0], 0, false
}

// flush copies the lines of the event in the making, before the buffer moves or something else comes in between.
func (r *Reader) flush() {
	if r.from >= 0 {
		r.raw = append(r.raw, r.buf[r.from:r.pos]...)
		r.from = -1
	}
}

// Rest returns what has been read and not been returned yet.
func (r *Reader) Rest() []byte { return r.buf[r.pos:r.end] }

// Learn tells the Reader what the next events may be like: ev, which it has
// just returned, but for the strings in its Data that are free. Such events
// cost a fraction of others. If none is free, no event is like ev.
func (r *Reader) Learn(ev Event, free []jsonscan.Span) {
	if r.known.Forget(); len(free) > 0 && ev.End == len(ev.Data) {
		r.known.Learn(ev.Data, free)
		r.likeName = append(r.likeName[:0], ev.Name...)
	}
}

// Size returns how many bytes the Reader holds on to.
func (r *Reader) Size() int { return cap(r.buf) + cap(r.data) + cap(r.raw) + r.known.Size() }

// Trim lets go of the buffers that have more than size bytes and are not needed for what has been read. The slices of the
// last Event are not valid any more.
func (r *Reader) Trim(size int) {
	if size = max(size, minBuffer); len(r.buf) > size && r.end-r.pos < size && r.from < 0 {
		buf := make([]byte, size)
		r.end = copy(buf, r.buf[r.pos:r.end])
		r.buf, r.pos = buf, 0
	}
	if cap(r.data) > size && !r.open {
		r.data = nil
	}
	if cap(r.raw) > size && len(r.raw) == 0 {
		r.raw = nil
	}
}

// line returns the next line that is not a comment, without its line end. It
// reads only when there is no complete line in the buffer.
func (r *Reader) line() ([]byte, error) {
	for ; ; r.fill() {
		if !r.started {
			b := r.buf[r.pos:r.end]
			if r.err == nil && len(b) < len(bom) && bytes.HasPrefix(bom, b) {
				continue
			}
			r.started = true
			if bytes.HasPrefix(b, bom) {
				r.pos += len(bom)
			}
		}
		for r.comment || r.pos < r.end && r.buf[r.pos] == ':' {
			r.flush()
			n := bytes.IndexByte(r.buf[r.pos:r.end], '\n')
			r.comment, r.seen = n < 0, 0
			if n < 0 {
				r.pos = r.end
				break
			}
			r.pos += n + 1
		}
		b := r.buf[r.pos:r.end]
		if n := bytes.IndexByte(b[r.seen:], '\n'); n >= 0 {
			n += r.seen
			r.begin()
			r.pos += n + 1
			r.seen = 0
			return r.limit(b[:n])
		}
		r.seen = len(b)
		// One more than max may turn out to be the '\r' of the line end.
		if len(b) > r.max+1 {
			return r.limit(b)
		}
		if r.err != nil {
			if r.err == io.EOF && len(b) > 0 {
				r.begin()
				r.pos, r.seen = r.end, 0
				return r.limit(b)
			}
			return nil, r.err
		}
	}
}

// begin makes the line at pos one of the event in the making.
func (r *Reader) begin() {
	if r.from < 0 {
		r.from = r.pos
	}
}

// limit takes a '\r' off the line's end and fails if it is still too long.
func (r *Reader) limit(line []byte) ([]byte, error) {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	if len(line) > r.max {
		r.fail()
		return nil, r.err
	}
	return line, nil
}

// fail ends the stream and forgets what was read of it.
func (r *Reader) fail() {
	r.err = ErrLineTooLong
	r.pos, r.end, r.seen = 0, 0, 0
	r.open, r.from, r.raw = false, -1, nil
}

// fill reads once from r, behind what is left in the buffer. The buffer is
// never full of one line when it has its greatest size: line would have failed.
func (r *Reader) fill() {
	r.flush()
	if r.pos > 0 {
		r.end = copy(r.buf, r.buf[r.pos:r.end])
		r.pos = 0
	}
	if r.end == len(r.buf) {
		// In few steps, and the last one to the full size: each leaves its buffer to the collector.
		size := max(minBuffer, min(16*len(r.buf), max(large, 2*len(r.buf)), r.max+2))
		if size > r.max/8 {
			size = r.max + 2
		}
		if !r.mayGrow(size - len(r.buf)) {
			r.err = ErrNoRoom
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

// take makes line part of the event in the making, and returns it if that
// completes it.
func (r *Reader) take(line []byte) (Event, bool) {
	switch {
	case len(line) == 0:
		if r.open {
			r.ended = true
			return r.dispatch(r.data, r.verdict, r.jsonEnd), true
		}
		r.name = r.name[:0]
		r.forget()
		return Event{}, false
	case r.bare && r.verdict == jsonscan.ErrIncomplete:
		return r.add(line)
	case line[0] == '{':
		r.bare = true
		return r.add(line)
	}
	field, value, _ := bytes.Cut(line, []byte(":"))
	if len(value) > 0 && value[0] == ' ' {
		value = value[1:]
	}
	switch string(field) {
	case "data":
		return r.add(value)
	case "error": // of older llama.cpp, in the place of an event
		if len(value) > 0 && value[0] == '{' && !r.open {
			r.name = append(r.name[:0], "error"...)
			return r.add(value)
		}
	case "event":
		if len(value) > maxName {
			r.fail()
			return Event{}, false
		}
		r.name = append(r.name[:0], value...)
	}
	if r.other += len(line) + 1; r.other > maxOther { // more than anybody needs
		r.from, r.raw = -1, r.raw[:0]
	}
	return Event{}, false
}

// add appends a line to the data, and returns the event if that completes it.
func (r *Reader) add(text []byte) (Event, bool) {
	first, base := !r.open, 0
	if first {
		text = trimLeft(text)
	} else {
		base = len(r.data) + 1
		if base+len(text) > r.max {
			r.fail()
			return Event{}, false
		}
	}
	trimmed := trimRight(text)
	if first {
		switch {
		case string(trimmed) == "[DONE]":
			ev := r.dispatch(trimmed, nil, 0)
			ev.Done = true
			return ev, true
		case bytes.Equal(r.name, r.likeName) && r.known.Fits(trimmed):
			ev := r.dispatch(trimmed, nil, len(trimmed))
			ev.Like = true
			return ev, true
		}
		r.open = true
		r.data = r.data[:0]
		r.scan.Reset(r.lim)
		r.verdict, r.jsonEnd = jsonscan.ErrIncomplete, 0
	}
	ready := false
	if r.verdict == jsonscan.ErrIncomplete {
		var end int
		end, r.verdict = r.scan.Line(trimmed)
		switch r.verdict {
		case nil:
			r.jsonEnd = base + end
			c := trimmed[end-1]
			ready = (c == '}' || c == ']') && len(bytes.TrimLeft(trimmed[end:], " \t\r")) == 0
		case jsonscan.ErrTooBig:
			ready = true
		}
	}
	if first && ready {
		return r.dispatch(trimmed, r.verdict, r.jsonEnd), true // the usual case needs no copy
	}

	if need := base + len(text); need > cap(r.data) {
		size := max(need, min(2*cap(r.data), r.max))
		if !r.mayGrow(size - cap(r.data)) {
			r.fail()
			r.err = ErrNoRoom
			return Event{}, false
		}
		r.data = append(make([]byte, 0, size), r.data...)
	}
	if !first {
		r.data = append(r.data, '\n')
	}
	r.data = append(r.data, text...)
	if ready {
		return r.dispatch(r.data, r.verdict, r.jsonEnd), true
	}
	return Event{}, false
}

// trimLeft and trimRight take off spaces and tabs. There are hardly ever any:
// the functions of package bytes would spend longer on getting ready.
func trimLeft(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

func trimRight(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// dispatch returns the event with this data, and what is known of that, and
// begins another one.
func (r *Reader) dispatch(data []byte, verdict error, end int) Event {
	ev := Event{Data: trimRight(data), End: end, Err: verdict, Bare: r.bare}
	if len(r.name) > 0 {
		ev.Name = r.name
	}
	r.name = r.name[:0]
	r.open, r.bare = false, false
	return ev
}
