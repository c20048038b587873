package httpguard

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// limit is the time limit of one request. A streamed answer moves it.
type limit struct {
	timeout time.Duration
	most    time.Time      // it never moves beyond this; zero: no bound
	mostErr *aiguard.Error // its reason where it is there

	mu  sync.Mutex
	at  time.Time
	err *aiguard.Error // its reason: the cause of the end of the request's context
}

// newLimit returns the limit of a request that has just arrived. patience is how long its client waits; 0: unknown.
func newLimit(cfg *Config, route string, patience time.Duration) *limit {
	now, timeout := time.Now(), cfg.Timeout
	if patience > 0 {
		timeout = patience
	}
	reason := func(limit time.Duration) *aiguard.Error {
		// "task" is the phase of many calls together, and the message for it fits.
		return &aiguard.Error{Kind: aiguard.ErrTimeout, Op: route, Phase: "task", Limit: limit}
	}
	l := &limit{timeout: timeout, at: now.Add(timeout), err: reason(timeout)}
	stream := max(cfg.StreamTimeout, timeout)
	if patience > 0 {
		stream = timeout
	}
	if patience > 0 || cfg.StreamTimeout != aiguard.Off {
		l.most, l.mostErr = now.Add(stream), reason(stream)
	}
	return l
}

// patience returns how long the client of r waits, if that is less than the timeout, or else 0.
func patience(r *http.Request, timeout time.Duration) time.Duration {
	text := r.Header.Get(TimeoutHeader)
	const longest = 32 // text of a duration that anybody would send
	if text == "" || len(text) > longest {
		return 0
	}
	d, err := time.ParseDuration(text)
	if seconds, notSeconds := strconv.ParseFloat(text, 64); notSeconds == nil {
		const most = 1e9 // and far from what a Duration holds
		if !(seconds > 0 && seconds < most) {
			return 0
		}
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err != nil || d <= 0 || timeout != aiguard.Off && d >= timeout {
		return 0
	}
	return d
}

// left is the time until the limit, 0 if it is over. It goes by the clock: the context may have ended before, for another
// reason.
func (l *limit) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.at), 0)
}

func (l *limit) over() bool { return l.left() == 0 }

// progress moves the limit, unless it is over: what was written has left for the client.
func (l *limit) progress() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if !now.Before(l.at) {
		return
	}
	l.at = now.Add(l.timeout)
	if !l.most.IsZero() && l.at.After(l.most) {
		l.at, l.err = l.most, l.mostErr
	}
}

// reason is the error of a request whose limit is over.
func (l *limit) reason() *aiguard.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// limited is a context with a deadline that moves, which package context does not have. The context inside is cancelled, with
// the limit's error as its cause, when the limit is over.
type limited struct {
	context.Context
	limit *limit
	done  chan struct{} // not the one of the context inside: its children would say that they were cancelled
}

func (l *limit) context(parent context.Context) (ctx *limited, end context.CancelCauseFunc) {
	inside, end := context.WithCancelCause(parent)
	ctx = &limited{Context: inside, limit: l, done: make(chan struct{})}
	context.AfterFunc(inside, func() { close(ctx.done) })
	return ctx, end
}

// AfterFunc spares contexts made from this one a goroutine each.
func (c *limited) AfterFunc(f func()) (stop func() bool) { return context.AfterFunc(c.Context, f) }

func (c *limited) Done() <-chan struct{} { return c.done }

func (c *limited) Err() error {
	err := c.Context.Err()
	if err != nil && context.Cause(c.Context) == error(c.limit.reason()) {
		return context.DeadlineExceeded
	}
	return err
}

// Deadline implements context.Context. It is the limit as it is now.
func (c *limited) Deadline() (time.Time, bool) {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	at := c.limit.at
	if earlier, ok := c.Context.Deadline(); ok && earlier.Before(at) {
		at = earlier
	}
	return at, true
}
