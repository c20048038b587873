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

// Fallback returns the value of the first alternative that succeeds. It goes on to the next after a failure that
// another model could cure: timeout, overloaded, rate limited, quota, budget, unavailable, misconfigured, truncated, invalid response, prompt or
// response too large. It stops once ctx has ended, when the request was rejected or unauthorized, and at a Final error.
//
// Each alternative but the last knows that there is another: its guarded calls fail at once while their route is down or
// paused, wait at most Retry.Patience for their provider in all, and may use the time that is left before ctx's deadline
// but for a share of the others. An alternative must make its calls with the context it is given.
//
// The error joins what each said, the last one first, so that KindOf and UserMessage take the latest that they know.
// It panics without alternatives.
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
			return zero, err // the caller's own, unchanged
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

// shareOfOthers is the least time that each further alternative is left, if there is that much.
const shareOfOthers = 10 * time.Second

// try runs alternative n, from 0, that so many others come after.
func try[T any](ctx context.Context, alternative func(context.Context) (T, error), n, others int) (T, error) {
	s := scopeOf(ctx)
	if planB := others > 0; planB != s.planB || s.alternative != int32(n) {
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

// curable reports whether another model, or another provider, could succeed where this one failed.
func curable(err error) bool {
	if isFinal(err) {
		return false
	}
	switch KindOf(err) {
	case ErrTimeout, ErrOverloaded, ErrRateLimited, ErrQuota, ErrBudget, ErrUnavailable, ErrTruncated, ErrInvalidResponse,
		ErrPromptTooLarge, ErrResponseTooLarge, ErrMisconfigured:
		return true
	case "":
		return errtree.Is(err, context.DeadlineExceeded) // the alternative's own: the caller is still here
	}
	return false
}

// Final marks err, which may be nil: Do does not repeat fn after it, and Fallback does not go on to the next alternative.
// A relay uses it for a failure after it has sent a part of an answer to its own client, which a second attempt would
// repeat. KindOf, errors.Is and errors.As see through the mark.
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
