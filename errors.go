package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the error of a call that failed.

import (
	"context"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// Kind is the class of a failure. A Kind is itself an error, for use with errors.Is:
//
//	if errors.Is(err, aiguard.ErrTimeout) { … }
//
// fmt, slog and JSON all print its name, such as "timeout".
type Kind string

// Kinds of failure. HTTPStatus maps each kind to the status for a web service.
const (
	ErrTimeout          Kind = "timeout"            // a deadline set by the Guard expired
	ErrOverloaded       Kind = "overloaded"         // queue full, queue timeout, memory limit, weight above capacity
	ErrClosed           Kind = "closed"             // after Shutdown or Close
	ErrPromptTooLarge   Kind = "prompt_too_large"   // over our limit before sending, or over the provider's: context length, 413
	ErrResponseTooLarge Kind = "response_too_large" // body, event, error body or JSON shape over its limit
	ErrTruncated        Kind = "truncated"          // the answer ended before it was complete
	ErrRateLimited      Kind = "rate_limited"       // 429 that is not about quota
	ErrQuota            Kind = "quota_exceeded"     // 402; the account's quota, billing or spend limit
	ErrBudget           Kind = "budget_exceeded"    // Config.Budget rejected the call
	ErrUnavailable      Kind = "unavailable"        // connection failed, 408, 409, 5xx
	ErrUnauthorized     Kind = "unauthorized"       // 401, 403
	ErrMisconfigured    Kind = "misconfigured"      // wrong base URL, unknown model or deployment, revoked token
	ErrRejected         Kind = "rejected"           // any other 4xx, content policy
	ErrInvalidResponse  Kind = "invalid_response"   // success status without a valid answer
)

// Error returns the kind's name.
func (k Kind) Error() string { return string(k) }

// Error describes a failed call: its class in Kind and the facts in the other fields. The zero value of a field means
// that it does not apply or is unknown.
//
// errors.Is(err, e.Kind) is true. For ErrTimeout, errors.Is(err, context.DeadlineExceeded) is true as well. errors.As
// reaches the cause. The text of Error is for operators and logs, and contains no text of the provider, the prompt or
// the answer. Use UserMessage for users.
type Error struct {
	Kind       Kind
	Op, Model  string        // the call
	Host       string        // the provider's host
	Phase      string        // the limit or step that failed: PhaseQueue, PhaseCall, …
	Limit      time.Duration // the time limit that was reached; size limits use Size and Max
	Size, Max  int64         // actual and allowed size; each Phase constant states the unit
	StatusCode int           // the provider's HTTP status
	RequestID  string        // the provider's x-request-id
	RetryAfter time.Duration // when to try again; 0: unknown
	Attempts   int           // attempts made, including the first; 0: rejected before the first

	// MayBeBilled reports whether the provider may charge for the call. That is the case if an attempt was sent and
	// ended without an answer and without a refusal of the provider, for example because it was truncated, timed out
	// or canceled. A status of 400 and above is a refusal, except for a gateway that has stopped waiting (504, 524).
	MayBeBilled bool

	retry    retryRule // these five fill a gap: a smaller Error makes a rejection cheaper
	judged   bool      // the route has counted this failure
	told     bool      // the pause was reported by a call inside the Do
	expected bool      // phase queue: rejected without waiting for Limit
	hopeless bool      // phase queue: newer calls were served first

	Queued, Backoff, InFlight time.Duration // where the time went

	Err error // the cause: *openai.APIError, *openai.RequestError, a net or context error…

	refusal *refusal // the provider's response, if the provider rejected the call
	route   *route   // the route that is paused or rate limited: phases pause and pace
	setting string   // the setting that allows more
}

// retryRule says whether a failure may be retried, where its Kind alone does not decide.
type retryRule int8

const (
	byKind      retryRule = iota
	mayRetry              // the provider cannot have started the work
	neverRetry            // a retry is useless or might do the work twice
	retryAtOnce           // as mayRetry, without backoff: the connection was stale, not the provider busy
)

// Is reports whether target is e's Kind or, for ErrTimeout, context.DeadlineExceeded.
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

// Timeout reports whether a deadline set by the Guard expired. It implements net.Error's method.
func (e *Error) Timeout() bool { return e != nil && e.Kind == ErrTimeout }
