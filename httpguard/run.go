package httpguard

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"
)

// outcome is how a handler ended.
type outcome struct {
	returned bool // neither panicked nor called runtime.Goexit
	panicked any
	cut      bool // it returned after the limit
}

// runWithin runs the handler in its own goroutine and answers in its place if it has not begun by the limit. HTTP/2
// leaves no other way to complete an answer: a stream ends when ServeHTTP returns.
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
			out.panicked, out.cut = withStack(recover()), l.over()
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

	for left := l.left(); left > 0; left = l.left() { // again where a stream has moved it
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

// finish completes the answer of a handler that has ended, or sees to it that it does not look complete.
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
		a.sendHeader() // of an empty answer, or the trailers
		x.limitRest(a.w)
	}
}

// reportLate tells of a handler that returned after its request was over. A panic has nobody left to recover it: it is
// printed where net/http would.
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

// panicked is a handler's panic on its way to the request's goroutine, where its stack would be lost.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v\n\n%s", p.value, p.stack) }

func (p *panicked) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

// withStack must be called while the panic's frames are still there.
func withStack(value any) any {
	if value == nil || value == http.ErrAbortHandler {
		return value
	}
	return &panicked{value, debug.Stack()}
}
