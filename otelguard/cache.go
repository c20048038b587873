package otelguard

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// CacheAnswer is for cacheguard's Config.OnAnswer. It counts answers by their source, and gives a span to those that the
// provider was not asked for: "aiguard.cache". That of a shared answer has a link to the span of the caller whose request it is.
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
