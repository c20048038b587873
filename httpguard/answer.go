package httpguard

import (
	"bufio"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// answer is the ResponseWriter of a handler that may run longer than its request. Only one goroutine at a time uses
// the server's ResponseWriter, and none after ServeHTTP has returned. state decides once whether the handler or the
// limit starts the response.
type answer struct {
	w     http.ResponseWriter
	ctl   *http.ResponseController // of w
	limit *limit
	ctx   *limited // the handler's context
	body  *requestBody

	header http.Header // the handler's header, which may change while the limit's response is written

	uses     sync.RWMutex // read-locked while the handler uses w, because one goroutine may set a deadline to end a Write of another
	state    atomic.Int32
	hijacked atomic.Bool
	lost     atomic.Bool // the client disconnected during an informational response
}

// States of an answer, in order.
const (
	untouched int32 = iota
	begun           // by the handler
	over            // the handler may no longer use w
)

func newAnswer(w http.ResponseWriter, l *limit, ctx *limited, body *requestBody) *answer {
	a := &answer{w: w, ctl: http.NewResponseController(w), limit: l, ctx: ctx, body: body, header: w.Header().Clone()}
	if a.header == nil {
		a.header = http.Header{}
	}
	return a
}

// take stops the handler from using w and reports true, unless the handler has started its response.
func (a *answer) take() bool {
	if !a.state.CompareAndSwap(untouched, over) {
		return false
	}
	a.await()
	return true
}

// end stops the handler from using w.
func (a *answer) end() {
	a.state.Store(over)
	a.await()
}

// await waits for uses of w in progress.
func (a *answer) await() {
	a.uses.Lock()
	defer a.uses.Unlock()
}

// answerLate sends the error response for a handler that did not start its response before the limit.
func (a *answer) answerLate(x *exchange) {
	if !a.lost.Load() {
		x.answerLate(a.w, a.body, a.limit.reason())
	}
}

// abort closes the connection, or resets the HTTP/2 stream, so that no client takes a truncated response for a
// complete one. The deadlines unblock a handler that is reading or writing. They also keep the server from reading
// the rest of the body.
func (a *answer) abort(x *exchange) {
	if a.state.Swap(over) == begun {
		a.flushLast()
	}
	past := time.Unix(1, 0)
	_ = a.ctl.SetReadDeadline(past) // without deadlines the server waits for the client
	_ = a.ctl.SetWriteDeadline(past)
	a.await()
	x.log.LogAttrs(context.Background(), levelFailed, "httpguard: response aborted at the time limit", x.attrs(a.limit.reason())...)
	panic(http.ErrAbortHandler)
}

// flushLast sends data that the handler has written but not flushed. If a write is in progress, the client is not
// reading and flushLast does nothing.
func (a *answer) flushLast() {
	if !a.uses.TryLock() {
		return
	}
	defer a.uses.Unlock()
	if a.ctl.SetWriteDeadline(time.Now().Add(LastWord)) == nil { // without a deadline the flush might never end
		_ = a.ctl.Flush()
	}
}

// use runs f, which uses w, unless the request is over.
func (a *answer) use(f func() error) error {
	a.uses.RLock()
	defer a.uses.RUnlock()
	if a.state.Load() == over {
		return a.why()
	}
	return f()
}

// why returns the error for a use of w after the end of the request.
func (a *answer) why() error {
	if a.limit.over() {
		return a.limit.reason()
	}
	return errReturned
}

var errReturned = errors.New("httpguard: the handler has returned")

// claim marks the response as started by the handler. Call it within use. It fails after the limit, so a handler that
// wakes when its context ends does not race with the limit's response.
func (a *answer) claim() (first bool, err error) {
	if a.state.Load() == begun {
		return false, nil
	}
	if a.limit.over() || !a.state.CompareAndSwap(untouched, begun) {
		return false, a.why()
	}
	return true, nil
}

// begin claims the response and sends the handler's header if the response is new.
func (a *answer) begin() error {
	first, err := a.claim()
	if first {
		a.sendHeader()
	}
	return err
}

// sendHeader copies the handler's header to w.
func (a *answer) sendHeader() {
	if a.lost.Load() {
		return
	}
	header := a.w.Header()
	clear(header)
	maps.Copy(header, a.header)
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	_ = a.use(func() error { // WriteHeader cannot return the error; Write will
		if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
			a.inform(status)
			return nil
		}
		if err := a.begin(); err != nil {
			return err
		}
		a.w.WriteHeader(status)
		return nil
	})
}

// inform sends an informational status. This does not start the response, so inform restores the header of w
// afterwards. Otherwise an error response could contain headers of the handler.
func (a *answer) inform(status int) {
	if a.state.Load() == begun {
		a.w.WriteHeader(status)
		return
	}
	before := a.w.Header().Clone()
	a.sendHeader()
	a.w.WriteHeader(status)
	if a.ctx.Context.Err() != nil {
		// After an HTTP/2 client resets its stream, WriteHeader may return before net/http has finished reading the
		// header. The header must not change after that, and no further header will be sent.
		a.lost.Store(true)
		return
	}
	clear(a.w.Header())
	maps.Copy(a.w.Header(), before)
}

func (a *answer) Write(p []byte) (n int, err error) {
	err = a.use(func() error {
		if err := a.begin(); err != nil {
			return err
		}
		n, err = a.w.Write(p)
		return err
	})
	return n, err
}

func (a *answer) Flush() { _ = a.FlushError() }

func (a *answer) FlushError() error {
	return a.use(func() error {
		if err := a.begin(); err != nil {
			return err
		}
		err := a.ctl.Flush()
		if err == nil {
			a.limit.progress()
		}
		return err
	})
}

// CloseNotify implements the deprecated http.CloseNotifier, because gin's Context.Stream panics without it. The
// channel receives a value when the request's context ends.
func (a *answer) CloseNotify() <-chan bool {
	left := make(chan bool, 1)
	context.AfterFunc(a.ctx, func() { left <- true })
	return left
}

func (a *answer) Hijack() (conn net.Conn, rw *bufio.ReadWriter, err error) {
	err = a.use(func() error {
		first, err := a.claim()
		if err != nil {
			return err
		}
		if conn, rw, err = a.ctl.Hijack(); err == nil {
			a.hijacked.Store(true)
		} else if first {
			a.state.CompareAndSwap(begun, untouched) // the handler may still answer
		}
		return err
	})
	return conn, rw, err
}

func (a *answer) SetReadDeadline(t time.Time) error {
	return a.use(func() error { return a.ctl.SetReadDeadline(t) })
}

func (a *answer) SetWriteDeadline(t time.Time) error {
	return a.use(func() error { return a.ctl.SetWriteDeadline(t) })
}

func (a *answer) EnableFullDuplex() error {
	return a.use(a.ctl.EnableFullDuplex)
}
