package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// order is one call.
type order struct {
	*soak
	to    *provider
	id    int64
	fault string // "" for no fault
	req   openai.ChatCompletionRequest
}

func request(model, content string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{Model: model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: content}}}
}

func (s *soak) order(rng *rand.Rand) *order {
	o := &order{soak: s, to: s.main, id: s.ids.Add(1)}
	model, models := "healthy", modelsAFault
	switch n := rng.IntN(10); {
	case n == 0:
		o.to = s.second
	case n == 9 && rng.IntN(3) == 0:
		p := s.proxied[rng.IntN(len(s.proxied))]
		o.to, model, models = &p.provider, "proxied", 1 // one route, because each call is slow until its route is down
	case n < 6:
		o.fault = requestFaultNames[rng.IntN(len(requestFaultNames))]
		model = o.fault
	}
	o.req = request(fmt.Sprintf("%s#%d", model, rng.IntN(models)), fmt.Sprintf("soak:%d; %s", o.id, strings.Repeat("x", rng.IntN(15_000))))
	return o
}

// act makes one random call.
func (s *soak) act(rng *rand.Rand) {
	o := s.order(rng)
	ctx := context.Background() // most callers set no deadline, so the guard alone must end the call
	if rng.IntN(8) == 0 {       // this caller leaves early
		var cancel context.CancelFunc
		if d := ms(1 + rng.IntN(700)); rng.IntN(2) == 0 {
			ctx, cancel = context.WithTimeout(ctx, d)
		} else {
			ctx, cancel = context.WithCancel(ctx)
			defer time.AfterFunc(d, cancel).Stop()
		}
		defer cancel()
	}
	ctx = aiguard.WithCall(ctx, aiguard.Call{Tenant: tenant(rng), Priority: aiguard.Priority(rng.IntN(3) - 1)})
	s.calls.Add(1)
	switch rng.IntN(4) {
	case 0:
		s.inDialect(ctx, rng)
		return
	case 1:
		s.cached(ctx, rng)
		return
	}
	inDo := func(call func(context.Context) (string, error)) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) { return aiguard.Do(ctx, s.guard, call) }
	}
	switch n := rng.IntN(100); {
	case n < 35:
		o.whole(ctx, "chat", o.chat)
	case n < 45:
		o.whole(ctx, "chat in Do", inDo(o.chat))
	case n < 50:
		o.whole(ctx, "stream in Do", inDo(o.readAll))
	case n < 55:
		o.whole(ctx, "chat in a task", func(ctx context.Context) (text string, err error) {
			err = s.guard.RunTask(ctx, func(ctx context.Context) error {
				text, err = o.chat(ctx)
				return err
			})
			return text, err
		})
	case n < 58:
		o.forgotten(rng)
	default:
		o.stream(ctx, rng)
	}
}

func (o *order) chat(ctx context.Context) (string, error) {
	resp, err := o.to.client.CreateChatCompletion(ctx, o.req)
	if err != nil {
		return "", err
	}
	if len(resp.Choices) == 0 {
		return "", nil
	}
	return resp.Choices[0].Message.Content, nil
}

func (o *order) readAll(ctx context.Context) (string, error) {
	st, err := o.to.client.CreateChatCompletionStream(ctx, o.req)
	if err != nil {
		return "", err
	}
	defer st.Close()
	text, err := o.recv(st, -1, 0)
	if err == io.EOF {
		err = nil
	}
	return text, err
}

// whole makes a call that returns its complete answer at once.
func (o *order) whole(ctx context.Context, what string, call func(context.Context) (string, error)) {
	began := time.Now()
	text, err := call(ctx)
	o.took(what+" "+o.req.Model, began, config.TotalTimeout)
	o.judge(ctx, what, text, err)
}

// stream reads a stream to its end, at full speed or slowly, or closes it early.
func (o *order) stream(ctx context.Context, rng *rand.Rand) {
	began := time.Now()
	st, err := o.to.client.CreateChatCompletionStream(ctx, o.req)
	o.took("opening stream "+o.req.Model, began, config.TotalTimeout)
	if err != nil {
		o.judge(ctx, "opening a stream", "", err)
		return
	}
	defer st.Close()
	opened := time.Now()
	events, pause := -1, time.Duration(0)
	switch rng.IntN(6) {
	case 0:
		events = rng.IntN(10)
	case 1:
		pause = ms(rng.IntN(40))
	}
	text, err := o.recv(st, events, pause)
	o.took("stream "+o.req.Model, opened, config.StreamTimeout+buffered*pause)
	switch {
	case err == nil:
		o.count("stream closed early")
	case err == io.EOF:
		o.judge(ctx, "stream", text, nil)
	default:
		o.judge(ctx, "stream", text, err)
	}
}

// recv reads that many events of a stream, or all events if the number is negative.
func (o *order) recv(st *openai.ChatCompletionStream, events int, pause time.Duration) (string, error) {
	var text strings.Builder
	for ; events != 0; events-- {
		began := time.Now()
		ev, err := st.Recv()
		o.took("Recv "+o.req.Model, began, config.StreamIdleTimeout)
		if err != nil {
			return text.String(), err
		}
		for _, choice := range ev.Choices {
			text.WriteString(choice.Delta.Content)
		}
		time.Sleep(pause)
	}
	return text.String(), nil
}

// forgotten opens a stream and never closes it.
func (o *order) forgotten(rng *rand.Rand) {
	ctx, began := context.Background(), time.Now()
	st, err := o.to.client.CreateChatCompletionStream(ctx, o.req)
	o.took("opening stream "+o.req.Model, began, config.TotalTimeout)
	if err != nil {
		o.judge(ctx, "opening a stream", "", err)
		return
	}
	_, _ = o.recv(st, rng.IntN(3), 0)
	o.count("stream forgotten")
}

// judge checks the result of a call.
func (o *order) judge(ctx context.Context, what, text string, err error) {
	kind := aiguard.KindOf(err)
	var own *aiguard.Error
	switch {
	case err == nil:
		good, _ := textOf(o.id)
		if also, ok := goodEnds[aiguardtest.Fault(o.fault)]; text != good && (!ok || text != also) {
			o.failf("%s, fault %q: looks complete with %d bytes: %.100q", what, o.fault, len(text), text)
		}
		o.count("ok")
		return
	case kind == "" && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		o.count("left by caller")
		return
	case kind == "":
		o.failf("%s, fault %q: the error has no kind and is not the caller's: %T %v", what, o.fault, err, err)
	case !errors.As(err, &own):
		o.failf("%s, fault %q: the error has a kind but is not an *Error: %T %v", what, o.fault, err, err)
	case kind == aiguard.ErrClosed:
		o.failf("%s, fault %q: unexpected ErrClosed before Shutdown: %v", what, o.fault, err)
	case ctx.Err() == nil && errors.Is(err, context.Canceled):
		o.failf("%s, fault %q: looks like the caller's cancellation: %v", what, o.fault, err)
	case strings.Contains(err.Error()+aiguard.UserMessage(err), aiguardtest.ProviderText):
		o.failf("%s, fault %q: shows the provider's text: %v", what, o.fault, err)
	}
	o.count(string(kind))
}

func clientConfig(url string, base *http.Transport) openai.ClientConfig {
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = url
	if base != nil {
		oc.HTTPClient = &http.Client{Transport: base}
	}
	return oc
}

// transport trusts the server's certificate, unlike the guard's pool.
func transport(srv *aiguardtest.Server) *http.Transport { return limited(srv.Transport()) }

// limited gives t the limits of the guard's pool.
func limited(t *http.Transport) *http.Transport {
	t.DialContext = (&net.Dialer{Timeout: config.CallTimeout}).DialContext
	t.TLSHandshakeTimeout = config.CallTimeout
	t.MaxIdleConnsPerHost = int(config.MaxConcurrent)
	t.MaxResponseHeaderBytes = 64 << 10
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: config.CallTimeout, PingTimeout: config.CallTimeout / 2}
	return t
}
