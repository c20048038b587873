// Package callctx is what the guard and the packages around it know of a caller's context: the value by which a call
// knows the Do or RunTask it is made in, and how to tell its end.
package callctx

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
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
	switch {
	case errtree.IsNil(cause): // a typed nil says nothing, and may panic in the hands of the caller
		return err
	case errtree.Is(cause, err):
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

type factsKey struct{}

// WithFacts returns a response like resp that carries facts: in the context of its request, because SDKs replace its body
// and show its headers.
func WithFacts(resp *http.Response, facts any) *http.Response {
	carrying := *resp
	carrying.Request = resp.Request.WithContext(context.WithValue(resp.Request.Context(), factsKey{}, facts))
	return &carrying
}

// Facts returns what WithFacts put into resp, or nil.
func Facts(resp *http.Response) any {
	if resp.Request == nil {
		return nil
	}
	return resp.Request.Context().Value(factsKey{})
}

// Heed returns req with a context that also ends when req.Cancel is closed, which is how http.Client enforces its Timeout,
// and without that channel. Until the context ends, or stop is called, a goroutine watches the channel.
func Heed(req *http.Request) (heeded *http.Request, stop context.CancelFunc) {
	if req.Cancel == nil {
		return req, func() {}
	}
	ctx, cancel := context.WithCancel(req.Context())
	left := req.Cancel
	go func() {
		select {
		case <-left:
			if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
				<-ctx.Done() // http.Client closes the channel at the context's own deadline: that is the reason
			}
			cancel()
		case <-ctx.Done():
		}
	}()
	heeded = req.WithContext(ctx)
	heeded.Cancel = nil
	return heeded, cancel
}
