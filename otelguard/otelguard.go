// Package otelguard shows what a guard does in OpenTelemetry traces and metrics.
//
//	telemetry, err := otelguard.New(otelguard.Config{})
//	guard, err := aiguard.New(telemetry.Install(aiguard.Config{}))
//	_, err = telemetry.Observe(guard)
//
// # Traces
//
// Each call has a span named after its operation and model, "chat gpt-4o", from its beginning to the end of its answer or
// stream. Each attempt has a child span, "aiguard.attempt", with its own error. Waits are events of the call's span with their
// length in aiguard.wait: aiguard.queued, aiguard.backoff and aiguard.route_paused. The first event of a stream is one too. Calls
// made inside a Do have spans inside that of the Do. A call that was refused has a span without attempts.
//
// Spans that are made with the call's context become children of the attempt: those of fn in a Do, or of an instrumented
// base transport. The provider is told of the trace only if Config.Propagator is set.
//
// An answer of cacheguard that is shared or kept makes no call. With Telemetry.CacheAnswer as cacheguard's OnAnswer it has a span
// of its own, and a shared one a link to the caller whose request it is.
//
// # Metrics
//
// Names, units, buckets and attributes are those of the OpenTelemetry semantic conventions for generative AI, release v0.1.0;
// names.go lists them all. Durations are recorded for calls that have made an attempt, refusals are counted in
// aiguard.refused. gen_ai.client.inference.duration is that of the whole call, with waits and retries.
// A label has at most 100 values for each of endpoint, op, model and host; later ones become "other".
//
// error.type is the Kind of an *aiguard.Error ("timeout"), "canceled" or "deadline_exceeded" if the caller left, "panic", or
// "_OTHER" for an error that fn of a Do returned.
//
// Telemetry.BudgetReached as the OnSoft of a budget.Config says in aiguard.budget.reached which limits are nearly spent.
//
// The folder dashboards has a Grafana dashboard (aiguard.json) and Prometheus alert rules (alerts.yml) for these metrics, as the
// OpenTelemetry exporter for Prometheus names them. The program examples/metrics is a service that they work with.
//
// Neither traces nor metrics have a prompt, an answer, a key or a provider's words.
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
	TracerProvider trace.TracerProvider // otel.GetTracerProvider()
	MeterProvider  metric.MeterProvider // otel.GetMeterProvider()

	// Propagator adds the trace context to the headers of each attempt, so that the provider learns of it. None
	Propagator propagation.TextMapPropagator

	// Name is the attribute aiguard.guard, which tells several guards of a process apart. None
	Name string
}

// Telemetry makes traces and metrics of what one guard does. It is safe for concurrent use.
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

// follow is the Middleware: it gives the call its record.
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

// Observe reads the gauges of g, which Install has configured, whenever metrics are collected. Unregister ends that.
func (t *Telemetry) Observe(g *aiguard.Guard) (metric.Registration, error) {
	if g == nil {
		return nil, errors.New("otelguard: Observe: nil Guard; make it with aiguard.New")
	}
	return t.observe(g)
}
