package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
	"github.com/openai/openai-go/v3/responses"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func setUp(t *testing.T, cfg aiguard.Config) (openai.Client, *aiguardtest.Server, *aiguard.Guard) {
	fake := aiguardtest.NewServer(t)
	cfg.Retry.BaseDelay = time.Millisecond
	g, err := aiguard.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		require.NoError(t, g.Shutdown(ctx))
		require.Zero(t, g.Stats().InFlight)
	})
	return newClient(g, option.WithBaseURL(fake.URL), option.WithAPIKey("any key")), fake, g
}

func ask(ctx context.Context, client openai.Client) (string, error) {
	c, err := client.Chat.Completions.New(ctx, chat())
	if err != nil {
		return "", err
	}
	return c.Choices[0].Message.Content, nil
}

func chat() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    "gpt-4o-mini",
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hi")},
	}
}

func response() responses.ResponseNewParams {
	return responses.ResponseNewParams{
		Model: "gpt-4o-mini",
		Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Hi")},
	}
}

// read collects the text of a chat stream.
func read(stream *ssestream.Stream[openai.ChatCompletionChunk]) (string, error) {
	defer stream.Close()
	var text strings.Builder
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			text.WriteString(choice.Delta.Content)
		}
	}
	return text.String(), stream.Err()
}

func TestChat(t *testing.T) {
	client, fake, g := setUp(t, aiguard.Config{})
	fake.SetDefault(aiguardtest.Text("Hello there"))
	text, err := ask(t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, "Hello there", text)
	require.EqualValues(t, 1, g.Stats().Succeeded)
}

func TestChatStream(t *testing.T) {
	client, fake, g := setUp(t, aiguard.Config{})
	fake.SetDefault(aiguardtest.TextN("Hello there", 5))
	text, err := read(client.Chat.Completions.NewStreaming(t.Context(), chat()))
	require.NoError(t, err)
	require.Equal(t, "Hello there", text)
	require.EqualValues(t, 1, g.Stats().Succeeded)
}

func TestResponsesStream(t *testing.T) {
	client, fake, g := setUp(t, aiguard.Config{})
	fake.SetDefault(aiguardtest.TextN("Hello there", 5))
	stream := client.Responses.NewStreaming(t.Context(), response())
	defer stream.Close()
	text, last := "", ""
	for stream.Next() {
		last = stream.Current().Type
		if last == "response.output_text.delta" {
			text += stream.Current().Delta
		}
	}
	require.NoError(t, stream.Err())
	require.Equal(t, "Hello there", text)
	require.Equal(t, "response.completed", last)
	require.EqualValues(t, 1, g.Stats().Succeeded)
}

func TestEventLinesReachTheSDK(t *testing.T) {
	client, _, _ := setUp(t, aiguard.Config{})
	var resp *http.Response
	params := response()
	params.SetExtraFields(map[string]any{"stream": true})
	require.NoError(t, client.Post(t.Context(), "responses", params, &resp))
	decoder := ssestream.NewDecoder(resp)
	defer decoder.Close()
	var names []string
	for decoder.Next() {
		names = append(names, decoder.Event().Type)
	}
	require.NoError(t, decoder.Err())
	require.Equal(t, "response.created", names[0])
	require.Contains(t, names, "response.output_text.delta")
	require.Equal(t, "response.completed", names[len(names)-1])
}

func TestOnlyTheGuardRetriesAnOutage(t *testing.T) {
	client, fake, g := setUp(t, aiguard.Config{})
	fake.Enqueue(aiguardtest.Error(503, "service_unavailable"))
	_, err := ask(t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, 2, fake.Count())
	require.EqualValues(t, 1, g.Stats().Retries)
	require.Equal(t, fake.Requests()[0].Body, fake.Requests()[1].Body)
}

func TestLastingOutageEndsAfterTheGuardsAttempts(t *testing.T) {
	client, fake, _ := setUp(t, aiguard.Config{})
	fake.SetDefault(aiguardtest.Error(503, "service_unavailable"))
	_, err := ask(t.Context(), client)
	require.Equal(t, aiguard.ErrUnavailable, aiguard.KindOf(err))
	require.Equal(t, aiguard.DefaultMaxAttempts, fake.Count())

	var sdk *openai.Error
	require.ErrorAs(t, err, &sdk, "the SDK's own error")
	require.Equal(t, "service_unavailable", sdk.Code)
	e := aiguard.Explain(err)
	require.Equal(t, 503, e.StatusCode)
	require.Equal(t, 3, e.Attempts)
	require.NotContains(t, err.Error(), aiguardtest.ProviderText)
}

func TestSilentProviderTimesOut(t *testing.T) {
	client, fake, g := setUp(t, aiguard.Config{CallTimeout: 100 * time.Millisecond})
	fake.SetDefault(aiguardtest.Hang())
	for name, call := range map[string]func() error{
		"chat": func() error {
			_, err := ask(t.Context(), client)
			return err
		},
		"stream": func() error {
			_, err := read(client.Chat.Completions.NewStreaming(t.Context(), chat()))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			err := call()
			require.ErrorIs(t, err, aiguard.ErrTimeout)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(err))
			require.Less(t, time.Since(start), 5*time.Second)
		})
	}
	require.EqualValues(t, 2, g.Stats().Timeouts)
}

func TestCutStreamIsAnError(t *testing.T) {
	delta := `{"choices":[{"index":0,"delta":{"content":"Hel"}}]}`
	for name, reply := range map[string]aiguardtest.Reply{
		"connection breaks":      aiguardtest.Cut(400, aiguardtest.TextN("Hello there", 5)),
		"body ends":              aiguardtest.Events(delta),
		"body ends inside event": aiguardtest.Bytes("data: "+delta+"\n\n", `data: {"choices":[{"ind`),
	} {
		t.Run(name, func(t *testing.T) {
			client, fake, _ := setUp(t, aiguard.Config{})
			fake.SetDefault(reply)
			text, err := read(client.Chat.Completions.NewStreaming(t.Context(), chat()))
			require.NotEmpty(t, text)
			require.ErrorIs(t, err, aiguard.ErrTruncated)
			require.Equal(t, 1, fake.Count(), "retried after a piece reached the caller")
		})
	}
}

func TestCancelledCallerGetsItsOwnError(t *testing.T) {
	client, fake, g := setUp(t, aiguard.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	fake.SetDefault(func(_ http.ResponseWriter, r *aiguardtest.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := ask(ctx, client)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, aiguard.KindOf(err))
	require.Zero(t, g.Stats().InFlight)
}

func TestConcurrencyStaysWithinTheLimit(t *testing.T) {
	client, fake, _ := setUp(t, aiguard.Config{MaxConcurrent: 3})
	fake.SetDefault(aiguardtest.After(10*time.Millisecond, aiguardtest.Text("Hello")))
	errs := make([]error, 30)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			if i%2 == 0 {
				_, errs[i] = ask(t.Context(), client)
			} else {
				_, errs[i] = read(client.Chat.Completions.NewStreaming(t.Context(), chat()))
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	require.Equal(t, 30, fake.Count())
	require.LessOrEqual(t, fake.Peak(), 3)
}

// For a body given as *bytes.Reader, the SDK's GetBody returns one shared reader.
func TestReaderBodyIsSentCompletely(t *testing.T) {
	client, fake, _ := setUp(t, aiguard.Config{})
	fake.Enqueue(aiguardtest.Error(503, "service_unavailable"))
	body := `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}]}`
	var c openai.ChatCompletion
	err := client.Post(t.Context(), "chat/completions", nil, &c,
		option.WithRequestBody("application/json", bytes.NewReader([]byte(body))))
	require.NoError(t, err)
	require.Equal(t, 2, fake.Count())
	for _, r := range fake.Requests() {
		require.Equal(t, body, string(r.Body))
	}
}
