package otelguard_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/otelguard"
)

// inMemory is a provider without a network.
type inMemory struct{}

var answer = []byte(`{"object":"chat.completion","model":"gpt-4o-mini","choices":[{"index":0,` +
	`"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`)

func (inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	_, err := io.Copy(io.Discard, r.Body)
	r.Body.Close()
	return &http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/json"}},
		Body:   io.NopCloser(bytes.NewReader(answer)), ContentLength: int64(len(answer))}, err
}

// dropped is a span processor that gets every span and keeps none: what exporting costs is the exporter's.
type dropped struct{}

func (dropped) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (dropped) OnEnd(sdktrace.ReadOnlySpan)                     {}
func (dropped) Shutdown(context.Context) error                  { return nil }
func (dropped) ForceFlush(context.Context) error                { return nil }

// asker returns a function that makes a guarded call in memory, with every call traced and measured, or without.
func asker(t testing.TB, on bool) func() {
	cfg := aiguard.Config{}
	if on {
		telemetry, err := otelguard.New(otelguard.Config{
			TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(dropped{})),
			MeterProvider:  metric.NewMeterProvider(metric.WithReader(metric.NewManualReader())),
		})
		require.NoError(t, err)
		cfg = telemetry.Install(cfg)
	}
	guard, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = guard.Close() })
	oc := openai.DefaultConfig("key")
	oc.HTTPClient = &http.Client{Transport: inMemory{}}
	client := guard.Client(oc)
	return func() {
		if _, err := client.CreateChatCompletion(context.Background(), chatRequest); err != nil {
			panic(err)
		}
	}
}

func TestTelemetryAllocatesAtMostFifteenMore(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates too: run it without -race")
	}
	without, with := testing.AllocsPerRun(1000, asker(t, false)), testing.AllocsPerRun(1000, asker(t, true))
	t.Logf("%v without, %v with", without, with)
	require.LessOrEqual(t, with-without, 15.)
}

// The row of the costs: at most 1.5 times as long with every call traced and measured.
func BenchmarkGuardedChat(b *testing.B) {
	for _, mode := range []struct {
		name string
		on   bool
	}{{"off", false}, {"on", true}} {
		b.Run(mode.name, func(b *testing.B) {
			ask := asker(b, mode.on)
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
		})
	}
}
