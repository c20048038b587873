package aiguard

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aiguard-go/aiguard/internal/callctx"
	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/errtree"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/provider"
)

// Caps that are the same for everybody.
const (
	maxErrorBytes  = 64 << 10 // the body of a failure status
	maxHeaderBytes = 64 << 10

	errorBodyTimeout = 5 * time.Second // for the body of a failure: its status is known already
	bytesPerToken    = 4               // of a request, before its usage is known
	drainTimeout     = 50 * time.Millisecond
	drainBytes       = 64 << 10
)

// Transport returns a RoundTripper that gives every request sent through base the bounds of g: for any SDK that takes an
// http.Client. With base nil it uses a pooled transport that g owns and closes.
//
// It knows the APIs of OpenAI (and those who speak it), Anthropic, Gemini, Bedrock, Cohere and Ollama, under any base URL.
// Their prompts are checked and their output limits lowered as Config says. Their answers in JSON are read whole before
// they are handed over, their streams at the first event that brings the answer forward, and both are judged: a cut answer
// is never a complete one. Other endpoints pass through unchanged and unjudged, within the bounds of time and size. A body
// without GetBody is kept if it has no more than 1 MiB, so that it can be read and sent again; a longer one is sent once,
// and its prompt is not checked.
//
// When the provider answers with a failure status and the guard gives up on it, RoundTrip returns that response, so that the
// SDK makes its own error of it: status and headers as they came, at most 64 KiB of the body, and "X-Should-Retry: false",
// which SDKs heed that know it. Explain, KindOf, UserMessage and HTTPStatus understand the SDK's error. Failures of the
// guard's own are *Errors: time, queue, sizes, a cut answer, an error inside a 200. Config.FailuresAsResponses makes
// responses of those too. A Middleware that replaces or wraps the error has the last word: then RoundTrip returns its error.
//
// RoundTrip retries by itself: switch the SDK's own retries off. It answers a repeat that carries the SDK's retry count from
// the failure before, and logs one warning. Close every body: until then its answer counts as held. A base of the user's
// should limit its response headers as the pooled transport does.
//
// RoundTrip keeps the contract of http.RoundTripper as http.Transport does, but for these differences:
//
//	Accept-Encoding      is left to base, so that caps count what it decompresses
//	a redirect           (301, 302, 303, 307, 308) is an error: http.Client would send prompt and key elsewhere
//	a JSON answer        is read whole before it is returned, and what follows the JSON is dropped; its Content-Length is set
//	an event stream      is returned at its first event, with whole events and without comments
//	a failure status     has at most 64 KiB of body
//	response headers     above 64 KiB, and bodies in an encoding that base does not undo, are an error
//	a request's body     that can be read only once is read before it is sent, up to 1 MiB; a larger one is sent once
//	101                  ends at StreamTimeout at the latest
//	Response.Request     is the request given to RoundTrip; for a failure a copy whose context carries the facts
func (g *Guard) Transport(base http.RoundTripper) http.RoundTripper {
	g.must("Transport")
	return &transport{guard: g, base: base, eventLines: true}
}

// HTTPClient returns an http.Client over Transport(nil), for any SDK that takes one.
func (g *Guard) HTTPClient() *http.Client { return &http.Client{Transport: g.Transport(nil)} }

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
	if err := incomplete(req); err != nil {
		return nil, err
	}
	bounded, stop := callctx.Heed(req)
	x := t.newExchange(bounded)
	x.original = req
	// go-openai's users want the error. A cache may be between the Client and this transport.
	x.responses = t.eventLines && req.Context().Value(knownKey{}) == nil
	defer x.closeUnsent()
	resp, err := x.do(bounded.Context())
	if body, ok := openBody(resp); ok {
		context.AfterFunc(body.w, stop)
	} else {
		stop()
	}
	return resp, err
}

// do is RoundTrip with a request whose context is the caller's whole patience.
func (x *exchange) do(ctx context.Context) (*http.Response, error) {
	if e := x.repeated(ctx); e != nil {
		return x.outcome(ctx, e)
	}
	resp, err := x.wrapped(ctx)
	if err == nil {
		resp.Request = x.original
		return resp, nil
	}
	if e, ok := err.(*Error); ok && ctx.Err() == nil {
		x.remember(e)
	}
	return x.outcome(ctx, err)
}

// wrapped runs the call inside the middleware.
func (x *exchange) wrapped(ctx context.Context) (*http.Response, error) {
	if err := x.prepare(ctx); err != nil {
		return nil, err
	}
	if len(x.guard.cfg.Middleware) == 0 {
		return x.run(ctx)
	}
	var resp *http.Response
	handedOver := false
	defer func() { // a Middleware may panic, too
		if resp != nil && !handedOver {
			resp.Body.Close()
		}
	}()
	err := x.guard.wrap(ctx, x.settings.Call, func(ctx context.Context) (err error) {
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
	wire     wire
	req      *http.Request
	original *http.Request // req as the caller gave it
	said     *Error        // the last refusal of the provider
	sent     bool          // the base has had the body, and closes it
	seen     bool          // GetBody has been used: some SDKs' returns the one body again and again

	endpoint   dialect.Endpoint
	judged     bool           // the endpoint's dialect judges the answer
	stream     bool           // a stream seems to be asked for
	json       bool           // a JSON answer seems to be asked for
	verdict    dialect.Stream // the memory for one
	flaw       error          // why the request must not be sent
	known      *known         // what Client told
	safe       bool           // a repeat does no work twice
	replayable bool
	responses  bool       // failures become responses
	conn       *connTrace // of this attempt: the hooks of the one before may still run
}

// closeUnsent closes the body of a request that never left, as a RoundTripper must.
func (x *exchange) closeUnsent() {
	if !x.sent && x.req.Body != nil {
		x.req.Body.Close()
	}
}

func (x *exchange) run(ctx context.Context) (*http.Response, error) {
	if x.flaw != nil {
		return nil, x.guard.refuse(ctx, &x.settings, x.flaw)
	}
	if err := x.guard.refuseIfCrowded(ctx, &x.settings); err != nil {
		return nil, err
	}
	c := x.guard.newCall(ctx, &x.settings)
	x.call = c
	c.wire = &x.wire
	c.wire.tokens = max(float64(x.req.ContentLength), 0) / bytesPerToken
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
			if resp, err = x.send(ctx); err == nil {
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
			if err != nil { // after a panic err is nil, and whole has judged a complete answer itself
				x.call.judge(ctx, err)
			}
			x.call.free()
		}
	}()
	req, err := x.request(w)
	if err != nil {
		return nil, err
	}
	x.sent = true
	x.wire.prompt, x.wire.answer = max(req.ContentLength, 0), 0
	resp, err := x.roundTripper().RoundTrip(req)
	if err == nil {
		err = mended(x.roundTripper(), resp)
	} else if resp != nil && resp.Body != nil {
		resp.Body.Close()
	}
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
	case resp.StatusCode == http.StatusSwitchingProtocols:
		if err := x.upgrade(w, resp); err != nil {
			return nil, err
		}
		handedOver = true
		return resp, nil
	case resp.StatusCode < 200, resp.StatusCode >= 400:
		return nil, x.refusal(w, resp)
	case x.bodiless(resp):
		x.call.judge(ctx, nil)
		x.call.succeed(ctx, Usage{})
		resp.Body = http.NoBody
		return resp, nil
	case resp.StatusCode >= 300, headerSize(resp.Header) > maxHeaderBytes, !x.decoded(resp):
		e := x.errorOf(resp, ErrInvalidResponse)
		e.Phase, e.retry = phaseHeaders, neverAsk
		return nil, e
	}
	if x.isWhole(resp) {
		return x.whole(w, resp)
	}
	s := newStream(x, w, resp)
	defer func() {
		if !handedOver {
			s.held.release()
		}
	}()
	switch err := s.open(); err {
	case nil:
		handedOver = true
		return resp, nil
	case errNoStream:
		s.held.release()
		return x.whole(w, resp)
	default:
		return nil, err
	}
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
	if name := x.guard.cfg.DeadlineHeader; name != "" || !x.keepsRequests() || req.Header.Get("Accept-Encoding") != "" {
		// A base may edit its request, although a RoundTripper must not: each attempt has its own URL and header.
		url := *req.URL
		req.URL, req.Header = &url, req.Header.Clone()
		req.Header.Del("Accept-Encoding")
		if left, ok := x.call.left(w.caller); ok && name != "" {
			req.Header.Set(name, strconv.FormatFloat(max(left.Seconds(), 0), 'f', 3, 64))
		}
	}
	return req, nil
}

// openBody returns the stream that a response's body is, if it is one.
func openBody(resp *http.Response) (*stream, bool) {
	if resp == nil {
		return nil, false
	}
	switch body := resp.Body.(type) {
	case *stream:
		return body, true
	case *upgraded:
		return body.stream, true
	}
	return nil, false
}

// keepsRequests reports whether the base is known to leave its request as it is.
func (t *transport) keepsRequests() bool {
	switch t.base.(type) {
	case nil, *http.Transport:
		return true
	}
	return false
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
	ne := errtree.Find[net.Error](err)
	switch own := errtree.Find[*Error](err); {
	case own != nil: // requestBody's
		copied := *own
		return &copied
	case !x.conn.asked.Load() && !sendable(x.req.URL), refusedBeforehand(err):
		return &Error{Kind: ErrMisconfigured, Phase: phaseConnect, Err: err, retry: neverAsk}
	case ne != nil && timedOut(ne):
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

// sendable reports whether a URL has what every transport needs.
func sendable(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// refusedBeforehand reports whether a base was refused what it needs before it sends anything, such as a fresh token: its
// error has the response that says so. golang.org/x/oauth2's has that form.
func refusedBeforehand(err error) bool {
	for ; !errtree.IsNil(err); err = errors.Unwrap(err) {
		v := reflect.ValueOf(err)
		if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
			continue
		}
		field := v.Elem().FieldByName("Response")
		if !field.IsValid() || !field.CanInterface() {
			continue
		}
		if resp, _ := field.Interface().(*http.Response); resp != nil {
			switch resp.StatusCode {
			case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
				return true
			}
		}
	}
	return false
}

func isDial(err error) bool {
	op := errtree.Find[*net.OpError](err)
	return op != nil && op.Op == "dial" || errtree.Has[*net.DNSError](err)
}

func isConnectionLoss(err error) bool {
	if reset := errtree.Find[streamError](err); reset.StreamID != 0 {
		return reset.Code != 1 // PROTOCOL_ERROR: what net/http could not follow
	}
	for _, loss := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, io.ErrClosedPipe, syscall.ECONNRESET, syscall.EPIPE} {
		if errtree.Is(err, loss) {
			return true
		}
	}
	return errtree.Has[*net.OpError](err)
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
	for ; !errtree.IsNil(err); err = errors.Unwrap(err) {
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
	f, said := dialect.Failure{}, false
	if end, err := jsonscan.Check(body, dialect.MaxShape); err == nil {
		f, said = dialect.Refusal(body[:end])
	}
	if exception, _, _ := strings.Cut(resp.Header.Get("X-Amzn-Errortype"), ":"); f.InnerCode == "" {
		f.InnerCode = exception
	}
	e := x.errorOf(resp, kindOfProvider(resp.StatusCode, f, ErrUnavailable))
	if resp.StatusCode == http.StatusNotFound && !x.endpoint.Known() && e.Kind == ErrMisconfigured && dialect.Classify(resp.StatusCode, f) == "" {
		e.Kind = ErrRejected // what was asked for is not there
	}
	if e.RetryAfter = retryAfter(resp.Header, provider.Now(resp.Header)); e.RetryAfter == 0 {
		e.RetryAfter = f.RetryAfter
	}
	e.Err = providerCause(resp.StatusCode, f, said, body)
	if over && resp.Uncompressed { // a compressed error of this size is an attack, not an explanation
		e.Kind, e.Phase, e.Max = ErrResponseTooLarge, phaseErrorBody, maxErrorBytes
	} else if resp.StatusCode >= 400 {
		e.refusal = &refusal{resp, body}
		x.said = e
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

// read reads a body to its end, within the cap and the room there is.
func (x *exchange) read(w *watch, resp *http.Response, held *hold) ([]byte, error) {
	limit := x.guard.cfg.MaxResponseBytes
	if limit != Off && resp.ContentLength > limit {
		return nil, x.tooLarge(resp, phaseResponse, limit)
	}
	body, over, err := readCapped(w, resp.Body, resp.ContentLength, limit, held)
	x.wire.answer = int64(len(body))
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
	if errtree.Is(err, gzip.ErrHeader) || errtree.Is(err, gzip.ErrChecksum) || errtree.Has[flate.CorruptInputError](err) {
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
	e := x.errorOf(resp, ErrInvalidResponse)
	if media := mediaType(resp.Header); media != "" {
		e.Err = contentType(media)
	}
	return x.repeatable(e, true)
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
	return e == "" || strings.EqualFold(e, "identity") || strings.EqualFold(e, "none")
}

func headerSize(h http.Header) (n int) {
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(v) + 4
		}
	}
	return n
}
