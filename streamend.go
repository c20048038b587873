package aiguard

import (
	"bytes"
	"context"
	"io"
	"net/http"

	"github.com/aiguard-go/aiguard/internal/awsframe"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/sse"
)

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
	if s.w.limit(drainTimeout, timeBound{phase: PhaseStream}) != nil {
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
		return s.x.tooLarge(s.resp, PhaseResponse, s.x.guard.cfg.MaxResponseBytes)
	case err == sse.ErrNoRoom:
		return s.x.noRoom(s.w, s.resp, s.held.room)
	case errtree.Is(err, sse.ErrLineTooLong):
		return s.x.tooLarge(s.resp, PhaseEvent, s.x.guard.cfg.MaxEventBytes)
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
	s.conclude(err, ok && e.Phase == PhaseStream && !s.reading.Load())
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
	c.wire.usage = u
	if err == nil {
		c.wire.estimate.complete, c.wire.estimate.seen = true, s.said.Load()/bytesPerToken
	}
	c.settle(ctx, err)
	close(s.ended) // before the callbacks, which may call Close
	if abandoned {
		c.report(ctx, EventAbandoned, err.(*Error), 0)
	}
	c.tell(ctx, err, u)
	c.leap(ctx)
	return true
}
