// Package sse reads server-sent events from an untrusted peer, in bounded memory and in time linear in the bytes
// received.
//
// It follows the WHATWG specification, but is lenient where LLM providers deviate from it: see [Reader.Next].
package sse

import (
	"bytes"
	"io"
	"math"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Error is the error type of this package.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

// ErrLineTooLong means that a line or the data of one event was longer than the reader's maxLine, or the name of an
// event longer than 1 KiB.
const ErrLineTooLong Error = "sse: line too long"

// ErrNoRoom means that there was no room for a buffer.
const ErrNoRoom Error = "sse: no room for a buffer"

const (
	minBuffer = 4 << 10
	large     = 1 << 20 // from this size on a buffer is doubled
	maxName   = 1 << 10
	maxOther  = 8 << 10 // bytes of an event's fields other than data
)

var bom = []byte("\uFEFF")

// Event is one event of a stream.
type Event struct {
	Name []byte // the event: field; nil if there was none
	Data []byte // the data: lines joined with '\n', without spaces and tabs at either end

	// End is the offset after the JSON value in Data if Err is nil and Done is false, else 0.
	End int

	Err  error // result of jsonscan.Check on Data; nil if Done
	Done bool  // Data is exactly [DONE]

	// Like means that Name and Data equal those given to Learn, except for the free values.
	Like bool

	Scan *jsonscan.Scanner // has checked Data; nil if Like or Done

	Bare bool   // Data was outside of any field
	Raw  []byte // the lines of the event as received, without comments, and the blank line after them
}

// Read returns a Cursor at the JSON value in Data. It is valid as long as Data.
func (ev *Event) Read() jsonscan.Cursor {
	if ev.Scan == nil {
		return jsonscan.Read(ev.Data)
	}
	return ev.Scan.Read(ev.Data)
}

// Reader splits a stream into events. It is not safe for concurrent use.
type Reader struct {
	r   io.Reader
	max int
	lim jsonscan.Limits
	ask func(size int) bool // called before buffers of size bytes in total are allocated; may be nil
	err error               // from r, or ErrLineTooLong; nothing more is read

	buf      []byte
	pos, end int    // buf[pos:end] has been read from r but not scanned
	seen     int    // the first seen bytes of it have no line end
	started  bool   // after the byte order mark, if there is one
	comment  bool   // in a comment line
	ended    bool   // the blank line after the event has been consumed
	from     int    // buf[from:pos] holds lines of the current event, if not negative
	raw      []byte // earlier lines of the current event
	other    int    // bytes of them in fields other than data

	// The current event.
	name     []byte
	data     []byte
	open     bool // it has data, even if only an empty line
	bare     bool // its data began outside of any field
	scan     jsonscan.Scanner
	verdict  error // from scan
	jsonEnd  int
	known    jsonscan.Template
	likeName []byte // name of the event in known
	likeHead []byte // its bytes before the data; empty: no event is like it
	wasted   int    // events in a row that were learned in vain
	unlike   bool   // the next data line is not like known
	ahead    Event  // found by Arrived, for Next
	isAhead  bool
}

// NewReader returns a Reader of r. A line or the data of one event may have up to maxLine bytes (at least 1). lim
// limits the data of each event. The Reader holds at most about twice maxLine plus 15 KiB.
func NewReader(r io.Reader, maxLine int, lim jsonscan.Limits) *Reader {
	return &Reader{r: r, max: min(max(maxLine, 1), math.MaxInt/4), lim: lim, from: -1}
}

// Ask sets a function that the Reader calls before it allocates more memory, up to size bytes in total. If the
// function returns false, the Reader fails with ErrNoRoom for good.
func (r *Reader) Ask(room func(size int) bool) { r.ask = room }

func (r *Reader) mayGrow(more int) bool { return r.ask == nil || r.ask(r.Size()+more) }

// Next returns the next event as soon as its bytes have arrived. Its slices are valid until the next call.
//
// An event ends at a blank line. But a provider that reports an error and then hangs must not hide the error. So Next
// does not wait for a blank line in three cases:
//
//   - at the end of a line that completes an object or array, with only white space after it
//   - after [DONE]
//   - if the data is beyond the Limits
//
// Some servers put a bare, even pretty-printed error into a stream. So a line outside of any field that begins with
// '{' counts as data. The lines after it count too, up to a blank line, while the value is incomplete. Comments are
// dropped as they arrive, whatever their length. Other fields are dropped too, but count as lines.
//
// At the end of the stream the last line needs no line end and the last event no blank line. The error is then
// io.EOF. At any other read error an incomplete event is dropped. ErrLineTooLong and errors of r are final: Next
// returns them again.
func (r *Reader) Next() (ev Event, err error) {
	if r.isAhead {
		r.isAhead = false
		return r.ahead, nil
	}
	err = r.next(&ev, true)
	return ev, err
}

// Arrived is Next for an event whose bytes have been read. It never reads. It leaves [DONE], data with an Err, and
// errors to Next.
func (r *Reader) Arrived() (ev Event, ok bool) {
	if r.isAhead || r.next(&ev, false) != nil {
		return Event{}, false
	}
	if ev.Err != nil || ev.Done {
		r.ahead, r.isAhead = ev, true
		return Event{}, false
	}
	return ev, true
}

// errNotYet means that the next event has not been read.
const errNotYet Error = "sse: not yet"

func (r *Reader) next(ev *Event, wait bool) error {
	if wait && r.pos == r.end && r.err == nil && r.mayBeLike() {
		r.fill()
	}
	if r.like(ev) {
		return nil
	}
	for {
		line, err := r.line(wait)
		switch {
		case err == io.EOF && r.open:
			r.checked(ev, r.data)
			r.whole(ev)
			return nil
		case err != nil:
			return err
		case r.take(ev, line):
			r.whole(ev)
			return nil
		case r.err == ErrLineTooLong || r.err == ErrNoRoom:
			return r.err
		}
	}
}

// mayBeLike reports whether the next bytes begin an event and may equal those of the event given to Learn.
func (r *Reader) mayBeLike() bool {
	return len(r.likeHead) > 0 && r.from < 0 && len(r.raw)+len(r.name)+r.other == 0 && !r.open && !r.comment
}

// like sets ev to the next event if all its bytes have been read and equal those of the event given to Learn, except
// for the free values. Most events of an answer are like that, and need no search for lines and fields.
func (r *Reader) like(ev *Event) bool {
	if !r.mayBeLike() {
		return false
	}
	b := r.buf[r.pos:r.end]
	if !bytes.HasPrefix(b, r.likeHead) {
		return false
	}
	at := len(r.likeHead)
	n := r.known.Match(b[at:])
	if n == 0 {
		r.unlike = len(b) > at && b[at] == '{' && bytes.IndexByte(b[at:], '\n') >= 0 // else the whole line may be like it
		return false
	}
	end := at + n + len("\n\n")
	if at+n > r.max || len(b) < end || b[end-2] != '\n' || b[end-1] != '\n' {
		return false
	}
	ev.Data, ev.End, ev.Like, ev.Raw = b[at:at+n], n, true, b[:end]
	if len(r.likeName) > 0 {
		ev.Name = r.likeName
	}
	r.pos, r.seen, r.wasted = r.pos+end, 0, 0
	return true
}

// whole sets an event's Raw. It includes the lines after the data, up to the blank one, if those have been read.
func (r *Reader) whole(ev *Event) {
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
	if !r.ended && !ev.Bare { // the blank line is late or missing
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
}

// rest consumes the lines after the data that belong to the event, if the blank line at their end has been read. It
// ignores a name there, because the Event would otherwise depend on how the network splits the stream.
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
			return // a comment is dropped, and other lines begin an event
		}
	}
	r.pos, r.seen, r.ended = at, 0, true
}

// forget starts a new event.
func (r *Reader) forget() {
	if cap(r.raw) > r.max/2 {
		r.raw = nil
	}
	r.from, r.raw, r.other, r.ended = -1, r.raw[:0], 0, false
}

// flush copies the lines of the current event, before the buffer moves or other bytes follow.
func (r *Reader) flush() {
	if r.from >= 0 {
		r.raw = append(r.raw, r.buf[r.from:r.pos]...)
		r.from = -1
	}
}

// Rest returns what has been read and not yet returned.
func (r *Reader) Rest() []byte { return r.buf[r.pos:r.end] }

// Learn tells the Reader that later events may equal ev, which it has just returned, except for the free strings in
// its Data. Such events cost a fraction of the time of others. If no string is free, Learn only forgets the known
// event. In a stream whose events all differ, Learn uses only one of eight events.
func (r *Reader) Learn(ev Event, free []jsonscan.Span) {
	r.likeHead = r.likeHead[:0]
	if r.known.Forget(); len(free) > 0 && ev.End == len(ev.Data) {
		if r.wasted++; r.wasted > 8 && r.wasted%8 != 0 {
			return
		}
		r.known.Learn(ev.Data, free)
		r.likeName = append(r.likeName[:0], ev.Name...)
		if head, tail, ok := bytes.Cut(ev.Raw, ev.Data); ok && !ev.Bare && string(tail) == "\n\n" {
			r.likeHead = append(r.likeHead, head...)
		}
	}
}

// Size returns the number of bytes that the Reader holds.
func (r *Reader) Size() int {
	return cap(r.buf) + cap(r.data) + cap(r.raw) + cap(r.likeHead) + r.known.Size() + r.scan.Size()
}

// Trim drops buffers of more than size bytes that are not needed for what has been read. It invalidates the
// slices of the last Event.
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

// line returns the next line that is not a comment, without its line end. It reads only if there is no complete line
// in the buffer and wait is true.
func (r *Reader) line(wait bool) ([]byte, error) {
	for read := false; ; read = true {
		if read {
			if !wait {
				return nil, errNotYet
			}
			r.fill()
		}
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
		// One byte more than max may be the '\r' of the line end.
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

// begin adds the line at pos to the current event.
func (r *Reader) begin() {
	if r.from < 0 {
		r.from = r.pos
	}
}

// limit removes a '\r' at the line's end, and fails if the line is still too long.
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

// fail ends the stream and drops what has been read.
func (r *Reader) fail() {
	r.err = ErrLineTooLong
	r.pos, r.end, r.seen = 0, 0, 0
	r.open, r.from, r.raw = false, -1, nil
}

// fill reads once from r and appends to the buffer. A buffer of maximum size is never full of a single line, because
// line would have failed.
func (r *Reader) fill() {
	r.flush()
	if r.pos > 0 {
		r.end = copy(r.buf, r.buf[r.pos:r.end])
		r.pos = 0
	}
	if r.end == len(r.buf) {
		// Grow in few steps, the last one to the full size, because each step leaves a buffer for the garbage
		// collector.
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

// take adds line to the current event, and returns the event if it is complete.
func (r *Reader) take(ev *Event, line []byte) bool {
	switch {
	case len(line) == 0:
		if r.open {
			r.ended = true
			return r.checked(ev, r.data)
		}
		r.name = r.name[:0]
		r.forget()
		return false
	case r.bare && r.verdict == jsonscan.ErrIncomplete:
		return r.add(ev, line)
	case line[0] == '{':
		r.bare = true
		return r.add(ev, line)
	}
	field, value, _ := bytes.Cut(line, []byte(":"))
	if len(value) > 0 && value[0] == ' ' {
		value = value[1:]
	}
	switch string(field) {
	case "data":
		return r.add(ev, value)
	case "error": // older llama.cpp sends an error field in place of an event
		if len(value) > 0 && value[0] == '{' && !r.open {
			r.name = append(r.name[:0], "error"...)
			return r.add(ev, value)
		}
	case "event":
		if len(value) > maxName {
			r.fail()
			return false
		}
		r.name = append(r.name[:0], value...)
	}
	if r.other += len(line) + 1; r.other > maxOther { // more than any event needs
		r.from, r.raw = -1, r.raw[:0]
	}
	return false
}

// add appends a line to the data, and returns the event if it is complete.
func (r *Reader) add(ev *Event, text []byte) bool {
	first, base := !r.open, 0
	if first {
		text = trimLeft(text)
	} else {
		base = len(r.data) + 1
		if base+len(text) > r.max {
			r.fail()
			return false
		}
	}
	trimmed := trimRight(text)
	if first {
		switch {
		case string(trimmed) == "[DONE]":
			ev.Done = true
			return r.dispatch(ev, trimmed, nil, 0)
		case !r.unlike && bytes.Equal(r.name, r.likeName) && r.known.Fits(trimmed):
			ev.Like, r.wasted = true, 0
			return r.dispatch(ev, trimmed, nil, len(trimmed))
		}
		r.unlike = false
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
		return r.checked(ev, trimmed) // the usual case needs no copy
	}

	if need := base + len(text); need > cap(r.data) {
		size := max(need, min(2*cap(r.data), r.max))
		if !r.mayGrow(size - cap(r.data)) {
			r.fail()
			r.err = ErrNoRoom
			return false
		}
		r.data = append(make([]byte, 0, size), r.data...)
	}
	if !first {
		r.data = append(r.data, '\n')
	}
	r.data = append(r.data, text...)
	if ready {
		return r.checked(ev, r.data)
	}
	return false
}

// trimLeft and trimRight remove spaces and tabs. They exist because the functions of package bytes have a higher
// setup cost, and there is rarely anything to remove.
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

// checked sets ev to the event with this data, which scan has checked, and starts a new one. It returns true.
func (r *Reader) checked(ev *Event, data []byte) bool {
	ev.Scan = &r.scan
	return r.dispatch(ev, data, r.verdict, r.jsonEnd)
}

// dispatch sets ev to the event with this data and starts a new one. It returns true.
func (r *Reader) dispatch(ev *Event, data []byte, verdict error, end int) bool {
	ev.Data, ev.End, ev.Err, ev.Bare = trimRight(data), end, verdict, r.bare
	if len(r.name) > 0 {
		ev.Name = r.name
	}
	r.name = r.name[:0]
	r.open, r.bare = false, false
	return true
}
