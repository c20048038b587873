package aiguardtest

import (
	"encoding/json"
	"strings"
)

// dialect is the wire format of one operation of one API. A reply defines what happens. The dialect of the request's
// API defines the bytes. Each API has its own file.
type dialect struct {
	model   string // named in the path
	streams bool   // requests are streamed unless the body says otherwise

	requestID string        // name of the header with the request's number
	known     bool          // the path names an operation, not only an API
	respond   func(*answer) // answers the request as Text does

	// whole is a complete answer with a.text. failed is a complete answer that reports its own failure.
	whole, failed func(a *answer) object

	// begin has the events before the text, delta the event of one piece of text, and finish the events with the finish
	// reason.
	begin  func(a *answer) []string
	delta  func(a *answer, text string) string
	finish func(a *answer) []string

	framing

	// failure is an error. code is the API's identifier of the error. If code is empty, the API's code for the status
	// is used.
	failure func(status int, code, message string) string
	listed  bool // whole error bodies are wrapped in a list

	// limited is the API's rate limit error. refusals has the faults whose text or status differs from the default.
	limited  refusal
	refusals func() map[Fault]refusal

	// objects is an answer or an event with a list of objects. The list begins at the gap.
	objects func(streamed bool) string
}

// refusal is an error in the API's own words.
type refusal struct {
	status        int
	code, message string
}

// framing is the wire format of a stream.
type framing struct {
	media      string                          // content type
	frame      func(n int, data string) string // formats the n-th event, counted from 0
	mark       string                          // marks the end of a stream
	ping       func(s *stream)                 // adds a keep-alive without content
	pad        func(size int) string           // returns size bytes without meaning
	errorEvent func(data string) string        // formats an error in the API's second way, if it has one
}

// gap marks the place in an answer where a fault inserts bytes.
const gap = "[gap]"

// dialectOf returns the dialect for the path of a request. The default is OpenAI. Prefixes of the path have no effect,
// so that clients of all APIs can use Server.URL.
func dialectOf(r *Request) dialect {
	for _, find := range [...]func(*Request) (dialect, bool){geminiOf, anthropicOf, ollamaOf} {
		if d, ok := find(r); ok {
			return d
		}
	}
	return openai()
}

// words returns an error in the API's form. It contains ProviderText.
func (d *dialect) words(r refusal) string {
	message := ProviderText
	if r.message != "" {
		message += ": " + r.message
	}
	return d.failure(r.status, r.code, message)
}

// body returns a whole error body.
func (d *dialect) body(failure string) string {
	if d.listed {
		return "[" + failure + "]"
	}
	return failure
}

// refusal returns the API's error for a fault. status is the default status.
func (d *dialect) refusal(f Fault, status int) refusal {
	if r, ok := d.refusals()[f]; ok {
		return r
	}
	return refusal{status: status}
}

// around returns an error body in two pieces, so that text can be inserted into the message.
func (d *dialect) around(status int) (before, after string) {
	before, after, _ = strings.Cut(d.body(d.failure(status, "", ProviderText+" "+gap)), gap)
	return before, after
}

// serverSent returns the framing of an event stream whose lines end with eol. If named is set, each event is named
// after the type in its data.
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

// typeOf returns the type of an event whose data begins with a type, or "".
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

// blanks returns white space between JSON texts.
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
