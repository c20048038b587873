// Package callctx stores and reads facts about a caller's context: the call that the context belongs to, and why the
// context ended.
package callctx

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/errtree"
)

// Key is the context key of the enclosing call, a Do or RunTask.
type Key struct{}

// Detach returns a context with ctx's values, but without its cancellation and its enclosing call. Use it for work that
// outlives the call and must not share its slot.
func Detach(ctx context.Context) context.Context {
	return context.WithValue(context.WithoutCancel(ctx), Key{}, nil)
}

// HoldsSlot reports whether ctx belongs to a call whose slot also covers the calls made with ctx.
func HoldsSlot(ctx context.Context) bool {
	c, ok := ctx.Value(Key{}).(interface{ HoldsSlot() bool })
	return ok && c.HoldsSlot()
}

// Err returns the caller's own cancellation or deadline error. If the caller set a cause, errors.Is matches both.
func Err(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	switch {
	case errtree.IsNil(cause): // a typed nil, whose methods may panic
		return err
	case errtree.Is(cause, err):
		return cause
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// ScopeKey is the context key of what aiguard.WithCall has set.
type ScopeKey struct{}

// Tenant returns the tenant that aiguard.WithCall has set, or "".
func Tenant(ctx context.Context) string {
	if scope, ok := ctx.Value(ScopeKey{}).(interface{ CallTenant() string }); ok {
		return scope.CallTenant()
	}
	return ""
}

type factsKey struct{}

// WithFacts returns a copy of resp that carries facts. The facts are stored in the context of the response's request,
// because SDKs replace the body and expose the headers.
func WithFacts(resp *http.Response, facts any) *http.Response {
	carrying := *resp
	carrying.Request = resp.Request.WithContext(context.WithValue(resp.Request.Context(), factsKey{}, facts))
	return &carrying
}

// Facts returns the facts stored by WithFacts, or nil.
func Facts(resp *http.Response) any {
	if resp.Request == nil {
		return nil
	}
	return resp.Request.Context().Value(factsKey{})
}

// Heed returns a copy of req without its Cancel channel. The context of the copy also ends when that channel is closed,
// because http.Client enforces its Timeout with the channel. A goroutine watches the channel until the context ends or
// stop is called.
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
				<-ctx.Done() // http.Client also closes the channel at the context's own deadline; that deadline is then the reason
			}
			cancel()
		case <-ctx.Done():
		}
	}()
	heeded = req.WithContext(ctx)
	heeded.Cancel = nil
	return heeded, cancel
}
