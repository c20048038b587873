package aiguard_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// newGuard makes a guard that the test's end closes and checks: no slot, no waiter, no buffered answer may be left.
func newGuard(t testing.TB, cfg aiguard.Config) *aiguard.Guard {
	t.Helper()
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		st := g.Stats()
		require.Zero(t, st.InFlight, "slots left behind")
		require.Zero(t, st.Waiting, "waiters left behind")
		require.Zero(t, st.BufferedBytes, "buffered answers left behind")
		require.NoError(t, g.Close())
	})
	return g
}

// newClient makes a guarded client of srv. With a Pipe or TLS server it uses a transport that reaches it.
func newClient(t testing.TB, srv *aiguardtest.Server, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	g := newGuard(t, cfg)
	base := srv.Transport()
	t.Cleanup(base.CloseIdleConnections)
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = srv.URL
	oc.HTTPClient = &http.Client{Transport: base}
	return g.Client(oc)
}

// inVirtualTime runs f in a bubble with a fake provider in memory.
func inVirtualTime(t *testing.T, cfg aiguard.Config, f func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		f(t, newClient(t, srv, cfg), srv)
	})
}

// eachProtocol runs f against real sockets: HTTP/1.1, and HTTP/2 over TLS.
func eachProtocol(t *testing.T, f func(t *testing.T, srv *aiguardtest.Server)) {
	t.Helper()
	t.Run("HTTP1", func(t *testing.T) { f(t, aiguardtest.NewServer(t)) })
	t.Run("HTTP2", func(t *testing.T) { f(t, aiguardtest.NewServer(t, aiguardtest.TLS())) })
}

var chatRequest = openai.ChatCompletionRequest{
	Model:    openai.GPT4oMini,
	Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello."}},
}

func chat(ctx context.Context, c *aiguard.Client) (string, error) {
	resp, err := c.CreateChatCompletion(ctx, chatRequest)
	if err != nil {
		return "", err
	}
	return resp.Choices[0].Message.Content, nil
}

// recvAll reads a stream to its end; io.EOF is the good one.
func recvAll(s *openai.ChatCompletionStream) (text string, err error) {
	for {
		ev, err := s.Recv()
		if err != nil {
			return text, err
		}
		for _, choice := range ev.Choices {
			text += choice.Delta.Content
		}
	}
}

// streamChat opens a stream and reads all of it.
func streamChat(ctx context.Context, c *aiguard.Client) (string, error) {
	s, err := c.CreateChatCompletionStream(ctx, chatRequest)
	if err != nil {
		return "", err
	}
	defer s.Close()
	text, err := recvAll(s)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return text, err
}

// facts is err as an *aiguard.Error of the kind given.
func facts(t testing.TB, err error, kind aiguard.Kind) *aiguard.Error {
	t.Helper()
	require.ErrorIs(t, err, kind)
	var e *aiguard.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, kind, e.Kind)
	return e
}

// failureOf is the failure that Transport returned: an error, or a response, of which it returns the facts. The response's
// body is closed.
func failureOf(resp *http.Response, err error) error {
	if err != nil || resp.StatusCode < 400 {
		return err
	}
	resp.Body.Close()
	return aiguard.Explain(&stainlessError{StatusCode: resp.StatusCode, Response: resp})
}

// recorder keeps events.
type recorder struct {
	mu     sync.Mutex
	events []aiguard.Event
}

func (r *recorder) OnEvent(_ context.Context, e aiguard.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) all(types ...aiguard.EventType) (found []aiguard.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		for _, t := range types {
			if e.Type == t {
				found = append(found, e)
			}
		}
	}
	return found
}

// took asserts how much virtual time has passed since start.
func took(t testing.TB, start time.Time, want time.Duration) {
	t.Helper()
	require.Equal(t, want, time.Since(start).Round(time.Millisecond))
}
