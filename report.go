package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: what a call tells events and logs.

import (
	"context"
	"log/slog"
	"time"
)

// Event is one moment in a call's life. Fields that don't apply are zero.
//
// Each call ends with one EventRefused or EventDone. Each attempt begins with one EventAdmitted and ends with one
// EventAttemptDone, before the call goes on. This holds for every end of a call: an answer, a failure, a caller who leaves, a
// panic. The two attempts of a hedged call may overlap.
type Event struct {
	Type       EventType
	ID, Parent CallID // of the call; of the Do or RunTask that the call is made in, if somebody observes that
	Call       Call

	Host, Route string // of the provider; its route's name, as in RouteStats
	Endpoint    string // the API endpoint's own name, such as "chat.completions", even if Call.Op has another
	Alternative int    // of Fallback: 1 is the first plan B; 0: none, or the first alternative
	Attempt     int    // the attempt it belongs to, from 1; in EventDone how many there were

	Queued, Backoff, InFlight, Elapsed time.Duration // so far; for EventRetry and EventPaused, Backoff is the wait to come
	FirstEvent                         time.Duration // of a stream: from the beginning of the attempt to its first event

	Usage Usage // EventAttemptDone, EventDone
	Err   error // why: an *Error, or the caller's own

	MayBeBilled bool // with Err: the provider may charge for what it has done so far, see Error.MayBeBilled

	// Of the call that EventMemorySpike names: the bodies of the last request, if its length was known, and of its answer,
	// and how much the heap has grown since the call was admitted.
	PromptBytes, AnswerBytes, HeapGrowth int64
}

// EventType names an Event. More may come: ignore those you don't know.
//
// EventMemorySpike has two forms. With Err, the heap is over MemoryLimit: calls are refused from now on. Without, the heap
// has grown across this call by a tenth of MemoryLimit (64 MiB if there is none). That is a hint where to look, given once a
// second at most: what other goroutines did meanwhile and what is garbage are in the growth. A call over HTTP is measured
// when its answer has been decoded, after EventDone, and only if prompt and answer have 1/64 of that many bytes; a Do only
// if it took 100 ms.
type EventType string

// The moments of a call.
const (
	EventQueued      EventType = "queued"       // no slot is free: waiting
	EventAdmitted    EventType = "admitted"     // has a slot; the attempt begins
	EventFirstEvent  EventType = "first_event"  // a stream is handed to its caller
	EventAttemptDone EventType = "attempt_done" // the attempt is over; Err nil: answered
	EventRetry       EventType = "retry"        // the attempt failed with Err; another follows after Backoff
	EventHedge       EventType = "hedge"        // the attempt is late: a second one begins beside it
	EventPaused      EventType = "paused"       // a 429 pauses the route for Backoff
	EventDown        EventType = "down"         // the route is down with Err: until it answers, the guard does in its stead
	EventUp          EventType = "up"           // the route answers again
	EventRefused     EventType = "refused"      // not admitted
	EventDone        EventType = "done"         // over; Err nil: answered
	EventAbandoned   EventType = "abandoned"    // a stream that nobody read or closed ended by StreamTimeout; EventDone follows
	EventTask        EventType = "task"         // RunTask is over
	EventMemorySpike EventType = "memory_spike" // the heap has grown over MemoryLimit, or much across a call
)

// Usage is the tokens a call took, where the answer said so. Input includes cached input, Output includes reasoning.
type Usage struct {
	Input, Output         int64
	CacheRead, CacheWrite int64 // of the input: read from the provider's cache, and written to it
	Reasoning             int64 // of the output
	Estimated             bool  // a guess, because no answer said it; only a Budget gets those
}

// tell counts the call's end, and then tells OnEvent, which may panic, and the log.
func (c *call) tell(ctx context.Context, err error, u Usage) {
	e := c.own(ctx, err)
	t := EventDone
	if e != nil && c.attempts == 0 {
		t = EventRefused
	}
	if !c.nested {
		switch {
		case err == nil:
			c.succeeded.Add(1)
		case e == nil && (ctx.Err() != nil || err == errLeft): // the caller left
		case t == EventRefused:
			c.refused.Add(1)
		default:
			c.failed.Add(1)
			if e != nil && e.Kind == ErrTimeout {
				c.timeouts.Add(1)
			}
		}
	}
	c.attemptDone(ctx, err, u)
	c.tellTurn(ctx, err)
	if c.cfg.OnEvent != nil {
		c.emitWith(ctx, t, err, u)
	}
	if e != nil && c.recent.on.Load() {
		c.recent.record(c, e)
	}
	if e != nil && !c.nested { // the Do around it has the last word
		c.log(ctx, t, e, c.identity()...)
	}
}

// fill gives e the facts of the call. It must be this call's own: ended and explain copy what others may hold.
func (c *call) fill(e *Error) {
	if e.Op == "" {
		e.Op = c.Op
	}
	if e.Model == "" {
		e.Model = c.Model
	}
	if e.Host == "" {
		e.Host = c.host
	}
	e.Attempts, e.Queued, e.Backoff, e.InFlight = int(c.attempts), c.queued, c.backoff, c.inFlight
	e.MayBeBilled = e.MayBeBilled || c.mayBill
}

// event is this moment of the call.
func (c *call) event(t EventType, err error) Event {
	e := Event{Type: t, Call: c.Call, Host: c.host, Alternative: int(c.alternative), Attempt: int(c.attempts),
		Queued: c.queued, Backoff: c.backoff, InFlight: c.inFlight, Elapsed: c.since(c.start), Err: err, MayBeBilled: err != nil && c.mayBill}
	if key, ok := c.routeKey(); ok {
		e.Route = key.text()
	}
	if t := c.trail; t != nil {
		e.ID, e.Parent, e.Endpoint, e.FirstEvent = t.id, t.parent, t.endpoint, t.first
		if t.attempt != 0 {
			e.Attempt = t.attempt
		}
	}
	return e
}

// emit tells OnEvent alone. Where there is none it costs no stack, of which an Event takes much.
//
//go:noinline
func (c *call) emit(ctx context.Context, t EventType, err error) {
	if c.cfg.OnEvent != nil {
		c.emitWith(ctx, t, err, Usage{})
	}
}

func (c *call) emitWith(ctx context.Context, t EventType, err error, u Usage) {
	ev := c.event(t, err)
	ev.Usage = u
	c.cfg.OnEvent(ctx, ev)
}

// tellTurn tells, once, that the call's route has gone down with err, or has come back.
func (c *call) tellTurn(ctx context.Context, err error) {
	t := c.turned
	c.turned = noTurn
	switch e := c.own(ctx, err); {
	case t == wentDown && e != nil:
		c.report(ctx, EventDown, e, 0)
	case t == cameBack:
		c.emit(ctx, EventUp, nil)
		if c.cfg.Logger != nil {
			c.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "aiguard: route up", slog.String("op", short(c.Op)), slog.String("model", short(c.Model)))
		}
	}
}

// report logs and emits what happens before the call is over: wait is the time until it goes on.
func (c *call) report(ctx context.Context, t EventType, e *Error, wait time.Duration) {
	if c.silent() {
		return
	}
	copied := *e
	e = &copied
	c.fill(e)
	if c.cfg.OnEvent != nil {
		ev := c.event(t, e)
		ev.Backoff = wait
		c.cfg.OnEvent(ctx, ev)
	}
	c.log(ctx, t, e, append(c.identity(), slog.Duration("wait", wait))...)
}

// silent reports whether nobody would hear what there is to tell.
func (c *core) silent() bool { return c.cfg.OnEvent == nil && c.cfg.Logger == nil }

// log writes one line about e. Failures that somebody must act on are errors, a retry is news, the rest warnings.
func (c *core) log(ctx context.Context, t EventType, e *Error, more ...slog.Attr) {
	if c.cfg.Logger == nil {
		return
	}
	level := slog.LevelWarn
	switch {
	case t == EventRetry:
		level = slog.LevelInfo
	case t == EventDone && (e.Kind == ErrUnauthorized || e.Kind == ErrMisconfigured || e.Kind == ErrQuota), t == EventTask, t == EventDown:
		level = slog.LevelError
	}
	msg := map[EventType]string{
		EventRetry: "aiguard: retrying", EventPaused: "aiguard: route paused", EventDown: "aiguard: route down", EventRefused: "aiguard: call refused",
		EventDone: "aiguard: call failed", EventAbandoned: "aiguard: stream abandoned", EventTask: "aiguard: task stopped",
		EventMemorySpike: "aiguard: memory limit reached",
	}[t]
	if c.mayLog(ctx, level, t, msg, e) {
		c.cfg.Logger.LogAttrs(ctx, level, msg, append(e.attrs(), more...)...)
	}
}

// identity is what a log line says about the call besides the facts of its error.
func (c *call) identity() (attrs []slog.Attr) {
	if c.Tenant != "" {
		attrs = append(attrs, slog.String("tenant", short(c.Tenant)))
	}
	if c.trail != nil {
		attrs = append(attrs, slog.String("call_id", c.trail.id.String()))
	}
	return attrs
}
