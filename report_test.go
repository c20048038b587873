package aiguard_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

// logged keeps log lines as maps.
type logged struct{ syncbuf.Buffer }

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *logged) lines(t *testing.T) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &m))
		lines = append(lines, m)
	}
	return lines
}

func TestWhatGoesWrongIsLoggedAtSensibleLevels(t *testing.T) {
	var log logged
	inVirtualTime(t, aiguard.Config{Logger: log.logger(), MaxConcurrent: 1, MaxQueue: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		secret := chatRequest
		secret.Messages = []openai.ChatCompletionMessage{{Role: "user", Content: "my s3cret prompt"}}
		ask := func(replies ...aiguardtest.Reply) {
			srv.Enqueue(replies...)
			_, _ = c.CreateChatCompletion(t.Context(), secret)
		}
		ask(aiguardtest.Text("the s3cret answer"))
		require.Empty(t, log.lines(t), "success is silent")

		ask(aiguardtest.Hang())
		ask(aiguardtest.Error(503, ""), nil)
		ask(aiguardtest.Error(429, "", "Retry-After", "2"), nil)
		ask(aiguardtest.Error(401, "invalid_api_key"))
		ask(aiguardtest.JSON(500, `{"error":{"message":"s3cret"}}`, "X-Should-Retry", "false"))
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		s, err := c.CreateChatCompletionStream(t.Context(), secret)
		require.NoError(t, err)
		time.Sleep(11 * time.Minute)
		s.Close()
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("s3cret")))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { ask() })
			synctest.Wait()
		}
		wg.Wait()
		_ = c.Guard().With(aiguard.Call{Op: "report"}).RunTask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		_, _ = c.With(aiguard.Call{Weight: 2}).CreateChatCompletion(t.Context(), secret)

		var got []string
		for _, m := range log.lines(t) {
			got = append(got, m["level"].(string)+" "+m["msg"].(string)+" "+m["kind"].(string))
			require.NotEmpty(t, m["op"])
		}
		require.Equal(t, []string{
			"WARN aiguard: call failed timeout",
			"INFO aiguard: retrying unavailable",
			"WARN aiguard: route paused rate_limited",
			"INFO aiguard: retrying rate_limited",
			"ERROR aiguard: call failed unauthorized",
			"WARN aiguard: call failed unavailable",
			"WARN aiguard: stream abandoned timeout",
			"WARN aiguard: call failed timeout",
			"WARN aiguard: call refused overloaded",
			"ERROR aiguard: task stopped timeout",
			"WARN aiguard: call refused overloaded",
		}, got)
		all := log.String()
		for _, secret := range []string{"s3cret", "sk-secret-key", aiguardtest.ProviderText} {
			require.NotContains(t, all, secret)
		}
		require.Contains(t, all, `"phase":"call","limit":30000000000`)
		require.Contains(t, all, `"phase":"task"`)
	})
}

func TestEventsTellACallsLife(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.After(time.Second, aiguardtest.Error(503, "")), aiguardtest.After(2*time.Second, aiguardtest.Text("Hello!")))
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		var types []aiguard.EventType
		for _, e := range rec.events {
			types = append(types, e.Type)
			require.Equal(t, "chat.completions", e.Call.Op)
			require.Equal(t, openai.GPT4oMini, e.Call.Model)
			require.EqualValues(t, 1, e.Call.Weight)
		}
		require.Equal(t, []aiguard.EventType{aiguard.EventAdmitted, aiguard.EventAttemptDone, aiguard.EventRetry,
			aiguard.EventAdmitted, aiguard.EventAttemptDone, aiguard.EventDone}, types)
		retry, done := rec.events[2], rec.events[5]
		require.Equal(t, 1, retry.Attempt)
		require.Positive(t, retry.Backoff)
		facts(t, retry.Err, aiguard.ErrUnavailable)
		require.Equal(t, 2, done.Attempt)
		require.NoError(t, done.Err)
		require.Equal(t, 3*time.Second, done.InFlight)
		require.Equal(t, done.InFlight+done.Backoff, done.Elapsed)
		require.Positive(t, done.Usage.Input)
		require.Positive(t, done.Usage.Output)
	})
}

// A callback may use the guard: no lock is held.
func TestCallbacksMayCallTheGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g *aiguard.Guard
		events := 0
		g = newGuard(t, aiguard.Config{MaxConcurrent: 1, OnEvent: func(ctx context.Context, e aiguard.Event) {
			events++
			_ = g.Stats()
			if e.Type == aiguard.EventDone && e.Call.Op != "inner" {
				require.NoError(t, do(ctx, g.With(aiguard.Call{Op: "inner"}), func(context.Context) error { return nil }))
			}
			if events > 10 {
				_ = g.Close()
			}
		}})
		for range 5 {
			_ = do(t.Context(), g, func(context.Context) error { return nil })
		}
		require.Greater(t, events, 10)
	})
}

func TestStatsSayWhyCallsAreRefused(t *testing.T) {
	g := newGuard(t, aiguard.Config{MemoryLimit: 1})
	require.True(t, g.Stats().OverMemory)
	require.False(t, g.Stats().Draining)
	require.NoError(t, g.Shutdown(t.Context()))
	require.True(t, g.Stats().Draining)
	require.False(t, newGuard(t, aiguard.Config{MemoryLimit: 1 << 50}).Stats().OverMemory)
}

func TestConfigTellsTheSettingsInForce(t *testing.T) {
	cfg := newGuard(t, aiguard.Config{MaxQueue: 7, MaxConcurrent: aiguard.Off, MemoryLimit: aiguard.Off}).Config()
	require.Equal(t, 7, cfg.MaxQueue)
	require.EqualValues(t, aiguard.Off, cfg.MaxConcurrent)
	require.EqualValues(t, aiguard.Off, cfg.MemoryLimit)
	require.Equal(t, aiguard.DefaultTaskTimeout, cfg.TaskTimeout)
}

// The host is known before the request is sent, from the base URL.
func TestPromptThatTheClientRefusesHasItsHost(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent, MaxPromptChars: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		_, err := chat(t.Context(), c)
		refused := rec.all(aiguard.EventRefused)[0]
		require.Equal(t, strings.Split(srv.URL, "/")[2], refused.Host)
		require.Equal(t, refused.Host, facts(t, err, aiguard.ErrPromptTooLarge).Host)
		require.Equal(t, chatRequest.Model, refused.Route)
	})
}

// However many layers a failure passes on its way up, it is one line.
func TestOneFailureIsLoggedOnce(t *testing.T) {
	var log logged
	inVirtualTime(t, aiguard.Config{Logger: log.logger()}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
		err := c.Guard().RunTask(t.Context(), func(ctx context.Context) error {
			return do(ctx, c.Guard().With(aiguard.Call{Op: "outer"}), func(ctx context.Context) error {
				return do(ctx, c.Guard().With(aiguard.Call{Op: "inner"}), func(ctx context.Context) error {
					_, err := chat(ctx, c)
					return err
				})
			})
		})
		require.ErrorIs(t, err, aiguard.ErrUnauthorized)
		lines := log.lines(t)
		require.Len(t, lines, 1)
		require.Equal(t, "outer", lines[0]["op"])
		require.NotEmpty(t, lines[0]["host"])
	})
}
