// Command metrics is a service whose guard reports to Prometheus. It uses a fake provider and can simulate users:
//
//	go run . -addr 127.0.0.1:8080 -load
//
// GET /metrics serves Prometheus, and GET /ask?q=… asks the model. The dashboard and the alert rules in
// otelguard/dashboards use these metrics.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address to listen on")
	load := flag.Bool("load", false, "simulate users of the service")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("unexpected argument %q", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *addr, *load)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string, load bool) error {
	provider := aiguardtest.Start()
	defer provider.Close()
	provider.Handle(moody())
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = provider.URL
	s, err := newService(oc)
	if err != nil {
		return err
	}
	defer s.close()

	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Printf("metrics at http://%s/metrics\n", ln.Addr())
	if load {
		go play(ctx, s)
	}
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
