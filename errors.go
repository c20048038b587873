package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the error of a call that failed.

import (
	"context"
	"time"

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
	ErrBudget           Kind = "budget_exceeded"    // Config.Budget has refused the call
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

	// MayBeBilled reports whether the provider may charge for the call: an attempt was sent, and ended without an answer
	// and without a refusal of the provider. It was cut, timed out or left by its caller, say. A refusal is a status of 400
	// and above, but for those of a gateway that has stopped waiting (504, 524).
	MayBeBilled bool

	Queued, Backoff, InFlight time.Duration // where the time went

	Err error // the cause: *openai.APIError, *openai.RequestError, a net or context error…

	refusal  *refusal // what the provider answered, if that is what failed
	route    *route   // that is not open yet: phases pause and pace
	setting  string   // that allows more
	retry    verdict
	judged   bool // a route has been told
	told     bool // its pause, by a call inside the Do
	expected bool // phase queue: refused without waiting for Limit
	outrun   bool // phase queue: newer calls went first
}

// verdict is what the layer that saw a failure knows about repeating it, beyond its Kind.
type verdict int8

const (
	byKind      verdict = iota
	mayRetry            // the provider cannot have acted
	neverAsk            // repeating is useless, or might do the work twice
	retryAtOnce         // as mayRetry, and without backoff: the connection was stale, not the provider busy
)

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
