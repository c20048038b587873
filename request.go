package aiguard

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
)

// maxKept is the maximum size of a buffered copy of a body that can be read only once. The copy can be checked and
// resent.
const maxKept = 1 << 20

// known is what Client tells the transport about a request, so that the transport need not read the request again. It
// is the context of the request.
type known struct {
	context.Context // the caller's
	op              string
	live            *live // the configuration that the prompt was checked with
	dialect.Facts
	texts    [4]string   // memory for the texts of most prompts
	taken    atomic.Bool // by the request that it describes
	answered bool        // set by the transport: a good answer has come, even if go-openai cannot use it
}

type knownKey struct{}

// Value implements context.Context.
func (k *known) Value(key any) any {
	if key == (knownKey{}) {
		return k
	}
	return k.Context.Value(key)
}

// outgoing is a request that waits to be sent: what the guard reads in it, and what it changes.
type outgoing struct {
	*transport
	settings settings
	model    string // the model of settings
	settled  bool   // settings are set
	req      *http.Request
	sent     bool // base has received the body and closes it
	seen     bool // GetBody was called; some SDKs return the same body each time

	endpoint   dialect.Endpoint
	judged     bool     // the endpoint's dialect checks the answer
	stream     bool     // the request seems to ask for a stream
	json       bool     // the request seems to ask for a JSON answer
	flaw       error    // why the request must not be sent
	known      *known   // what Client has passed on
	cost       estimate // for a Budget, and for events
	safe       bool     // a repeated request has no side effects
	replayable bool
}

func (o *outgoing) init(t *transport, req *http.Request) {
	o.transport, o.req = t, req
	o.settings.live = t.guard.current.Load()
	o.replayable = req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	o.endpoint = dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery)
	if !o.endpoint.Known() && !t.eventLines && req.Method != http.MethodDelete { // go-openai decodes the answer
		o.endpoint = dialect.Object()
	}
}

// prepare reads what the request asks for, checks it against the limits and lowers its output limit. The cheap
// rejections come first, so that a guard under overload does not copy or read bodies.
func (o *outgoing) prepare(ctx context.Context) error {
	req := o.req
	var asked dialect.Facts
	k, ok := req.Context().Value(knownKey{}).(*known)
	if ok && k.taken.CompareAndSwap(false, true) { // a request made in a callback with the same context is a separate one
		o.known, o.settings.live = k, k.live
		if o.settings.cfg.Budget != nil {
			o.read() // for the estimate of its tokens
		}
		o.settings = o.guard.requestSettings(req.Context(), k.live, k.op, k.Model, req.URL.Host, req.URL.Path)
		asked = k.Facts
	} else {
		o.useModel(o.endpoint.Model())
		if len(o.settings.cfg.Middleware) == 0 && o.guard.limiter.full.Load() {
			o.useModel(o.glance())
			if err := o.guard.refuseIfCrowded(ctx, &o.settings); err != nil {
				return err
			}
		}
		asked = o.read()
		o.useModel(asked.Model)
	}
	if e := &o.cost; o.settings.measured() && e.guess == 0 && e.input == 0 {
		o.estimateUnread()
	}
	o.judged = o.endpoint.Known() && !asked.Later
	o.stream = asked.Stream || accepts(req.Header, "text/event-stream") && !accepts(req.Header, "application/json")
	o.json = !o.stream && (o.judged && !o.endpoint.Plain() || accepts(req.Header, "application/json"))
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		o.safe = true
	case http.MethodPost:
		o.safe = o.endpoint.Repeatable(&asked)
	}
	return nil
}

// glanceBytes is the number of bytes of a body that are searched for the model before a full queue rejects the call.
const glanceBytes = 4 << 10

// glance returns the model named in the path or at the beginning of the body, or "".
func (o *outgoing) glance() string {
	if o.endpoint.Model() != "" || o.req.GetBody == nil {
		return o.endpoint.Model()
	}
	body, err := o.req.GetBody()
	if err != nil {
		return ""
	}
	o.seen = true
	defer body.Close()
	start, _ := io.ReadAll(io.LimitReader(body, glanceBytes)) // an error will come up again
	return o.endpoint.Read(start, nil).Model
}

// useModel sets the settings to those of a model.
func (o *outgoing) useModel(model string) {
	if o.settled && o.model == model {
		return
	}
	o.settled, o.model = true, model
	op := o.endpoint.Op()
	if op == "" {
		op = dialect.NameOf(o.req.URL.Path)
	}
	o.settings = o.guard.requestSettings(o.req.Context(), o.settings.live, op, model, o.req.URL.Host, o.req.URL.Path)
}

// accepts reports whether a request accepts this media type.
func accepts(h http.Header, media string) bool {
	for _, line := range h["Accept"] {
		if line == media { // most common
			return true
		}
		for part := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(part, ";")
			if !strings.EqualFold(strings.TrimSpace(name), media) {
				continue
			}
			q, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q=")
			weight, err := strconv.ParseFloat(q, 64)
			return !ok || err != nil || weight > 0
		}
	}
	return false
}

// read reads the request body with the endpoint's dialect. It sets flaw if the request is over a limit, and replaces
// the body if the output limit is lowered.
func (o *outgoing) read() dialect.Facts {
	r := o.endpoint.InPath()
	limit := o.settings.cfg.MaxRequestBytes
	if o.req.Body == nil || o.req.Body == http.NoBody || limit != Off && o.req.ContentLength > limit {
		return r
	}
	o.keep()
	v := view{of: o, use: (*view).understand, facts: r}
	o.withBody(&v)
	return v.facts
}

// withBody calls v.use with the request body, if that can be read without harm.
func (o *outgoing) withBody(v *view) {
	if o.req.GetBody == nil || field(o.req.Header, "Content-Encoding") != "" || strings.HasPrefix(mediaType(o.req.Header), "multipart/") {
		return
	}
	body, err := o.req.GetBody()
	if err != nil {
		return
	}
	o.seen = true
	defer body.Close()
	if w, ok := body.(io.WriterTo); ok && o.req.ContentLength > 0 {
		// A body from http.NewRequest writes all its bytes in one piece, so no copy is needed.
		v.size = o.req.ContentLength
		if _, err := w.WriteTo(v); err == nil && v.rest != nil && int64(len(v.rest)) == v.size {
			v.use(v, v.rest)
		}
		return
	}
	if data, over, err := readCapped(o.req.Context(), body, o.req.ContentLength, o.settings.cfg.MaxRequestBytes, nil); !over && err == nil {
		v.use(v, data)
	}
}

// view is a Writer that uses a body while it is being written.
type view struct {
	of   *outgoing
	use  func(v *view, data []byte) // a method of view, which needs no allocation
	size int64
	rest []byte // bytes, if they came in more than one piece

	facts dialect.Facts // set by understand
	late  estimate      // set by estimate
}

func (v *view) understand(data []byte) { v.facts = v.of.understand(data) }

func (v *view) estimate(data []byte) {
	o := v.of
	t := tally{count: true}
	r := o.endpoint.Read(data, t.part())
	e := o.estimateRead(&r.Facts, t.all, len(data), o.settings.outputLimit())
	e.complete, e.whole = v.late.complete, v.late.whole
	v.late = e
}

func (v *view) Write(p []byte) (int, error) {
	if int64(len(p)) == v.size && v.rest == nil {
		v.use(v, p)
		return len(p), nil
	}
	if int64(len(v.rest)+len(p)) > v.size {
		return 0, io.ErrShortWrite
	}
	v.rest = append(v.rest, p...)
	return len(p), nil
}

// keep buffers a small body that can be read only once, so that it can be read again. It reads a body of unknown
// length only for an endpoint that a dialect knows, because other clients may wait for an answer before they send the
// rest.
func (o *outgoing) keep() {
	n := o.req.ContentLength
	if o.req.GetBody != nil || n > maxKept || n <= 0 && !o.endpoint.Known() {
		return
	}
	once := o.req.Body
	defer context.AfterFunc(o.req.Context(), func() { once.Close() })() // the writer of the body may be stuck
	data, err := io.ReadAll(io.LimitReader(once, maxKept+1))
	req := o.req.WithContext(o.req.Context())
	o.req = req
	if err != nil || len(data) > maxKept || n > 0 && int64(len(data)) != n {
		rest := io.Reader(once)
		if err != nil {
			rest = failing{err}
		}
		req.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(data), rest), once}
		return
	}
	once.Close()
	o.setBody(data)
}

// failing is a Reader that always fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// setBody replaces the body of the request. The guard must own the request.
func (o *outgoing) setBody(data []byte) {
	o.req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	o.req.Body, _ = o.req.GetBody()
	o.req.ContentLength = int64(len(data))
	o.replayable = true
}

// copyBody reads the request's body. It reports false if that fails, and the first attempt then reports the error.
func (o *outgoing) copyBody(ctx context.Context) ([]byte, bool) {
	body, err := o.req.GetBody()
	if err != nil {
		return nil, false
	}
	o.seen = true
	defer body.Close()
	data, over, err := readCapped(ctx, body, o.req.ContentLength, o.settings.cfg.MaxRequestBytes, nil)
	return data, err == nil && !over
}

// closeUnsent closes the body of a request that was never sent, as a RoundTripper must.
func (o *outgoing) closeUnsent() {
	if !o.sent && o.req.Body != nil {
		o.req.Body.Close()
	}
}

// understand reads data, the body of the request.
func (o *outgoing) understand(data []byte) dialect.Facts {
	if !o.settings.models.Empty() { // limits may depend on the model, which may be named at the end
		o.useModel(o.endpoint.Read(data, nil).Model)
	}
	limits := o.settings.limits()
	t := tally{limits: limits, count: o.settings.measured()}
	r := o.endpoint.Read(data, t.part())
	if t.over() { // most prompts have fewer bytes than allowed characters
		t = tally{limits: limits, count: t.count, exact: true}
		r = o.endpoint.Read(data, t.part())
	}
	o.useModel(r.Model)
	if t.over() {
		o.flaw = promptTooLarge(&o.settings, PhasePrompt, int64(t.chars), int64(limits.chars))
	} else if limits.tokens > 0 && t.longest(limits.tokens) {
		o.flaw = o.countTokens(data)
	}
	if limits.output > 0 && o.flaw == nil {
		o.lower(data, &r, limits.output)
	}
	if t.count {
		o.cost = o.estimateRead(&r.Facts, t.all, len(data), limits.output)
	}
	return r.Facts
}

// estimateLate estimates a request whose attempt is over, because its answer does not report its usage. It returns
// otherwise if the body cannot be read.
func (o *outgoing) estimateLate(otherwise estimate) estimate {
	v := view{of: o, use: (*view).estimate, late: otherwise}
	o.withBody(&v)
	return v.late
}

// estimateRead returns how many tokens a request with that size of prompts can use. limit is the output limit of the
// settings.
func (o *outgoing) estimateRead(r *dialect.Facts, prompts int64, size, limit int) (e estimate) {
	e.input = prompts / bytesPerToken
	limited := o.endpoint.LimitsOutput()
	if !o.endpoint.Inference() && r.Model != "" { // whose prompts may be unknown
		e.input = max(e.input, int64(size)/bytesPerToken)
		limited = true
	}
	if limited {
		e.guess = outputGuess
		if e.output = r.Output; limit > 0 && (e.output == 0 || e.output > int64(limit)) {
			e.output = int64(limit)
		}
		e.output *= max(r.Choices, 1)
		e.guess *= int32(max(r.Choices, 1))
	}
	return e
}

// estimateUnread estimates a request whose body was not read, for example because it is too large. It skips forms, which
// contain files.
func (o *outgoing) estimateUnread() {
	if !o.endpoint.Inference() || strings.HasPrefix(mediaType(o.req.Header), "multipart/") {
		return
	}
	e := &o.cost
	e.input = max(o.req.ContentLength, 0) / bytesPerToken
	if o.endpoint.LimitsOutput() {
		e.guess = outputGuess
	}
}

// countTokens counts the tokens of a request if its size does not already show that it is within the limit.
func (o *outgoing) countTokens(data []byte) (flaw error) {
	var p prompt
	check := func() bool {
		if flaw == nil {
			flaw = o.settings.checkTokens(&p)
		}
		p = prompt{}
		return flaw == nil
	}
	o.endpoint.Read(data, func(part dialect.Part) bool {
		if part.New && !check() {
			return false
		}
		text, ok := jsonscan.Text(part.Value)
		if !ok {
			text = string(part.Value)
		}
		p.ids += part.IDs
		p.add(text)
		return true
	})
	check()
	return flaw
}

// lower lowers the output limit of the request to most, in a new body.
func (o *outgoing) lower(data []byte, r *dialect.Request, most int) {
	lowered, ok := o.endpoint.Lower(data, r, most)
	if len(lowered) == len(data) && (len(data) == 0 || &lowered[0] == &data[0]) {
		if ok || !jsonObject(data) {
			return
		}
	}
	if signed(o.req.Header) {
		o.flaw = &Error{Kind: ErrMisconfigured, Op: o.settings.Op, Model: r.Model, Phase: PhaseOutput, Max: int64(most)}
		return
	}
	closed := o.req.Body
	o.req = o.req.WithContext(o.req.Context())
	o.setBody(lowered)
	closed.Close()
	if o.req.Header.Get("Content-Length") != "" {
		o.req.Header = o.req.Header.Clone()
		o.req.Header.Del("Content-Length")
	}
}

func jsonObject(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

// signed reports whether a signature in the headers covers the body, which must not change then.
func signed(h http.Header) bool {
	return strings.HasPrefix(h.Get("Authorization"), "AWS4-") || h.Get("Content-Md5") != "" || h.Get("Content-Digest") != ""
}
