package aiguard

import (
	"context"
	"time"
)

// trail holds the data of a call that only events and logs need. A call without an observer has no trail.
type trail struct {
	id, parent CallID
	endpoint   string        // name of the API endpoint
	attempt    int           // current attempt; 0: none
	first      time.Duration // from the beginning of the attempt to the first event of its stream
	heap       int64         // live bytes at the first attempt
	used       Usage         // by the last attempt
}

// newTrail returns the trail of a call. outer is the Do or RunTask around the call; nil: none.
//
//go:noinline
func (c *core) newTrail(outer *call) *trail {
	id := c.ids.Add(1)
	for id == 0 { // 0 stands for no call
		id = c.ids.Add(1)
	}
	t := &trail{id: CallID(id)}
	for o := outer; o != nil; o = o.outer {
		if o.trail != nil {
			t.parent = o.trail.id
			break
		}
	}
	return t
}

// begin records that attempt n has started.
func (t *trail) begin(n int32, now instant, m *memory) {
	t.attempt, t.first, t.used = int(n), 0, Usage{}
	if n == 1 {
		t.heap = m.sample(now, memorySample) // for checkSpike
	}
}

// attemptDone reports the end of the current attempt. Later calls for the same attempt have no effect.
func (h *history) attemptDone(ctx context.Context, err error) {
	if h.trail != nil && h.trail.attempt != 0 {
		h.emitAttemptDone(ctx, err)
	}
}

// emitAttemptDone is the rest of attemptDone. Its frame is large, and most calls have no trail.
//
//go:noinline
func (h *history) emitAttemptDone(ctx context.Context, err error) {
	ev := h.event(EventAttemptDone, err)
	h.trail.attempt = 0
	if e := ownError(ctx, err); e != nil { // a copy, because the call keeps changing its own
		copied := *e
		h.fill(&copied)
		ev.Err = &copied
	}
	if ev.Usage = h.trail.used; h.cfg.OnEvent != nil {
		h.cfg.OnEvent(ctx, ev)
	}
}

// note records what the attempt has used, if anything is known of it.
func (t *trail) note(used Usage) {
	if t != nil && used.Input+used.Output > 0 {
		t.used = used
	}
}

// firstEvent reports that the stream of the attempt was handed over to the caller.
func (h *history) firstEvent(ctx context.Context) {
	if h.trail != nil {
		h.trail.first = h.since(h.admitted)
		h.emit(ctx, EventFirstEvent, nil)
	}
}

// unwound reports the end of a call after a panic or Goexit.
func (h *history) unwound(ctx context.Context) {
	h.attemptDone(ctx, ErrUnwound)
	h.emit(ctx, EventDone, ErrUnwound)
}
