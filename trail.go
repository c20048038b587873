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

// trail holds the data of a call that only events and logs need. A call without an observer has no trail.
type trail struct {
	id, parent CallID
	endpoint   string        // name of the API endpoint
	attempt    int           // current attempt; 0: none
	first      time.Duration // from the beginning of the attempt to the first event of its stream
	heap       int64         // live bytes at the first attempt
	used       Usage         // by the last attempt
}

// follow starts the call's trail.
//
//go:noinline
func (c *call) follow() {
	id := c.ids.Add(1)
	for id == 0 { // 0 stands for no call
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

// attemptBegun records that attempt n has started.
func (c *call) attemptBegun(n int32, now instant) {
	t := c.trail
	t.attempt, t.first, t.used = int(n), 0, Usage{}
	if n == 1 {
		t.heap = c.memory.sample(now, memorySample) // for leap
	}
}

// attemptDone reports the end of the current attempt. Later calls for the same attempt have no effect.
func (c *call) attemptDone(ctx context.Context, err error) {
	if c.trail != nil && c.trail.attempt != 0 {
		c.emitAttemptDone(ctx, err)
	}
}

// emitAttemptDone is the rest of attemptDone. Its frame is large, and most calls have no trail.
//
//go:noinline
func (c *call) emitAttemptDone(ctx context.Context, err error) {
	ev := c.event(EventAttemptDone, err)
	c.trail.attempt = 0
	if e := ownError(ctx, err); e != nil { // a copy, because the call keeps changing its own
		copied := *e
		c.fill(&copied)
		ev.Err = &copied
	}
	if ev.Usage = c.trail.used; c.cfg.OnEvent != nil {
		c.cfg.OnEvent(ctx, ev)
	}
}

// note records what the attempt has used, if anything is known of it.
func (t *trail) note(used Usage) {
	if t != nil && used.Input+used.Output > 0 {
		t.used = used
	}
}

// firstEvent reports that the stream of the attempt was handed over to the caller.
func (c *call) firstEvent(ctx context.Context) {
	if c.trail != nil {
		c.trail.first = c.since(c.admitted)
		c.emit(ctx, EventFirstEvent, nil)
	}
}

// unwound reports the end of a call after a panic or Goexit.
func (c *call) unwound(ctx context.Context) {
	c.attemptDone(ctx, ErrUnwound)
	c.emit(ctx, EventDone, ErrUnwound)
}
