// Package otelguard shows what a guard does in OpenTelemetry traces and metrics.
//
//	telemetry, err := otelguard.New(otelguard.Config{})
//	guard, err := aiguard.New(telemetry.Install(aiguard.Config{}))
//	_, err = telemetry.Observe(guard)
//
// # Traces
//
// Each call has a span named after its operation and model, such as "chat gpt-4o". The span begins with the call and ends with
// its answer or its stream. Each attempt has a child span, "aiguard.attempt", with its own error. Waits are events of the
// call's span: aiguard.queued, aiguard.backoff and aiguard.route_paused. Their attribute aiguard.wait has the length in seconds.
// The event aiguard.first_event marks the first event of a stream. A call inside a Do has its span inside the span of the Do. A
// rejected call has a span without attempts.
//
// Spans made with the context of a call become children of the attempt. Examples are the spans of fn in a Do and those of an
// instrumented base transport. The guard sends trace context to the provider only if Config.Propagator is set.
//
// An answer that cacheguard shares or has kept makes no call. It has a span if Telemetry.CacheAnswer is the cache's OnAnswer.
// The span of a shared answer links to the caller who sent the request.
//
// # Metrics
//
// Names, units, buckets and attributes follow the OpenTelemetry semantic conventions for generative AI, release v0.1.0. The
// file names.go lists all of them. Names that the conventions do not have begin with aiguard.
//
// Durations cover calls with at least one attempt. They include queue, retries and backoff. aiguard.refused counts rejected
// calls. Each of endpoint, op, model, host, tenant and route has at most 100 label values. Later values become "other".
//
// error.type is the Kind of an *aiguard.Error, such as "timeout". It is "canceled" or "deadline_exceeded" if the caller left,
// "panic" after a panic or runtime.Goexit, and "_OTHER" for an error of fn in a Do.
//
// aiguard.budget.reached shows which limits are nearly spent if Telemetry.BudgetReached is the OnSoft of a budget.Config.
//
// The folder dashboards has a Grafana dashboard (aiguard.json) and Prometheus alert rules (alerts.yml). They use the names that
// OpenTelemetry's exporter for Prometheus makes of these metrics. The program examples/metrics is a service to try them with.
//
// Traces and metrics contain no prompt, answer, key or provider text.
package otelguard

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/aiguard-go/aiguard"
)

// Config configures a Telemetry. The zero value is valid.
type Config struct {
	TracerProvider trace.TracerProvider // default otel.GetTracerProvider()
	MeterProvider  metric.MeterProvider // default otel.GetMeterProvider()

	// Propagator adds the trace context to the headers of each attempt. Default none: the provider gets no trace context
	Propagator propagation.TextMapPropagator

	// Name is the value of the attribute aiguard.guard. It distinguishes several guards in one process. Default none
	Name string
}

// Telemetry records traces and metrics of one guard. It is safe for concurrent use.
type Telemetry struct {
	tracer     trace.Tracer
	meter      metric.Meter
	meters     *meters
	propagator propagation.TextMapPropagator
	series     all

	routes, tenants values
	budgets         budgets
}

// New makes a Telemetry. It fails if the MeterProvider refuses an instrument.
func New(cfg Config) (*Telemetry, error) {
	if cfg.TracerProvider == nil {
		cfg.TracerProvider = otel.GetTracerProvider()
	}
	if cfg.MeterProvider == nil {
		cfg.MeterProvider = otel.GetMeterProvider()
	}
	meter := cfg.MeterProvider.Meter(scope)
	meters, err := newMeters(meter)
	if err != nil {
		return nil, err
	}
	return &Telemetry{tracer: cfg.TracerProvider.Tracer(scope), meter: meter, meters: meters, propagator: cfg.Propagator,
		series: all{guard: clean(cfg.Name), m: make(map[subject]*series)}}, nil
}

// Install returns cfg for aiguard.New, with a Middleware before those of cfg and an OnEvent that also calls that of cfg.
func (t *Telemetry) Install(cfg aiguard.Config) aiguard.Config {
	cfg.Middleware = append([]aiguard.Middleware{t.follow}, cfg.Middleware...)
	next := cfg.OnEvent
	cfg.OnEvent = func(ctx context.Context, e aiguard.Event) {
		t.event(ctx, &e)
		if next != nil {
			next(ctx, e)
		}
	}
	return cfg
}

// follow is the Middleware. It runs the call with a record as its context.
func (t *Telemetry) follow(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
	return next(&record{Context: ctx, t: t})
}

// event passes an event to the record of its call.
func (t *Telemetry) event(ctx context.Context, e *aiguard.Event) {
	r, ok := ctx.(*record)
	if !ok {
		r, _ = ctx.Value(recordKey{}).(*record)
	}
	if r != nil && r.t == t && r.id == 0 && e.Type != aiguard.EventTask {
		r.id = e.ID
	}
	switch {
	case r != nil && r.t == t && r.id == e.ID:
		r.moment(e)
	case e.Type == aiguard.EventRefused: // before the middleware: a prompt that Client has refused
		(&record{Context: ctx, t: t}).moment(e)
	case e.Type == aiguard.EventTask:
		if own := failure(e.Err); own != nil && own.Kind == aiguard.ErrTimeout {
			t.timeout(ctx, t.series.of(subject{op: e.Call.Op, model: e.Call.Model}), own.Phase)
		}
	}
}

// Observe reads the gauges of g at each collection of metrics, until the Registration is unregistered. g must have been made
// with a Config from Install.
func (t *Telemetry) Observe(g *aiguard.Guard) (metric.Registration, error) {
	if g == nil {
		return nil, errors.New("otelguard: Observe: nil Guard; make it with aiguard.New")
	}
	return t.observe(g)
}
