package answer

import (
	"strconv"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// maxMessage bounds the provider's words that are kept for the cause of an error.
const maxMessage = 4 << 10

// ErrorIn finds the error object in body, in the forms providers use: {"error":{…}}, {"error":"text"},
// a bare {"type":"error"|"object":"error","code":…,"message":…}, and Google's [{"error":{…}}].
// The body must have passed jsonscan.Check.
func ErrorIn(body []byte) (Failure, bool) {
	f, failed, _ := look(body, "")
	return f, failed
}

// look is ErrorIn that also finds the first member called name, in the same pass, of an object that is no error.
func look(body []byte, name string) (f Failure, failed bool, member []byte) {
	if first(body) == '[' {
		for e := range jsonscan.Elements(body) {
			f, failed = ErrorIn(e)
			break
		}
		return f, failed, nil
	}
	bare := false
	for key, value := range jsonscan.Members(body) {
		if member == nil && string(key) == name {
			member = value
		}
		switch string(key) {
		case "error":
			switch first(value) {
			case '{':
				return failure(value), true, nil
			case '"':
				text, _ := jsonscan.Text(value)
				return Failure{Message: clip(text)}, true, nil
			}
		case "type", "object":
			bare = bare || string(value) == `"error"`
		}
	}
	if !bare {
		return Failure{}, false, member
	}
	f = failure(body)
	f.Type = ""
	return f, true, nil
}

func failure(object []byte) Failure {
	var f Failure
	for key, value := range jsonscan.Members(object) {
		switch string(key) {
		case "message":
			f.Message = scalar(value)
		case "type":
			f.Type = scalar(value)
		case "code":
			f.Code = scalar(value)
		case "param":
			f.Param = scalar(value)
		case "innererror":
			for k, v := range jsonscan.Members(value) {
				if string(k) == "code" {
					f.InnerCode = scalar(v)
				}
			}
		}
	}
	return f
}

// scalar is the text of a string or number; null, booleans, objects and arrays have none.
func scalar(value []byte) string {
	if text, ok := jsonscan.Text(value); ok {
		return clip(text)
	}
	if c := first(value); c == '-' || c >= '0' && c <= '9' {
		return clip(string(value))
	}
	return ""
}

func clip(s string) string {
	if len(s) > maxMessage {
		return s[:maxMessage]
	}
	return s
}

// listOf names the member of an answer of e that holds what was asked for.
func listOf(e Endpoint) string {
	switch e {
	case Chat, Completions:
		return "choices"
	case Embeddings:
		return "data"
	case Moderations:
		return "results"
	case Messages:
		return "content"
	}
	return ""
}

// Judge reads a whole JSON answer to a POST (or, with e Other, to any request) that has passed jsonscan.Check.
// ok means that it is an answer of e; else failed tells whether it is the provider's error f, or nothing of use.
func Judge(e Endpoint, body []byte) (f Failure, failed, ok bool) {
	if e == Responses {
		return judgeResponse(body)
	}
	if e == Other {
		// A stored object may well have an "error" of its own, a failed fine-tuning job say; it also has
		// an "object" that names it.
		if f, failed = ErrorIn(body); failed && member(body, "object") != nil && !errorObject(body) {
			failed = false
		}
		return f, failed, !failed
	}
	name := listOf(e)
	f, failed, list := look(body, name)
	switch {
	case failed:
		return f, true, false
	case e == Messages: // may have nothing to say
		return f, false, first(list) == '['
	case name != "":
		return f, false, hasElement(list)
	}
	return f, false, first(body) == '{'
}

func judgeResponse(body []byte) (f Failure, failed, ok bool) {
	var status, errObject []byte
	known := false
	for key, value := range jsonscan.Members(body) {
		switch string(key) {
		case "status":
			status = value
		case "error":
			errObject = value
		case "output", "id":
			known = true
		}
	}
	if first(errObject) == '{' || first(errObject) == '"' {
		f, _ = ErrorIn(body)
		return f, true, false
	}
	if string(status) == `"failed"` {
		return Failure{}, true, false
	}
	return f, false, known
}

func errorObject(body []byte) bool { return string(member(body, "object")) == `"error"` }

func member(object []byte, name string) []byte {
	for key, value := range jsonscan.Members(object) {
		if string(key) == name {
			return value
		}
	}
	return nil
}

func hasElement(value []byte) bool {
	return first(value) == '[' && first(value[1:]) != ']'
}

func first(value []byte) byte {
	for _, c := range value {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c
		}
	}
	return 0
}

// Usage reads the tokens an answer says it took, in any of the APIs' words.
func Usage(body []byte) (input, output int64) {
	usage := member(body, "usage")
	if usage == nil {
		usage = member(member(body, "response"), "usage") // response.completed
	}
	for key, value := range jsonscan.Members(usage) {
		switch string(key) {
		case "prompt_tokens", "input_tokens":
			input, _ = strconv.ParseInt(string(value), 10, 64)
		case "completion_tokens", "output_tokens":
			output, _ = strconv.ParseInt(string(value), 10, 64)
		}
	}
	return input, output
}

// Request is what the transport needs to know of a request's JSON body.
type Request struct {
	Model     string
	Stream    bool
	Creates   bool // stores something at the provider: store, background or conversation
	Transient bool // says that it does not, with "store": false
}

// ReadRequest finds those in a body; one that is not a JSON object has none of them.
func ReadRequest(body []byte) (r Request) {
	for key, value := range jsonscan.Members(body) {
		switch string(key) {
		case "model":
			r.Model, _ = jsonscan.Text(value)
		case "stream":
			r.Stream = string(value) == "true"
		case "store", "background":
			r.Creates = r.Creates || string(value) == "true"
			r.Transient = r.Transient || string(key) == "store" && string(value) == "false"
		case "conversation":
			r.Creates = r.Creates || string(value) != "null"
		}
	}
	return r
}
