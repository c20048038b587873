// Package callctx names the context value by which a guarded call knows the Do or RunTask it is made in.
package callctx

import "context"

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
