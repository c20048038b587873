package otelguard_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/otelguard"
)

// world is an observed guard before a fake provider, and what it has told.
type world struct {
	*aiguard.Client
	srv    *aiguardtest.Server
	spans  *tracetest.SpanRecorder
	reader *metric.ManualReader
	tracer *sdktrace.TracerProvider

	telemetry *otelguard.Telemetry
}

func newWorld(t testing.TB, srv *aiguardtest.Server, cfg aiguard.Config, own otelguard.Config) *world {
	t.Helper()
	w := &world{srv: srv, spans: tracetest.NewSpanRecorder(), reader: metric.NewManualReader()}
	w.tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(w.spans))
	own.TracerProvider, own.MeterProvider = w.tracer, metric.NewMeterProvider(metric.WithReader(w.reader))
	telemetry, err := otelguard.New(own)
	require.NoError(t, err)
	w.telemetry = telemetry
	guard, err := aiguard.New(telemetry.Install(cfg))
	require.NoError(t, err)
	registration, err := telemetry.Observe(guard)
	require.NoError(t, err)
	base := srv.Transport()
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL, oc.HTTPClient = srv.URL, &http.Client{Transport: base}
	w.Client = guard.Client(oc)
	t.Cleanup(func() {
		require.NoError(t, registration.Unregister())
		require.NoError(t, guard.Close())
		base.CloseIdleConnections()
		for _, s := range w.spans.Started() { // a stream that its context has ended is told in another goroutine
			require.Eventually(t, func() bool { return !s.EndTime().IsZero() }, 5*time.Second, time.Millisecond, "%s has not ended", s.Name())
		}
	})
	return w
}

// inVirtualTime runs f in a bubble with a fake provider in memory.
func inVirtualTime(t *testing.T, cfg aiguard.Config, own otelguard.Config, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t, newWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cfg, own))
	})
}

var chatRequest = openai.ChatCompletionRequest{
	Model:    "gpt-4o-mini",
	Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "the prompt"}},
}

func (w *world) chat(ctx context.Context) error {
	_, err := w.CreateChatCompletion(ctx, chatRequest)
	return err
}

func (w *world) stream(ctx context.Context) error {
	s, err := w.CreateChatCompletionStream(ctx, chatRequest)
	if err != nil {
		return err
	}
	defer s.Close()
	for err == nil {
		_, err = s.Recv()
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// span is one that has ended, in short.
type span struct {
	sdktrace.ReadOnlySpan
	children []*span
}

// tree returns the spans without a parent among them, in the order in which they began.
func (w *world) tree() (roots []*span) {
	ended := w.spans.Ended()
	slices.SortStableFunc(ended, func(a, b sdktrace.ReadOnlySpan) int { return a.StartTime().Compare(b.StartTime()) })
	byID := map[string]*span{}
	for _, s := range ended {
		byID[s.SpanContext().SpanID().String()] = &span{ReadOnlySpan: s}
	}
	for _, s := range ended {
		own := byID[s.SpanContext().SpanID().String()]
		if parent := byID[s.Parent().SpanID().String()]; parent != nil {
			parent.children = append(parent.children, own)
		} else {
			roots = append(roots, own)
		}
	}
	return roots
}

// text draws a span with its children, error types and events: "chat m(aiguard.attempt!timeout) +aiguard.queued".
func (s *span) text() string {
	out := s.Name()
	if kind := s.attr("error.type"); kind != "" {
		out += "!" + kind
	}
	if len(s.children) > 0 {
		var inner []string
		for _, c := range s.children {
			inner = append(inner, c.text())
		}
		out += "(" + strings.Join(inner, " ") + ")"
	}
	for _, e := range s.Events() {
		out += " +" + e.Name
	}
	return out
}

func texts(spans []*span) (all []string) {
	for _, s := range spans {
		all = append(all, s.text())
	}
	return all
}

// attr is an attribute as text, or "".
func (s *span) attr(key string) string { return textOf(s.Attributes(), key) }

func textOf(attrs []attribute.KeyValue, key string) string {
	for _, a := range attrs {
		if string(a.Key) == key {
			return a.Value.Emit()
		}
	}
	return ""
}

// collect reads all metrics by name.
func (w *world) collect(t testing.TB) map[string]metricdata.Metrics {
	t.Helper()
	var rm metricdata.ResourceMetrics
	require.NoError(t, w.reader.Collect(t.Context(), &rm))
	all := map[string]metricdata.Metrics{}
	for _, scope := range rm.ScopeMetrics {
		require.Equal(t, "github.com/aiguard-go/aiguard/otelguard", scope.Scope.Name)
		for _, m := range scope.Metrics {
			all[m.Name] = m
		}
	}
	return all
}

// point is one of a metric: its attributes, and its sum and count.
type point struct {
	attrs attribute.Set
	sum   float64
	count uint64
}

func pointsOf(m metricdata.Metrics) (points []point) {
	switch data := m.Data.(type) {
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			points = append(points, point{p.Attributes, float64(p.Value), 1})
		}
	case metricdata.Gauge[int64]:
		for _, p := range data.DataPoints {
			points = append(points, point{p.Attributes, float64(p.Value), 1})
		}
	case metricdata.Histogram[float64]:
		for _, p := range data.DataPoints {
			points = append(points, point{p.Attributes, p.Sum, p.Count})
		}
	case metricdata.Histogram[int64]:
		for _, p := range data.DataPoints {
			points = append(points, point{p.Attributes, float64(p.Sum), p.Count})
		}
	}
	return points
}

// only is the one point of a metric.
func only(t testing.TB, all map[string]metricdata.Metrics, name string) point {
	t.Helper()
	points := pointsOf(all[name])
	require.Len(t, points, 1, name)
	return points[0]
}

func (p point) attr(key string) string { return textOf(p.attrs.ToSlice(), key) }

// seconds is a duration as an attribute's text.
func seconds(d time.Duration) string { return attribute.Float64Value(d.Seconds()).Emit() }
