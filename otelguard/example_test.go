package otelguard_test

import (
	"context"
	"fmt"
	"log"

	openai "github.com/sashabaranov/go-openai"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/otelguard"
)

func Example() {
	provider := aiguardtest.Start() // a fake one
	defer provider.Close()
	provider.Enqueue(aiguardtest.Error(503, ""), aiguardtest.Text("Hello!"))

	spans := tracetest.NewSpanRecorder() // in place of an exporter
	telemetry, err := otelguard.New(otelguard.Config{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))})
	if err != nil {
		log.Fatal(err)
	}
	guard, err := aiguard.New(telemetry.Install(aiguard.Config{}))
	if err != nil {
		log.Fatal(err)
	}
	defer guard.Close()
	if _, err := telemetry.Observe(guard); err != nil {
		log.Fatal(err)
	}

	oc := openai.DefaultConfig("any key")
	oc.BaseURL = provider.URL
	_, err = guard.Client(oc).CreateChatCompletion(context.Background(), openai.ChatCompletionRequest{
		Model:    "gpt-4o-mini",
		Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "Say hello."}},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, span := range spans.Ended() {
		fmt.Println(span.Name(), span.Status().Code)
	}
	// Output:
	// aiguard.attempt Error
	// aiguard.attempt Unset
	// chat gpt-4o-mini Unset
}
