package aiguard

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// Read returns whole events, or bytes. The idle limit runs while Read waits for the next event. An event that arrived
// together with earlier ones needs no wait.
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

// progressed tells the watcher of an event.
func (s *stream) progressed() {
	now := s.x.call.now()
	s.watcher.Progressed(time.Duration(now - s.latest))
	s.latest = now
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

// maxBehind limits the kept events without content. Beyond it, repeated ones are dropped.
const maxBehind = 64 << 10

// next sets out to the next event with content and the events before it, or sets err. A terminal event sets both.
func (s *stream) next() {
	s.out, s.behind, s.idle = nil, s.behind[:0], s.idle[:0]
	s.trim()
	for {
		ev, err := s.events.Next()
		switch {
		case err != nil:
			s.err = s.ending(err)
		case ev.Done:
			s.err = s.done()
		case len(ev.Data) == 0 && string(ev.Name) != "error": // keep-alive
			continue
		case !ev.Like: // else it has the same effect as the event before it
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
		s.count(ev)
		if s.watcher != nil && !ev.Done {
			s.progressed()
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

// count counts the text of an event for a Budget, in case the answer does not report its usage. An event has at least
// one token.
func (s *stream) count(ev sse.Event) {
	if s.x.settings.cfg.Budget == nil {
		return
	}
	if !ev.Like {
		s.shell = len(ev.Data)
		for _, span := range s.progress.Free() {
			if span.Some {
				s.shell -= span.End - span.Start - len(`""`)
			}
		}
	}
	s.said.Add(max(int64(len(ev.Data)-s.shell), bytesPerToken))
}

// hold keeps an event without content for the next event with content.
func (s *stream) hold(ev sse.Event) error {
	if len(s.behind) > maxBehind && bytes.Equal(s.idle, ev.Data) {
		return nil // one of many repeats
	}
	s.idle = append(s.idle[:0], ev.Data...)
	out, err := s.bytes(ev)
	if err != nil {
		return err
	}
	s.behind = append(s.behind, out...)
	if !s.room(s.events.Size()) {
		return s.x.noRoom(s.w, s.resp, s.held.room)
	}
	if len(s.behind) > max(s.maxEvent(), maxBehind) {
		return s.x.tooLarge(s.resp, PhaseEvent, s.x.settings.cfg.MaxEventBytes)
	}
	return nil
}

// done handles the [DONE] mark. It returns an error if the answer cannot end here.
func (s *stream) done() error {
	switch s.progress.Done(); {
	case s.progress.Terminal():
		return nil
	case !s.any || !s.progress.Any():
		return s.x.invalid(s.resp) // no answer at all
	}
	return s.x.broken(s.resp, io.ErrUnexpectedEOF) // this API ends with another event
}

// judge adds an event to the answer, or returns what is wrong with it.
func (s *stream) judge(ev sse.Event) error {
	if e := s.flaw(ev); e != nil {
		return e
	}
	f, failed := s.progress.Event(ev.Name, ev.Data)
	if failed {
		if s.x.endpoint.Deaf() && len(ev.Raw) <= maxErrorBytes { // else its client takes this end for a good one
			s.behind = append(s.behind, ev.Raw...)
		}
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

// flaw returns what is wrong with an event that should be a JSON object.
func (s *stream) flaw(ev sse.Event) error {
	switch {
	case errors.Is(ev.Err, jsonscan.ErrTooBig):
		return s.x.tooLarge(s.resp, PhaseJSONShape, int64(dialect.MaxShape.Containers))
	case string(ev.Name) == "error":
		return nil
	case errors.Is(ev.Err, jsonscan.ErrIncomplete), ev.Err != nil && s.whole.Load():
		if _, err := s.events.Next(); err != nil { // truncated: nothing follows
			return s.ending(err)
		}
		return s.x.invalid(s.resp)
	case ev.Err != nil, ev.Data[0] != '{', len(bytes.TrimSpace(ev.Data[ev.End:])) > 0:
		return s.x.invalid(s.resp)
	}
	return nil
}

// bytes returns what the reader gets for an event: its lines unchanged, or the form that go-openai reads.
func (s *stream) bytes(ev sse.Event) ([]byte, error) {
	if s.x.eventLines {
		return ev.Raw, nil
	}
	if more := len(ev.Data) + len("data: \n\n") - cap(s.buf); more > 0 && !s.room(s.events.Size()+more) {
		return nil, s.x.noRoom(s.w, s.resp, s.held.room)
	}
	return s.write(ev), nil
}

// write converts an event to the form that go-openai reads.
func (s *stream) write(ev sse.Event) []byte {
	b := s.buf[:0]
	for line := range bytes.SplitSeq(ev.Data, []byte{'\n'}) {
		if len(b) > 0 {
			b[len(b)-1] = ' ' // go-openai treats each line as an event, and JSON allows a space in place of a newline
		} else {
			b = append(b, "data: "...)
		}
		b = append(append(b, line...), '\n')
	}
	s.buf = append(b, '\n')
	return s.buf
}
