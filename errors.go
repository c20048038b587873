package aiguard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/dialect"
)

// Kind says why a call failed. It is itself an error, for errors.Is:
//
//	if errors.Is(err, aiguard.ErrTimeout) { … }
//
// For JSON and metric labels there is string(kind): "timeout".
type Kind string

// The kinds of failure. HTTPStatus tells what each becomes at the edge of a web service.
const (
	ErrTimeout          Kind = "timeout"            // one of our deadlines ran out
	ErrOverloaded       Kind = "overloaded"         // queue full, queue wait over, memory limit, weight above capacity
	ErrClosed           Kind = "closed"             // after Shutdown or Close
	ErrPromptTooLarge   Kind = "prompt_too_large"   // our limit before sending, or the provider's: context length, 413
	ErrResponseTooLarge Kind = "response_too_large" // body, event, error body or JSON shape over its cap
	ErrTruncated        Kind = "truncated"          // the answer ended before it was complete
	ErrRateLimited      Kind = "rate_limited"       // 429 that is not quota
	ErrQuota            Kind = "quota_exceeded"     // 402; the account's quota, billing or spend limit
	ErrUnavailable      Kind = "unavailable"        // connection failed, 408, 409, 5xx
	ErrUnauthorized     Kind = "unauthorized"       // 401, 403
	ErrMisconfigured    Kind = "misconfigured"      // wrong base URL, unknown model or deployment, revoked token
	ErrRejected         Kind = "rejected"           // any other 4xx, content policy
	ErrInvalidResponse  Kind = "invalid_response"   // a success status that is no answer
)

// Error returns the kind's name.
func (k Kind) Error() string { return "aiguard: " + string(k) }

// Error is a failed call: the class in Kind, the facts in the other fields. The zero value of a
// field means that it does not apply or is not known.
//
// errors.Is(err, e.Kind) holds, and so does errors.Is(err, context.DeadlineExceeded) for ErrTimeout;
// errors.As reaches the cause. The text of Error is for operators and logs: it has no words of the
// provider, of a prompt or of an answer. For users there is UserMessage.
type Error struct {
	Kind       Kind
	Op, Model  string        // what was called
	Phase      string        // the bound or step that failed: "queue", "call", "first_event", "stream_idle", "stream", "total", "task", …
	Limit      time.Duration // the bound that ran out; sizes have Size and Max
	Size, Max  int64         // how big it was and how big it may be; the unit goes with Phase
	StatusCode int           // the provider's HTTP status
	RequestID  string        // the provider's x-request-id
	RetryAfter time.Duration // when it is worth trying again; 0: unknown
	Attempts   int           // attempts made, the first included; 0: refused before the first

	Queued, Backoff, InFlight time.Duration // where the time went

	Err error // the cause: *openai.APIError, *openai.RequestError, a net or context error…

	retry    verdict
	judged   bool   // a route has been told
	route    *route // that is not open yet: phases pause and pace
	expected bool   // phase queue: refused without waiting for Limit
	outrun   bool   // phase queue: newer calls went first
	setting  string // that allows more
}

// verdict is what the layer that saw a failure knows about repeating it, beyond its Kind.
type verdict int8

const (
	byKind      verdict = iota
	mayRetry            // the provider cannot have acted
	neverAsk            // repeating is useless, or might do the work twice
	retryAtOnce         // as mayRetry, and without backoff: the connection was stale, not the provider busy
)

// Phases: the bound or the step an Error speaks of.
const (
	phasePrompt     = "prompt"        // Size and Max in characters
	phaseTokens     = "prompt_tokens" // in tokens
	phaseRequest    = "request"       // in bytes
	phaseOutput     = "output_tokens" // Max in tokens
	phaseWeight     = "weight"        // Call.Weight against MaxConcurrent
	phaseQueue      = "queue"         // Size and Max in calls waiting
	phaseMemory     = "memory"        // in bytes of live heap, or of answers held
	phasePause      = "pause"
	phasePace       = "pace"
	phaseOutage     = "outage"
	phaseConnect    = "connect"
	phaseHeaders    = "headers"
	phaseCall       = "call"
	phaseFirstEvent = "first_event"
	phaseIdle       = "stream_idle"
	phaseStream     = "stream"
	phaseResponse   = "response"   // in bytes
	phaseEvent      = "event"      // one line of a stream, in bytes
	phaseShape      = "json_shape" // JSON objects and arrays
	phaseErrorBody  = "error_body"
	phaseTotal      = "total"
	phaseShare      = "share" // of the caller's time: an alternative of Fallback
	phaseTask       = "task"
)

// Error returns one line for operators: what was called, which bound ran out or what the provider's
// status was, the attempts and where the time went.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("aiguard: ")
	if e.Op != "" || e.Model != "" {
		b.WriteString(strings.TrimSpace(short(e.Op) + " " + short(e.Model)))
		b.WriteString(": ")
	}
	b.WriteString(string(e.Kind))
	if d := e.detail(); d != "" {
		b.WriteString(": " + d)
	}
	if e.StatusCode != 0 {
		fmt.Fprintf(&b, ", status %d", e.StatusCode)
	}
	if e.RequestID != "" {
		b.WriteString(", request " + identifier(e.RequestID))
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, ", retry after %v", round(e.RetryAfter))
	}
	if e.Attempts > 0 || e.Queued > 0 {
		fmt.Fprintf(&b, " (attempts %d, queued %v, backoff %v, in flight %v)",
			e.Attempts, round(e.Queued), round(e.Backoff), round(e.InFlight))
	}
	if t := e.causeText(); t != "" {
		b.WriteString(": " + t)
	}
	return b.String()
}

// detail puts the bound of e.Phase into words.
func (e *Error) detail() string {
	limit := e.Limit.String()
	switch e.Phase {
	case phasePrompt:
		return fmt.Sprintf("prompt of %d characters, limit %d", e.Size, e.Max)
	case phaseTokens:
		return fmt.Sprintf("prompt of %d tokens, limit %d", e.Size, e.Max)
	case phaseRequest:
		return fmt.Sprintf("request of %d bytes, limit %d", e.Size, e.Max)
	case phaseOutput:
		return fmt.Sprintf("the output limit cannot be set to %d tokens in a signed request; set it before signing", e.Max)
	case phaseWeight:
		return fmt.Sprintf("weight %d is above the capacity %d", e.Size, e.Max)
	case phaseQueue:
		switch {
		case e.expected:
			return "no slot expected within " + limit
		case e.outrun:
			return "overload, newer calls go first"
		case e.Limit > 0:
			return "no slot within " + limit
		}
		return fmt.Sprintf("queue full: %d waiting, limit %d", e.Size, e.Max)
	case phaseMemory:
		return fmt.Sprintf("memory in use %d bytes, limit %d", e.Size, e.Max)
	case phasePause:
		return "the provider asked for a pause"
	case phasePace:
		return "the rate limit leaves no room in time"
	case phaseOutage:
		return "the provider is down, not sent"
	case phaseShare:
		return "no answer within " + limit + ", this alternative's share of the caller's time"
	case phaseConnect:
		if e.Limit > 0 {
			return "no connection within " + limit
		}
		return "no connection"
	case phaseHeaders:
		return "response headers not acceptable"
	case phaseCall:
		return "no complete answer within " + limit + e.allowance()
	case phaseFirstEvent:
		return "no first event within " + limit + e.allowance()
	case phaseIdle:
		return "no event for " + limit
	case phaseStream:
		if e.Limit > 0 {
			return "stream longer than " + limit
		}
	case phaseTotal:
		return "queue, attempts and backoff took longer than " + limit + e.allowance()
	case phaseTask:
		return "task ran longer than " + limit
	case phaseResponse:
		if e.Max > 0 {
			return fmt.Sprintf("answer of more than %d bytes", e.Max)
		}
	case phaseEvent:
		return fmt.Sprintf("event of more than %d bytes", e.Max)
	case phaseShape:
		return "JSON of too many or too deep objects"
	case phaseErrorBody:
		return fmt.Sprintf("error body of more than %d bytes", e.Max)
	}
	return ""
}

// allowance names the setting that would allow more.
func (e *Error) allowance() string {
	if e.setting == "" {
		return ""
	}
	return " (" + e.setting + ")"
}

// causeText describes the cause without a word that came from the provider or the caller: what wraps an error may quote
// a prompt, net/http quotes a malformed answer, and a URL may have a key in it.
func (e *Error) causeText() string {
	if e.Err == nil {
		return ""
	}
	_, by, _ := classify(e.Err)
	switch by := by.(type) {
	case nil:
	case *openai.APIError:
		return strings.TrimSpace("provider error " + identifier(codeText(by.Code)) + " " + identifier(by.Type))
	case *openai.RequestError:
		return ""
	case *Error:
		return short(by.Error())
	case Kind, syscall.Errno:
		return by.Error()
	case *net.DNSError:
		return "lookup " + short(by.Name) + " failed"
	case *net.OpError:
		return strings.TrimSpace(short(by.Op + " " + by.Net + ": " + reason(by)))
	default:
		switch by {
		case context.Canceled, context.DeadlineExceeded, io.ErrUnexpectedEOF, net.ErrClosed:
			return by.Error()
		}
	}
	return reason(e.Err)
}

// reason names what a failed connection may be reduced to: an errno, an end of file, or the type of the innermost error.
func reason(err error) string {
	var errno syscall.Errno
	var ne net.Error
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF):
		return io.EOF.Error()
	case errors.As(err, &ne) && ne.Timeout():
		return "i/o timeout"
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return fmt.Sprintf("%T", err)
}

// Is makes errors.Is hold for the Kind and, for ErrTimeout, for context.DeadlineExceeded.
func (e *Error) Is(target error) bool {
	return target == e.Kind || e.Kind == ErrTimeout && target == context.DeadlineExceeded
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether a deadline of ours ran out, as net.Error has it.
func (e *Error) Timeout() bool { return e.Kind == ErrTimeout }

// LogValue returns the facts as a group: no provider text, prompt or key.
func (e *Error) LogValue() slog.Value { return slog.GroupValue(e.attrs()...) }

func (e *Error) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 12)
	add := func(key string, v slog.Value, zero bool) {
		if !zero {
			attrs = append(attrs, slog.Attr{Key: key, Value: v})
		}
	}
	add("kind", slog.StringValue(string(e.Kind)), false)
	add("op", slog.StringValue(short(e.Op)), e.Op == "")
	add("model", slog.StringValue(short(e.Model)), e.Model == "")
	add("phase", slog.StringValue(short(e.Phase)), e.Phase == "")
	add("limit", slog.DurationValue(e.Limit), e.Limit == 0)
	add("size", slog.Int64Value(e.Size), e.Size == 0)
	add("max", slog.Int64Value(e.Max), e.Max == 0)
	add("status", slog.IntValue(e.StatusCode), e.StatusCode == 0)
	add("request_id", slog.StringValue(identifier(e.RequestID)), e.RequestID == "")
	add("retry_after", slog.DurationValue(e.RetryAfter), e.RetryAfter == 0)
	add("attempts", slog.IntValue(e.Attempts), e.Attempts == 0)
	add("queued", slog.DurationValue(e.Queued), e.Queued == 0)
	add("backoff", slog.DurationValue(e.Backoff), e.Backoff == 0)
	add("in_flight", slog.DurationValue(e.InFlight), e.InFlight == 0)
	if t := e.causeText(); t != "" {
		add("cause", slog.StringValue(t), false)
	}
	return attrs
}

// KindOf classifies any error: an *Error or Kind, a raw *openai.APIError or *openai.RequestError (by the provider's code
// first, its status second), and errors of net and net/http, however wrapped; of joined errors the first that it knows.
// It returns "" for nil, for errors it does not know, and for the caller's own cancellation or deadline, which are never
// a failure of the call.
func KindOf(err error) Kind {
	k, _, _ := classify(err)
	return k
}

// classify returns the kind of err and the error in its tree that has it. known is false where another branch of the
// tree may know better; the caller's own end is known, and no kind.
func classify(err error) (k Kind, by error, known bool) {
	switch e := err.(type) {
	case nil:
		return "", nil, false
	case *Error:
		return e.Kind, e, true
	case Kind:
		return e, e, true
	case *openai.APIError:
		return kindOfProvider(e.HTTPStatusCode, apiFailure(e), ErrUnavailable), e, true
	case *openai.RequestError:
		var said *openai.APIError
		switch {
		case e.HTTPStatusCode == 0: // what it wraps knows more
		case errors.As(e.Err, &said):
			return kindOfProvider(e.HTTPStatusCode, apiFailure(said), ErrUnavailable), e, true
		default:
			return kindOfStatus(e.HTTPStatusCode), e, true
		}
	case *net.DNSError:
		return ErrUnavailable, e, true
	case *net.OpError: // before what it wraps: the net package's own time-outs call themselves context.DeadlineExceeded
		if e.Timeout() {
			return ErrTimeout, e, true
		}
		return ErrUnavailable, e, true
	case syscall.Errno:
		switch e {
		case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.ETIMEDOUT,
			syscall.ENETUNREACH, syscall.EHOSTUNREACH:
			return ErrUnavailable, e, true
		}
	}
	switch err {
	case context.Canceled, context.DeadlineExceeded:
		return "", err, true
	case io.ErrUnexpectedEOF:
		return ErrTruncated, err, true
	case net.ErrClosed:
		return ErrUnavailable, err, true
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		k, by, known = classify(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, branch := range e.Unwrap() {
			if k, by, known = classify(branch); known {
				break
			}
		}
	}
	if ne, ok := err.(net.Error); ok && !known { // an *url.Error among them: the exchange itself failed
		if ne.Timeout() {
			return ErrTimeout, err, true
		}
		return ErrUnavailable, err, true
	}
	return k, by, known
}

// kindOfProvider classifies a provider's failure: by what it says, then by its status. nameless is the kind where it has
// neither: an error without a name inside a 200.
func kindOfProvider(status int, f dialect.Failure, nameless Kind) Kind {
	if k := kindOfClass(dialect.Classify(status, f)); k != "" {
		return k
	}
	if status != 0 && status != http.StatusOK {
		return kindOfStatus(status)
	}
	if n, err := strconv.Atoi(f.Code); err == nil && n >= 400 && n < 600 {
		return kindOfStatus(n)
	}
	return nameless
}

func kindOfClass(c dialect.Class) Kind {
	switch c {
	case dialect.Quota:
		return ErrQuota
	case dialect.RateLimited:
		return ErrRateLimited
	case dialect.PromptTooLarge:
		return ErrPromptTooLarge
	case dialect.Unavailable:
		return ErrUnavailable
	case dialect.Unauthorized:
		return ErrUnauthorized
	case dialect.Misconfigured:
		return ErrMisconfigured
	case dialect.Rejected, dialect.ContentPolicy:
		return ErrRejected
	}
	return ""
}

func kindOfStatus(status int) Kind {
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return ErrUnauthorized
	case status == http.StatusTooManyRequests:
		return ErrRateLimited
	case status == http.StatusPaymentRequired:
		return ErrQuota
	case status == http.StatusRequestEntityTooLarge:
		return ErrPromptTooLarge
	case status == http.StatusNotFound:
		return ErrMisconfigured
	case status == http.StatusRequestTimeout, status == http.StatusConflict, status >= 500:
		return ErrUnavailable
	case status >= 400:
		return ErrRejected
	}
	return ErrInvalidResponse
}

// UserMessage returns a sentence in English that is safe to show to a user, whatever err is: it never
// has a word of the provider, of a prompt or of a key. It is "" for nil.
func UserMessage(err error) string {
	if err == nil {
		return ""
	}
	k, by, _ := classify(err)
	e, _ := by.(*Error)
	switch k {
	case ErrTimeout:
		if e != nil && e.Phase == phaseTask {
			return "This took longer than expected and was stopped. Please try again, or try with a smaller request."
		}
		return "The AI service took too long to answer. Please try again in a moment."
	case ErrOverloaded:
		return "We are handling many requests right now. Please try again" + inAWhile(e)
	case ErrClosed:
		return "The service is restarting. Please try again in a moment."
	case ErrPromptTooLarge:
		return "Your text is too long for the AI service. Please shorten it and try again."
	case ErrResponseTooLarge:
		return "The AI service's answer was too large. Please ask for something shorter."
	case ErrTruncated:
		return "The AI service's answer was cut short. Please try again."
	case ErrRateLimited:
		return "The AI service is receiving too many requests. Please try again" + inAWhile(e)
	case ErrQuota:
		return "The AI service is not available to us right now. Please try again later."
	case ErrUnavailable:
		return "The AI service is temporarily unavailable. Please try again" + inAWhile(e)
	case ErrUnauthorized:
		return "The AI service could not be reached because of a configuration problem on our side."
	case ErrMisconfigured:
		return "The AI service is not set up correctly on our side. Please contact us if this goes on."
	case ErrRejected:
		if isContentPolicy(by) {
			return "The AI service declined this request because of its content policy. Please rephrase it."
		}
		return "The AI service could not process this request. Please check your input."
	case ErrInvalidResponse:
		return "The AI service gave an answer we could not use. Please try again."
	}
	switch {
	case errors.Is(err, context.Canceled):
		return "The request was cancelled."
	case errors.Is(err, context.DeadlineExceeded):
		return "The request took too long. Please try again in a moment."
	}
	return "Something went wrong. Please try again later."
}

// inAWhile ends a sentence with the time to wait, where it is known and one that a person would wait.
func inAWhile(e *Error) string {
	switch {
	case e == nil || e.RetryAfter <= 0:
		return " in a moment."
	case e.RetryAfter > time.Hour:
		return " later."
	case e.RetryAfter > 90*time.Second:
		return fmt.Sprintf(" in about %d minutes.", int((e.RetryAfter+time.Minute-1)/time.Minute))
	}
	if s := int((e.RetryAfter + time.Second - 1) / time.Second); s > 1 {
		return fmt.Sprintf(" in %d seconds.", s)
	}
	return " in a second."
}

// HTTPStatus returns the status a web service answers with when a call failed with err: 200 for nil, 499
// (client closed request) for the caller's own cancellation, 504 for its own deadline, 500 for what KindOf
// does not know. For ErrOverloaded and ErrRateLimited send Error.RetryAfter along, as Retry-After.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	k, by, _ := classify(err)
	switch k {
	case ErrTimeout:
		return http.StatusGatewayTimeout
	case ErrOverloaded, ErrClosed, ErrQuota:
		return http.StatusServiceUnavailable
	case ErrPromptTooLarge:
		return http.StatusRequestEntityTooLarge
	case ErrRateLimited:
		return http.StatusTooManyRequests
	case ErrUnavailable:
		if providerStatus(by) == http.StatusServiceUnavailable {
			return http.StatusServiceUnavailable
		}
		return http.StatusBadGateway
	case ErrResponseTooLarge, ErrTruncated, ErrUnauthorized, ErrInvalidResponse:
		return http.StatusBadGateway
	case ErrMisconfigured:
		return http.StatusInternalServerError
	case ErrRejected:
		if isContentPolicy(by) {
			return http.StatusUnprocessableEntity
		}
		return http.StatusBadRequest
	}
	switch {
	case errors.Is(err, context.Canceled):
		return 499 // nginx's "client closed request"; net/http has no name for it
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

func providerStatus(err error) int {
	switch e := err.(type) {
	case *Error:
		return e.StatusCode
	case *openai.APIError:
		return e.HTTPStatusCode
	case *openai.RequestError:
		return e.HTTPStatusCode
	}
	return 0
}

func isContentPolicy(err error) bool {
	var ae *openai.APIError
	return errors.As(err, &ae) && dialect.Classify(ae.HTTPStatusCode, apiFailure(ae)) == dialect.ContentPolicy
}

// providerCause builds the error go-openai's users know from what a provider said: *openai.APIError where
// it said anything in a known form, else *openai.RequestError.
func providerCause(status int, f dialect.Failure, ok bool, body []byte) error {
	text := ""
	if status != 0 {
		text = fmt.Sprintf("%d %s", status, http.StatusText(status))
	}
	if !ok {
		return &openai.RequestError{HTTPStatus: text, HTTPStatusCode: status, Err: errors.New("no error object in the body"), Body: body}
	}
	e := &openai.APIError{Message: f.Message, Type: f.Type, HTTPStatus: text, HTTPStatusCode: status}
	if f.Code != "" {
		e.Code = f.Code
	}
	if n, err := strconv.Atoi(f.Code); err == nil && f.Number {
		e.Code = n // as go-openai decodes it
	}
	if f.Param != "" {
		e.Param = &f.Param
	}
	if f.InnerCode != "" {
		e.InnerError = &openai.InnerError{Code: f.InnerCode}
	}
	return e
}

func apiFailure(e *openai.APIError) dialect.Failure {
	f := dialect.Failure{Code: codeText(e.Code), Type: e.Type, Message: e.Message}
	_, f.Number = e.Code.(int)
	if e.InnerError != nil {
		f.InnerCode = e.InnerError.Code
	}
	return f
}

func codeText(code any) string {
	switch c := code.(type) {
	case nil:
		return ""
	case int:
		if c == 0 {
			return "" // go-openai's reading of "code":null
		}
		return strconv.Itoa(c)
	case string:
		return c
	default:
		return fmt.Sprint(c)
	}
}

// identifier lets a provider's code or type into a text only if it looks like one.
func identifier(s string) string {
	if len(s) > 64 {
		return ""
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.' {
			return ""
		}
	}
	return s
}

// short bounds a text to one line of 128 bytes.
func short(s string) string {
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		s = s[:i]
	}
	if len(s) > 128 {
		return strings.ToValidUTF8(s[:125], "") + "..."
	}
	return s
}

// round keeps the digits of a duration that mean something to a reader.
func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}
