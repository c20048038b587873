package aiguard

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aiguard-go/aiguard/internal/answer"
	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// Caps that are the same for everybody.
const (
	maxEventBytes  = 1 << 20  // one event of a stream
	maxErrorBytes  = 64 << 10 // the body of a failure status
	maxHeaderBytes = 64 << 10

	errorBodyTimeout = 5 * time.Second // for the body of a failure: its status is known already
	bytesPerToken    = 4               // of a request, before its usage is known
	drainTimeout     = 50 * time.Millisecond
	drainBytes       = 64 << 10
)

// Transport returns a RoundTripper that gives every request sent through base the bounds of g: for any SDK that takes an
// http.Client. With base nil it uses a pooled transport that g owns and closes. It tells what a request asks for from
// its Accept header and body, as the OpenAI API has them: a JSON answer is read whole before it is handed over, a
// stream at its first event, other bodies as they come.
//
// A failure status is returned as an *Error, not as a response, and so is a 200 that is no answer. Redirects are not
// followed. Close every body: until then its answer counts as held. It retries by itself: switch the SDK's own retries
// off. MaxRequestBytes holds, but prompt and output tokens are the Client's: see CheckPrompt. Accept-Encoding is left to
// base, so that caps count what it decompresses. A base of the user's should limit its response headers as the pooled
// transport does.
func (g *Guard) Transport(base http.RoundTripper) http.RoundTripper {
	g.must("Transport")
	return &transport{guard: g, base: base, eventLines: true}
}

type transport struct {
	guard      *Guard
	base       http.RoundTripper // nil: the guard's pool
	eventLines bool              // hand on the event: lines of a stream
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the base.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.roundTripper().(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func (t *transport) roundTripper() http.RoundTripper {
	if t.base != nil {
		return t.base
	}
	return t.guard.pool
}

// RoundTrip sends req as one bounded call.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	x := t.newExchange(req)
	defer x.closeUnsent()
	ctx := req.Context()
	if len(t.guard.cfg.Middleware) == 0 {
		return x.run(ctx)
	}
	var resp *http.Response
	handedOver := false
	defer func() { // a Middleware may panic, too
		if resp != nil && !handedOver {
			resp.Body.Close()
		}
	}()
	err := t.guard.wrap(ctx, x.settings.Call, func(ctx context.Context) (err error) {
		resp, err = x.run(ctx)
		return err
	})
	if err == nil && resp == nil {
		err = errors.New("aiguard: a Middleware returned nil without an answer")
	}
	if err != nil {
		return nil, err
	}
	handedOver = true
	return resp, nil
}

// exchange is a request on its way through the transport.
type exchange struct {
	*transport
	settings settings
	call     *call // from run on
	req      *http.Request
	sent     bool // the base has had the body, and closes it
	seen     bool // GetBody has been used: some SDKs' returns the one body again and again

	endpoint   answer.Endpoint
	stream     bool // an event stream is asked for
	json       bool // a JSON answer is asked for
	safe       bool // a repeat does no work twice
	replayable bool
	conn       *connTrace // of this attempt: the hooks of the one before may still run
}

// known is what Client tells the transport of a request, which need not be read again then.
type known struct {
	op string
	answer.Request
	taken atomic.Bool // by the request that it describes
}

type knownKey struct{}

func (t *transport) newExchange(req *http.Request) *exchange {
	x := &exchange{transport: t, req: req}
	x.replayable = req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
	if req.Method == http.MethodPost {
		x.endpoint = answer.EndpointOf(req.URL.Path)
	}
	k, ok := req.Context().Value(knownKey{}).(*known)
	if !ok || !k.taken.CompareAndSwap(false, true) { // a request made in a callback, with the context of another, is its own
		k = &known{op: x.endpoint.Op()}
		if k.op == "" {
			k.op = opOf(req.URL.Path)
		}
		k.Request = x.readRequest()
	}
	accept := req.Header.Get("Accept")
	x.stream = k.Stream || strings.Contains(accept, "text/event-stream")
	x.json = !x.stream && (x.endpoint.JSON() || strings.Contains(accept, "application/json"))
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		x.safe = true
	case http.MethodPost:
		// That API stores an answer unless it is told not to.
		x.safe = x.endpoint.Inference() && !k.Creates && (x.endpoint != answer.Responses || k.Transient)
	}
	x.settings = t.guard.request(req.Context(), k.op, k.Model, req.URL.Host, req.URL.Path)
	return x
}

// readRequest reads from the body what Client would have told.
func (x *exchange) readRequest() (r answer.Request) {
	limit := x.guard.cfg.MaxRequestBytes
	if x.req.GetBody == nil || limit != Off && x.req.ContentLength > limit || !isJSON(mediaType(x.req.Header)) {
		return r
	}
	body, err := x.req.GetBody()
	if err != nil {
		return r
	}
	x.seen = true
	defer body.Close()
	data, over, err := readCapped(x.req.Context(), body, x.req.ContentLength, limit, nil)
	if over || err != nil {
		return r
	}
	if _, err = jsonscan.Check(data, answer.MaxShape); err != nil {
		return r
	}
	return answer.ReadRequest(data)
}

// opOf names a call by the first part of its path after the version: "models", "files".
func opOf(path string) string {
	if _, rest, ok := strings.Cut(path, "/v1/"); ok {
		path = rest
	}
	op, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return op
}

// closeUnsent closes the body of a request that never left, as a RoundTripper must.
func (x *exchange) closeUnsent() {
	if !x.sent && x.req.Body != nil {
		x.req.Body.Close()
	}
}

func (x *exchange) run(ctx context.Context) (*http.Response, error) {
	if err := x.guard.refuseIfCrowded(ctx, &x.settings); err != nil {
		return nil, err
	}
	c := x.guard.newCall(ctx, &x.settings)
	x.call = c
	c.tokens = max(float64(x.req.ContentLength), 0) / bytesPerToken
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	defer c.end()
	if limit := c.cfg.MaxRequestBytes; limit != Off && x.req.ContentLength > limit {
		return nil, c.finish(ctx, requestTooLarge(x.req.ContentLength, limit))
	}
	for {
		err := c.enter(ctx)
		if err == errQueue {
			err = c.queue(ctx)
		}
		if err == nil {
			var resp *http.Response
			if resp, err = x.attempt(ctx); err == nil {
				return resp, nil
			}
		}
		if err := c.again(ctx, err); err != nil {
			return nil, err
		}
	}
}

func requestTooLarge(size, limit int64) *Error {
	return &Error{Kind: ErrPromptTooLarge, Phase: phaseRequest, Size: size, Max: limit}
}

// attempt sends the request once and reads the answer, or opens the stream. The slot is free when it returns, and the
// call over if it succeeded, except for a body that is handed over: that keeps both.
func (x *exchange) attempt(ctx context.Context) (_ *http.Response, err error) {
	phase := phaseCall
	if x.stream {
		phase = phaseFirstEvent
	}
	w := x.call.watch(ctx, phase)
	handedOver := false
	defer func() {
		if !handedOver {
			w.stop()
			x.call.judge(ctx, err)
			x.call.free()
		}
	}()
	req, err := x.request(w)
	if err != nil {
		return nil, err
	}
	x.sent = true
	x.call.prompt, x.call.answer = max(req.ContentLength, 0), 0
	resp, err := x.roundTripper().RoundTrip(req)
	if err != nil {
		return nil, x.unanswered(w, err)
	}
	body := resp.Body
	defer func() {
		if !handedOver {
			body.Close()
		}
	}()
	x.call.limiter.tell(&x.call.permit, resp.Header)
	switch {
	case resp.StatusCode < 200, resp.StatusCode >= 400:
		return nil, x.refusal(w, resp)
	case resp.StatusCode >= 300, headerSize(resp.Header) > maxHeaderBytes, !x.decoded(resp):
		e := x.errorOf(resp, ErrInvalidResponse)
		e.Phase, e.retry = phaseHeaders, neverAsk
		return nil, e
	}
	if x.json {
		return x.whole(w, resp)
	}
	s := newStream(x, w, resp)
	defer func() {
		if !handedOver {
			s.held.release()
		}
	}()
	if err := s.open(); err != nil {
		return nil, err
	}
	handedOver = true
	return resp, nil
}

// request is the request of this attempt, with its own body.
func (x *exchange) request(w *watch) (*http.Request, error) {
	x.conn = new(connTrace)
	req := x.req.WithContext(httptrace.WithClientTrace(w, x.conn.hooks()))
	if x.req.GetBody != nil && (x.sent || x.seen) {
		x.closeUnsent()
		body, err := x.req.GetBody()
		if err != nil {
			return nil, &Error{Kind: ErrUnavailable, Err: err, retry: neverAsk}
		}
		req.Body = body
	}
	unknown := req.ContentLength <= 0 && req.Body != nil && req.Body != http.NoBody // net/http takes 0 for unknown too
	if limit := x.guard.cfg.MaxRequestBytes; unknown && limit != Off {
		req.Body = &requestBody{ReadCloser: req.Body, limit: limit}
	}
	if name := x.guard.cfg.DeadlineHeader; name != "" || req.Header.Get("Accept-Encoding") != "" {
		req.Header = req.Header.Clone()
		req.Header.Del("Accept-Encoding")
		if left, ok := x.call.left(w.caller); ok && name != "" {
			req.Header.Set(name, strconv.FormatFloat(max(left.Seconds(), 0), 'f', 3, 64))
		}
	}
	return req, nil
}

// requestBody stops a body of unknown length at the limit.
type requestBody struct {
	io.ReadCloser
	read, limit int64
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.read += int64(n); b.read > b.limit {
		return 0, requestTooLarge(b.read, b.limit)
	}
	return n, err
}

// connTrace notes how far a request came. Its hooks may run in net/http's goroutines.
type connTrace struct {
	trace                       httptrace.ClientTrace
	asked, got, reused, replied atomic.Bool
	conn                        atomic.Pointer[poolConn] // nil: not of the guard's own pool
}

func (t *connTrace) ended() bool {
	c := t.conn.Load()
	return c != nil && c.ended.Load()
}

func (t *connTrace) hooks() *httptrace.ClientTrace {
	t.trace = httptrace.ClientTrace{
		GetConn: func(string) { t.asked.Store(true) },
		GotConn: func(i httptrace.GotConnInfo) {
			t.got.Store(true)
			t.reused.Store(i.Reused)
			t.conn.Store(used(i.Conn))
		},
		GotFirstResponseByte: func() { t.replied.Store(true) },
	}
	return &t.trace
}

// unanswered classifies an attempt that brought no response.
func (x *exchange) unanswered(w *watch, err error) error {
	connected := x.conn.got.Load() || !x.conn.asked.Load() && !isDial(err)
	if end := w.failure(err); end != nil {
		if e := x.call.own(w.caller, end); e != nil {
			return x.repeatable(e, connected)
		}
		return end
	}
	var own *Error
	var ne net.Error
	switch {
	case errors.As(err, &own): // requestBody's
		copied := *own
		return &copied
	case errors.As(err, &ne) && ne.Timeout():
		e := &Error{Kind: ErrTimeout, Phase: phaseConnect, Limit: connectLimit(&x.guard.cfg), Err: err}
		if connected { // a limit of the user's own base
			e.Phase, e.Limit = phaseCall, x.call.since(x.call.admitted)
		}
		return x.repeatable(e, connected)
	case x.conn.replied.Load() && !isConnectionLoss(err) && !x.conn.ended(), isProtocolError(err):
		return &Error{Kind: ErrInvalidResponse, Phase: phaseHeaders, Err: err, retry: neverAsk} // not HTTP, or too much of it
	}
	e := &Error{Kind: ErrUnavailable, Err: err}
	if !connected {
		e.Phase = phaseConnect
	} else if x.conn.reused.Load() && !x.conn.replied.Load() {
		e.retry = retryAtOnce // the server closed a connection just as we took it from the pool
	}
	return x.repeatable(e, connected)
}

// repeatable notes on e what the request allows, beyond the kind: acted is false where the provider cannot have done
// anything yet.
func (x *exchange) repeatable(e *Error, acted bool) *Error {
	switch {
	case !x.replayable:
		e.retry = neverAsk
	case !acted:
		e.retry = mayRetry
	case !x.safe && e.retry != mayRetry && e.Kind != ErrRateLimited:
		e.retry = neverAsk
	}
	return e
}

func isDial(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &dns)
}

func isConnectionLoss(err error) bool {
	var op *net.OpError
	var reset streamError
	if errors.As(err, &reset) {
		return reset.Code != 1 // PROTOCOL_ERROR: what net/http could not follow
	}
	return errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// streamError is the shape in which net/http lets errors.As find the reset of an HTTP/2 stream.
type streamError struct {
	StreamID, Code uint32
	Cause          error
}

func (e streamError) Error() string { return fmt.Sprintf("stream reset with code %d", e.Code) }

// isProtocolError reports whether net/http gave up on a peer whose HTTP/2 it cannot follow, headers beyond the cap among
// them. It does not export the type of that error.
func isProtocolError(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if t := reflect.TypeOf(err); t.Kind() == reflect.Uint32 && strings.HasSuffix(t.Name(), "ConnectionError") {
			return true
		}
	}
	return false
}

// refusal classifies a failure status. Its body may explain it, but does not hold it up.
func (x *exchange) refusal(w *watch, resp *http.Response) error {
	var body []byte
	var over bool
	if w.limit(x.timeLeft(errorBodyTimeout), timeBound{phase: phaseErrorBody}) == nil {
		held := hold{room: &x.guard.memory.room}
		defer held.release()
		body, over, _ = readCapped(w, resp.Body, resp.ContentLength, maxErrorBytes, &held)
	}
	if w.caller.Err() != nil {
		return callctx.Err(w.caller)
	}
	f, said := answer.Failure{}, false
	if end, err := jsonscan.Check(body, answer.MaxShape); err == nil {
		f, said = answer.ErrorIn(body[:end])
	}
	e := x.errorOf(resp, kindOfProvider(resp.StatusCode, f, ErrUnavailable))
	e.RetryAfter = retryAfter(resp.Header, provider.Now(resp.Header))
	e.Err = providerCause(resp.StatusCode, f, said, body)
	if over && resp.Uncompressed { // a compressed error of this size is an attack, not an explanation
		e.Kind, e.Phase, e.Max = ErrResponseTooLarge, phaseErrorBody, maxErrorBytes
	}
	switch resp.StatusCode {
	case http.StatusServiceUnavailable, 529: // turned away: nothing was done
		e.retry = onlyIf(e.Kind == ErrUnavailable, mayRetry)
	}
	switch resp.Header.Get("X-Should-Retry") {
	case "true":
		e.retry = onlyIf(e.Kind == ErrUnavailable || e.Kind == ErrRateLimited, mayRetry)
	case "false":
		e.retry = neverAsk
	}
	return x.repeatable(e, true)
}

func onlyIf(ok bool, v verdict) verdict {
	if ok {
		return v
	}
	return byKind
}

// timeLeft is d, or what is left of the attempt if that is less.
func (x *exchange) timeLeft(d time.Duration) time.Duration {
	if end, _ := x.call.attemptDeadline(phaseErrorBody); end != 0 {
		return max(min(d, -x.call.since(end)), 0)
	}
	return d
}

func (x *exchange) errorOf(resp *http.Response, k Kind) *Error {
	return &Error{Kind: k, StatusCode: resp.StatusCode, RequestID: requestID(resp.Header)}
}

func requestID(h http.Header) string {
	for _, name := range [...]string{"X-Request-Id", "Request-Id", "Apim-Request-Id"} {
		if id := identifier(h.Get(name)); id != "" {
			return id
		}
	}
	return ""
}

// whole reads a JSON answer, all of it, so that whatever is wrong with it is this attempt's failure.
func (x *exchange) whole(w *watch, resp *http.Response) (*http.Response, error) {
	b := &wholeBody{hold: hold{room: &x.guard.memory.room}, call: x.call, ctx: w.caller}
	handedOver := false
	defer func() {
		if !handedOver {
			b.hold.release()
		}
	}()
	body, err := x.read(w, resp, &b.hold)
	if err != nil {
		return nil, err
	}
	end, err := x.judge(resp, body)
	if err != nil {
		return nil, err
	}
	body = body[:end]
	b.rest, resp.Body = body, b
	resp.ContentLength = int64(len(body))
	resp.TransferEncoding = nil
	resp.Header.Del("Content-Length") // of what was sent, before trimming
	var u Usage
	if x.guard.wantsUsage() {
		u.Input, u.Output = answer.Usage(body)
	}
	x.call.judge(w.caller, nil)
	x.call.succeed(w.caller, u)
	handedOver = true
	return resp, nil
}

// read reads a body to its end, within the cap and the room there is.
func (x *exchange) read(w *watch, resp *http.Response, held *hold) ([]byte, error) {
	limit := x.guard.cfg.MaxResponseBytes
	if limit != Off && resp.ContentLength > limit {
		return nil, x.tooLarge(resp, phaseResponse, limit)
	}
	body, over, err := readCapped(w, resp.Body, resp.ContentLength, limit, held)
	x.call.answer = int64(len(body))
	switch {
	case over:
		return nil, x.tooLarge(resp, phaseResponse, limit)
	case err == errNoRoom:
		return nil, x.noRoom(w, resp)
	case err == nil:
		return body, nil
	}
	if end := w.failure(err); end != nil {
		if e := x.call.own(w.caller, end); e != nil {
			return nil, x.repeatable(e, true)
		}
		return nil, end
	}
	return nil, x.broken(resp, err)
}

// broken is an answer whose bytes stopped with err.
func (x *exchange) broken(resp *http.Response, err error) *Error {
	kind := ErrTruncated
	var corrupt flate.CorruptInputError
	if errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.As(err, &corrupt) {
		kind = ErrInvalidResponse
	}
	e := x.errorOf(resp, kind)
	e.Err = err
	return x.repeatable(e, true)
}

func (x *exchange) tooLarge(resp *http.Response, phase string, limit int64) *Error {
	e := x.errorOf(resp, ErrResponseTooLarge)
	e.Phase, e.Max = phase, limit
	return e
}

// noRoom is an answer that others left no room for within the attempt's time. It is not asked for again: a second one
// would cost as much, and come to the same place.
func (x *exchange) noRoom(w *watch, resp *http.Response) error {
	if end := w.failure(context.Canceled); end != nil {
		if e := x.call.own(w.caller, end); e == nil || e.Kind != ErrTimeout {
			return end
		}
	}
	room := &x.guard.memory.room
	e := memoryError(room.bytes(), room.size)
	e.StatusCode, e.RequestID = resp.StatusCode, requestID(resp.Header)
	return e
}

func (x *exchange) invalid(resp *http.Response) *Error {
	return x.repeatable(x.errorOf(resp, ErrInvalidResponse), true)
}

// failed is the failure that a provider reports inside a success status.
func (x *exchange) failed(resp *http.Response, f answer.Failure, nameless Kind) *Error {
	e := x.errorOf(resp, kindOfProvider(0, f, nameless))
	e.Err = providerCause(resp.StatusCode, f, true, nil)
	return x.repeatable(e, true)
}

// judge decides whether body is the JSON answer that was asked for, and where in it the answer ends.
func (x *exchange) judge(resp *http.Response, body []byte) (end int, err error) {
	media := mediaType(resp.Header)
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		if x.endpoint != answer.Other || x.req.Method == http.MethodGet {
			return 0, x.invalid(resp)
		}
		return len(body), nil // a deletion needs no words
	case !x.endpoint.JSON() && x.endpoint != answer.Other && strings.HasPrefix(media, "text/") && media != "text/html":
		return len(body), nil // a transcript as text
	case !isJSON(media) && !isUntyped(media):
		return 0, x.invalid(resp)
	}
	end, err = jsonscan.Check(body, answer.MaxShape)
	switch {
	case errors.Is(err, jsonscan.ErrTooBig):
		return 0, x.tooLarge(resp, phaseShape, int64(answer.MaxShape.Containers))
	case errors.Is(err, jsonscan.ErrIncomplete):
		return 0, x.broken(resp, io.ErrUnexpectedEOF)
	case err != nil:
		return 0, x.invalid(resp)
	}
	f, failed, ok := answer.Judge(x.endpoint, body[:end])
	switch {
	case failed && x.endpoint == answer.Responses:
		return 0, x.failed(resp, f, ErrUnavailable)
	case failed:
		return 0, x.failed(resp, f, ErrInvalidResponse)
	case !ok:
		return 0, x.invalid(resp)
	}
	return end, nil
}

// errNoRoom ends a read whose buffer would be one too many.
var errNoRoom = errors.New("aiguard: no room for the answer")

// readCapped reads r to its end, or to limit: then over is true and the rest unread. Its buffer is counted in held, and
// may have to wait there; beyond 1 MiB it grows with what comes, whatever length was announced.
func readCapped(ctx context.Context, r io.Reader, announced, limit int64, held *hold) (body []byte, over bool, err error) {
	if limit == Off {
		limit = math.MaxInt64 - 1
	}
	size := int64(512)
	if announced >= 0 {
		size = min(announced, 1<<20) + 1 // Read tells of the end in a call of its own
	}
	for {
		if len(body) == cap(body) {
			if !held.grow(ctx, size) {
				return body, false, errNoRoom
			}
			body = append(make([]byte, 0, size), body...)
			size = grown(size, announced, limit)
		}
		n, err := r.Read(body[len(body):min(int64(cap(body)), limit+1)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return body[:limit], true, nil
		case err == io.EOF:
			return body, false, nil
		case err != nil:
			return body, false, err
		}
	}
}

// grown is the next size of a buffer of that many bytes: in few steps, and the last one to the limit or the end that was
// announced, since each leaves its buffer to the collector; append's would leave five times the body.
func grown(size, announced, limit int64) int64 {
	if announced > size && announced <= 8*size {
		return min(announced+512, limit+1)
	}
	if size < 1<<20 {
		size *= 8
	} else {
		size *= 2
	}
	if size > limit/2 {
		size = limit + 1
	}
	return size
}

// decoded reports whether the body comes as plain bytes, which caps can count: base undoes the compression it asked for.
func (x *exchange) decoded(resp *http.Response) bool {
	e := resp.Header.Get("Content-Encoding")
	return e == "" || strings.EqualFold(e, "identity")
}

func mediaType(h http.Header) string {
	value := h.Get("Content-Type")
	if value == "application/json" { // nearly always: spare the parser's work
		return value
	}
	media, _, err := mime.ParseMediaType(value)
	if err != nil {
		return ""
	}
	return media
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// isUntyped reports whether media is what servers that set no content type send: the bytes must tell.
func isUntyped(media string) bool {
	return media == "" || media == "text/plain" || media == "application/octet-stream"
}

func headerSize(h http.Header) (n int) {
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return n
}
