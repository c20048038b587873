// Package dialect knows what is true of one provider's API and not of another's: what its requests ask for, whether an
// answer is complete or an error in disguise, how its streams end, and what its error codes mean. It takes bytes and
// returns verdicts: it reads nothing and waits for nothing.
//
// One file has one dialect. To add one, write its file and list its [route] and its [vocabulary] below.
package dialect

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// MaxShape is what an answer may be made of: a decoder turns each object into kilobytes.
var MaxShape = jsonscan.Limits{Containers: 100_000, Depth: 100}

// Framing is how the events of a stream are separated.
type Framing int8

// The framings of streams.
const (
	SSE    Framing = iota // text/event-stream
	JSON                  // JSON texts one after another, or the elements of one array
	Frames                // application/vnd.amazon.eventstream
)

// Endpoint is one operation of one API. The zero Endpoint is an operation that no dialect knows.
type Endpoint struct {
	api    *api
	model  string // that the path names
	stream bool   // the path asks for a stream
}

// api is what is known of an operation. The functions that are nil know nothing.
type api struct {
	op      string
	framing Framing
	plain   bool // an answer may be text or bytes instead of JSON
	creates bool // makes something at the provider, whatever the request says
	marks   bool // [DONE] is the mark of a stream's end
	untyped bool // the parts of a prompt that carry media have no type, but a name that says so
	deaf    bool // the API's own client heeds an error in a stream, but not one of reading it

	member func(q *query, key []byte, c *jsonscan.Cursor) // reads a member of a request
	output output                                         // where a request limits its output
	event  func(s *Stream, name, data []byte)             // reads an event, or a whole answer
	ends   ends
	final  func(s *Stream) bool // of finished: also needed for a complete answer

	refusal func(status int, code, message string) errorObject // the form of an error; nil: OpenAI's
}

// ends says when a stream is complete.
type ends int8

const (
	anywhere ends = iota // at any clean end
	finished             // when each choice has a finish reason
	marked               // at a last event of the API's own
)

// route finds the operation that a request with this method and path is for. The path has no slash at its end.
type route func(method, path, query string) (Endpoint, bool)

// routes are asked in this order.
var routes = [...]route{geminiRoute, bedrockRoute, anthropicRoute, ollamaRoute, cohereRoute, openaiRoute}

// Of returns the operation that a request is for, under any base URL (deployments, proxies, gateways).
func Of(method, path, query string) Endpoint {
	path = strings.TrimSuffix(path, "/")
	for _, find := range routes {
		if e, ok := find(method, path, query); ok {
			return e
		}
	}
	return Endpoint{}
}

// Known reports whether a dialect knows the operation. What it does not know is not judged.
func (e Endpoint) Known() bool { return e.api != nil }

// Inference reports whether a request creates nothing at the provider unless its body says so: a repeat costs tokens at worst.
func (e Endpoint) Inference() bool { return e.api != nil && !e.api.creates }

// Op is the name of the operation for errors, logs and metrics, or "".
func (e Endpoint) Op() string {
	if e.api == nil {
		return ""
	}
	return e.api.op
}

// Model is the model that the path names, or "".
func (e Endpoint) Model() string { return e.model }

// Streams reports whether the path asks for a stream.
func (e Endpoint) Streams() bool { return e.stream }

// Plain reports whether a good answer may be something else than JSON.
func (e Endpoint) Plain() bool { return e.api == nil || e.api.plain }

// Framing is how the operation frames its streams where the bytes do not tell.
func (e Endpoint) Framing() Framing {
	if e.api == nil {
		return SSE
	}
	return e.api.framing
}

// Deaf reports whether the API's own client heeds an error in a stream, but not one of reading it.
func (e Endpoint) Deaf() bool { return e.api != nil && e.api.deaf }

// before returns the part of path in front of suffix, without the slash between them.
func before(path, suffix string) (string, bool) {
	rest, ok := strings.CutSuffix(path, suffix)
	if !ok {
		return "", false
	}
	if rest == "" {
		return "", true
	}
	return strings.CutSuffix(rest, "/")
}

// last is the last segment of a path.
func last(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// versioned reports whether s is a segment such as "v1" or "v1beta".
func versioned(s string) bool { return len(s) > 1 && s[0] == 'v' && s[1] >= '0' && s[1] <= '9' }

// Usage is the tokens that an answer says it took. Input includes cached input, Output includes reasoning.
type Usage struct{ Input, Output, CacheRead, CacheWrite, Reasoning int64 }

// Answer is the verdict about a whole answer.
type Answer struct {
	OK      bool    // it is an answer of the operation
	Failed  bool    // it is the provider's failure
	Own     bool    // if Failed: it is an answer that says that it failed, and not an error in the place of one
	Failure Failure // if Failed
	Whole   bool    // it is an answer that ended by itself, with nothing cut or filtered: worth keeping
	Usage   Usage
}

// Judge judges a whole JSON answer that has passed jsonscan.Check.
func (e Endpoint) Judge(body []byte) Answer {
	var s Stream
	return e.JudgeWith(&s, body)
}

// JudgeWith is Judge with a Stream of the caller's, whose content is lost, so that it allocates nothing.
func (e Endpoint) JudgeWith(s *Stream, body []byte) Answer {
	if e.api == nil {
		return Answer{OK: true}
	}
	*s = Stream{api: e.api, answer: true}
	f, failed := s.Event(nil, body)
	own := !failed && s.failed
	if own {
		f, failed = s.failure, true
	}
	return Answer{OK: s.any && !failed, Failed: failed, Own: own, Failure: f, Whole: s.Whole() && !failed, Usage: s.usage}
}
