package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the answer of an attempt that is a stream.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
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
	reply
	source source
	events events      // of source; nil: plain bytes
	lines  *sse.Reader // events, if they are lines
	held   hold
	sized  int // room asked for so far

	watcher callctx.Progress // nil: not watched
	latest  instant          // when the last event was returned, for watcher

	progress dialect.Stream
	decoder  *decoder   // nil: go-openai does not decode the events
	single   bool       // a whole answer came instead of a stream
	any      bool       // an event has come
	told     bool       // out has, or had, the failure as an event
	midLine  bool       // the last event that was returned does not end its line
	out      []byte     // bytes that the reader has not fetched yet
	buf      []byte     // memory of out
	behind   []byte     // events without content, to be returned together with the next event that has some
	idle     []byte     // the last event in behind
	err      error      // the error after out
	using    sync.Mutex // held by Read, guards all of the above

	// Close and expired share these with Read, which may run in another goroutine.
	closed, whole, over atomic.Bool
	used                streamUsage
	stop                func() bool   // of context.AfterFunc; used by Read and Close
	ended               chan struct{} // closed when final is set
	final               error
}

// maxEvent returns the maximum size of an event.
func maxEvent(cfg *Config) int {
	if limit := cfg.MaxEventBytes; limit != Off {
		return int(min(limit, math.MaxInt32))
	}
	return math.MaxInt32
}

func newStream(r reply) *stream {
	s := &stream{reply: r, source: source{body: r.resp.Body, limit: r.x.settings.cfg.MaxResponseBytes, watch: r.w},
		ended: make(chan struct{}), held: hold{room: r.x.guard.memory.events.Load()}, progress: r.x.endpoint.Follow()}
	if !r.x.eventLines {
		s.decoder = decoders[r.x.endpoint.Op()]
	}
	return s
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
		return s.invalid()
	}
	body, maxEvent := &s.source, maxEvent(&s.x.settings.cfg)
	if media == "application/vnd.amazon.eventstream" {
		s.events = awsframe.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	}
	first, err := s.source.peek()
	lines := media != "text/event-stream" && isStream(media) // JSON lines
	switch {
	case err != nil:
	case first == 0 && s.x.endpoint.Framing() == dialect.Frames:
		s.events = awsframe.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	case first == 0 && s.x.endpoint.Framing() == dialect.JSON && media != "text/event-stream", // only white space so far
		first == '{' && (lines || s.x.endpoint.Framing() == dialect.JSON), first == '[' && s.x.endpoint.Framing() == dialect.JSON:
		s.events = jsonseq.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	case first == '{' && media == "text/event-stream": // an error or a whole answer; the event reader treats it as data
	case first == '{', first == '[':
		s.resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(s.source.peeked), s.source.body), s.source.body}
		return errNoStream
	case first == '<', media == "text/html" && !eventsIn(s.source.peeked):
		return s.invalid()
	}
	s.lines = sse.NewReader(body, maxEvent, dialect.MaxShape)
	s.events = s.lines
	return nil
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
	for _, b := range [...]*[]byte{&s.buf, &s.idle} {
		if cap(*b) > trimmed {
			*b = nil
		}
	}
	if cap(s.behind) > trimmed && len(s.behind) == 0 {
		s.behind = nil
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
		return s.tooLarge(PhaseResponse, limit)
	}
	c := &s.x.call
	if s.err == nil {
		limit := c.cfg.StreamTimeout
		if limit != Off {
			limit = max(limit-c.since(c.admitted), 0)
		}
		if e := s.w.limit(limit, timeBound{PhaseStream, c.cfg.StreamTimeout}); e != nil {
			return s.x.repeatable(e, true)
		}
	}
	if err := s.x.claim(); err != nil {
		return err
	}
	c.answered()
	c.tellTransition(s.w.caller, nil)
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
