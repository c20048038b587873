package aiguardtest

import (
	"io"
	"net/http"
	"strings"
)

// stream is a stream under construction: a list of parts of its body, which are sent one by one.
type stream struct {
	a     *answer
	parts []string
	n     int // number of events so far
	begun bool
}

func (a *answer) stream() *stream { return &stream{a: a} }

// raw adds parts that are not events.
func (s *stream) raw(parts ...string) *stream {
	s.parts = append(s.parts, parts...)
	return s
}

// events adds one event for each element of data.
func (s *stream) events(data ...string) *stream {
	for _, d := range data {
		s.raw(s.a.frame(s.n, d))
		s.n++
	}
	return s
}

// says adds pieces of text. Before the first one it adds the opening events of the API.
func (s *stream) says(texts ...string) *stream {
	if !s.begun && s.a.begin != nil {
		s.events(s.a.begin(s.a)...)
	}
	s.begun = true
	for _, text := range texts {
		s.events(s.a.delta(s.a, text))
	}
	return s
}

// finishes adds the finish reason.
func (s *stream) finishes() *stream { return s.events(s.a.finish(s.a)...) }

// ends adds the finish reason and the end mark of the stream.
func (s *stream) ends() *stream {
	s.finishes()
	if s.a.mark != "" {
		s.raw(s.a.mark)
	}
	return s
}

// pings adds keep-alives.
func (s *stream) pings(times int) *stream {
	for range times {
		s.a.ping(s)
	}
	return s
}

// fails adds an error.
func (s *stream) fails() *stream { return s.events(s.a.words(s.a.limited)) }

// failsOtherwise adds an error in the API's second form, if it has one.
func (s *stream) failsOtherwise() *stream {
	if s.a.errorEvent == nil {
		return s.fails()
	}
	return s.raw(s.a.errorEvent(s.a.words(s.a.limited)))
}

// last replaces the last part.
func (s *stream) last(change func(part string) string) *stream {
	s.parts[len(s.parts)-1] = change(s.parts[len(s.parts)-1])
	return s
}

// around returns the stream in two pieces, without the gap between them.
func (s *stream) around() (before, after string) {
	before, after, _ = strings.Cut(strings.Join(s.parts, ""), gap)
	return before, after
}

// size returns the number of bytes so far.
func (s *stream) size() (n int) {
	for _, p := range s.parts {
		n += len(p)
	}
	return n
}

// send writes the parts and clears the list.
func (s *stream) send(w http.ResponseWriter) error {
	_, err := io.WriteString(w, strings.Join(s.parts, ""))
	s.parts = s.parts[:0]
	return err
}

func (s *stream) reply() Reply { return Bytes(s.parts...) }
