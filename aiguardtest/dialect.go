package aiguardtest

import (
	"encoding/json"
	"strings"
)

// dialect is the form of one operation of one API. A reply says what happens; the dialect of the request's API says how
// that looks. Each API has a file of its own.
type dialect struct {
	model   string // that the path names
	streams bool   // a request asks for a stream unless its body says that it does not

	requestID string        // the header with the request's number
	known     bool          // the path leads to the operation, and not only to the API
	respond   func(*answer) // answers the request as Text does

	// A whole answer that says a.text, and one that says of itself that it failed.
	whole, failed func(a *answer) object

	// The events of a stream: before its text, for each piece of text, and for the reason why it ends.
	begin  func(a *answer) []string
	delta  func(a *answer, text string) string
	finish func(a *answer) []string

	framing

	// failure is an error. The code is what the API identifies an error by. An empty one stands for the API's code for the
	// status.
	failure func(status int, code, message string) string
	listed  bool // an error that is a whole body is in a list

	// limited is the API's rate limit, and refusals has the faults for which it has a wording or a status of its own.
	limited  refusal
	refusals func() map[Fault]refusal

	// objects is an answer, or a stream's event, with a list of objects that begins at the gap.
	objects func(streamed bool) string
}

// refusal is an error as an API words it.
type refusal struct {
	status        int
	code, message string
}

// framing is how a stream looks on the wire.
type framing struct {
	media      string                          // the content type
	frame      func(n int, data string) string // the n-th event, counted from 0
	mark       string                          // what ends a stream
	ping       func(s *stream)                 // keeps the connection alive, and says nothing
	pad        func(size int) string           // as many bytes that mean nothing
	errorEvent func(data string) string        // an error in the API's other way, if it has two
}

// gap marks the place in an answer that a fault fills.
const gap = "[gap]"

// dialectOf returns the dialect of a request, which its path tells. Paths that no other API has are OpenAI's. The prefix of
// a path means nothing, so that the clients of all APIs can use Server.URL.
func dialectOf(r *Request) dialect {
	for _, find := range [...]func(*Request) (dialect, bool){geminiOf, anthropicOf, ollamaOf} {
		if d, ok := find(r); ok {
			return d
		}
	}
	return openai()
}

// words is an error in the API's form. It contains ProviderText.
func (d *dialect) words(r refusal) string {
	message := ProviderText
	if r.message != "" {
		message += ": " + r.message
	}
	return d.failure(r.status, r.code, message)
}

// body makes a whole body of an error.
func (d *dialect) body(failure string) string {
	if d.listed {
		return "[" + failure + "]"
	}
	return failure
}

// refusal is how the API words a refusal that others answer with this status.
func (d *dialect) refusal(f Fault, status int) refusal {
	if r, ok := d.refusals()[f]; ok {
		return r
	}
	return refusal{status: status}
}

// around is an error's body in two pieces, with a place for more text in the message.
func (d *dialect) around(status int) (before, after string) {
	before, after, _ = strings.Cut(d.body(d.failure(status, "", ProviderText+" "+gap)), gap)
	return before, after
}

// serverSent is the framing of an event stream whose lines end with eol. With named, each event has the name that its
// data has as a type.
func serverSent(eol string, named bool) framing {
	return framing{
		media: "text/event-stream; charset=utf-8",
		frame: func(_ int, data string) string {
			name := ""
			if named {
				if name = typeOf(data); name != "" {
					name = "event: " + name + eol
				}
			}
			return name + "data: " + data + eol + eol
		},
		ping:       func(s *stream) { s.raw(": ping" + eol + eol) },
		pad:        func(size int) string { return ":" + strings.Repeat("x", size-1-len(eol)) + eol },
		errorEvent: func(data string) string { return "event: error" + eol + "data: " + data + eol + eol },
	}
}

// typeOf is the type of an event that begins with it, as those of the APIs do, or "".
func typeOf(data string) string {
	tokens := json.NewDecoder(strings.NewReader(data))
	for _, want := range []json.Token{json.Delim('{'), "type"} {
		if t, err := tokens.Token(); err != nil || t != want {
			return ""
		}
	}
	t, _ := tokens.Token()
	name, _ := t.(string)
	return name
}

// blanks are bytes between JSON texts.
func blanks(size int) string { return strings.Repeat(" ", size) }

// lastSegments returns the last two segments of a path.
func lastSegments(path string) (before, last string) {
	path, last = cutLast(path)
	_, before = cutLast(path)
	return before, last
}

func cutLast(path string) (before, last string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}
