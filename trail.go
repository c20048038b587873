package aiguard

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// CallID identifies a call or RunTask within the process. It prints as 16 hexadecimal digits.
type CallID uint64

// String returns the 16 digits, or "" for 0.
func (id CallID) String() string {
	if id == 0 {
		return ""
	}
	const zeros = "0000000000000000"
	digits := strconv.FormatUint(uint64(id), 16)
	return zeros[len(digits):] + digits
}

// MarshalText returns String.
func (id CallID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// ErrUnwound is the Err of the events that end a call after a panic or runtime.Goexit. No call returns it.
var ErrUnwound = errors.New("aiguard: a panic or runtime.Goexit ended the call")

// trail is what only events and logs need of a call. A call that nobody observes has none.
type trail struct {
	id, parent CallID
	endpoint   string        // the API endpoint's own name
	attempt    int           // under way; 0: none
	first      time.Duration // from the beginning of the attempt to the first event of its stream
	heap       int64         // live bytes at the first attempt
}

// follow starts the call's trail.
//
//go:noinline
func (c *call) follow() {
	id := c.ids.Add(1)
	for id == 0 { // which stands for no call
		id = c.ids.Add(1)
	}
	c.trail = &trail{id: CallID(id)}
	for o := c.outer; o != nil; o = o.outer {
		if o.trail != nil {
			c.trail.parent = o.trail.id
			break
		}
	}
}

// attemptBegun notes that attempt n is under way.
func (c *call) attemptBegun(n int32, now instant) {
	t := c.trail
	t.attempt, t.first = int(n), 0
	if n == 1 {
		t.heap = c.memory.sample(now, memorySample) // for leap
	}
}

// attemptDone tells, once, that the attempt under way is over.
func (c *call) attemptDone(ctx context.Context, err error, u Usage) {
	if c.trail == nil || c.trail.attempt == 0 {
		return
	}
	ev := c.event(EventAttemptDone, err)
	c.trail.attempt = 0
	if e := c.own(ctx, err); e != nil { // which the call goes on with, and changes
		copied := *e
		c.fill(&copied)
		ev.Err = &copied
	}
	if ev.Usage = u; c.cfg.OnEvent != nil {
		c.cfg.OnEvent(ctx, ev)
	}
}

// firstEvent tells that the stream of the attempt is handed over.
func (c *call) firstEvent(ctx context.Context) {
	if c.trail != nil {
		c.trail.first = c.since(c.admitted)
		c.emit(ctx, EventFirstEvent, nil)
	}
}

// unwound tells the end of a call that a panic or Goexit has ended.
func (c *call) unwound(ctx context.Context) {
	c.attemptDone(ctx, ErrUnwound, Usage{})
	c.emit(ctx, EventDone, ErrUnwound)
}
