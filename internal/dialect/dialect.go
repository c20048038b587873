// Package dialect contains everything that differs between the APIs of providers: the fields of a request, complete
// answers and errors inside a success, the end of a stream, and the meaning of error codes. Its functions take bytes
// and return verdicts. They perform no I/O and never block.
//
// Each API has a file; OpenAI's has one for each group of endpoints. To add a dialect, write its file and add its
// [route] and its [vocabulary] to the lists.
package dialect

import (
	"strings"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// MaxShape limits the structure of an answer, because a decoder allocates kilobytes for each object.
var MaxShape = jsonscan.Limits{Containers: 100_000, Depth: 100}

// Framing is how the events of a stream are separated.
type Framing int8

// The framings of streams.
const (
	SSE    Framing = iota // text/event-stream
	JSON                  // JSON texts one after another, or the elements of one array
	Frames                // application/vnd.amazon.eventstream
)

// Endpoint is one operation of one API. The zero Endpoint stands for an operation without a dialect.
type Endpoint struct {
	api    *api
	model  string // named in the path
	stream bool   // the path asks for a stream
}

// api describes an operation. Nil functions read nothing.
type api struct {
	op      string
	framing Framing
	plain   bool // an answer may be text or bytes instead of JSON
	creates bool // creates something at the provider, whatever the request says
	marks   bool // [DONE] ends a stream
	untyped bool // the media parts of a prompt have no type; the member's name identifies them

	// The API's own client reports an error event in a stream, but ignores a read error.
	ignoresReadErrors bool

	member func(q *query, key []byte, c *jsonscan.Cursor)  // reads one member of a request
	output output                                          // fields that limit the output
	event  func(s *Stream, name []byte, c jsonscan.Cursor) // reads one event or a whole answer
	ends   ends
	final  func(s *Stream) bool // also required for a complete answer if ends is finished

	refusal func(status int, code, message string) errorObject // form of an error; nil: OpenAI's
}

// ends defines when a stream is complete.
type ends int8

const (
	anywhere ends = iota // at any clean end
	finished             // after a finish reason for each choice
	marked               // after the API's own last event
)

// route returns the operation for a method and a path. The path has no trailing slash.
type route func(method, path, query string) (Endpoint, bool)

// The first route that matches wins.
var routes = [...]route{geminiRoute, bedrockRoute, anthropicRoute, ollamaRoute, cohereRoute, openaiRoute}

// Of returns the operation of a request. It accepts any base URL, such as those of deployments, proxies and gateways.
func Of(method, path, query string) Endpoint {
	path = strings.TrimSuffix(path, "/")
	for _, find := range routes {
		if e, ok := find(method, path, query); ok {
			return e
		}
	}
	return Endpoint{}
}

// Known reports whether the operation has a dialect. Answers of other operations are not judged.
func (e Endpoint) Known() bool { return e.api != nil }

// Inference reports whether a request creates nothing at the provider unless its body says so. A repeat then costs only
// tokens.
func (e Endpoint) Inference() bool { return e.api != nil && !e.api.creates }

// Op returns the name of the operation for errors, logs and metrics, or "".
func (e Endpoint) Op() string {
	if e.api == nil {
		return ""
	}
	return e.api.op
}

// Model returns the model named in the path, or "".
func (e Endpoint) Model() string { return e.model }

// Plain reports whether a good answer may have a format other than JSON.
func (e Endpoint) Plain() bool { return e.api == nil || e.api.plain }

// Framing returns the framing of the operation's streams. Callers use it if the bytes do not identify the framing.
func (e Endpoint) Framing() Framing {
	if e.api == nil {
		return SSE
	}
	return e.api.framing
}

// IgnoresReadErrors reports whether the API's own client reports an error event in a stream but ignores a read error. Each
// event of such an API is a line of JSON.
func (e Endpoint) IgnoresReadErrors() bool { return e.api != nil && e.api.ignoresReadErrors }

// before returns the part of path before suffix, without the slash between them.
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

// last returns the last segment of a path.
func last(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// versioned reports whether s is a segment such as "v1" or "v1beta".
func versioned(s string) bool { return len(s) > 1 && s[0] == 'v' && s[1] >= '0' && s[1] <= '9' }

// Usage is the number of tokens that an answer reports. Input includes cached input. Output includes reasoning.
type Usage struct{ Input, Output, CacheRead, CacheWrite, Reasoning int64 }

// Answer is the verdict on a whole answer.
type Answer struct {
	OK      bool    // an answer of the operation
	Foreign bool    // if OK: an answer of another API at the same path, which the operation's own client cannot read
	Failed  bool    // a failure of the provider
	Own     bool    // if Failed: an answer that reports its own failure, not an error object in place of an answer
	Failure Failure // if Failed
	Whole   bool    // complete, neither cut nor filtered: can be cached
	Usage   Usage
}

// Judge judges a whole JSON answer that passed jsonscan.Check.
func (e Endpoint) Judge(body []byte) Answer {
	var s Stream
	return e.JudgeWith(&s, jsonscan.Read(body))
}

// JudgeWith is Judge for an answer that has a Cursor, without allocations. It overwrites s.
func (e Endpoint) JudgeWith(s *Stream, body jsonscan.Cursor) Answer {
	if e.api == nil {
		return Answer{OK: true}
	}
	*s = Stream{api: e.api, answer: true}
	f, failed := s.Read(nil, body)
	own := !failed && s.failed
	if own {
		f, failed = s.failure, true
	}
	return Answer{OK: s.any && !failed, Foreign: s.foreign, Failed: failed, Own: own, Failure: f, Whole: s.Whole() && !failed, Usage: s.usage}
}
