package dialect

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// Request is what a request's JSON body asks for.
type Request struct {
	Model   string
	Stream  bool
	Creates bool  // stores something at the provider, so that a repeat does the work twice
	Forgets bool  // says that nothing is to be stored, with "store": false
	Later   bool  // asks for a ticket instead of the answer: what comes back is not judged
	Output  int64 // tokens that each choice may have, at most 1e9; 0: no limit
	Choices int64 // that it asks for, at most 1,000; 0: it does not say

	limits  [8]limitSpan // of the output
	nLimits int
	inside  int // offset behind the brace of the object for the output limit; 0: there is none
}

type limitSpan struct {
	start, end int
	name       string
}

// Part is a piece of a prompt.
type Part struct {
	Value []byte // a JSON string, or another JSON value that the model reads as it is
	IDs   int    // tokens, in the place of Value
	New   bool   // begins another prompt: each input of an embeddings request is a prompt of its own
}

// Runes returns how many characters a part has.
func (p Part) Runes() int {
	switch {
	case p.Value == nil:
		return p.IDs
	case p.Value[0] == '"':
		return jsonscan.Runes(p.Value)
	}
	return jsonscan.ValueRunes(p.Value)
}

// output says where a request limits its output.
type output struct {
	within []string // the names of the object that has the limit; none: the request itself
	names  []string // of the limit; the first one is set where there is none
	name   func(model string) string
}

// query is a request while it is read.
type query struct {
	*Request
	api    *api
	body   []byte
	part   func(Part) bool
	enough bool
	next   bool // the next part begins another prompt
}

// Read reads a request's JSON body, front to back and once. It gives each part of the prompt to part, until that returns
// false. On a body that is not JSON it stops somewhere.
func (e Endpoint) Read(body []byte, part func(Part) bool) Request {
	r := Request{Model: e.model, Stream: e.stream}
	q := query{Request: &r, api: e.api, body: body, part: part, enough: part == nil}
	if e.api != nil && len(e.api.output.within) == 0 {
		r.inside = opened(body, 0)
	}
	c := jsonscan.Read(body)
	for key := range c.Members() {
		q.top(key, &c)
	}
	for _, l := range r.limits[:r.nLimits] {
		r.Output = min(max(r.Output, number(body[l.start:l.end])), maxOutput)
	}
	return r
}

// LimitsOutput reports whether a request may have a limit of output tokens.
func (e Endpoint) LimitsOutput() bool { return e.api != nil && len(e.api.output.names) > 0 }

// Repeatable reports whether a repeat of the request does no work twice. The responses API stores an answer unless it is
// told not to.
func (e Endpoint) Repeatable(r *Request) bool {
	return e.Inference() && !r.Creates && (e.Op() != "responses" || r.Forgets)
}

// opened returns the offset behind the brace of the object that begins at i, behind white space, or 0.
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

// choices reads how many answers are asked for.
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

// More than any provider gives.
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

// Lower returns body, which Read has read as r, with an output limit of no more than most tokens: body itself where it has
// one already. It reports false where there is no place for the limit.
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
		some = some || number(body[l.start:l.end]) != 0
	}
	changed := body
	for i := r.nLimits - 1; i >= 0; i-- { // from behind: the offsets in front stay what they are
		l := r.limits[i]
		n := number(body[l.start:l.end])
		switch {
		case n > 0 && n <= int64(most), n == 0 && (some || l.name != name):
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

// emit gives a part of the prompt to whoever counts it.
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

// json reads a value that the model reads as it is, such as a schema.
func (q *query) json(c *jsonscan.Cursor) {
	if value := c.Value(); len(value) > 0 && string(value) != "null" && string(value) != `""` {
		q.emit(Part{Value: value})
	}
}

// inputs reads what embeddings are made of: a text, a list of texts or of structured inputs, or tokens. Each is a prompt.
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

// isDataURI reports whether an input is an image, a sound or a file in the form of a string, with nothing else in it.
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

// tokens reads a prompt that may be a text, texts, or tokens.
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

// countIDs returns how many numbers a list has that begins with one.
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

// strings reads every string at any depth, but for what carries an image, a sound or a file.
func (q *query) strings(c *jsonscan.Cursor) { q.walk(c.Value()) }
