package answer

import (
	"strconv"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Progress follows a stream, event by event, to tell a complete answer from one that was cut.
// The zero value with an Endpoint is ready.
type Progress struct {
	Endpoint Endpoint

	done           bool      // [DONE], or the API's own last event
	failed         *Failure  // the last event says that the answer failed
	seen, finished [2]uint64 // choices, by index
	overflow       bool      // a choice beyond what seen can hold: only [DONE] tells
	free           [jsonscan.MaxFree]jsonscan.Span
	nFree          int
}

// Done notes the [DONE] mark.
func (p *Progress) Done() { p.done = true }

// Terminal reports whether the provider has said that nothing more comes.
func (p *Progress) Terminal() bool { return p.done }

// Failed is the failure that a terminal event announced (response.failed), or nil.
func (p *Progress) Failed() *Failure { return p.failed }

// Complete reports whether an end of the stream here is the end of the answer: for chat and text completions
// a finish_reason for each choice seen, or [DONE]; for Responses and Messages their last event; for
// endpoints we don't know, always.
func (p *Progress) Complete() bool {
	switch {
	case p.done:
		return true
	case p.Endpoint == Chat, p.Endpoint == Completions:
		return !p.overflow && p.seen != [2]uint64{} && p.seen == p.finished
	case p.Endpoint == Responses, p.Endpoint == Messages:
		return false
	}
	return true
}

// Free is where in the data of the last event there were strings that may say anything: the answer's text, and OpenAI's
// padding of it. Another event that differs only in these makes no difference to Progress.
func (p *Progress) Free() []jsonscan.Span { return p.free[:p.nFree] }

// Event reads one event's name and JSON data (checked by jsonscan). failed means that the event is the
// provider's error f and no part of the answer.
func (p *Progress) Event(name, data []byte) (f Failure, failed bool) {
	p.nFree = 0
	switch p.Endpoint {
	case Chat, Completions:
		c := jsonscan.Read(data)
		for key := range c.Members() {
			switch string(key) {
			case "choices":
				for range c.Elements() {
					p.choice(&c)
				}
			case "obfuscation":
				p.isFree(&c)
			case "error":
				failed = failed || string(c.Value()) != "null"
			case "type", "object":
				failed = failed || string(c.Value()) == `"error"`
			}
		}
	default:
		kind := member(data, "type")
		switch string(kind) {
		case `"response.completed"`, `"response.incomplete"`, `"message_stop"`:
			p.done = true
		case `"response.failed"`:
			p.done = true
			f, _ := ErrorIn(member(data, "response"))
			p.failed = &f
		}
		failed = string(kind) == `"error"` || first(member(data, "error")) == '{'
	}
	failed = failed || string(name) == "error"
	if failed {
		f, _ = ErrorIn(data)
	}
	return f, failed
}

func (p *Progress) choice(c *jsonscan.Cursor) {
	index, finished := uint64(0), false
	for key := range c.Members() {
		switch string(key) {
		case "index":
			value := c.Value()
			if len(value) == 1 && value[0] >= '0' && value[0] <= '9' {
				index = uint64(value[0] - '0')
			} else if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
				index = n
			}
		case "finish_reason":
			value := c.Value()
			finished = len(value) > 2 && value[0] == '"' // neither null nor ""
		case "text": // of a completion
			p.isFree(c)
		case "delta":
			for key := range c.Members() {
				switch string(key) {
				case "content", "reasoning_content":
					p.isFree(c)
				}
			}
		}
	}
	if index >= 128 {
		p.overflow = true
		return
	}
	word, bit := index/64, uint64(1)<<(index%64)
	p.seen[word] |= bit
	if finished {
		p.finished[word] |= bit
	}
}

// isFree notes the string that comes next, if it is one, and as many as a Template takes.
func (p *Progress) isFree(c *jsonscan.Cursor) {
	if value := c.Value(); first(value) == '"' && p.nFree < len(p.free) {
		p.free[p.nFree] = jsonscan.Span{Start: c.Offset() - len(value), End: c.Offset()}
		p.nFree++
	}
}
