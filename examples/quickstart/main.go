// Quickstart shows what a guard does for a service that calls a model. It makes a call, streams an answer, and limits
// ten callers to five slots. It then turns a silent provider, a huge prompt and an outage into clear errors for
// operators and users.
//
//	go run ./examples/quickstart
//
// With OPENAI_API_KEY set, the program calls the provider at OPENAI_BASE_URL (OpenAI by default) with OPENAI_MODEL
// and uses a few tokens per call. Otherwise it starts a fake provider, which can also fail on demand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func main() {
	flag.Parse() // exits with an error if a flag is given, because none is defined
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "quickstart: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "\nquickstart: not as expected: %v\n", err)
		os.Exit(1)
	}
}

// demo is a guarded client and its fake provider, which is nil with a real provider.
type demo struct {
	*aiguard.Client
	fake  *aiguardtest.Server
	model string
}

func run(ctx context.Context) error {
	d := demo{model: "gpt-4o-mini"}
	if model := os.Getenv("OPENAI_MODEL"); model != "" {
		d.model = model
	}
	oc := openai.DefaultConfig(os.Getenv("OPENAI_API_KEY"))
	if url := os.Getenv("OPENAI_BASE_URL"); url != "" {
		oc.BaseURL = url
	}
	if os.Getenv("OPENAI_API_KEY") == "" {
		d.fake = aiguardtest.Start()
		defer d.fake.Close()
		oc.BaseURL = d.fake.URL
		fmt.Println("OPENAI_API_KEY is not set: using a fake provider on this machine.")
	} else {
		fmt.Printf("Calling %s at %s.\n", d.model, oc.BaseURL)
	}

	client, err := aiguard.NewClient(oc, aiguard.Config{
		MaxConcurrent:   5,
		MaxOutputTokens: 16,
		Retry:           aiguard.Retry{BaseDelay: 100 * time.Millisecond},
	})
	if err != nil {
		return err
	}
	defer client.Guard().Close()
	d.Client = client

	scenes := []struct {
		title     string
		play      func(context.Context) error
		needsFake bool
	}{
		{"One call", d.chat, false},
		{"A streamed call", d.stream, false},
		{"Ten calls at once, five slots", d.crowd, false},
		{"A provider that does not answer in time", d.silence, false},
		{"A prompt that is too large", d.hugePrompt, false},
		{"An outage", d.outage, true},
		{"A short outage, which a retry survives", d.shortOutage, true},
		{"Shutdown", d.shutdown, false},
	}
	for _, s := range scenes {
		fmt.Printf("\n== %s\n", s.title)
		if s.needsFake && d.fake == nil {
			fmt.Println("skipped: it needs the fake provider")
			continue
		}
		if err := s.play(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.title, err)
		}
	}
	return nil
}

func (d *demo) request(prompt string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:    d.model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: prompt}},
	}
}

// plays sets the fake provider's reply to all following requests.
func (d *demo) plays(reply aiguardtest.Reply) {
	if d.fake != nil {
		d.fake.Reset()
		d.fake.SetDefault(reply)
	}
}

func (d *demo) chat(ctx context.Context) error {
	d.plays(aiguardtest.Text("Hello! How can I help?"))
	resp, err := d.CreateChatCompletion(ctx, d.request("Say hello."))
	if err != nil {
		return err
	}
	fmt.Println(resp.Choices[0].Message.Content)
	return nil
}

func (d *demo) stream(ctx context.Context) error {
	d.plays(aiguardtest.Slowly(50*time.Millisecond, aiguardtest.TextN("One, two, three, four, five.", 7)))
	stream, err := d.CreateChatCompletionStream(ctx, d.request("Count to five, in words."))
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) { // only after a complete answer
			fmt.Println()
			return nil
		}
		if err != nil {
			return err
		}
		for _, choice := range event.Choices {
			if piece := choice.Delta.Content; piece != "" {
				fmt.Printf("[%s]", piece)
			}
		}
	}
}

func (d *demo) crowd(ctx context.Context) error {
	d.plays(aiguardtest.After(200*time.Millisecond, aiguardtest.Text("Hello!")))
	before := d.Guard().Stats()
	var wg sync.WaitGroup
	errs := make([]error, 10)
	for i := range errs {
		wg.Go(func() { _, errs[i] = d.CreateChatCompletion(ctx, d.request("Say hello.")) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after := d.Guard().Stats()
	fmt.Printf("the guard: %d calls succeeded, %d of them waited for a slot, %v each on average\n",
		after.Succeeded-before.Succeeded, after.WaitCount-before.WaitCount,
		((after.WaitTime - before.WaitTime) / time.Duration(max(1, after.WaitCount-before.WaitCount))).Round(time.Millisecond))
	if d.fake == nil {
		return nil
	}
	fmt.Printf("the provider: %d requests, at most %d at once\n", d.fake.Count(), d.fake.Peak())
	if d.fake.Peak() > 5 {
		return errors.New("more than five at once")
	}
	return nil
}

func (d *demo) silence(ctx context.Context) error {
	d.plays(aiguardtest.Hang())
	timeout := 300 * time.Millisecond
	if d.fake == nil {
		timeout = time.Microsecond // too short for any provider
	}
	start := time.Now()
	_, err := d.With(aiguard.Call{Timeout: timeout}).CreateChatCompletion(ctx, d.request("Say hello."))
	if time.Since(start) > 3*time.Second {
		return fmt.Errorf("took %v", time.Since(start))
	}
	return d.show(err, aiguard.ErrTimeout, 504)
}

func (d *demo) hugePrompt(ctx context.Context) error {
	d.plays(nil)
	_, err := d.CreateChatCompletion(ctx, d.request(strings.Repeat("Read this. ", 2000)))
	if d.fake != nil && d.fake.Count() != 0 {
		return errors.New("the prompt was sent")
	}
	return d.show(err, aiguard.ErrPromptTooLarge, 413)
}

func (d *demo) outage(ctx context.Context) error {
	d.plays(aiguardtest.Error(503, "service_unavailable"))
	_, err := d.CreateChatCompletion(ctx, d.request("Say hello."))
	fmt.Printf("the provider: %d requests, all answered with 503\n", d.fake.Count())
	if d.fake.Count() != aiguard.DefaultMaxAttempts {
		return errors.New("the number of requests differs from the number of attempts")
	}
	return d.show(err, aiguard.ErrUnavailable, 503)
}

func (d *demo) shortOutage(ctx context.Context) error {
	d.plays(aiguardtest.FailFirst(1, aiguardtest.Error(503, "service_unavailable"), aiguardtest.Text("Back again.")))
	resp, err := d.CreateChatCompletion(ctx, d.request("Say hello."))
	if err != nil {
		return err
	}
	fmt.Println(resp.Choices[0].Message.Content)
	fmt.Printf("the provider: %d requests, the first answered with 503\n", d.fake.Count())
	if d.fake.Count() != 2 {
		return errors.New("not exactly one retry")
	}
	return nil
}

func (d *demo) shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := d.Guard().Shutdown(ctx); err != nil {
		return err
	}
	s := d.Guard().Stats()
	fmt.Printf("in flight %d, waiting %d\n", s.InFlight, s.Waiting)
	fmt.Printf("calls %d: succeeded %d, failed %d, refused %d; retries %d, timeouts %d\n",
		s.Calls, s.Succeeded, s.Failed, s.Refused, s.Retries, s.Timeouts)
	if s.InFlight != 0 || s.Waiting != 0 {
		return errors.New("calls are left after Shutdown")
	}
	_, err := d.CreateChatCompletion(ctx, d.request("Say hello."))
	return d.show(err, aiguard.ErrClosed, 503)
}

// show prints what operators, programs and users see of err. It returns an error if err is not the expected one.
func (d *demo) show(err error, kind aiguard.Kind, status int) error {
	if err == nil {
		return fmt.Errorf("no error; want %v", kind)
	}
	fmt.Printf("kind:     %s\n", string(aiguard.KindOf(err)))
	fmt.Printf("operator: %v\n", err)
	fmt.Printf("status:   %d\n", aiguard.HTTPStatus(err))
	fmt.Printf("user:     %s\n", aiguard.UserMessage(err))
	if !errors.Is(err, kind) || aiguard.HTTPStatus(err) != status {
		return fmt.Errorf("want %v and status %d", kind, status)
	}
	return nil
}
