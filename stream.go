package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the answer of an attempt that is a stream.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/aiguard-go/aiguard/internal/awsframe"
	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/jsonseq"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// errLeft ends a call whose caller closed its stream early.
var errLeft = errors.New("aiguard: the stream was closed before its end")

// events splits a body into events.
type events interface {
	Next() (sse.Event, error)
	Learn(ev sse.Event, free []jsonscan.Span)
	Ask(room func(size int) bool)
	Rest() []byte
	Size() int
	Trim(size int)
}

// stream is a body that is returned while the provider still writes it. For an endpoint that a dialect knows it
// yields whole events, each checked. Otherwise it yields plain bytes. It holds the call and its slot until its end,
// its Close, or the end of its context.
type stream struct {
	x      *exchange
	w      *watch
	resp   *http.Response
	body   io.ReadCloser // the provider's body
	read   atomic.Int64
	peeked []byte // bytes of body already read but not yet used
	cause  error  // error that came with peeked
	events events // nil: plain bytes
	held   hold
	sized  int // room asked for so far
	shell  int // bytes of the last event other than text

	watcher callctx.Progress // nil: not watched
	latest  instant          // when the last event was returned, for watcher

	progress dialect.Stream
	used     dialect.Usage
	decodes  decodable
	single   bool       // a whole answer came instead of a stream
	any      bool       // an event has come
	await    bool       // the next fetch starts a wait of the reader
	out      []byte     // bytes that the reader has not fetched yet
	buf      []byte     // memory of out
	behind   []byte     // events without content, returned together with the next event that has some
	idle     []byte     // the last event in behind
	err      error      // the error after out
	using    sync.Mutex // held by Read, guards all of the above

	// Close and expired share these with Read, which may run in another goroutine.
	reading, closed, whole, over atomic.Bool
	usage                        atomic.Pointer[Usage]
	said                         atomic.Int64  // bytes of text, for a Budget
	stop                         func() bool   // of context.AfterFunc; used by Read and Close
	ended                        chan struct{} // closed when final is set
	final                        error
}

func newStream(x *exchange, w *watch, resp *http.Response) *stream {
	return &stream{x: x, w: w, resp: resp, body: resp.Body, ended: make(chan struct{}), held: hold{room: x.guard.memory.events.Load()},
		progress: x.endpoint.Follow()}
}

// maxEvent returns the maximum size of an event.
func (s *stream) maxEvent() int {
	if limit := s.x.settings.cfg.MaxEventBytes; limit != Off {
		return int(min(limit, math.MaxInt32))
	}
	return math.MaxInt32
}

// errNoStream is returned by open if the answer is not a stream. It may still be a valid answer.
var errNoStream = errors.New("aiguard: not a stream")

// frame detects the format of the body. The media type is a hint, and the first bytes decide.
func (s *stream) frame() error {
	media := mediaType(s.resp.Header)
	if !s.x.judged || s.x.endpoint.Plain() && !isStream(media) && !isJSON(media) {
		return nil // plain bytes
	}
	if !couldBeText(media) {
		return s.x.invalid(s.resp)
	}
	body, maxEvent := readerFunc(s.fetch), s.maxEvent()
	if media == "application/vnd.amazon.eventstream" {
		s.events = awsframe.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	}
	first, err := s.peek()
	lines := media != "text/event-stream" && isStream(media) // JSON lines
	switch {
	case err != nil:
	case first == 0 && s.x.endpoint.Framing() == dialect.Frames:
		s.events = awsframe.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	case first == 0 && s.x.endpoint.Framing() == dialect.JSON && media != "text/event-stream", // blanks, and more of them
		first == '{' && (lines || s.x.endpoint.Framing() == dialect.JSON), first == '[' && s.x.endpoint.Framing() == dialect.JSON:
		s.events = jsonseq.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	case first == '{' && media == "text/event-stream": // an error or a whole answer; the event reader treats it as data
	case first == '{', first == '[':
		s.resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(s.peeked), s.body), s.body}
		return errNoStream
	case first == '<', media == "text/html" && !eventsIn(s.peeked):
		return s.x.invalid(s.resp)
	}
	s.events = sse.NewReader(body, maxEvent, dialect.MaxShape)
	return nil
}

// peek returns the first byte of the body that is not white space. fetch later returns the bytes that peek has read.
func (s *stream) peek() (first byte, err error) {
	buf := make([]byte, 512)
	n := 0
	for n < len(buf) && err == nil {
		var m int
		m, err = s.fetch(buf[n:])
		n += m
		if seen := bytes.TrimLeft(buf[:n], "\uFEFF \t\r\n"); len(seen) > 0 {
			s.peeked, s.cause = buf[:n], err
			return seen[0], nil
		}
	}
	s.peeked, s.cause = buf[:n], err
	return 0, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// errTooMuch is returned by fetch if the body is over MaxResponseBytes.
var errTooMuch = errors.New("aiguard: over MaxResponseBytes")

// fetch reads the provider's bytes and counts them. It starts the idle wait only once per event, because comments are
// not progress.
func (s *stream) fetch(p []byte) (int, error) {
	if s.await {
		s.await = false
		s.reading.Store(true)
		s.w.wait()
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
	if n > 0 && s.reading.Load() && s.progress.Thinking() {
		s.w.wait() // a reasoning model may send only comments for a while
	}
	read := s.read.Add(int64(n))
	if limit := s.x.settings.cfg.MaxResponseBytes; limit != Off && read > limit {
		return 0, errTooMuch
	}
	return n, err
}

// trimmed is the size of each buffer that a stream keeps between events.
const trimmed = 16 << 10

// room asks for room for the event buffers and for behind.
func (s *stream) room(size int) bool {
	if size += cap(s.buf) + cap(s.behind); size > s.sized {
		if !s.held.grow(s.w, int64(size)) {
			return false
		}
		s.sized = size
	}
	return true
}

// trim releases the room of a large event when its reader asks for the next one.
func (s *stream) trim() {
	if s.sized <= roomFree {
		return
	}
	s.events.Trim(trimmed)
	for _, b := range [...]*[]byte{&s.buf, &s.behind, &s.idle} {
		if cap(*b) > trimmed {
			*b = nil
		}
	}
	s.sized = s.events.Size() + cap(s.buf) + cap(s.behind)
	s.held.shrink(int64(s.sized))
}

// open waits for the first event with content and returns the body. Plain bytes are returned at once. A failure
// before that belongs to the attempt and may be retried.
func (s *stream) open() error {
	if err := s.frame(); err != nil {
		return err
	}
	if s.events != nil {
		s.events.Ask(s.room)
		if s.next(); s.err != nil && (s.err != io.EOF || len(s.out) == 0) {
			return s.err
		}
	} else if limit := s.x.settings.cfg.MaxResponseBytes; limit != Off && s.resp.ContentLength > limit {
		return s.x.tooLarge(s.resp, PhaseResponse, limit)
	}
	c := s.x.call
	if s.err == nil {
		limit := c.cfg.StreamTimeout
		if limit != Off {
			limit = max(limit-c.since(c.admitted), 0)
		}
		if e := s.w.limit(limit, timeBound{PhaseStream, c.cfg.StreamTimeout}); e != nil {
			return s.x.repeatable(e, true)
		}
	}
	if err := c.claim(); err != nil {
		return err
	}
	c.answered()
	c.tellTurn(s.w.caller, nil)
	c.firstEvent(s.w.caller)
	if s.events != nil && len(c.cfg.Middleware) > 0 {
		s.watcher, s.latest = callctx.ProgressOf(s.w.caller), c.now()
	}
	c.over = true // from here on the stream ends the call
	s.resp.Body = s
	if s.events != nil {
		s.resp.ContentLength = -1
		s.resp.Header.Del("Content-Length")
	}
	if s.err != nil { // io.EOF: complete with its first event
		s.finish(s.err)
		return nil
	}
	s.stop = context.AfterFunc(s.w, s.expired)
	return nil
}

// arrived ends the reader's wait if fetch started one.
func (s *stream) arrived() {
	if s.await {
		s.await = false
		return
	}
	s.w.arrived()
	s.reading.Store(false)
}
