package redisguard_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/redisguard"
)

// sharer is a process that shares its routes.
type sharer struct {
	guard  *aiguard.Guard
	client *aiguard.Client
}

func newSharer(t *testing.T, redisAddr string, srv *aiguardtest.Server) *sharer {
	t.Helper()
	g, err := aiguard.New(aiguard.Config{})
	require.NoError(t, err)
	r, err := redisguard.ShareRoutes(newClient(t, redisAddr), g, redisguard.RoutesConfig{Key: "test", Timeout: 5 * time.Second})
	require.NoError(t, err)
	base := srv.Transport()
	t.Cleanup(func() {
		require.NoError(t, r.Close())
		require.NoError(t, r.Close())
		require.NoError(t, g.Close())
		base.CloseIdleConnections()
	})
	oc := openai.DefaultConfig("any key")
	oc.BaseURL, oc.HTTPClient = srv.URL, &http.Client{Transport: base}
	return &sharer{g, g.Client(oc)}
}

// ask makes a call with one attempt.
func (s *sharer) ask(ctx context.Context, model string) error {
	_, err := s.client.CreateChatCompletion(aiguard.WithCall(ctx, aiguard.Call{Attempts: 1}), openai.ChatCompletionRequest{Model: model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello."}}})
	return err
}

func (s *sharer) route(model string) (r aiguard.RouteStats) {
	for _, r := range s.guard.Routes() {
		if r.Name == model {
			return r
		}
	}
	return r
}

func TestProcessesShareAPause(t *testing.T) {
	s, srv := startRedis(t), aiguardtest.NewServer(t)
	one, two := newSharer(t, s.Addr, srv), newSharer(t, s.Addr, srv)
	srv.SetDefault(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "120"))
	require.ErrorIs(t, one.ask(t.Context(), "m"), aiguard.ErrRateLimited)
	start := time.Now()
	eventually(t, func() bool { return !two.route("m").PausedUntil.IsZero() }, "the other process knows the pause")
	t.Logf("the other process knows a pause after %v", time.Since(start))
	assert.WithinDuration(t, one.route("m").PausedUntil, two.route("m").PausedUntil, 500*time.Millisecond)
	sent := srv.Count()
	require.ErrorIs(t, two.ask(t.Context(), "m"), aiguard.ErrRateLimited)
	require.Equal(t, sent, srv.Count())

	late := newSharer(t, s.Addr, srv) // a process that starts later
	eventually(t, func() bool { return !late.route("m").PausedUntil.IsZero() }, "a new process knows the pause")
}

func TestProcessesShareAnOutageAndItsEnd(t *testing.T) {
	s, srv := startRedis(t), aiguardtest.NewServer(t)
	one, two := newSharer(t, s.Addr, srv), newSharer(t, s.Addr, srv)
	srv.SetDefault(aiguardtest.Error(500, "server_error"))
	for range 5 {
		require.Error(t, one.ask(t.Context(), "m"))
	}
	eventually(t, func() bool { return !two.route("m").DownSince.IsZero() }, "the other process knows the outage")
	srv.SetDefault(aiguardtest.Text("Hello!"))
	eventually(t, func() bool { return two.ask(t.Context(), "m") == nil }, "a probe ends the outage")
	eventually(t, func() bool { return one.route("m").DownSince.IsZero() }, "the first process knows its end")
	require.NoError(t, one.ask(t.Context(), "m"))
}

func TestProcessesHaveOneRetryBudgetPerRoute(t *testing.T) {
	s, srv := startRedis(t), aiguardtest.NewServer(t)
	one, two := newSharer(t, s.Addr, srv), newSharer(t, s.Addr, srv)
	require.NoError(t, one.ask(t.Context(), "m"))
	require.NoError(t, two.ask(t.Context(), "m"))
	for range 3 {
		srv.Enqueue(aiguardtest.Error(503, "busy"))
		_, err := one.client.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: "m",
			Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello."}}})
		require.NoError(t, err)
	}
	require.Less(t, one.route("m").RetryTokens, 8.5)
	eventually(t, func() bool { return two.route("m").RetryTokens < 8.5 }, "the other process has fewer retries too")
}

func TestRoutesAreToldAfterRedisIsBack(t *testing.T) {
	s, srv := startRedis(t), aiguardtest.NewServer(t)
	one, two := newSharer(t, s.Addr, srv), newSharer(t, s.Addr, srv)
	s.Kill()
	srv.SetDefault(aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "120"))
	start := time.Now()
	require.ErrorIs(t, one.ask(t.Context(), "m"), aiguard.ErrRateLimited)
	assert.Less(t, time.Since(start), 2*time.Second, "no call waits for Redis")
	s.Restart(t)
	eventually(t, func() bool { return !two.route("m").PausedUntil.IsZero() }, "the other process knows the pause")
}
