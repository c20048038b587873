package aiguard

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
	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/jsonseq"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// errLeft ends a call whose caller closed its stream before the end.
var errLeft = errors.New("aiguard: the stream was closed before its end")

// events splits a body into events.
type events interface {
	Next() (sse.Event, error)
	Learn(ev sse.Event, free []jsonscan.Span)
	Ask(room func(size int) bool)
	Rest() []byte
	Size() int
}

// stream is a body that is handed over while the provider still writes it: events of an endpoint that a dialect knows, each
// whole and judged; or else plain bytes. It holds the call and its slot until its end, its Close, or the end of its context.
type stream struct {
	x      *exchange
	w      *watch
	resp   *http.Response
	body   io.ReadCloser // the provider's
	read   atomic.Int64
	peeked []byte // of the body, and not yet read
	cause  error  // that came with it
	events events // nil: plain bytes
	held   hold
	sized  int // what of it is asked for

	progress dialect.Stream
	used     dialect.Usage
	decodes  decodable
	single   bool       // a whole answer has come in the place of a stream
	any      bool       // an event has come
	await    bool       // the next fetch begins a wait of the reader
	out      []byte     // what the reader has not fetched yet
	buf      []byte     // out's memory
	behind   []byte     // events that brought the answer nowhere, and go on with the next that does
	idle     []byte     // the last of those
	err      error      // what follows out
	using    sync.Mutex // held by a Read over all of the above

	// What Close and expired share with Read, which may be in another goroutine.
	reading, closed, whole, over atomic.Bool
	usage                        atomic.Pointer[Usage]
	stop                         func() bool   // of context.AfterFunc; for Read and Close
	ended                        chan struct{} // closed when final is there
	final                        error
}

func newStream(x *exchange, w *watch, resp *http.Response) *stream {
	return &stream{x: x, w: w, resp: resp, body: resp.Body, ended: make(chan struct{}), held: hold{room: &x.guard.memory.room},
		progress: x.endpoint.Follow()}
}

// maxEvent is how long an event may be.
func (s *stream) maxEvent() int {
	if limit := s.x.guard.cfg.MaxEventBytes; limit != Off {
		return int(min(limit, math.MaxInt32))
	}
	return math.MaxInt32
}

// errNoStream is open's: the answer is none, but may be a good one.
var errNoStream = errors.New("aiguard: not a stream")

// frame finds out what the body is made of. Labels are hints: the first bytes decide.
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
	case first == '{' && (lines || s.x.endpoint.Framing() == dialect.JSON), first == '[' && s.x.endpoint.Framing() == dialect.JSON:
		s.events = jsonseq.NewReader(body, maxEvent, dialect.MaxShape)
		return nil
	case first == '{' && media == "text/event-stream": // an error, or a whole answer; the reader takes it for data
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

// peek returns the first byte of the body that is no white space. It keeps what it reads for fetch.
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

// errTooMuch is fetch's: the body is over MaxResponseBytes.
var errTooMuch = errors.New("aiguard: over MaxResponseBytes")

// fetch reads the provider's bytes and counts them. It begins the reader's wait, once: what
// comes may be comments, which are not progress.
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
		s.w.wait() // a model that thinks may have nothing else to say
	}
	read := s.read.Add(int64(n))
	if limit := s.x.guard.cfg.MaxResponseBytes; limit != Off && read > limit {
		return 0, errTooMuch
	}
	return n, err
}

// room asks for room for the buffers of the events and for those behind them.
func (s *stream) room(size int) bool {
	if size += cap(s.buf) + cap(s.behind); size > s.sized {
		if !s.held.grow(s.w, int64(size)) {
			return false
		}
		s.sized = size
	}
	return true
}

// open waits for the first event that brings the answer forward, and hands the body over; plain bytes are handed over at
// once. Until then a failure is the attempt's, and may be retried.
func (s *stream) open() error {
	if err := s.frame(); err != nil {
		return err
	}
	if s.events != nil {
		s.events.Ask(s.room)
		if s.next(); s.err != nil && (s.err != io.EOF || len(s.out) == 0) {
			return s.err
		}
	} else if limit := s.x.guard.cfg.MaxResponseBytes; limit != Off && s.resp.ContentLength > limit {
		return s.x.tooLarge(s.resp, phaseResponse, limit)
	}
	c := s.x.call
	if s.err == nil {
		limit := c.cfg.StreamTimeout
		if limit != Off {
			limit = max(limit-c.since(c.admitted), 0)
		}
		if e := s.w.limit(limit, timeBound{phaseStream, c.cfg.StreamTimeout}); e != nil {
			return s.x.repeatable(e, true)
		}
	}
	if err := c.claim(); err != nil {
		return err
	}
	c.answered()
	c.tellTurn(s.w.caller, nil)
	c.emit(s.w.caller, EventFirstEvent, nil)
	c.over = true // from here on the call is the stream's to end
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

// arrived ends the reader's wait, if fetch began one.
func (s *stream) arrived() {
	if s.await {
		s.await = false
		return
	}
	s.w.arrived()
	s.reading.Store(false)
}

// Read hands on whole events, or bytes. While it waits for the next one the idle bound runs; one that has come with
// others before it needs no wait.
func (s *stream) Read(p []byte) (int, error) {
	defer s.forget()
	s.using.Lock()
	defer s.using.Unlock()
	if s.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if s.events == nil {
		return s.readBytes(p)
	}
	if len(s.out) == 0 && s.err == nil && len(p) > 0 {
		s.await = true
		s.next()
		s.arrived()
		if s.err != nil {
			s.err = s.finish(s.err)
		}
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	if n == 0 && len(p) > 0 {
		return 0, s.err
	}
	return n, nil
}

func (s *stream) readBytes(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.await = true
	n, err := s.fetch(p)
	s.arrived()
	if err != nil {
		s.err = s.finish(s.ending(err))
		return n, s.err
	}
	return n, nil
}

// maxBehind is how much is kept of events that bring the answer nowhere before the same ones are dropped.
const maxBehind = 64 << 10

// next fetches to out the next event that brings the answer forward, and those before it, or sets err; a terminal event does
// both.
func (s *stream) next() {
	s.out, s.behind, s.idle = nil, s.behind[:0], s.idle[:0]
	for {
		ev, err := s.events.Next()
		switch {
		case err != nil:
			s.err = s.ending(err)
		case ev.Done:
			s.err = s.done()
		case len(ev.Data) == 0 && string(ev.Name) != "error": // a keep-alive
			continue
		case !ev.Like: // else it is as good as the event before it
			s.err = s.judge(ev)
		}
		if s.err != nil {
			if s.out = s.behind; s.err == io.EOF && s.x.eventLines {
				s.behind = append(s.behind, s.events.Rest()...) // the end of an array
				s.out = s.behind
			}
			return
		}
		if !ev.Like && !s.progress.Progress() && !s.single {
			if s.err = s.hold(ev); s.err != nil {
				return
			}
			continue
		}
		if s.out, s.err = s.bytes(ev); s.err != nil {
			return
		}
		if len(s.behind) > 0 {
			s.behind = append(s.behind, s.out...)
			s.out = s.behind
		}
		if s.single || s.progress.Terminal() {
			s.settle()
		}
		return
	}
}

// hold keeps an event that brings the answer nowhere for the next that does.
func (s *stream) hold(ev sse.Event) error {
	if len(s.behind) > maxBehind && bytes.Equal(s.idle, ev.Data) {
		return nil // one of a flood
	}
	s.idle = append(s.idle[:0], ev.Data...)
	out, err := s.bytes(ev)
	if err != nil {
		return err
	}
	s.behind = append(s.behind, out...)
	if !s.room(s.events.Size()) {
		return s.x.noRoom(s.w, s.resp)
	}
	if len(s.behind) > max(s.maxEvent(), maxBehind) {
		return s.x.tooLarge(s.resp, phaseEvent, s.x.guard.cfg.MaxEventBytes)
	}
	return nil
}

// done notes the [DONE] mark, or says why it is no end.
func (s *stream) done() error {
	switch s.progress.Done(); {
	case s.progress.Terminal():
		return nil
	case !s.any || !s.progress.Any():
		return s.x.invalid(s.resp) // no answer at all
	}
	return s.x.broken(s.resp, io.ErrUnexpectedEOF) // the API has another last event
}

// judge makes an event part of the answer, or says what is wrong with it.
func (s *stream) judge(ev sse.Event) error {
	if e := s.flaw(ev); e != nil {
		return e
	}
	f, failed := s.progress.Event(ev.Name, ev.Data)
	if failed {
		return s.x.failed(s.resp, f, ErrUnavailable)
	}
	if ev.Bare && !s.any && s.x.endpoint.Framing() == dialect.SSE && s.x.eventLines {
		a := s.x.endpoint.JudgeWith(&s.x.verdict, ev.Data[:ev.End])
		if !a.OK {
			return s.x.invalid(s.resp)
		}
		s.single, s.any = true, true
		s.note(a.Usage)
		s.whole.Store(true)
		return nil
	}
	if !s.x.eventLines {
		if err := s.decodes.check(s.x.endpoint.Op(), ev.Data); err != nil {
			e := s.x.invalid(s.resp)
			e.Err = err
			return e
		}
	}
	s.note(s.progress.Usage())
	if free := s.progress.Free(); s.progress.Progress() {
		s.events.Learn(ev, free)
	}
	s.any = true
	s.whole.Store(s.progress.Complete(false, false))
	return nil
}

func (s *stream) note(u dialect.Usage) {
	if u != s.used {
		s.used = u
		usage := usageOf(u)
		s.usage.Store(&usage)
	}
}

// flaw is what is wrong with an event that should be a JSON object.
func (s *stream) flaw(ev sse.Event) error {
	switch {
	case errors.Is(ev.Err, jsonscan.ErrTooBig):
		return s.x.tooLarge(s.resp, phaseShape, int64(dialect.MaxShape.Containers))
	case string(ev.Name) == "error":
		return nil
	case errors.Is(ev.Err, jsonscan.ErrIncomplete), ev.Err != nil && s.whole.Load():
		if _, err := s.events.Next(); err != nil { // nothing follows: it was cut here
			return s.ending(err)
		}
		return s.x.invalid(s.resp)
	case ev.Err != nil, ev.Data[0] != '{', len(bytes.TrimSpace(ev.Data[ev.End:])) > 0:
		return s.x.invalid(s.resp)
	}
	return nil
}

// bytes is what the reader gets of an event: its lines as they came, or the form that go-openai reads.
func (s *stream) bytes(ev sse.Event) ([]byte, error) {
	if s.x.eventLines {
		return ev.Raw, nil
	}
	if more := len(ev.Data) + len("data: \n\n") - cap(s.buf); more > 0 && !s.room(s.events.Size()+more) {
		return nil, s.x.noRoom(s.w, s.resp)
	}
	return s.write(ev), nil
}

// write puts an event into the form that go-openai reads.
func (s *stream) write(ev sse.Event) []byte {
	b := s.buf[:0]
	for line := range bytes.SplitSeq(ev.Data, []byte{'\n'}) {
		if len(b) > 0 {
			b[len(b)-1] = ' ' // go-openai takes each line for an event; JSON may be joined by a blank
		} else {
			b = append(b, "data: "...)
		}
		b = append(append(b, line...), '\n')
	}
	s.buf = append(b, '\n')
	return s.buf
}

// settle ends a stream after its last event: what may still come is only the end of the body, which lets
// the connection be used again.
func (s *stream) settle() {
	if s.stop != nil {
		s.stop() // the end of the drain is not that of the answer
	}
	s.err = io.EOF
	if f, failed := s.progress.Failed(); failed {
		s.err = s.x.failed(s.resp, f, ErrUnavailable)
	}
	if s.w.limit(drainTimeout, timeBound{phase: phaseStream}) != nil {
		return
	}
	rest := bytes.Clone(append(s.peeked, s.events.Rest()...))
	more, err := io.ReadAll(io.LimitReader(s.body, drainBytes))
	if rest = append(rest, more...); err == nil && s.x.eventLines && len(rest) > 0 && len(rest) < drainBytes {
		s.buf = append(append(s.buf[:0], s.out...), rest...)
		s.out = s.buf // as it came: a [DONE] behind the API's own last event, the end of an array
	}
}

// ending says what the end of the provider's bytes, with err, means for the answer.
func (s *stream) ending(err error) error {
	if s.closed.Load() {
		return http.ErrBodyReadAfterClose
	}
	switch {
	case errtree.Is(err, errTooMuch):
		return s.x.tooLarge(s.resp, phaseResponse, s.x.guard.cfg.MaxResponseBytes)
	case err == sse.ErrNoRoom:
		return s.x.noRoom(s.w, s.resp)
	case errtree.Is(err, sse.ErrLineTooLong):
		return s.x.tooLarge(s.resp, phaseEvent, s.x.guard.cfg.MaxEventBytes)
	case err == awsframe.ErrFrame:
		return s.x.invalid(s.resp)
	case s.events == nil && err == io.EOF:
		return io.EOF
	case s.events != nil && s.any && s.complete(err):
		return io.EOF // all that was missing is the [DONE]
	case err != io.EOF:
		return s.failure(err)
	case !s.any && mediaType(s.resp.Header) != "text/event-stream":
		return s.x.invalid(s.resp)
	}
	return s.x.broken(s.resp, io.ErrUnexpectedEOF)
}

// complete reports whether an answer that stopped with err had said all.
func (s *stream) complete(err error) bool {
	return s.progress.Complete(err == io.EOF, s.x.endsWithoutFinish()) && (err == io.EOF || s.w.caller.Err() == nil)
}

// failure is the bound or the caller's end behind err, or the cut that it is.
func (s *stream) failure(err error) error {
	end := s.w.failure(err)
	if end == nil {
		return s.x.broken(s.resp, err)
	}
	if e := s.x.call.own(s.w.caller, end); e != nil {
		e.RequestID = requestID(s.resp.Header)
		return s.x.repeatable(e, true)
	}
	return end // the caller's, who may share it with others
}

// Close ends the stream; before its end that cancels the request and frees the slot at once. It is safe to call while
// another goroutine reads.
func (s *stream) Close() error {
	s.closed.Store(true)
	if s.whole.Load() {
		s.finish(io.EOF)
	} else {
		s.finish(errLeft)
	}
	s.forget()
	return nil
}

// forget lets go of the buffers of a stream that has been closed, since its response may be kept. If a Read is under way, which
// Close does not wait for, that forgets them at its end.
func (s *stream) forget() {
	if s.closed.Load() && s.using.TryLock() {
		s.events, s.buf, s.out = nil, nil, nil
		s.using.Unlock()
	}
}

// expired runs when the context of the stream has ended: the caller's, or by a bound.
func (s *stream) expired() {
	err := s.failure(context.Canceled)
	if s.whole.Load() && s.w.caller.Err() == nil {
		err = io.EOF
	}
	e, ok := err.(*Error)
	s.conclude(err, ok && e.Phase == phaseStream && !s.reading.Load())
}

// finish is how Read and Close end the call; it returns the error it ended with, which may be that of expired.
func (s *stream) finish(err error) error {
	if s.stop != nil {
		s.stop()
	}
	if !s.conclude(err, false) {
		<-s.ended
	}
	return s.final
}

// conclude ends the call, once: it reports false if somebody else does. abandoned is for the log.
func (s *stream) conclude(err error, abandoned bool) bool {
	if !s.over.CompareAndSwap(false, true) {
		return false
	}
	c, ctx := s.x.call, s.w.caller
	s.w.stop()
	s.body.Close()
	s.held.release()
	c.wire.answer = s.read.Load()
	s.final = err
	if err == io.EOF {
		err = nil
	}
	var u Usage
	if p := s.usage.Load(); p != nil {
		u = *p
	}
	c.wire.used = u.Input + u.Output
	c.settle(ctx, err)
	close(s.ended) // before the callbacks, which may call Close
	if abandoned {
		c.report(ctx, EventAbandoned, err.(*Error), 0)
	}
	c.tell(ctx, err, u)
	c.leap(ctx)
	return true
}
