package callctx

import (
	"context"
	"net/http"
	"time"
)

// HeadersKey is the context key of a Headers.
type HeadersKey struct{}

// Headers adds headers to each attempt, such as trace context.
type Headers interface{ AddHeaders(h http.Header) }

// HeadersOf returns the Headers of ctx, or nil.
func HeadersOf(ctx context.Context) Headers {
	h, _ := ctx.Value(HeadersKey{}).(Headers)
	return h
}

// ProgressKey is the context key of a Progress.
type ProgressKey struct{}

// Progress receives the time since the previous event for each event of a stream except the first.
type Progress interface{ Progressed(after time.Duration) }

// ProgressOf returns the Progress of ctx, or nil.
func ProgressOf(ctx context.Context) Progress {
	p, _ := ctx.Value(ProgressKey{}).(Progress)
	return p
}
