package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	openai "github.com/sashabaranov/go-openai"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/otelguard"
)

// service asks a model through an observed guard.
type service struct {
	client   *aiguard.Client
	registry *prometheus.Registry
}

func newService(oc openai.ClientConfig) (*service, error) {
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, err
	}
	telemetry, err := otelguard.New(otelguard.Config{MeterProvider: metric.NewMeterProvider(metric.WithReader(exporter))})
	if err != nil {
		return nil, err
	}
	spending, err := budget.New(budget.Config{
		Limits: []budget.Limit{{Name: "trial and minute", Calls: 100, Soft: 0.2, Per: trial, Window: budget.Minute}},
		OnSoft: telemetry.BudgetReached,
	})
	if err != nil {
		return nil, err
	}
	guard, err := aiguard.New(telemetry.Install(aiguard.Config{
		Budget:        spending,
		CallTimeout:   time.Second,
		MaxConcurrent: 8,
		MaxQueue:      16,
		Hedge:         aiguard.Hedge{Quantile: 0.9},
	}))
	if err != nil {
		return nil, err
	}
	if _, err := telemetry.Observe(guard); err != nil {
		return nil, err
	}
	return &service{client: guard.Client(oc), registry: registry}, nil
}

// trialTenant tries the service without paying.
const trialTenant = "trial"

// trial applies a limit to that tenant.
func trial(_ context.Context, call aiguard.Call) (key string, applies bool) {
	return call.Tenant, call.Tenant == trialTenant
}

func (s *service) close() { _ = s.client.Guard().Close() }

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /ask", func(w http.ResponseWriter, r *http.Request) {
		text, err := s.ask(r.Context(), question{text: r.FormValue("q"), tenant: r.FormValue("tenant")})
		if err != nil {
			http.Error(w, aiguard.UserMessage(err), aiguard.HTTPStatus(err))
			return
		}
		fmt.Fprintln(w, text)
	})
	return mux
}

type question struct {
	text, tenant string
	stream       bool
}

// ask asks the large model, or the small one if that fails.
func (s *service) ask(ctx context.Context, q question) (string, error) {
	ctx = aiguard.WithCall(ctx, aiguard.Call{Tenant: q.tenant})
	return aiguard.Fallback(ctx, s.model("gpt-4o", q), s.model("gpt-4o-mini", q))
}

func (s *service) model(name string, q question) func(context.Context) (string, error) {
	request := openai.ChatCompletionRequest{Model: name, Messages: []openai.ChatCompletionMessage{{Role: "user", Content: q.text}}}
	return func(ctx context.Context) (string, error) {
		if q.stream {
			return s.stream(ctx, request)
		}
		resp, err := s.client.CreateChatCompletion(ctx, request)
		if err != nil {
			return "", err
		}
		return resp.Choices[0].Message.Content, nil
	}
}

func (s *service) stream(ctx context.Context, request openai.ChatCompletionRequest) (string, error) {
	stream, err := s.client.CreateChatCompletionStream(ctx, request)
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var text strings.Builder
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text.String(), nil
		}
		if err != nil {
			return "", err
		}
		for _, choice := range event.Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
}
