package httpguard

import (
	"context"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard/internal/panics"
)

// outcome describes how a handler ended.
type outcome struct {
	returned bool // neither panicked nor called runtime.Goexit
	panicked any
	cut      bool // it returned after the limit
}

// runWithin runs the handler in its own goroutine. If the handler has not started its response at the limit,
// runWithin sends an error response. The goroutine is needed because an HTTP/2 stream ends only when ServeHTTP
// returns.
func (h *handler) runWithin(l *limit, w http.ResponseWriter, r *http.Request, x *exchange) {
	ctx, end := l.context(r.Context())
	defer end(nil)
	r = r.WithContext(ctx)
	body := newRequestBody(r.Body)
	r.Body = body
	a := newAnswer(w, l, ctx, body)
	x.answer = a
	done, gone := make(chan outcome), make(chan struct{})
	defer close(gone)
	defer a.end()
	go func() {
		entered := time.Now()
		var out outcome
		defer func() {
			out.panicked, out.cut = panics.WithStack(recover()), l.over()
			h.leave(r, entered)
			select {
			case done <- out:
			case <-gone:
				h.reportLate(out.panicked, time.Since(entered), ctx, x)
			}
		}()
		h.next.ServeHTTP(a, r)
		out.returned = true
	}()

	for left := l.left(); left > 0; left = l.left() { // repeats if a stream has extended the limit
		timer := time.NewTimer(left)
		select {
		case out := <-done:
			timer.Stop()
			finish(out, a, x)
			return
		case <-timer.C:
		}
	}
	end(l.reason())
	if a.take() {
		a.answerLate(x)
		return
	}
	timer := time.NewTimer(LastWord)
	defer timer.Stop()
	select {
	case out := <-done:
		finish(out, a, x)
		return
	case <-timer.C:
	}
	if !a.hijacked.Load() {
		a.abort(x)
	}
	finish(<-done, a, x)
}

// finish completes the response of a handler that has ended, or aborts it so that it does not look complete.
func finish(out outcome, a *answer, x *exchange) {
	untouched, hijacked := a.take(), a.hijacked.Load()
	switch {
	case out.panicked != nil && out.panicked != http.ErrAbortHandler:
		panic(out.panicked)
	case out.cut && untouched && out.returned:
		a.answerLate(x)
	case out.cut && !hijacked:
		a.abort(x)
	case !out.returned:
		panic(http.ErrAbortHandler)
	case !hijacked:
		a.sendHeader() // needed for an empty response, or for trailers
		x.limitRest(a.w)
	}
}

// reportLate logs a handler that returned after its request was over. No goroutine can recover its panic any more, so
// reportLate prints the panic where net/http would.
func (h *handler) reportLate(panicked any, ran time.Duration, ctx context.Context, x *exchange) {
	attrs := append(x.attrs(nil), slog.Duration("elapsed", ran))
	x.log.LogAttrs(ctx, levelFailed, "httpguard: handler returned after its time limit", attrs...)
	if panicked == nil || panicked == http.ErrAbortHandler {
		return
	}
	printf := log.Printf
	if srv, ok := ctx.Value(http.ServerContextKey).(*http.Server); ok && srv.ErrorLog != nil {
		printf = srv.ErrorLog.Printf
	}
	printf("httpguard: panic after the time limit: %v", panicked)
}
