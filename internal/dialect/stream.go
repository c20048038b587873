package dialect

import (
	"strconv"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Stream follows a stream, event by event, to tell a complete answer from one that was cut. Make it with Follow.
type Stream struct {
	api    *api
	answer bool // the one event is a whole answer

	any      bool // the answer has begun
	progress bool // the last event brought the answer forward
	thinking bool // the model is thinking: it may be silent for long
	done     bool // [DONE], or the API's own last event
	foreign  bool // another API's stream at a path that only looks like this one's
	cut      bool // ended by a filter, a refusal or a cancellation

	failed  bool // the last event is part of the answer, and says that the answer failed
	failure Failure
	err     bool // the last event is no part of the answer but an error

	seen, finished [2]uint64 // choices, by index
	overflow       bool      // a choice beyond what seen can hold: only [DONE] tells

	usage   Usage
	free    [jsonscan.MaxFree]jsonscan.Span
	nFree   int
	scratch []byte // of a decoded payload
}

// Follow returns a Stream for an answer of e.
func (e Endpoint) Follow() Stream { return Stream{api: e.api} }

// Event reads one event's name and JSON data, which jsonscan has checked. failed means that the event is the provider's
// failure f and no part of the answer.
func (s *Stream) Event(name, data []byte) (f Failure, failed bool) {
	s.nFree, s.progress, s.err = 0, false, false
	if s.api == nil || s.foreign {
		s.any, s.progress = true, true
		return f, false
	}
	s.api.event(s, name, data)
	if s.err || string(name) == "error" && !s.failed {
		return s.failureOf(name, data), true
	}
	return f, false
}

func (s *Stream) failureOf(name, data []byte) Failure {
	f, ok := ErrorIn(data)
	if !ok {
		f, _ = Refusal(data)
	}
	if f.Code == "" && string(name) != "error" && ClassOfCode(string(name)) != "" { // an exception, whose name is its code
		f.Code = string(name)
	}
	return f
}

// Done notes the [DONE] mark. It ends only what may end by it.
func (s *Stream) Done() {
	if s.api == nil || s.foreign || s.api.ends != marked || s.api.marks {
		s.done = s.api == nil || s.any
	}
}

// Progress reports whether the last event brought the answer forward. Pings and empty deltas do not.
func (s *Stream) Progress() bool { return s.progress || s.done }

// Thinking reports whether the model has begun to think and not ended: then it may be silent for long.
func (s *Stream) Thinking() bool { return s.thinking }

// Any reports whether the answer has begun.
func (s *Stream) Any() bool { return s.any }

// Terminal reports whether the provider has said that nothing more of the answer comes.
func (s *Stream) Terminal() bool { return s.done || s.failed }

// Failed returns the failure that the last event announced as a part of the answer.
func (s *Stream) Failed() (Failure, bool) { return s.failure, s.failed }

// Usage is what the events so far said that the answer took.
func (s *Stream) Usage() Usage { return s.usage }

// Free is where in the data of the last event there were values that may say anything: the answer's text, its number, and
// OpenAI's padding. Another event that differs only in these makes no difference to the Stream.
func (s *Stream) Free() []jsonscan.Span { return s.free[:s.nFree] }

// Complete reports whether an end of the stream here is the end of the answer. clean tells that the body ended as bodies
// should; lenient, that a clean end needs no finish reason.
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
	return !s.overflow && s.seen != [2]uint64{} && s.seen == s.finished && (s.api.final == nil || s.api.final(s))
}

// Whole reports whether the answer is complete, ended by itself and lacks nothing: worth keeping.
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

// choice notes that a choice has begun, and perhaps ended.
func (s *Stream) choice(index uint64, ended bool) {
	if index >= 128 {
		s.overflow = true
		return
	}
	word, bit := index/64, uint64(1)<<(index%64)
	s.seen[word] |= bit
	if ended {
		s.finished[word] |= bit
	}
}

// fail notes that the answer itself says that it failed.
func (s *Stream) fail(f Failure) { s.failed, s.failure, s.done = true, f, true }

// index reads the number of a choice.
func index(value []byte) uint64 {
	if len(value) == 1 && value[0] >= '0' && value[0] <= '9' {
		return uint64(value[0] - '0')
	}
	n, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// text reads a text of the answer. It may say anything, but not nothing.
func (s *Stream) text(c *jsonscan.Cursor) {
	value := c.Value()
	if said(value) {
		s.progress = true
		s.span(c, value, true)
	}
}

// varies notes a string or a whole number that means nothing to the Stream.
func (s *Stream) varies(c *jsonscan.Cursor) {
	value := c.Value()
	if len(value) > 0 && (value[0] == '"' || natural(value)) {
		s.span(c, value, false)
	}
}

func natural(value []byte) bool {
	for _, d := range value {
		if d < '0' || d > '9' {
			return false
		}
	}
	return true
}

func (s *Stream) span(c *jsonscan.Cursor, value []byte, some bool) {
	if s.nFree < len(s.free) {
		s.free[s.nFree] = jsonscan.Span{Start: c.Offset() - len(value), End: c.Offset(), Some: some}
		s.nFree++
	}
}

// some reads a value and notes progress if it says something.
func (s *Stream) some(c *jsonscan.Cursor) {
	if !empty(c.Value()) {
		s.progress = true
	}
}
