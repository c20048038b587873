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

// answer is the ResponseWriter of a handler that may outlive its request. Only one goroutine uses the server's
// ResponseWriter at a time, and none after ServeHTTP has returned. Who begins the answer, the handler or the limit, is
// decided by state, once.
type answer struct {
	w     http.ResponseWriter
	ctl   *http.ResponseController // of w
	limit *limit
	ctx   *limited // the handler's
	body  *requestBody

	header http.Header // the handler's, which may change while we answer in its place

	uses     sync.RWMutex // read-locked while the handler uses w: a deadline it sets may have to end its own Write
	state    atomic.Int32
	hijacked atomic.Bool
	lost     atomic.Bool // the client has left while it was informed
}

// States of an answer, in their order.
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

// take keeps the handler from using w and reports true, unless it has begun to answer.
func (a *answer) take() bool {
	if !a.state.CompareAndSwap(untouched, over) {
		return false
	}
	a.await()
	return true
}

// end keeps the handler from using w any further.
func (a *answer) end() {
	a.state.Store(over)
	a.await()
}

// await waits for the uses under way.
func (a *answer) await() {
	a.uses.Lock()
	defer a.uses.Unlock()
}

// answerLate answers in place of a handler that has not begun by the limit, and no longer can.
func (a *answer) answerLate(x *exchange) {
	if !a.lost.Load() {
		x.answerLate(a.w, a.body, a.limit.reason())
	}
}

// abort ends the connection, or in HTTP/2 the stream, so that nobody takes what was sent for a whole answer. The deadlines
// free a handler that is blocked reading or writing, and keep the server from reading the rest of the body first.
func (a *answer) abort(x *exchange) {
	if a.state.Swap(over) == begun {
		a.flushLast()
	}
	past := time.Unix(1, 0)
	_ = a.ctl.SetReadDeadline(past) // a server without deadlines waits for the client
	_ = a.ctl.SetWriteDeadline(past)
	a.await()
	x.log.LogAttrs(context.Background(), levelFailed, "httpguard: answer ended at the time limit", x.attrs(a.limit.reason())...)
	panic(http.ErrAbortHandler)
}

// flushLast sends what the handler has written and not flushed. If the handler is writing now the client does not read.
func (a *answer) flushLast() {
	if !a.uses.TryLock() {
		return
	}
	defer a.uses.Unlock()
	if a.ctl.SetWriteDeadline(time.Now().Add(LastWord)) == nil { // or nobody could end the flush
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

// why is the error of a use that came too late.
func (a *answer) why() error {
	if a.limit.over() {
		return a.limit.reason()
	}
	return errReturned
}

var errReturned = errors.New("httpguard: the handler has returned")

// claim makes the answer the handler's, within use. No answer begins after the limit: a handler that the end of
// its context has woken does not race with the answer for the limit.
func (a *answer) claim() (first bool, err error) {
	if a.state.Load() == begun {
		return false, nil
	}
	if a.limit.over() || !a.state.CompareAndSwap(untouched, begun) {
		return false, a.why()
	}
	return true, nil
}

// begin is claim for an answer with the handler's header.
func (a *answer) begin() error {
	first, err := a.claim()
	if first {
		a.sendHeader()
	}
	return err
}

// sendHeader gives w the handler's header.
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
	_ = a.use(func() error { // WriteHeader has no way to say it; Write will
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

// inform sends an informational status, which begins nothing: its header must not stay for an answer that is not the handler's.
func (a *answer) inform(status int) {
	if a.state.Load() == begun {
		a.w.WriteHeader(status)
		return
	}
	before := a.w.Header().Clone()
	a.sendHeader()
	a.w.WriteHeader(status)
	if a.ctx.Context.Err() != nil {
		// A stream of HTTP/2 that its client has reset does not wait for its header to be written: net/http may still be
		// reading it, and nobody reads another.
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

// CloseNotify implements http.CloseNotifier, which is deprecated, for frameworks that cannot do without: gin's Context.Stream
// panics. It tells of the end of the request's context.
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
