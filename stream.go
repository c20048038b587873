package aiguard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/aiguard-go/aiguard/internal/answer"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// errLeft ends a call whose caller closed its stream before the end.
var errLeft = errors.New("aiguard: the stream was closed before its end")

// stream is a body that is handed over while the provider still writes it: an event stream, of which only the events
// go on, each whole and judged; or, without events, plain bytes. It holds the call and its slot until its end, its
// Close, or the end of its context.
type stream struct {
	x      *exchange
	w      *watch
	resp   *http.Response
	body   io.ReadCloser // the provider's
	read   atomic.Int64
	events *sse.Reader // nil: plain bytes
	held   hold
	sized  int // what of it is asked for

	progress answer.Progress
	any      bool       // an event has come
	await    bool       // the next fetch begins a wait of the reader
	out      []byte     // what the reader has not fetched yet
	buf      []byte     // out's memory
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
	s := &stream{x: x, w: w, resp: resp, body: resp.Body, ended: make(chan struct{}), held: hold{room: &x.guard.memory.room}}
	if x.stream {
		s.progress.Endpoint = x.endpoint
		s.events = sse.NewReader(readerFunc(s.fetch), maxEventBytes, answer.MaxShape)
	}
	return s
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// errTooMuch is fetch's: the body is over MaxResponseBytes.
var errTooMuch = errors.New("aiguard: over MaxResponseBytes")

// fetch reads the provider's bytes and counts them, and the buffers they go to. It begins the reader's wait, once: what
// comes may be comments, which are not progress.
func (s *stream) fetch(p []byte) (int, error) {
	if s.await {
		s.await = false
		s.reading.Store(true)
		s.w.wait()
	}
	if s.events != nil {
		if size := s.events.Size() + cap(s.buf); size > s.sized {
			if !s.held.grow(s.w, int64(size)) {
				return 0, errNoRoom
			}
			s.sized = size
		}
	}
	n, err := s.body.Read(p)
	read := s.read.Add(int64(n))
	if limit := s.x.guard.cfg.MaxResponseBytes; limit != Off && read > limit {
		return 0, errTooMuch
	}
	return n, err
}

// open waits for the first event and hands the body over. Until then a failure is the attempt's, and may be retried.
func (s *stream) open() error {
	if s.events != nil {
		if err := s.refused(); err != nil {
			return err
		}
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

// refused looks for an answer that is no stream: JSON, in which there may be the provider's error, or HTML.
func (s *stream) refused() error {
	media := mediaType(s.resp.Header)
	if media == "text/event-stream" || isUntyped(media) {
		return nil
	}
	if !isJSON(media) {
		return s.x.invalid(s.resp)
	}
	body, err := s.x.read(s.w, s.resp, &s.held)
	if err != nil {
		return err
	}
	if end, err := jsonscan.Check(body, answer.MaxShape); err == nil {
		if f, ok := answer.ErrorIn(body[:end]); ok {
			return s.x.failed(s.resp, f, ErrInvalidResponse)
		}
	}
	return s.x.invalid(s.resp)
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

// next fetches one event to out, or sets err; a terminal event does both.
func (s *stream) next() {
	s.out = nil
	ev, err := s.events.Next()
	for err == nil && len(ev.Data) == 0 && string(ev.Name) != "error" {
		ev, err = s.events.Next() // a keep-alive in the clothes of an event
	}
	if err != nil {
		s.err = s.ending(err)
		return
	}
	if ev.Done {
		if !s.any {
			s.err = s.x.invalid(s.resp) // no answer at all
			return
		}
		s.progress.Done()
		s.write(ev)
		s.settle()
		return
	}
	if !ev.Like || len(ev.Name) > 0 { // else it is as good as the event before it
		if s.err = s.judge(ev); s.err != nil {
			return
		}
	}
	s.write(ev)
	if s.progress.Terminal() {
		s.settle()
	}
}

// judge makes an event part of the answer, or says what is wrong with it.
func (s *stream) judge(ev sse.Event) error {
	if e := s.flaw(ev); e != nil {
		return e
	}
	if f, failed := s.progress.Event(ev.Name, ev.Data); failed {
		return s.x.failed(s.resp, f, ErrUnavailable)
	}
	if s.x.guard.wantsUsage() && bytes.Contains(ev.Data, []byte(`"usage"`)) {
		if in, out := answer.Usage(ev.Data); in != 0 || out != 0 {
			s.usage.Store(&Usage{Input: in, Output: out})
		}
	}
	s.events.Learn(ev, s.progress.Free())
	s.any = true
	s.whole.Store(s.progress.Complete())
	return nil
}

// flaw is what is wrong with an event that should be a JSON object. Endpoints we don't know may send other text.
func (s *stream) flaw(ev sse.Event) error {
	switch {
	case errors.Is(ev.Err, jsonscan.ErrTooBig):
		return s.x.tooLarge(s.resp, phaseShape, int64(answer.MaxShape.Containers))
	case s.progress.Endpoint == answer.Other, string(ev.Name) == "error":
		return nil
	case errors.Is(ev.Err, jsonscan.ErrIncomplete):
		if _, err := s.events.Next(); err != nil { // nothing follows: it was cut here
			return s.ending(err)
		}
		return s.x.invalid(s.resp)
	case ev.Err != nil, ev.Data[0] != '{', len(bytes.TrimSpace(ev.Data[ev.End:])) > 0:
		return s.x.invalid(s.resp)
	}
	return nil
}

// write puts an event into the form that every SDK reads.
func (s *stream) write(ev sse.Event) {
	b := s.buf[:0]
	if s.x.eventLines && len(ev.Name) > 0 {
		b = append(append(append(b, "event: "...), ev.Name...), '\n')
	}
	for line := range bytes.SplitSeq(ev.Data, []byte{'\n'}) {
		if len(b) > 0 && !s.x.eventLines {
			b[len(b)-1] = ' ' // go-openai takes each line for an event; JSON may be joined by a blank
		} else {
			b = append(b, "data: "...)
		}
		b = append(append(b, line...), '\n')
	}
	b = append(b, '\n')
	s.buf, s.out = b, b
}

// settle ends a stream after its last event: what may still come is only the end of the body, which lets
// the connection be used again.
func (s *stream) settle() {
	if s.stop != nil {
		s.stop() // the end of the drain is not that of the answer
	}
	s.err = io.EOF
	if f := s.progress.Failed(); f != nil {
		s.err = s.x.failed(s.resp, *f, ErrUnavailable)
	}
	if s.w.limit(drainTimeout, timeBound{phase: phaseStream}) == nil {
		_, _ = io.CopyN(io.Discard, s.body, drainBytes)
	}
}

// ending says what the end of the provider's bytes, with err, means for the answer.
func (s *stream) ending(err error) error {
	if s.closed.Load() {
		return http.ErrBodyReadAfterClose
	}
	switch {
	case errors.Is(err, errTooMuch):
		return s.x.tooLarge(s.resp, phaseResponse, s.x.guard.cfg.MaxResponseBytes)
	case err == errNoRoom:
		return s.x.noRoom(s.w, s.resp)
	case errors.Is(err, sse.ErrLineTooLong):
		return s.x.tooLarge(s.resp, phaseEvent, maxEventBytes)
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

// complete reports whether an answer that stopped with err had said all. Endpoints we don't know only by a clean end.
func (s *stream) complete(err error) bool {
	if s.progress.Endpoint == answer.Other {
		return err == io.EOF
	}
	return s.progress.Complete() && s.w.caller.Err() == nil
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
	c.answer = s.read.Load()
	s.final = err
	if err == io.EOF {
		err = nil
	}
	var u Usage
	if p := s.usage.Load(); p != nil {
		u = *p
	}
	c.used = u.Input + u.Output
	c.settle(ctx, err)
	close(s.ended) // before the callbacks, which may call Close
	if abandoned {
		c.report(ctx, EventAbandoned, err.(*Error), 0)
	}
	c.tell(ctx, err, u)
	c.leap(ctx)
	return true
}
