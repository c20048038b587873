package otelguard

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/aiguard-go/aiguard"
)

// meters are the instruments that calls record to.
type meters struct {
	inference, firstChunk, perChunk       metric.Float64Histogram
	embeddings, operation, do, queue      metric.Float64Histogram
	embeddingsTokens                      metric.Int64Histogram
	input, output, read, write, reasoning metric.Int64Counter
	refused, retries, timeouts            metric.Int64Counter
	hedges, fallbacks, outages, cached    metric.Int64Counter
}

func newMeters(m metric.Meter) (*meters, error) {
	var errs []error
	histogram := func(i instrument) metric.Float64Histogram {
		h, err := m.Float64Histogram(i.name, metric.WithUnit(i.unit), metric.WithDescription(i.description),
			metric.WithExplicitBucketBoundaries(i.buckets...))
		errs = append(errs, err)
		return h
	}
	counter := func(i instrument) metric.Int64Counter {
		c, err := m.Int64Counter(i.name, metric.WithUnit(i.unit), metric.WithDescription(i.description))
		errs = append(errs, err)
		return c
	}
	ms := &meters{
		inference: histogram(inferenceDuration), firstChunk: histogram(timeToFirstChunk), perChunk: histogram(timePerOutputChunk),
		embeddings: histogram(embeddingsDuration), operation: histogram(operationDuration), do: histogram(doDuration), queue: histogram(queueWait),
		input: counter(inputTokens), output: counter(outputTokens), read: counter(cacheReadTokens), write: counter(cacheWriteTokens),
		reasoning: counter(reasoningTokens),
		refused:   counter(refused), retries: counter(retries), timeouts: counter(timeouts), hedges: counter(hedges),
		fallbacks: counter(fallbacks), outages: counter(outages), cached: counter(cached),
	}
	i := embeddingsTokens
	var err error
	ms.embeddingsTokens, err = m.Int64Histogram(i.name, metric.WithUnit(i.unit), metric.WithDescription(i.description),
		metric.WithExplicitBucketBoundaries(i.buckets...))
	return ms, errors.Join(append(errs, err)...)
}

// ended records a call that has made an attempt.
func (t *Telemetry) ended(ctx context.Context, s *series, e *aiguard.Event, errorType string) {
	m, options := t.meters, s.record
	if errorType != "" {
		options = s.failure(errorType)
	}
	took := e.Elapsed.Seconds()
	switch s.operation {
	case "":
		m.do.Record(ctx, took, options...)
		return
	case opEmbeddings:
		m.embeddings.Record(ctx, took, options...)
		if e.Usage.Input > 0 && !e.Usage.Estimated {
			m.embeddingsTokens.Record(ctx, e.Usage.Input, s.record...)
		}
		return
	}
	if operations[e.Endpoint] == "" {
		m.operation.Record(ctx, took, options...)
		return
	}
	m.inference.Record(ctx, took, options...)
}

// used counts the tokens of an attempt.
func (t *Telemetry) used(ctx context.Context, s *series, e *aiguard.Event) {
	if s.operation == "" || s.operation == opEmbeddings || operations[e.Endpoint] == "" {
		return
	}
	m, options := t.meters, s.tokens
	if e.Usage.Estimated {
		options = s.estimated
	}
	m.input.Add(ctx, e.Usage.Input, options...)
	m.output.Add(ctx, e.Usage.Output, options...)
	for _, part := range [...]struct {
		counter metric.Int64Counter
		tokens  int64
	}{{m.read, e.Usage.CacheRead}, {m.write, e.Usage.CacheWrite}, {m.reasoning, e.Usage.Reasoning}} {
		if part.tokens > 0 {
			part.counter.Add(ctx, part.tokens, options...)
		}
	}
}

// refusal counts a call that was refused.
func (t *Telemetry) refusal(ctx context.Context, s *series, e *aiguard.Event, errorType string) {
	attrs := []attribute.KeyValue{attribute.String(attrErrorType, errorType), attribute.String(attrPriority, e.Call.Priority.String())}
	if own := failure(e.Err); own != nil && own.Phase != "" {
		attrs = append(attrs, attribute.String(attrPhase, t.series.phases.bound(own.Phase)))
	}
	t.meters.refused.Add(ctx, 1, addOptions(s.attrs, attrs...)...)
}

// timeout counts a deadline that expired.
func (t *Telemetry) timeout(ctx context.Context, s *series, phase string) {
	t.meters.timeouts.Add(ctx, 1, addOptions(s.attrs, attribute.String(attrPhase, t.series.phases.bound(phase)))...)
}

// waited records how long a call has waited.
func (t *Telemetry) waited(ctx context.Context, s *series, d time.Duration, p aiguard.Priority) {
	t.meters.queue.Record(ctx, d.Seconds(), recordOptions(s.attrs, attribute.String(attrPriority, p.String()))...)
}

// failure returns err as an *aiguard.Error, or nil.
func failure(err error) *aiguard.Error {
	e, _ := err.(*aiguard.Error)
	return e
}

// errorTypeOf returns the error.type of an event's Err.
func errorTypeOf(e *aiguard.Event) string {
	switch {
	case e.Err == nil:
		return ""
	case e.Err == aiguard.ErrUnwound:
		return errorPanic
	}
	if own := failure(e.Err); own != nil {
		return string(own.Kind)
	}
	switch {
	case errors.Is(e.Err, context.DeadlineExceeded):
		return errorDeadline
	case errors.Is(e.Err, context.Canceled), e.Host != "": // every other failure of a request has a Kind
		return errorCanceled
	}
	return errorOther
}
