// Package callctx is what the guard and the packages around it know of a caller's context: the value by which a call
// knows the Do or RunTask it is made in, and how to tell its end.
package callctx

import (
	"context"
	"errors"
	"fmt"
)

// Key is the key of that value.
type Key struct{}

// Detach returns ctx's values without its end and without the call it belongs to: what runs on after that call must
// not share its slot.
func Detach(ctx context.Context) context.Context {
	return context.WithValue(context.WithoutCancel(ctx), Key{}, nil)
}

// HoldsSlot reports whether ctx is that of a call which holds a slot for the calls made in it.
func HoldsSlot(ctx context.Context) bool {
	c, ok := ctx.Value(Key{}).(interface{ HoldsSlot() bool })
	return ok && c.HoldsSlot()
}

// Err is the caller's own cancellation or deadline, unchanged. Where the caller gave a cause of its own, errors.Is holds
// for both.
func Err(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if cause == nil || errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}
