package dialect

import "github.com/aiguard-go/aiguard/internal/jsonscan"

// Stream follows a stream event by event and tells a complete answer from a truncated one. Follow creates it.
type Stream struct {
	api    *api
	answer bool // the single event is a whole answer

	any      bool // the answer has begun
	progress bool // the last event added to the answer
	thinking bool // the model is thinking and may be silent for a long time
	done     bool // after [DONE] or the API's own last event
	foreign  bool // a stream of another API at a path of this API
	cut      bool // ended by a filter, a refusal or a cancellation

	failed  bool // the last event is part of the answer and reports its failure
	failure Failure
	err     bool // the last event is an error instead of a part of the answer

	choices choices
	usage   Usage
	free    free   // in the data of the last event
	scratch []byte // buffer of a decoded payload
}

// Follow returns a Stream for an answer of e.
func (e Endpoint) Follow() Stream { return Stream{api: e.api} }

// Event reads the name and the JSON data of one event. The data must have passed jsonscan.Check. If the event is a
// provider failure instead of a part of the answer, Event returns it in f and sets failed.
func (s *Stream) Event(name, data []byte) (f Failure, failed bool) {
	return s.Read(name, jsonscan.Read(data))
}

// Read is Event for data that has a Cursor.
func (s *Stream) Read(name []byte, c jsonscan.Cursor) (f Failure, failed bool) {
	s.free.n, s.progress, s.err = 0, false, false
	if s.api == nil || s.foreign {
		s.any, s.progress = true, true
		return f, false
	}
	s.api.event(s, name, c)
	if s.err || string(name) == "error" && !s.failed {
		return failureOf(name, c.Text()), true
	}
	return f, false
}

func failureOf(name, data []byte) Failure {
	f, ok := ErrorIn(data)
	if !ok {
		f, _ = Refusal(data)
	}
	if f.Code == "" && string(name) != "error" && ClassOfCode(string(name)) != "" { // the name of an exception is its code
		f.Code = string(name)
	}
	return f
}

// Done records the [DONE] mark. It has no effect on streams that do not end with the mark.
func (s *Stream) Done() {
	if s.api == nil || s.foreign || s.api.ends != marked || s.api.marks {
		s.done = s.api == nil || s.any
	}
}

// Progress reports whether the last event added to the answer. Pings and empty deltas do not.
func (s *Stream) Progress() bool { return s.progress || s.done }

// Thinking reports whether the model is thinking. It may then be silent for a long time.
func (s *Stream) Thinking() bool { return s.thinking }

// Any reports whether the answer has begun.
func (s *Stream) Any() bool { return s.any }

// Terminal reports whether the provider has announced the end of the answer.
func (s *Stream) Terminal() bool { return s.done || s.failed }

// Failed returns the failure that the last event reported as part of the answer.
func (s *Stream) Failed() (Failure, bool) { return s.failure, s.failed }

// Usage returns the usage that the events so far reported.
func (s *Stream) Usage() Usage { return s.usage }

// Free returns the positions of free values in the data of the last event: the answer's text, its number, and OpenAI's
// padding. Another event that differs only in these values has the same effect on the Stream.
func (s *Stream) Free() []jsonscan.Span { return s.free.spans[:s.free.n] }

// Complete reports whether the answer is complete if the stream ends here. clean means that the body ended without an
// error. lenient means that a clean end needs no finish reason.
func (s *Stream) Complete(clean, lenient bool) bool {
	switch {
	case s.failed:
		return false
	case s.done:
		return true
	case s.api == nil, s.foreign, s.api.ends == anywhere:
		return clean
	case s.api.ends == finished && s.complete():
		return true
	}
	return clean && lenient && s.any
}

// complete reports whether each choice that has begun has a finish reason.
func (s *Stream) complete() bool {
	return s.choices.complete() && (s.api.final == nil || s.api.final(s))
}

// Whole reports whether the answer is complete, neither cut nor filtered, and can be cached.
func (s *Stream) Whole() bool { return s.any && !s.failed && s.whole() }

func (s *Stream) whole() bool {
	switch {
	case s.cut, s.api == nil, s.foreign:
		return false
	case s.api.ends == finished:
		return s.complete()
	case s.api.ends == marked:
		return s.done || s.answer
	}
	return true
}

// fail records a failure that the answer itself reports.
func (s *Stream) fail(f Failure) { s.failed, s.failure, s.done = true, f, true }

// text reads a text of the answer. A text that is not empty counts as progress and as a free value.
func (s *Stream) text(c *jsonscan.Cursor) {
	value := c.Value()
	if said(value) {
		s.progress = true
		s.free.add(c, value, true)
	}
}

// some reads a value and records progress if the value has content.
func (s *Stream) some(c *jsonscan.Cursor) {
	if !empty(c.Value()) {
		s.progress = true
	}
}
