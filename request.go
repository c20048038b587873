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

// known is what Client tells the transport about a request, so that the transport need not read the request again.
type known struct {
	op   string
	live *live // the configuration that the prompt was checked with
	dialect.Request
	taken    atomic.Bool // by the request that it describes
	answered bool        // set by the transport: a good answer has come, even if go-openai cannot use it
}

type knownKey struct{}

func (t *transport) newExchange(req *http.Request) *exchange {
	x := &exchange{transport: t, req: req}
	x.settings.live = t.guard.current.Load()
	x.replayable = req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	x.endpoint = dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery)
	if !x.endpoint.Known() {
		if !t.eventLines && req.Method != http.MethodDelete { // go-openai decodes the answer
			x.endpoint = dialect.Object()
		}
	}
	return x
}

// prepare reads what the request asks for, checks it against the limits and lowers its output limit. The cheap
// rejections come first, so that a guard under overload does not copy or read bodies.
func (x *exchange) prepare(ctx context.Context) error {
	req := x.req
	k, ok := req.Context().Value(knownKey{}).(*known)
	if ok && k.taken.CompareAndSwap(false, true) { // a request made in a callback with the same context is a separate one
		x.known, x.settings.live = k, k.live
		if x.settings.cfg.Budget != nil {
			x.readRequest() // for the estimate of its tokens
		}
		x.settings = x.guard.request(req.Context(), k.live, k.op, k.Model, req.URL.Host, req.URL.Path)
	} else {
		x.settle(x.endpoint.Model())
		if cfg := &x.settings.cfg; len(cfg.Middleware) == 0 && cfg.MaxQueue != Off && x.guard.limiter.waiting.Load() >= int64(cfg.MaxQueue) {
			x.settle(x.glance())
			if err := x.guard.refuseIfCrowded(ctx, &x.settings); err != nil {
				return err
			}
		}
		k = &known{Request: x.readRequest()}
		x.settle(k.Model)
	}
	if e := &x.wire.estimate; x.settings.cfg.Budget != nil && e.guess == 0 && e.input == 0 {
		x.estimateUnread()
	}
	x.judged = x.endpoint.Known() && !k.Later
	x.stream = k.Stream || accepts(req.Header, "text/event-stream") && !accepts(req.Header, "application/json")
	x.json = !x.stream && (x.judged && !x.endpoint.Plain() || accepts(req.Header, "application/json"))
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		x.safe = true
	case http.MethodPost:
		x.safe = x.endpoint.Repeatable(&k.Request)
	}
	return nil
}

// glanceBytes is the number of bytes of a body that are searched for the model before a full queue rejects the call.
const glanceBytes = 4 << 10

// glance returns the model named in the path or at the beginning of the body, or "".
func (x *exchange) glance() string {
	if x.endpoint.Model() != "" || x.req.GetBody == nil {
		return x.endpoint.Model()
	}
	body, err := x.req.GetBody()
	if err != nil {
		return ""
	}
	x.seen = true
	defer body.Close()
	start, _ := io.ReadAll(io.LimitReader(body, glanceBytes)) // an error will come up again
	return x.endpoint.Read(start, nil).Model
}

// settle sets the settings to those of a model.
func (x *exchange) settle(model string) {
	op := x.endpoint.Op()
	if op == "" {
		op = dialect.NameOf(x.req.URL.Path)
	}
	x.settings = x.guard.request(x.req.Context(), x.settings.live, op, model, x.req.URL.Host, x.req.URL.Path)
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

// readRequest reads the request body with the endpoint's dialect, if that is possible without harm. It sets flaw if
// the request is over a limit, and replaces the body if the output limit is lowered.
func (x *exchange) readRequest() (r dialect.Request) {
	r = x.endpoint.Read(nil, nil) // what the path says
	limit := x.settings.cfg.MaxRequestBytes
	if x.req.Body == nil || x.req.Body == http.NoBody || limit != Off && x.req.ContentLength > limit {
		return r
	}
	x.keep()
	if x.req.GetBody == nil || x.req.Header.Get("Content-Encoding") != "" || strings.HasPrefix(mediaType(x.req.Header), "multipart/") {
		return r
	}
	body, err := x.req.GetBody()
	if err != nil {
		return r
	}
	x.seen = true
	defer body.Close()
	use := func(data []byte) { r = x.understand(data) }
	if w, ok := body.(io.WriterTo); ok && x.req.ContentLength > 0 {
		// A body from http.NewRequest writes all its bytes in one piece, so no copy is needed.
		v := &view{size: x.req.ContentLength, use: use}
		if _, err := w.WriteTo(v); err == nil && v.rest != nil && int64(len(v.rest)) == v.size {
			use(v.rest)
		}
		return r
	}
	if data, over, err := readCapped(x.req.Context(), body, x.req.ContentLength, limit, nil); !over && err == nil {
		use(data)
	}
	return r
}

// view is a Writer that uses a body while it is being written.
type view struct {
	size int64
	use  func([]byte)
	rest []byte // bytes, if they came in more than one piece
}

func (v *view) Write(p []byte) (int, error) {
	if int64(len(p)) == v.size && v.rest == nil {
		v.use(p)
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
func (x *exchange) keep() {
	n := x.req.ContentLength
	if x.req.GetBody != nil || n > maxKept || n <= 0 && !x.endpoint.Known() {
		return
	}
	once := x.req.Body
	defer context.AfterFunc(x.req.Context(), func() { once.Close() })() // the writer of the body may be stuck
	data, err := io.ReadAll(io.LimitReader(once, maxKept+1))
	req := x.req.WithContext(x.req.Context())
	x.req = req
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
	x.setBody(data)
}

// failing is a Reader that always fails.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// setBody replaces the body of the request. The exchange must own the request.
func (x *exchange) setBody(data []byte) {
	x.req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	x.req.Body, _ = x.req.GetBody()
	x.req.ContentLength = int64(len(data))
	x.replayable = true
}

// understand reads data, the body of the request.
func (x *exchange) understand(data []byte) dialect.Request {
	if x.settings.models.exact != nil { // limits may depend on the model, which may be named at the end
		x.settle(x.endpoint.Read(data, nil).Model)
	}
	limits := x.settings.limits()
	t := tally{limits: limits, count: x.settings.cfg.Budget != nil}
	r := x.endpoint.Read(data, t.part())
	x.settle(r.Model)
	if x.flaw = t.over(&x.settings); x.flaw == nil && limits.tokens > 0 && t.longest(limits.tokens) {
		x.flaw = x.countTokens(data)
	}
	if limits.output > 0 && x.flaw == nil {
		x.lower(data, &r, limits.output)
	}
	if t.count {
		x.estimate(&r, t.all, len(data), limits.output)
	}
	return r
}

// estimate records how many tokens a request with that size of prompts can use. limit is the output limit of the
// settings.
func (x *exchange) estimate(r *dialect.Request, prompts int64, size, limit int) {
	e := &x.wire.estimate
	e.input = prompts / bytesPerToken
	limited := x.endpoint.LimitsOutput()
	if !x.endpoint.Inference() && r.Model != "" { // whose prompts may be unknown
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
}

// estimateUnread notes what a request can use whose body was not read: it is too large, say. A form has a file in it.
func (x *exchange) estimateUnread() {
	if !x.endpoint.Inference() || strings.HasPrefix(mediaType(x.req.Header), "multipart/") {
		return
	}
	e := &x.wire.estimate
	e.input = max(x.req.ContentLength, 0) / bytesPerToken
	if x.endpoint.LimitsOutput() {
		e.guess = outputGuess
	}
}

// countTokens counts the tokens of a request if its size does not already show that it is within the limit.
func (x *exchange) countTokens(data []byte) (flaw error) {
	var p prompt
	check := func() bool {
		if flaw == nil {
			flaw = x.settings.checkTokens(&p)
		}
		p = prompt{}
		return flaw == nil
	}
	x.endpoint.Read(data, func(part dialect.Part) bool {
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
func (x *exchange) lower(data []byte, r *dialect.Request, most int) {
	lowered, ok := x.endpoint.Lower(data, r, most)
	if len(lowered) == len(data) && (len(data) == 0 || &lowered[0] == &data[0]) {
		if ok || !jsonObject(data) {
			return
		}
	}
	if signed(x.req.Header) {
		x.flaw = &Error{Kind: ErrMisconfigured, Op: x.settings.Op, Model: r.Model, Phase: PhaseOutput, Max: int64(most)}
		return
	}
	closed := x.req.Body
	x.req = x.req.WithContext(x.req.Context())
	x.setBody(lowered)
	closed.Close()
	if x.req.Header.Get("Content-Length") != "" {
		x.req.Header = x.req.Header.Clone()
		x.req.Header.Del("Content-Length")
	}
}

func jsonObject(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{"))
}

// signed reports whether a signature in the headers covers the body, which must not change then.
func signed(h http.Header) bool {
	return strings.HasPrefix(h.Get("Authorization"), "AWS4-") || h.Get("Content-Md5") != "" || h.Get("Content-Digest") != ""
}
