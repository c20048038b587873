package aiguard

import (
	"bytes"
	"errors"
	"io"
	"sync/atomic"
	"unicode/utf8"
)

// source reads the provider's bytes of a stream. It counts them, and starts the idle limit when its reader has to wait.
type source struct {
	body   io.ReadCloser
	limit  int64 // MaxResponseBytes
	watch  *watch
	read   atomic.Int64
	peeked []byte // bytes of body already read but not yet used
	cause  error  // error that came with peeked

	await    bool        // the next Read starts a wait of the stream's reader
	reading  atomic.Bool // its reader waits
	thinking bool        // the model may send only comments for a while
}

// errTooMuch is returned by Read if the body is over MaxResponseBytes.
var errTooMuch = errors.New("aiguard: over MaxResponseBytes")

// Read implements io.Reader. It starts the idle wait only once per event, because comments are not progress.
func (s *source) Read(p []byte) (int, error) {
	if s.await {
		s.await = false
		s.reading.Store(true)
		s.watch.wait()
	}
	if len(s.peeked) > 0 {
		n := copy(p, s.peeked)
		s.peeked = s.peeked[n:]
		return n, nil
	}
	if s.cause != nil { // of what was peeked
		return 0, s.cause
	}
	n, err := s.body.Read(p)
	if n > 0 && s.thinking && s.reading.Load() {
		s.watch.wait()
	}
	if read := s.read.Add(int64(n)); s.limit != Off && read > s.limit {
		return 0, errTooMuch
	}
	return n, err
}

// peek returns the first byte of the body after white space and a byte order mark, which may arrive in pieces. Read
// later returns the bytes that peek has read.
func (s *source) peek() (first byte, err error) {
	buf := make([]byte, 512)
	n := 0
	for n < len(buf) && err == nil {
		var m int
		m, err = s.Read(buf[n:])
		n += m
		if seen := bytes.TrimLeft(buf[:n], "\uFEFF \t\r\n"); len(seen) > 0 && (err != nil || utf8.FullRune(seen)) {
			s.peeked, s.cause = buf[:n], err
			return seen[0], nil
		}
	}
	s.peeked, s.cause = buf[:n], err
	return 0, err
}

// arrived ends the reader's wait if Read started one.
func (s *source) arrived() {
	if s.await {
		s.await = false
		return
	}
	s.watch.arrived()
	s.reading.Store(false)
}
