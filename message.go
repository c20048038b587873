package aiguard

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// UserMessage returns an English sentence about err that is safe to show to a user. It never contains text of the
// provider, a prompt or a key. It returns "" for nil.
func UserMessage(err error) string {
	if err == nil {
		return ""
	}
	k, by, _ := classify(err)
	e, _ := by.(*Error)
	switch k {
	case ErrTimeout:
		if e != nil && e.Phase == PhaseTask {
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
	case ErrBudget:
		if e != nil && e.RetryAfter > 0 {
			return "The usage limit is reached for now. Please try again" + inAWhile(e)
		}
		return "This request has used all that it may use, and was stopped."
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
	case errtree.Is(err, context.Canceled):
		return "The request was cancelled."
	case errtree.Is(err, context.DeadlineExceeded):
		return "The request took too long. Please try again in a moment."
	}
	return "Something went wrong. Please try again later."
}

// inAWhile ends a sentence with the time to wait, if it is known and short enough for a user to wait.
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

// HTTPStatus returns the status with which a web service should report err. It returns 200 for nil, 499 (client
// closed request) for the caller's own cancellation, 504 for the caller's own deadline, and 500 for errors that
// KindOf does not know. ErrBudget is 429 if its RetryAfter says when a window ends, else 403. For ErrOverloaded,
// ErrRateLimited and ErrBudget, also send Error.RetryAfter as a Retry-After header.
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
	case ErrBudget:
		if e, ok := by.(*Error); ok && e.RetryAfter > 0 {
			return http.StatusTooManyRequests
		}
		return http.StatusForbidden
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
	case errtree.Is(err, context.Canceled):
		return 499 // nginx's "client closed request"; net/http has no name for it
	case errtree.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}
