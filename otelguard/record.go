package otelguard

import (
	"context"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

// record follows one call. It is the context of the call, so that spans made by fn or by a base transport become children
// of the current span.
//
// The guard reports the events of a call one after the other. Several goroutines at once use only the context.
type record struct {
	context.Context // the caller's
	t               *Telemetry

	id      aiguard.CallID
	series  *series
	span    trace.Span
	spanCtx context.Context
	open    [2]attempt // two only while a hedge runs
	queued  time.Duration
	timeout string // the phase of the last timeout that was counted
	memory  [4]attribute.KeyValue

	mu      sync.Mutex
	current context.Context // of the current span; nil: none yet
}

type attempt struct {
	number int // 0: none
	span   trace.Span
}

type recordKey struct{}

// Value returns the record for the keys of package callctx. For other keys it asks the context of the current span.
func (r *record) Value(key any) any {
	switch key.(type) {
	case recordKey, callctx.ProgressKey:
		return r
	case callctx.HeadersKey:
		if r.t.propagator == nil {
			return nil
		}
		return r
	}
	return r.now().Value(key)
}

// now returns the context of the current span.
func (r *record) now() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		return r.current
	}
	return r.Context
}

func (r *record) enter(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.current = ctx
}

// AddHeaders sends the context of the attempt to the provider.
func (r *record) AddHeaders(h http.Header) {
	r.t.propagator.Inject(r.now(), propagation.HeaderCarrier(h))
}

// Progressed records the time between two events of a stream.
func (r *record) Progressed(after time.Duration) {
	r.t.meters.perChunk.Record(r.spanCtx, after.Seconds(), r.series.record...)
}

// moment handles an event of the call.
func (r *record) moment(e *aiguard.Event) {
	if r.span == nil {
		r.begin(e)
	}
	switch e.Type {
	case aiguard.EventAdmitted:
		r.wait(e)
		r.admitted(e)
	case aiguard.EventFirstEvent:
		r.firstEvent(e)
	case aiguard.EventAttemptDone:
		r.attemptDone(e)
	case aiguard.EventRetry:
		r.t.meters.retries.Add(r.spanCtx, 1, addOptions(r.series.attrs, attribute.String(attrErrorType, errorTypeOf(e)))...)
		r.note(eventBackoff, e.Backoff)
	case aiguard.EventPaused:
		r.note(eventPaused, e.Backoff)
	case aiguard.EventHedge:
		r.t.meters.hedges.Add(r.spanCtx, 1, r.series.add...)
		r.note(eventHedge, 0)
	case aiguard.EventDown:
		r.t.meters.outages.Add(r.spanCtx, 1, r.series.add...)
		r.note(eventDown, 0)
	case aiguard.EventUp:
		r.note(eventUp, 0)
	case aiguard.EventAbandoned:
		r.note(eventAbandoned, 0)
	case aiguard.EventRefused, aiguard.EventDone:
		r.wait(e)
		r.end(e)
	}
}

// begin starts the span of the call.
func (r *record) begin(e *aiguard.Event) {
	r.series = r.t.series.of(subject{e.Endpoint, e.Call.Op, e.Call.Model, e.Host})
	r.spanCtx, r.span = r.t.tracer.Start(r.Context, r.series.span, r.series.start...)
	if r.span.IsRecording() && r.series.model != e.Call.Model { // beyond the limit of label values, which does not apply to spans
		r.span.SetAttributes(attribute.String(attrModel, clean(e.Call.Model)))
	}
	r.enter(r.spanCtx)
}

// admitted starts the span of an attempt.
func (r *record) admitted(e *aiguard.Event) {
	r.timeout = ""
	i := 0
	if r.open[0].number != 0 {
		i = 1
	}
	ctx, span := r.t.tracer.Start(r.spanCtx, spanAttempt)
	if e.Attempt > 1 && span.IsRecording() { // nearly all calls have one, and an attribute costs
		span.SetAttributes(attribute.Int(attrAttempt, e.Attempt))
	}
	r.open[i] = attempt{e.Attempt, span}
	r.enter(ctx)
}

func (r *record) attemptDone(e *aiguard.Event) {
	for i := range r.open {
		a := &r.open[i]
		if a.number != e.Attempt {
			continue
		}
		if e.Err != nil {
			setError(a.span, e)
		}
		a.span.End()
		*a = attempt{}
	}
	r.countTimeout(e)
	r.t.used(r.spanCtx, r.series, e)
	r.enter(r.spanCtx)
}

// countTimeout counts a deadline that expired. If the end of the attempt is also the end of the call, it counts once.
func (r *record) countTimeout(e *aiguard.Event) {
	own := failure(e.Err)
	if own == nil || own.Kind != aiguard.ErrTimeout || e.Host == "" && own.Host != "" { // the timeout of a call inside the Do
		return
	}
	if own.Phase != r.timeout {
		r.timeout = own.Phase
		r.t.timeout(r.spanCtx, r.series, own.Phase)
	}
}

func (r *record) firstEvent(e *aiguard.Event) {
	r.t.meters.firstChunk.Record(r.spanCtx, e.FirstEvent.Seconds(), r.series.record...)
	if r.span.IsRecording() {
		r.note(eventFirst, e.FirstEvent)
		r.span.SetAttributes(attribute.Bool(attrStream, true), attribute.Float64(attrFirstChunk, e.FirstEvent.Seconds()))
	}
}

// wait records a wait to be admitted.
func (r *record) wait(e *aiguard.Event) {
	if d := e.Queued - r.queued; d > 0 {
		r.queued = e.Queued
		r.t.waited(r.spanCtx, r.series, d, e.Call.Priority)
		r.note(eventQueued, d)
	}
}

// note adds an event to the span of the call.
func (r *record) note(name string, wait time.Duration) {
	switch {
	case !r.span.IsRecording():
	case wait > 0:
		r.span.AddEvent(name, trace.WithAttributes(attribute.Float64(attrWait, wait.Seconds())))
	default:
		r.span.AddEvent(name)
	}
}

// end ends the span of the call.
func (r *record) end(e *aiguard.Event) {
	errorType := errorTypeOf(e)
	switch {
	case e.Type == aiguard.EventRefused:
		r.t.refusal(r.spanCtx, r.series, e, errorType)
	case e.Attempt > 0: // else the caller left the queue
		r.t.ended(r.spanCtx, r.series, e, errorType)
	}
	if e.Alternative > 0 {
		r.t.meters.fallbacks.Add(r.spanCtx, 1, r.series.add...)
	}
	r.countTimeout(e)
	if r.span.IsRecording() {
		r.span.SetAttributes(facts(r.memory[:0], e)...)
		if errorType != "" {
			r.span.SetAttributes(attribute.String(attrCall, e.ID.String()))
			setError(r.span, e)
		}
	}
	r.span.End()
	r.enter(r.Context)
}

// facts appends the attributes that are known at the end of a call.
func facts(attrs []attribute.KeyValue, e *aiguard.Event) []attribute.KeyValue {
	attrs = append(attrs, attribute.Int(attrAttempts, e.Attempt))
	if e.Host != "" && e.Call.Op != e.Endpoint {
		attrs = append(attrs, attribute.String(attrOp, clean(e.Call.Op)))
	}
	if e.Call.Tenant != "" {
		attrs = append(attrs, attribute.String(attrTenant, clean(e.Call.Tenant)))
	}
	if e.Call.Priority != aiguard.Normal {
		attrs = append(attrs, attribute.String(attrPriority, e.Call.Priority.String()))
	}
	for _, n := range [...]struct {
		name  string
		value int64
	}{{attrAlternative, int64(e.Alternative)}, {attrInput, e.Usage.Input}, {attrOutput, e.Usage.Output}, {attrCacheRead, e.Usage.CacheRead},
		{attrCacheWrite, e.Usage.CacheWrite}, {attrReasoning, e.Usage.Reasoning}} {
		if n.value != 0 {
			attrs = append(attrs, attribute.Int64(n.name, n.value))
		}
	}
	if e.Usage.Estimated {
		attrs = append(attrs, attribute.Bool(attrEstimated, true))
	}
	if e.MayBeBilled {
		attrs = append(attrs, attribute.Bool(attrBilled, true))
	}
	return attrs
}

// setError records a failure. It shows the text of an *Error only, because other texts may quote a prompt or a key.
func setError(span trace.Span, e *aiguard.Event) {
	errorType, text := errorTypeOf(e), ""
	attrs := []attribute.KeyValue{attribute.String(attrErrorType, errorType)}
	if own := failure(e.Err); own != nil {
		text = own.Error()
		if own.Phase != "" {
			attrs = append(attrs, attribute.String(attrPhase, own.Phase))
		}
		if own.StatusCode != 0 {
			attrs = append(attrs, attribute.Int(attrStatus, own.StatusCode))
		}
	}
	span.SetAttributes(attrs...)
	if errorType != errorCanceled && errorType != errorDeadline { // the caller has left, and nothing has failed
		span.SetStatus(codes.Error, text)
	}
}
