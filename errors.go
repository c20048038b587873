package aiguard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// Kind says why a call failed. It is itself an error, for errors.Is:
//
//	if errors.Is(err, aiguard.ErrTimeout) { … }
//
// fmt, slog and JSON print it the same way: "timeout".
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
func (k Kind) Error() string { return string(k) }

// Error is a failed call: the class in Kind, the facts in the other fields. The zero value of a
// field means that it does not apply or is not known.
//
// errors.Is(err, e.Kind) holds, and so does errors.Is(err, context.DeadlineExceeded) for ErrTimeout;
// errors.As reaches the cause. The text of Error is for operators and logs: it has no words of the
// provider, of a prompt or of an answer. For users there is UserMessage.
type Error struct {
	Kind       Kind
	Op, Model  string        // what was called
	Host       string        // of the provider
	Phase      string        // the limit or step that failed: PhaseQueue, PhaseCall, …
	Limit      time.Duration // the bound that ran out; sizes have Size and Max
	Size, Max  int64         // how big it was and how big it may be; each Phase constant states its unit
	StatusCode int           // the provider's HTTP status
	RequestID  string        // the provider's x-request-id
	RetryAfter time.Duration // when it is worth trying again; 0: unknown
	Attempts   int           // attempts made, the first included; 0: refused before the first

	Queued, Backoff, InFlight time.Duration // where the time went

	Err error // the cause: *openai.APIError, *openai.RequestError, a net or context error…

	retry    verdict
	refusal  *refusal // what the provider answered, if that is what failed
	judged   bool     // a route has been told
	route    *route   // that is not open yet: phases pause and pace
	expected bool     // phase queue: refused without waiting for Limit
	outrun   bool     // phase queue: newer calls went first
	setting  string   // that allows more
}

// verdict is what the layer that saw a failure knows about repeating it, beyond its Kind.
type verdict int8

const (
	byKind      verdict = iota
	mayRetry            // the provider cannot have acted
	neverAsk            // repeating is useless, or might do the work twice
	retryAtOnce         // as mayRetry, and without backoff: the connection was stale, not the provider busy
)

// The values of Error.Phase. A phase of time sets Limit; the others set Max, and Size where it is known, in the unit stated.
const (
	PhasePrompt       = "prompt"        // characters of the prompt
	PhasePromptTokens = "prompt_tokens" // tokens of the prompt
	PhaseRequest      = "request"       // bytes of the request's body
	PhaseOutput       = "output_tokens" // tokens of output that MaxOutputTokens allows
	PhaseWeight       = "weight"        // Call.Weight, against MaxConcurrent
	PhaseQueue        = "queue"         // waiting calls where the queue was full; else Limit is QueueTimeout
	PhaseMemory       = "memory"        // bytes of live heap, or of buffered answers
	PhasePause        = "pause"         // none: the provider asked for a pause, see RetryAfter
	PhasePace         = "pace"          // none: the route's rate limit has no room yet, see RetryAfter
	PhaseOutage       = "outage"        // none: the provider is down, see RetryAfter
	PhaseConnect      = "connect"       // time to connect, where the attempt timed out
	PhaseHeaders      = "headers"       // none: the response's headers are too large or not acceptable
	PhaseCall         = "call"          // time: CallTimeout or Call.Timeout
	PhaseFirstEvent   = "first_event"   // time to the first event of a stream
	PhaseStreamIdle   = "stream_idle"   // time between two events of a stream
	PhaseStream       = "stream"        // time of a whole stream
	PhaseResponse     = "response"      // bytes of the answer
	PhaseEvent        = "event"         // bytes of one event of a stream
	PhaseJSONShape    = "json_shape"    // JSON objects and arrays in the answer
	PhaseErrorBody    = "error_body"    // bytes of a failure's body
	PhaseTotal        = "total"         // time: TotalTimeout
	PhaseShare        = "share"         // time: an alternative's part of the caller's time in Fallback
	PhaseTask         = "task"          // time: TaskTimeout
)

const (
	phasePrompt     = PhasePrompt
	phaseTokens     = PhasePromptTokens
	phaseRequest    = PhaseRequest
	phaseOutput     = PhaseOutput
	phaseWeight     = PhaseWeight
	phaseQueue      = PhaseQueue
	phaseMemory     = PhaseMemory
	phasePause      = PhasePause
	phasePace       = PhasePace
	phaseOutage     = PhaseOutage
	phaseConnect    = PhaseConnect
	phaseHeaders    = PhaseHeaders
	phaseCall       = PhaseCall
	phaseFirstEvent = PhaseFirstEvent
	phaseIdle       = PhaseStreamIdle
	phaseStream     = PhaseStream
	phaseResponse   = PhaseResponse
	phaseEvent      = PhaseEvent
	phaseShape      = PhaseJSONShape
	phaseErrorBody  = PhaseErrorBody
	phaseTotal      = PhaseTotal
	phaseShare      = PhaseShare
	phaseTask       = PhaseTask
)

// Error returns one line for operators: what was called, which bound ran out or what the provider's
// status was, the attempts and where the time went. The status reads "status code: 429", as in go-openai's errors.
func (e *Error) Error() string {
	if e == nil {
		return "<nil>"
	}
	var b strings.Builder
	b.WriteString("aiguard: ")
	if e.Op != "" || e.Model != "" {
		b.WriteString(strings.TrimSpace(short(e.Op) + " " + short(e.Model)))
		b.WriteString(": ")
	}
	b.WriteString(short(string(e.Kind)))
	if d := e.detail(); d != "" {
		b.WriteString(": " + d)
	}
	if e.StatusCode != 0 {
		fmt.Fprintf(&b, ", status code: %d", e.StatusCode)
	}
	if e.Host != "" {
		b.WriteString(", host " + short(e.Host))
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
		if e.StatusCode >= 300 && e.StatusCode < 400 {
			return "redirects are not followed"
		}
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

// causeText describes the cause.
func (e *Error) causeText() string {
	if e.Err == nil {
		return ""
	}
	return describe(e.Err)
}

// Is makes errors.Is hold for the Kind and, for ErrTimeout, for context.DeadlineExceeded.
func (e *Error) Is(target error) bool {
	if e == nil {
		return false
	}
	return target == e.Kind || e.Kind == ErrTimeout && target == context.DeadlineExceeded
}

// Unwrap returns the cause, or nil for a typed nil, whose methods may panic in errors.Is and errors.As.
func (e *Error) Unwrap() error {
	if e == nil || errtree.IsNil(e.Err) {
		return nil
	}
	return e.Err
}

// Timeout reports whether a deadline of ours ran out, as net.Error has it.
func (e *Error) Timeout() bool { return e != nil && e.Kind == ErrTimeout }

// LogValue returns the facts as a group: no provider text, prompt or key.
func (e *Error) LogValue() slog.Value {
	if e == nil {
		return slog.Value{}
	}
	return slog.GroupValue(e.attrs()...)
}

// MarshalJSON returns the facts of LogValue as an object; durations are in nanoseconds.
func (e Error) MarshalJSON() ([]byte, error) {
	facts := make(map[string]any)
	for _, a := range e.attrs() {
		facts[a.Key] = a.Value.Any()
	}
	return json.Marshal(facts)
}

// Format prints the text of Error for every verb, so that no verb prints Err, which may quote the provider.
func (e Error) Format(f fmt.State, verb rune) {
	fmt.Fprintf(f, fmt.FormatString(f, verb), e.Error())
}

func (e *Error) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 12)
	add := func(key string, v slog.Value, zero bool) {
		if !zero {
			attrs = append(attrs, slog.Attr{Key: key, Value: v})
		}
	}
	add("kind", slog.StringValue(short(string(e.Kind))), false)
	add("op", slog.StringValue(short(e.Op)), e.Op == "")
	add("model", slog.StringValue(short(e.Model)), e.Model == "")
	add("host", slog.StringValue(short(e.Host)), e.Host == "")
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

// short bounds a text to 128 bytes of printable characters.
func short(s string) string {
	if len(s) > 128 {
		s = strings.ToValidUTF8(s[:125], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// round keeps the digits of a duration that mean something to a reader.
func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}
