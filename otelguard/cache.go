package otelguard

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// CacheAnswer is a function for cacheguard's Config.OnAnswer. It counts answers by their source. Answers that needed no
// request get a span, "aiguard.cache". The span of a shared answer links to the span of the caller who sent the request.
func (t *Telemetry) CacheAnswer(ctx context.Context, source string, waited time.Duration, first context.Context) {
	attrs := []attribute.KeyValue{attribute.String(attrSource, source)}
	if t.series.guard != "" {
		attrs = append(attrs, attribute.String(attrGuard, t.series.guard))
	}
	t.meters.cached.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(attrs...)))
	if source == "miss" { // whose call has a span
		return
	}
	end := time.Now()
	options := []trace.SpanStartOption{trace.WithTimestamp(end.Add(-waited)), trace.WithAttributes(attrs...)}
	if link := trace.SpanContextFromContext(first); source == "shared" && link.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: link}))
	}
	_, span := t.tracer.Start(ctx, spanCache, options...)
	span.End(trace.WithTimestamp(end))
}
