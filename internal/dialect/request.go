package dialect

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Facts are what a request asks for.
type Facts struct {
	Model   string
	Stream  bool
	Creates bool  // stores something at the provider, so a repeat does the work twice
	Forgets bool  // disables storage with "store": false
	Later   bool  // requests a ticket instead of the answer; the response is not judged
	Output  int64 // limit of tokens per choice, at most 1e9; 0: no limit
	Choices int64 // number requested, at most 1,000; 0: not specified
}

// Request is what Read finds in a request's JSON body.
type Request struct {
	Facts
	limits  [8]limitSpan // positions of the output limits
	nLimits int
	inside  int // offset after the brace of the object for the output limit; 0: no such object
}

type limitSpan struct {
	start, end int
	name       string
}

// Part is a piece of a prompt.
type Part struct {
	Value []byte // a JSON string, or another JSON value that the model reads unchanged
	IDs   int    // number of tokens, instead of Value
	New   bool   // starts another prompt: each input of an embeddings request is a separate prompt
}

// Runes returns the number of characters in a part.
func (p Part) Runes() int {
	switch {
	case p.Value == nil:
		return p.IDs
	case p.Value[0] == '"':
		return jsonscan.Runes(p.Value)
	}
	return jsonscan.ValueRunes(p.Value)
}

// Size returns the number of bytes in a part, which is at least the number of characters.
func (p Part) Size() int {
	switch {
	case p.Value == nil:
		return p.IDs
	case p.Value[0] == '"':
		return len(p.Value) - len(`""`)
	}
	return len(p.Value)
}

// output defines the fields of a request that limit its output.
type output struct {
	within []string // path of names to the object with the limit; empty: the request itself
	names  []string // names of the limit; the first is used to add one
	name   func(model string) string
	zero   bool // 0 asks for no output at all; else it may mean that there is no limit
}

// isZero reports whether value asks for no output at all.
func (o *output) isZero(value []byte) bool { return o.zero && string(value) == "0" }

// query is the state of reading a request.
type query struct {
	Request
	api    *api
	body   []byte
	part   func(Part) bool
	enough bool
	next   bool // the next part starts another prompt
}

// Read reads a request's JSON body once, front to back. It passes each part of the prompt to part until part returns
// false. If the body is not valid JSON, Read stops early and reports no error.
func (e Endpoint) Read(body []byte, part func(Part) bool) Request {
	q := query{Request: Request{Facts: e.InPath()}, api: e.api, body: body, part: part, enough: part == nil}
	if e.api != nil && len(e.api.output.within) == 0 {
		q.inside = opened(body, 0)
	}
	c := jsonscan.Read(body)
	for key := range c.Members() {
		q.top(key, &c)
	}
	for _, l := range q.limits[:q.nLimits] {
		q.Output = min(max(q.Output, number(body[l.start:l.end])), maxOutput)
	}
	return q.Request
}

// InPath returns what a request's path says.
func (e Endpoint) InPath() Facts { return Facts{Model: e.model, Stream: e.stream} }

// LimitsOutput reports whether requests of this operation may limit their output tokens.
func (e Endpoint) LimitsOutput() bool { return e.api != nil && len(e.api.output.names) > 0 }

// Repeatable reports whether a repeat of the request does no work twice. The responses API stores an answer unless the
// request disables storage.
func (e Endpoint) Repeatable(f *Facts) bool {
	return e.Inference() && !f.Creates && (e.Op() != "responses" || f.Forgets)
}

// opened skips white space at i and returns the offset after the opening brace of an object. Without an object it returns 0.
func opened(body []byte, i int) int {
	for ; i < len(body); i++ {
		switch body[i] {
		case ' ', '\t', '\r', '\n':
		case '{':
			return i + 1
		default:
			return 0
		}
	}
	return 0
}

func (q *query) top(key []byte, c *jsonscan.Cursor) {
	switch string(key) {
	case "model":
		if value := c.Value(); q.Model == "" {
			q.Model, _ = jsonscan.Text(value)
		}
		return
	case "stream":
		q.Stream = isTrue(c.Value())
		return
	case "store", "background":
		value := c.Value()
		q.Creates = isTrue(value) || q.Creates
		q.Forgets = string(key) == "store" && string(value) == "false" || q.Forgets
		return
	case "conversation":
		q.Creates = string(c.Value()) != "null" || q.Creates
		return
	case "deferred":
		if isTrue(c.Value()) {
			q.Creates, q.Later = true, true
		}
		return
	}
	if q.api == nil {
		return
	}
	if q.choices(key, c) {
		return
	}
	if out := &q.api.output; len(out.within) == 0 && q.limit(key, c) {
		return
	} else if slices.Contains(out.within, string(key)) {
		q.inside = opened(q.body, c.Offset())
		for key := range c.Members() {
			if !q.choices(key, c) && !q.limit(key, c) && q.api.member != nil {
				q.api.member(q, key, c)
			}
		}
		return
	}
	if q.api.member != nil {
		q.api.member(q, key, c)
	}
}

// choices reads the number of answers requested.
func (q *query) choices(key []byte, c *jsonscan.Cursor) bool {
	switch string(key) {
	case "n", "best_of", "num_generations", "candidateCount", "candidate_count":
		value := c.Value()
		if !natural(value) {
			q.walk(value)
		} else if len(q.api.output.names) > 0 {
			q.Choices = min(max(q.Choices, number(value)), maxChoices)
		}
		return true
	}
	return false
}

// These limits are higher than those of any provider.
const (
	maxChoices = 1000
	maxOutput  = 1_000_000_000 // tokens
)

func (q *query) limit(key []byte, c *jsonscan.Cursor) bool {
	for _, name := range q.api.output.names {
		if string(key) == name {
			value := c.Value()
			if q.nLimits < len(q.limits) {
				q.limits[q.nLimits] = limitSpan{c.Offset() - len(value), c.Offset(), name}
				q.nLimits++
			}
			return true
		}
	}
	return false
}

// Lower returns body with its output limit lowered to most tokens. r is the result of Read for body. If the limit is
// already low enough, Lower returns body itself. It reports false if the body has no place for the limit.
func (e Endpoint) Lower(body []byte, r *Request, most int) ([]byte, bool) {
	if e.api == nil || len(e.api.output.names) == 0 {
		return body, true // nothing to limit
	}
	out := &e.api.output
	name := out.names[0]
	if out.name != nil {
		name = out.name(r.Model)
	}
	limit := strconv.Itoa(most)
	some := false
	for _, l := range r.limits[:r.nLimits] {
		some = some || number(body[l.start:l.end]) != 0 || out.isZero(body[l.start:l.end])
	}
	changed := body
	for i := r.nLimits - 1; i >= 0; i-- { // backwards, so that earlier offsets stay valid
		l := r.limits[i]
		n := number(body[l.start:l.end])
		switch {
		case n > 0 && n <= int64(most), out.isZero(body[l.start:l.end]), n == 0 && (some || l.name != name):
		default:
			changed = slices.Concat(changed[:l.start], []byte(limit), changed[l.end:])
			some = true
		}
	}
	if some {
		return changed, true
	}
	member := `"` + name + `":` + limit
	at := r.inside
	if at == 0 && len(out.within) > 0 {
		member = `"` + out.within[0] + `":{` + member + `}`
		at = opened(body, 0)
	}
	if at == 0 {
		return body, false
	}
	if first(changed[at:]) != '}' {
		member += ","
	}
	return slices.Concat(changed[:at], []byte(member), changed[at:]), true
}

// emit passes a part of the prompt to the callback of Read.
func (q *query) emit(p Part) {
	if !q.enough {
		p.New, q.next = q.next, false
		q.enough = !q.part(p)
	}
}

// text reads a string.
func (q *query) text(c *jsonscan.Cursor) {
	if value := c.Value(); said(value) {
		q.emit(Part{Value: value})
	}
}

// json reads a value that the model reads unchanged, such as a schema.
func (q *query) json(c *jsonscan.Cursor) {
	if value := c.Value(); len(value) > 0 && string(value) != "null" && string(value) != `""` {
		q.emit(Part{Value: value})
	}
}

// inputs reads the input of embeddings: a text, a list of texts or structured inputs, or tokens. Each input is a
// prompt.
func (q *query) inputs(c *jsonscan.Cursor) {
	value := c.Value()
	if first(value) != '[' {
		q.next = true
		if !isDataURI(value) {
			q.walk(value)
		}
		return
	}
	if ids := countIDs(value); ids > 0 {
		q.next = true
		q.emit(Part{IDs: ids})
		return
	}
	for element := range jsonscan.Elements(value) {
		q.next = true
		if ids := countIDs(element); ids > 0 {
			q.emit(Part{IDs: ids})
		} else if !isDataURI(element) {
			q.walk(element)
		}
	}
}

// isDataURI reports whether an input is a string that contains only an image, a sound or a file as a data URI.
func isDataURI(value []byte) bool {
	rest, ok := bytes.CutPrefix(value, []byte(`"data:`))
	media, data, found := bytes.Cut(rest, []byte(";base64,"))
	if !ok || !found || len(media) > 100 || !isMedia(media) && string(media) != "application/pdf" {
		return false
	}
	for i, c := range data[:len(data)-1] {
		base64 := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '='
		if !base64 && (c != '\\' || data[i+1] != '/') {
			return false
		}
	}
	return true
}

// tokens reads a prompt that is a text, a list of texts, or tokens.
func (q *query) tokens(c *jsonscan.Cursor) {
	value := c.Value()
	if n := countIDs(value); n > 0 {
		q.emit(Part{IDs: n})
		return
	}
	if first(value) != '[' {
		q.walk(value)
		return
	}
	for element := range jsonscan.Elements(value) {
		if n := countIDs(element); n > 0 {
			q.emit(Part{IDs: n})
		} else {
			q.walk(element)
		}
	}
}

// countIDs returns the number of numbers in a list that starts with a number.
func countIDs(list []byte) (n int) {
	if first(list) != '[' {
		return 0
	}
	for element := range jsonscan.Elements(list) {
		if c := element[0]; n == 0 && (c < '0' || c > '9') {
			return 0
		}
		n++
	}
	return n
}

// strings reads every string at any depth, except the data of images, sounds and files.
func (q *query) strings(c *jsonscan.Cursor) { q.walk(c.Value()) }
