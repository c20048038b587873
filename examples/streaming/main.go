// Streaming relays a model's answer to a browser as server-sent events while it arrives.
//
//	go run ./examples/streaming
//	curl -N 'http://127.0.0.1:PORT/chat?q=Hello'
//
// With OPENAI_API_KEY set, the program calls the provider at OPENAI_BASE_URL (OpenAI by default) with OPENAI_MODEL.
// Otherwise it starts a fake provider. Then /chat?fault=timeout, outage or cut shows what a browser gets when the
// provider fails.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "address to listen on")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("unexpected argument %q", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *addr); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	cfg := aiguard.Config{MaxOutputTokens: 500}
	oc := openai.DefaultConfig(os.Getenv("OPENAI_API_KEY"))
	if url := os.Getenv("OPENAI_BASE_URL"); url != "" {
		oc.BaseURL = url
	}
	h := &handler{model: "gpt-4o-mini"}
	if model := os.Getenv("OPENAI_MODEL"); model != "" {
		h.model = model
	}
	if os.Getenv("OPENAI_API_KEY") == "" {
		fake := startFake(200 * time.Millisecond)
		defer fake.Close()
		oc.BaseURL, h.faults = fake.URL, true
		cfg.CallTimeout = 2 * time.Second
		fmt.Println("OPENAI_API_KEY is not set: using a fake provider on this machine.")
	}
	client, err := aiguard.NewClient(oc, cfg)
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	h.client = client

	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /chat", h)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	fmt.Printf("listening on http://%s\n", ln.Addr())
	fmt.Printf("try: curl -N 'http://%s/chat?q=Hello'\n", ln.Addr())

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// Shut down the guard first. It lets streams finish, and then ends the remaining ones with an error that their
	// handlers still relay.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = client.Guard().Shutdown(ctx)
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return srv.Shutdown(ctx)
}

// handler responds to GET /chat?q=… with a stream of events: data: {"text":"…"} for each piece, and at the end
// event: done or event: error. The error has a kind for the program and a message for the user. Read the stream with
// fetch. An EventSource would reconnect at each end, and so repeat the question.
type handler struct {
	client *aiguard.Client
	model  string
	faults bool // the provider is the fake, which supports ?fault=…
}

// writeTimeout is how long a browser may take to accept one event. A slow browser holds the call's slot for that
// long.
const writeTimeout = 10 * time.Second

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	model := h.model
	if fault := r.FormValue("fault"); fault != "" && h.faults {
		model = faultModel + fault
	}
	// r.Context() ends when the browser disconnects. This cancels the call and frees its slot.
	stream, err := h.client.CreateChatCompletionStream(r.Context(), openai.ChatCompletionRequest{
		Model:    model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: r.FormValue("q")}},
	})
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer stream.Close()

	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // keeps nginx from buffering the pieces
	for {
		response, err := stream.Recv()
		switch {
		case r.Context().Err() != nil:
			return // the browser has disconnected
		case errors.Is(err, io.EOF):
			_ = send(w, "done", struct{}{})
			return
		case err != nil:
			// The status is already sent, so this event tells the browser that the text is incomplete.
			log.Print(err)
			_ = send(w, "error", failure{string(aiguard.KindOf(err)), aiguard.UserMessage(err)})
			return
		}
		for _, choice := range response.Choices {
			if choice.Delta.Content == "" {
				continue
			}
			if send(w, "", piece{choice.Delta.Content}) != nil {
				return // Close cancels the call
			}
		}
	}
}

type piece struct {
	Text string `json:"text"`
}

type failure struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// refuse responds with an error status. This is possible until the first event is sent. A guarded stream is returned
// only after its first event, so most failures occur early enough.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	log.Print(err) // for operators; users get UserMessage
	var e *aiguard.Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(aiguard.HTTPStatus(err))
	_ = json.NewEncoder(w).Encode(failure{string(aiguard.KindOf(err)), aiguard.UserMessage(err)})
}

// send writes and flushes one event.
func send(w http.ResponseWriter, name string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	defer rc.SetWriteDeadline(time.Time{}) // HTTP/2 resets a stream at its deadline even if no write is in progress
	if name != "" {
		name = "event: " + name + "\n"
	}
	if _, err := fmt.Fprintf(w, "%sdata: %s\n\n", name, b); err != nil {
		return err
	}
	return rc.Flush()
}

// faultModel is the prefix of the model names for which the fake provider fails.
const faultModel = "fault-"

// startFake starts a fake provider that sends one piece of its answer per interval.
func startFake(interval time.Duration) *aiguardtest.Server {
	fake := aiguardtest.Start()
	answer := aiguardtest.Slowly(interval, aiguardtest.TextN("This is a made-up answer, sent in pieces.", 8))
	fake.SetDefault(answer)
	fake.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		switch r.Model {
		case faultModel + "timeout":
			return aiguardtest.Hang()
		case faultModel + "outage":
			return aiguardtest.Error(http.StatusServiceUnavailable, "service_unavailable", "Retry-After", "1")
		case faultModel + "cut":
			return aiguardtest.Cut(800, answer)
		}
		return nil
	})
	return fake
}
