package aiguard

// Pipeline: Client, Transport or Do → budget → line → route → attempt → retry → result or *Error.
// This file: what a call tells events and logs.

import (
	"context"
	"log/slog"
	"time"
)

// history holds what has happened to a call so far, for OnEvent, the log and the call's error.
type history struct {
	timing
	trail *trail // nil: the call is not observed

	queued, backoff, inFlight time.Duration
	attempts                  int32
	transition                transition // change of the route, to be reported
	nested                    bool       // part of a Do, which counts
	mayBill                   bool       // one of the attempts may be billed
}

// tell counts the end of the call and announces it.
func (h *history) tell(ctx context.Context, err error) {
	h.count(ctx, err)
	h.announce(ctx, err)
}

// endOf returns the Event that ends the call, and err if it is the call's own.
func (h *history) endOf(ctx context.Context, err error) (EventType, *Error) {
	e := ownError(ctx, err)
	if e != nil && h.attempts == 0 {
		return EventRefused, e
	}
	return EventDone, e
}

// count counts the end of the call in Stats and keeps its failure for Inspect.
func (h *history) count(ctx context.Context, err error) {
	if h.nested { // the enclosing Do counts
		return
	}
	switch t, e := h.endOf(ctx, err); {
	case err == nil:
		h.succeeded.Add(1)
	case e == nil && (ctx.Err() != nil || err == errLeft): // canceled by the caller
	case t == EventRefused:
		h.refused.Add(1)
		h.recent.record(h, e)
	default:
		h.failed.Add(1)
		h.recent.record(h, e)
		if e != nil && e.Kind == ErrTimeout {
			h.timeouts.Add(1)
		}
	}
}

// announce calls OnEvent, which may panic, and writes the log.
func (h *history) announce(ctx context.Context, err error) {
	h.attemptDone(ctx, err)
	h.tellTransition(ctx, err)
	t, e := h.endOf(ctx, err)
	h.emit(ctx, t, err)
	if e != nil && !h.nested { // the enclosing Do logs
		h.logEnd(ctx, t, e)
	}
}

// logEnd logs the failure of the call. Like send, it is not part of announce, to keep the frame of announce small.
//
//go:noinline
func (h *history) logEnd(ctx context.Context, t EventType, e *Error) {
	h.log(ctx, t, e, h.identity()...)
}

// fill adds the call's facts to e. The call must own e, so ended and explain copy errors that others may hold.
func (h *history) fill(e *Error) {
	if e.Op == "" {
		e.Op = h.Op
	}
	if e.Model == "" {
		e.Model = h.Model
	}
	if e.Host == "" {
		e.Host = h.host
	}
	e.Attempts, e.Queued, e.Backoff, e.InFlight = int(h.attempts), h.queued, h.backoff, h.inFlight
	e.MayBeBilled = e.MayBeBilled || h.mayBill
}

// event returns an Event of the call as it is now.
func (h *history) event(t EventType, err error) Event {
	e := Event{Type: t, Call: h.Call, Host: h.host, Alternative: int(h.alternative), Attempt: int(h.attempts),
		Queued: h.queued, Backoff: h.backoff, InFlight: h.inFlight, Elapsed: h.since(h.start), Err: err, MayBeBilled: err != nil && h.mayBill}
	if key, ok := h.routeKey(); ok {
		e.Route = key.text()
	}
	if t := h.trail; t != nil {
		e.ID, e.Parent, e.Endpoint, e.FirstEvent = t.id, t.parent, t.endpoint, t.first
		if t.attempt != 0 {
			e.Attempt = t.attempt
		}
	}
	return e
}

// emit calls OnEvent if it is set.
func (h *history) emit(ctx context.Context, t EventType, err error) {
	if h.cfg.OnEvent != nil {
		h.send(ctx, t, err)
	}
}

// send calls OnEvent. An Event takes so much stack that a goroutine which has waited would have to grow its own, so
// send is not part of emit or announce.
//
//go:noinline
func (h *history) send(ctx context.Context, t EventType, err error) {
	e := h.event(t, err)
	if t == EventDone || t == EventRefused {
		e.Usage = h.trail.used
	}
	h.cfg.OnEvent(ctx, e)
}

// tellTransition reports once that the call's route went down with err or came back.
func (h *history) tellTransition(ctx context.Context, err error) {
	if h.transition != noTransition {
		h.reportTransition(ctx, err)
	}
}

// reportTransition is the rest of tellTransition. Most calls have no change to report, and its frame is large.
//
//go:noinline
func (h *history) reportTransition(ctx context.Context, err error) {
	t := h.transition
	h.transition = noTransition
	switch e := ownError(ctx, err); {
	case t == wentDown && e != nil:
		h.report(ctx, EventDown, e, 0)
	case t == cameBack:
		h.emit(ctx, EventUp, nil)
		if h.cfg.Logger != nil {
			h.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "aiguard: route up", slog.String("op", short(h.Op)), slog.String("model", short(h.Model)))
		}
	}
}

// report logs and emits an event before the call is over. wait is the time until the call continues.
func (h *history) report(ctx context.Context, t EventType, e *Error, wait time.Duration) {
	if h.silent() {
		return
	}
	copied := *e
	e = &copied
	h.fill(e)
	if h.cfg.OnEvent != nil {
		ev := h.event(t, e)
		ev.Backoff = wait
		h.cfg.OnEvent(ctx, ev)
	}
	h.log(ctx, t, e, append(h.identity(), slog.Duration("wait", wait))...)
}

// silent reports whether neither OnEvent nor Logger is set.
func (l *live) silent() bool { return l.cfg.OnEvent == nil && l.cfg.Logger == nil }

// log writes one line about e. Failures that need an operator are errors, retries are infos, and the rest are
// warnings.
func (h *history) log(ctx context.Context, t EventType, e *Error, more ...slog.Attr) {
	if h.cfg.Logger == nil {
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
	if h.mayLog(ctx, level, t, msg, e) {
		h.cfg.Logger.LogAttrs(ctx, level, msg, append(e.attrs(), more...)...)
	}
}

// identity returns the attributes of a log line that identify the call.
func (h *history) identity() (attrs []slog.Attr) {
	if h.Tenant != "" {
		attrs = append(attrs, slog.String("tenant", short(h.Tenant)))
	}
	if h.trail != nil {
		attrs = append(attrs, slog.String("call_id", h.trail.id.String()))
	}
	return attrs
}
