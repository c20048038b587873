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

// drain reads what follows the last event of a stream. Only the end of the body should follow. The connection can be
// reused after it has been read.
func (s *stream) drain() {
	if s.stop != nil {
		s.stop() // the answer has already ended
	}
	s.err = io.EOF
	if f, failed := s.progress.Failed(); failed {
		s.err = s.failed(f, ErrUnavailable)
	}
	if s.w.limit(drainTimeout, timeBound{phase: PhaseStream}) != nil {
		return
	}
	rest := bytes.Clone(append(s.source.peeked, s.events.Rest()...))
	more, err := io.ReadAll(io.LimitReader(s.source.body, drainBytes))
	if rest = append(rest, more...); s.lines != nil && !s.single {
		rest = bytes.TrimLeft(rest, "\r\n") // out may have got its blank line before it arrived
	}
	if err == nil && s.x.eventLines && len(rest) > 0 && len(rest) < drainBytes {
		s.buf = append(append(s.buf[:0], s.out...), rest...)
		s.out = s.buf // unchanged: a [DONE] after the API's own last event, or the end of an array
	}
}

// ending returns what the end of the provider's bytes with err means for the answer.
func (s *stream) ending(err error) error {
	if s.closed.Load() {
		return http.ErrBodyReadAfterClose
	}
	switch {
	case errtree.Is(err, errTooMuch):
		return s.tooLarge(PhaseResponse, s.x.settings.cfg.MaxResponseBytes)
	case err == sse.ErrNoRoom:
		return s.noRoom(s.held.room)
	case errtree.Is(err, sse.ErrLineTooLong):
		return s.tooLarge(PhaseEvent, s.x.settings.cfg.MaxEventBytes)
	case err == awsframe.ErrFrame:
		return s.invalid()
	case s.events == nil && err == io.EOF:
		return io.EOF
	case s.events != nil && s.any && s.complete(err):
		return io.EOF // only the [DONE] is missing
	case err != io.EOF:
		return s.stopped(err)
	case !s.any && mediaType(s.resp.Header) != "text/event-stream":
		return s.invalid()
	}
	return s.broken(io.ErrUnexpectedEOF)
}

// complete reports whether an answer that stopped with err is complete.
func (s *stream) complete(err error) bool {
	return s.progress.Complete(err == io.EOF, s.x.settings.EndsWithoutFinish) && (err == io.EOF || s.w.caller.Err() == nil)
}

// Close ends the stream. If the stream is not at its end, Close cancels the request and frees the slot at once. It is
// safe to call while another goroutine reads.
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

// forget drops the buffers of a closed stream, because its response may be kept. A concurrent Read drops them when it
// ends.
func (s *stream) forget() {
	if s.closed.Load() && s.using.TryLock() {
		s.events, s.lines, s.buf, s.out = nil, nil, nil, nil
		s.using.Unlock()
	}
}

// expired runs when the stream's context has ended, because of the caller or a limit.
func (s *stream) expired() {
	err := s.stopped(context.Canceled)
	if s.whole.Load() && s.w.caller.Err() == nil {
		err = io.EOF
	}
	e, ok := err.(*Error)
	s.conclude(err, ok && e.Phase == PhaseStream && !s.source.reading.Load())
}

// finish ends the call for Read and Close. It returns the error with which the call ended, which may come from
// expired.
func (s *stream) finish(err error) error {
	if s.stop != nil {
		s.stop()
	}
	if !s.conclude(err, false) {
		<-s.ended
	}
	return s.final
}

// settleCall releases what the call holds, fills the facts into its error and counts its end. It closes ended before the
// callbacks of the Limiter and the Budget, which may call Close or Read or panic. Shutdown waits for these callbacks.
func (s *stream) settleCall(ctx context.Context, err error) {
	c := &s.x.call
	defer c.ring.remove(c)
	if c.accountable() {
		granted, used := c.account()
		defer granted.pay(used)
	}
	release := c.permit.releaser()
	c.release(false)
	c.explainEnd(ctx, err)
	c.count(ctx, err)
	close(s.ended)
	if release != nil {
		release()
	}
}

// conclude ends the call once. It reports false if another goroutine does. abandoned is for the log.
func (s *stream) conclude(err error, abandoned bool) bool {
	if !s.over.CompareAndSwap(false, true) {
		return false
	}
	c, ctx := &s.x.call, s.w.caller
	s.w.stop()
	s.source.body.Close()
	s.held.release()
	c.wire.answer = s.source.read.Load()
	s.final = err
	if err == io.EOF {
		err = nil
	}
	u := s.used.load()
	if err == nil {
		c.wire.answered(u, s.used.textBytes.Load(), false)
	} else {
		c.wire.usage = u
	}
	s.settleCall(ctx, err)
	if abandoned {
		c.report(ctx, EventAbandoned, err.(*Error), 0)
	}
	c.announce(ctx, err)
	c.checkSpike(ctx, c.wire)
	return true
}
