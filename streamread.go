package aiguard

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// Read returns the next event and those after it that have already arrived, or bytes. The idle limit runs while Read
// waits for the next event. An event that arrived together with earlier ones needs no wait.
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
	n := 0
	if len(s.out) == 0 && s.err == nil && len(p) > 0 {
		s.source.await = true
		s.next()
		s.source.arrived()
	}
	for {
		if s.err != nil {
			s.err = s.finishUnlocked(s.err)
			s.addErrorEvent()
		}
		more := copy(p[n:], s.out)
		n, s.out = n+more, s.out[more:]
		if s.err != nil || n == 0 || n == len(p) || s.lines == nil || s.sized > roomFree {
			break
		}
		ev, ok := s.lines.Arrived()
		if !ok {
			break
		}
		s.take(&ev)
	}
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
	s.source.await = true
	n, err := s.source.Read(p)
	s.source.arrived()
	if err != nil {
		s.err = s.finishUnlocked(s.ending(err))
		return n, s.err
	}
	return n, nil
}

// finishUnlocked is finish without the lock of Read, because callbacks may read.
func (s *stream) finishUnlocked(err error) error {
	s.using.Unlock()
	defer s.using.Lock()
	return s.finish(err)
}

// maxBehind limits the kept events without content. Beyond it, repeated ones are dropped.
const maxBehind = 64 << 10

// next sets out to the next event with content and the events before it, or sets err. A terminal event sets both.
func (s *stream) next() {
	s.out = nil
	s.trim()
	for {
		ev, err := s.events.Next()
		if err != nil {
			s.stopAt(s.ending(err))
			return
		}
		if s.take(&ev) {
			return
		}
	}
}

// take adds an event to the answer. It reports whether it has set out or err, as next does.
func (s *stream) take(ev *sse.Event) bool {
	var err error
	switch {
	case ev.Done:
		err = s.done()
	case len(ev.Data) == 0 && string(ev.Name) != "error": // keep-alive
		return false
	case !ev.Like: // else it has the same effect as the event before it
		err = s.judge(ev)
	}
	switch {
	case err != nil:
		s.stopAt(err)
	case !ev.Like && !s.progress.Progress() && !s.single:
		s.err = s.hold(ev)
		return s.err != nil
	default:
		s.deliver(ev)
	}
	return true
}

// stopAt sets err, and out to the events before it.
func (s *stream) stopAt(err error) {
	if err == io.EOF && s.x.eventLines {
		s.behind = append(s.behind, s.events.Rest()...) // the end of an array
	}
	s.out, s.err = s.behind, err
}

// deliver sets out to an event with content and the events before it, or sets err.
func (s *stream) deliver(ev *sse.Event) {
	out, err := s.bytes(ev)
	if err != nil {
		s.err = err
		return
	}
	if s.x.settings.measured() {
		s.used.count(ev, s.progress.Free())
	}
	if s.watcher != nil && !ev.Done {
		s.progressed()
	}
	if len(s.behind) > 0 {
		out = append(s.behind, out...)
		s.behind, s.idle = out[:0], s.idle[:0]
	}
	s.out, s.midLine = out, !bytes.HasSuffix(out, newline)
	if s.single || s.progress.Terminal() {
		s.drain()
	}
}

var newline = []byte{'\n'}

// addErrorEvent adds the failure to the stream as an error event in the API's format, if the API's own client ignores the
// error of Read.
func (s *stream) addErrorEvent() {
	e, failed := s.err.(*Error)
	if !failed || s.told || s.lines != nil || !s.x.endpoint.IgnoresReadErrors() {
		return
	}
	s.told = true
	event := slices.Clone(s.out)
	if len(event) > 0 {
		s.midLine = !bytes.HasSuffix(event, newline)
	}
	if s.midLine {
		event = append(event, '\n')
	}
	s.out = append(append(event, s.x.endpoint.ErrorBody(HTTPStatus(e), string(e.Kind), UserMessage(e))...), '\n')
}

// hold keeps an event without content for the next event with content.
func (s *stream) hold(ev *sse.Event) error {
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
		return s.noRoom(s.held.room)
	}
	if len(s.behind) > max(maxEvent(&s.x.settings.cfg), maxBehind) {
		return s.tooLarge(PhaseEvent, s.x.settings.cfg.MaxEventBytes)
	}
	return nil
}

// done handles the [DONE] mark. It returns an error if the answer cannot end here.
func (s *stream) done() error {
	switch s.progress.Done(); {
	case s.progress.Terminal():
		return nil
	case !s.any || !s.progress.Any():
		return s.invalid() // no answer at all
	}
	return s.broken(io.ErrUnexpectedEOF) // this API ends with another event
}

// judge adds an event to the answer, or returns what is wrong with it.
func (s *stream) judge(ev *sse.Event) error {
	if e := s.flaw(ev); e != nil {
		return e
	}
	f, failed := s.progress.Read(ev.Name, ev.Read())
	if failed {
		if s.x.endpoint.IgnoresReadErrors() && len(ev.Raw) <= maxErrorBytes { // else its client takes this end for a good one
			s.behind, s.told = append(s.behind, ev.Raw...), true
		}
		return s.failed(f, ErrUnavailable)
	}
	s.source.thinking = s.progress.Thinking()
	if ev.Bare && !s.any && s.x.endpoint.Framing() == dialect.SSE && s.x.eventLines {
		a := s.x.endpoint.Judge(ev.Data[:ev.End])
		if !a.OK {
			return s.invalid()
		}
		s.single, s.any = true, true
		s.used.note(a.Usage)
		s.whole.Store(true)
		return nil
	}
	if err := s.decoder.check(ev.Read()); err != nil {
		e := s.invalid()
		e.Err = err
		return e
	}
	s.used.note(s.progress.Usage())
	if free := s.progress.Free(); s.progress.Progress() {
		s.events.Learn(*ev, free)
	}
	s.any = true
	s.whole.Store(s.progress.Complete(false, false))
	return nil
}

// flaw returns what is wrong with an event that should be a JSON object.
func (s *stream) flaw(ev *sse.Event) error {
	switch {
	case errors.Is(ev.Err, jsonscan.ErrTooBig):
		return s.tooLarge(PhaseJSONShape, int64(dialect.MaxShape.Containers))
	case string(ev.Name) == "error":
		return nil
	case errors.Is(ev.Err, jsonscan.ErrIncomplete), ev.Err != nil && s.whole.Load():
		if _, err := s.events.Next(); err != nil { // truncated: nothing follows
			return s.ending(err)
		}
		return s.invalid()
	case ev.Err != nil, ev.Data[0] != '{', len(bytes.TrimSpace(ev.Data[ev.End:])) > 0:
		return s.invalid()
	}
	return nil
}

// bytes returns what the reader gets for an event: its lines unchanged, or the form that go-openai reads.
func (s *stream) bytes(ev *sse.Event) ([]byte, error) {
	if s.x.eventLines || isDataLine(ev) {
		return ev.Raw, nil
	}
	if more := len(ev.Data) + len("data: \n\n") - cap(s.buf); more > 0 && !s.room(s.events.Size()+more) {
		return nil, s.noRoom(s.held.room)
	}
	s.buf = dataLine(s.buf[:0], ev.Data)
	return s.buf, nil
}

// isDataLine reports whether an event came in the form that go-openai reads.
func isDataLine(ev *sse.Event) bool {
	line, ok := bytes.CutPrefix(ev.Raw, []byte("data: "))
	return ok && !ev.Bare && len(line) == len(ev.Data)+len("\n\n") && bytes.HasPrefix(line, ev.Data) && bytes.HasSuffix(line, []byte("\n\n"))
}

// dataLine appends an event's data to b in the form that go-openai reads.
func dataLine(b, data []byte) []byte {
	b = append(b, "data: "...)
	for line := range bytes.SplitSeq(data, []byte{'\n'}) {
		b = append(append(b, line...), ' ') // go-openai treats each line as an event, and JSON allows a space in place of a newline
	}
	b[len(b)-1] = '\n'
	return append(b, '\n')
}
