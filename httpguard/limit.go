package httpguard

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// limit is the time limit of one request. Progress of a streamed response extends it.
type limit struct {
	timeout time.Duration
	most    time.Time      // latest possible limit; zero: none
	mostErr *aiguard.Error // the reason if the limit is at most

	mu  sync.Mutex
	at  time.Time
	err *aiguard.Error // the reason, and the cause with which the request's context ends
}

// newLimit returns the limit of a request that has just arrived. patience is how long the client waits; 0 means
// unknown.
func newLimit(cfg *Config, route string, patience time.Duration) *limit {
	now, timeout := time.Now(), cfg.Timeout
	if patience > 0 {
		timeout = patience
	}
	reason := func(limit time.Duration) *aiguard.Error {
		// PhaseTask means several calls together, and its user message fits here.
		return &aiguard.Error{Kind: aiguard.ErrTimeout, Op: route, Phase: aiguard.PhaseTask, Limit: limit}
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

// patience returns how long the client of r waits. It returns 0 if that is unknown or not less than the timeout.
func patience(r *http.Request, timeout time.Duration) time.Duration {
	text := r.Header.Get(TimeoutHeader)
	const longest = 32 // longer than any sensible duration
	if text == "" || len(text) > longest {
		return 0
	}
	d, err := time.ParseDuration(text)
	if seconds, notSeconds := strconv.ParseFloat(text, 64); notSeconds == nil {
		const most = 1e9 // well below the maximum of time.Duration
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

// left returns the time until the limit, or 0 after it. It uses the clock, because the context may end earlier for
// another reason.
func (l *limit) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(time.Until(l.at), 0)
}

func (l *limit) over() bool { return l.left() == 0 }

// progress extends the limit after a successful flush, unless the limit is over.
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

// reason returns the error of a request whose limit is over.
func (l *limit) reason() *aiguard.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// limited is a context with a deadline that can move. Package context has no such context. When the limit is over,
// the inner context is cancelled with the limit's error as its cause.
type limited struct {
	context.Context
	limit *limit
	done  chan struct{} // not the inner context's channel: derived contexts would then report Canceled
}

func (l *limit) context(parent context.Context) (ctx *limited, end context.CancelCauseFunc) {
	inside, end := context.WithCancelCause(parent)
	ctx = &limited{Context: inside, limit: l, done: make(chan struct{})}
	context.AfterFunc(inside, func() { close(ctx.done) })
	return ctx, end
}

// AfterFunc lets derived contexts watch this one without a goroutine each.
func (c *limited) AfterFunc(f func()) (stop func() bool) { return context.AfterFunc(c.Context, f) }

func (c *limited) Done() <-chan struct{} { return c.done }

func (c *limited) Err() error {
	err := c.Context.Err()
	if err != nil && context.Cause(c.Context) == error(c.limit.reason()) {
		return context.DeadlineExceeded
	}
	return err
}

// Deadline implements context.Context. It returns the current limit.
func (c *limited) Deadline() (time.Time, bool) {
	c.limit.mu.Lock()
	defer c.limit.mu.Unlock()
	at := c.limit.at
	if earlier, ok := c.Context.Deadline(); ok && earlier.Before(at) {
		at = earlier
	}
	return at, true
}
