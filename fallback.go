package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: the next alternative after a failure.

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// Fallback calls the alternatives in order and returns the value of the first that succeeds. It continues after a
// failure that another model may not have: timeout, overloaded, rate limited, quota, budget, unavailable,
// misconfigured, truncated, invalid response, prompt or response too large. It stops when ctx has ended, when the
// request was rejected or unauthorized, and at a Final error.
//
// Each alternative except the last gives up early. Its guarded calls fail at once while their route is down or
// paused. They wait at most Retry.Patience in total for their provider. If ctx has a deadline, each alternative
// leaves a share of the remaining time to the later ones. An alternative must use the context it is given for its
// calls. An alternative may call Fallback again.
//
// The returned error joins the errors of all alternatives, the last one first. KindOf and UserMessage use the first
// error that they know. Fallback panics if there are no alternatives or one is nil.
func Fallback[T any](ctx context.Context, alternatives ...func(context.Context) (T, error)) (T, error) {
	mustContext("Fallback", ctx)
	if len(alternatives) == 0 {
		panic("aiguard: Fallback: no alternatives")
	}
	var zero T
	var failed []error
	for i, alternative := range alternatives {
		if alternative == nil {
			panic(fmt.Sprintf("aiguard: Fallback: alternative %d is nil", i))
		}
		v, err := try(ctx, alternative, i, len(alternatives)-1-i)
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil && KindOf(err) == "" {
			return zero, err // the caller's own error, unchanged
		}
		failed = append([]error{err}, failed...)
		if ctx.Err() != nil || !curable(err) {
			break
		}
	}
	if len(failed) == 1 {
		return zero, failed[0]
	}
	return zero, errors.Join(failed...)
}

// shareOfOthers is the minimum time reserved for each later alternative, if that much time is left.
const shareOfOthers = 10 * time.Second

// try runs alternative n, from 0. others is the number of alternatives after it. A Fallback around this one may have
// further alternatives.
func try[T any](ctx context.Context, alternative func(context.Context) (T, error), n, others int) (T, error) {
	s := scopeOf(ctx)
	if planB := s.planB || others > 0; planB != s.planB || s.alternative != int32(n) {
		s.planB, s.alternative = planB, int32(n)
		ctx = context.WithValue(ctx, scopeKey{}, s)
	}
	deadline, ok := ctx.Deadline()
	if others == 0 || !ok {
		return alternative(ctx)
	}
	left := time.Until(deadline)
	own := left - min(shareOfOthers, left/time.Duration(others+1))*time.Duration(others)
	end := &Error{Kind: ErrTimeout, Phase: PhaseShare, Limit: own}
	actx, cancel := context.WithTimeoutCause(ctx, own, end)
	defer cancel()
	v, err := alternative(actx)
	if err != nil && ctx.Err() == nil && context.Cause(actx) == error(end) && KindOf(err) == "" {
		e := *end
		e.Err = err
		return v, &e
	}
	return v, err
}

// curable reports whether another model or provider could succeed after this failure.
func curable(err error) bool {
	if isFinal(err) {
		return false
	}
	switch KindOf(err) {
	case ErrTimeout, ErrOverloaded, ErrRateLimited, ErrQuota, ErrBudget, ErrUnavailable, ErrTruncated, ErrInvalidResponse,
		ErrPromptTooLarge, ErrResponseTooLarge, ErrMisconfigured:
		return true
	case "":
		return errtree.Is(err, context.DeadlineExceeded) // the alternative's own deadline: ctx has not ended
	}
	return false
}

// Final marks err as not worth a retry: Do does not call fn again, and Fallback stops. Use it after a part of an
// answer was sent to a client, because a second attempt would send that part again. KindOf, errors.Is and errors.As
// see through the mark. Final(nil) is nil.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalError{err}
}

type finalError struct{ error }

func isFinal(err error) bool {
	return errtree.Has[*finalError](err)
}

func (e *finalError) Unwrap() error { return e.error }
