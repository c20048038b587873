// Package awsframe reads messages of type application/vnd.amazon.eventstream from an untrusted peer, in bounded
// memory.
package awsframe

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// Error is the error type of this package.
type Error string

// Error implements error.
func (e Error) Error() string { return string(e) }

// ErrFrame means that the bytes are not a valid frame: a length or a checksum is wrong.
const ErrFrame Error = "awsframe: not a valid frame"

const (
	prelude = 12 // two lengths and their checksum
	least   = prelude + 4
	large   = 1 << 20 // from this size on a buffer is doubled
)

// Reader splits a stream into frames. It is not safe for concurrent use.
type Reader struct {
	r     io.Reader
	max   int
	lim   jsonscan.Limits
	ask   func(size int) bool
	err   error
	frame []byte
}

// NewReader returns a Reader of r. A frame may have up to max bytes. lim limits its payload.
func NewReader(r io.Reader, max int, lim jsonscan.Limits) *Reader {
	return &Reader{r: r, max: max, lim: lim}
}

// Ask sets a function that the Reader calls before it allocates more memory, like sse.Reader.Ask.
func (r *Reader) Ask(room func(size int) bool) { r.ask = room }

// Next returns the next frame. Name is the event or exception type, Data is the payload ({} if there is none), and
// Raw is the whole frame. Next returns io.EOF if the stream ends between two frames, and io.ErrUnexpectedEOF if it
// ends inside a frame. Slices are valid until the next call.
func (r *Reader) Next() (sse.Event, error) {
	if r.err != nil {
		return sse.Event{}, r.err
	}
	ev, err := r.next()
	r.err = err
	return ev, err
}

func (r *Reader) next() (ev sse.Event, err error) {
	if !r.grow(4 << 10) {
		return ev, sse.ErrNoRoom
	}
	head := r.frame[:prelude]
	if _, err := io.ReadFull(r.r, head); err != nil {
		return ev, err
	}
	total, headers := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	switch {
	case crc32.ChecksumIEEE(head[:8]) != binary.BigEndian.Uint32(head[8:]), total < least, headers > total-least:
		return ev, ErrFrame
	case uint64(total) > uint64(r.max):
		return ev, sse.ErrLineTooLong
	}
	// The peer may lie about the length, so the buffer grows only with the bytes received.
	for have := prelude; have < int(total); {
		if !r.grow(min(int(total), max(min(16*have, max(large, 2*have)), 4<<10))) {
			return ev, sse.ErrNoRoom
		}
		n, err := io.ReadFull(r.r, r.frame[have:min(int(total), len(r.frame))])
		have += n
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return ev, err
		}
	}
	frame := r.frame[:total]
	if crc32.ChecksumIEEE(frame[:total-4]) != binary.BigEndian.Uint32(frame[total-4:]) {
		return ev, ErrFrame
	}
	name, ok := nameIn(frame[prelude : prelude+headers])
	if !ok {
		return ev, ErrFrame
	}
	ev = sse.Event{Name: name, Data: frame[prelude+headers : total-4], Raw: frame}
	if len(ev.Data) == 0 {
		ev.Data = []byte("{}")
	}
	if ev.End, ev.Err = jsonscan.Check(ev.Data, r.lim); ev.Err != nil {
		ev.End = 0
	}
	return ev, nil
}

func (r *Reader) grow(size int) bool {
	if size > len(r.frame) {
		if r.ask != nil && !r.ask(size) {
			return false
		}
		r.frame = append(make([]byte, 0, size), r.frame...)[:size]
	}
	return true
}

// nameIn returns the type of an event, exception or error from the headers of a frame.
func nameIn(headers []byte) (name []byte, ok bool) {
	for len(headers) > 0 {
		n := int(headers[0])
		if len(headers) < n+2 {
			return nil, false
		}
		key, kind := headers[1:1+n], headers[1+n]
		headers = headers[2+n:]
		size := 0
		switch kind {
		case 0, 1: // true, false
		case 2:
			size = 1
		case 3:
			size = 2
		case 4:
			size = 4
		case 5, 8:
			size = 8
		case 9:
			size = 16
		case 6, 7: // bytes, string
			if len(headers) < 2 {
				return nil, false
			}
			size = int(binary.BigEndian.Uint16(headers))
			headers = headers[2:]
		default:
			return nil, false
		}
		if len(headers) < size {
			return nil, false
		}
		value := headers[:size]
		headers = headers[size:]
		switch string(key) {
		case ":event-type", ":exception-type":
			name = value
		case ":error-code":
			name = []byte("error") // any other code could be the name of an event
			if bytes.HasSuffix(value, []byte("Exception")) {
				name = value
			}
		}
	}
	return name, true
}

// Learn does nothing, because each frame is checked by itself.
func (r *Reader) Learn(sse.Event, []jsonscan.Span) {}

// Size returns the number of bytes that the Reader holds.
func (r *Reader) Size() int { return len(r.frame) }

// Trim drops a buffer of more than size bytes, like sse.Reader.Trim.
func (r *Reader) Trim(size int) {
	if len(r.frame) > size {
		r.frame = nil
	}
}

// Rest returns nil, because a Reader never reads ahead.
func (r *Reader) Rest() []byte { return nil }
