package sdktest

import (
	"net/http"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	openaioption "github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

func TestOpenAIGoBehindACache(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	guard, err := aiguard.New(aiguard.Config{})
	require.NoError(t, err)
	base := srv.Transport()
	cache, err := cacheguard.New(guard.Transport(base), cacheguard.Config{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, cache.Close())
		require.NoError(t, guard.Close())
		base.CloseIdleConnections()
	})
	// twice asks twice and requires the same answer. The second call must use no slot and send no request.
	twice := func(t *testing.T, ask func() (string, error)) {
		t.Helper()
		first, err := ask()
		require.NoError(t, err)
		require.NotEmpty(t, first)
		require.Eventually(t, func() bool { return cache.Stats().InFlight == 0 }, 10*time.Second, time.Millisecond, "the answer is kept")
		calls, requests := guard.Stats().Calls, srv.Count()
		second, err := ask()
		require.NoError(t, err)
		require.Equal(t, first, second)
		require.Equal(t, calls, guard.Stats().Calls)
		require.Equal(t, requests, srv.Count())
	}
	client := openai.NewClient(openaioption.WithBaseURL(srv.URL), openaioption.WithAPIKey("sk-one"), openaioption.WithMaxRetries(0),
		openaioption.WithHTTPClient(&http.Client{Transport: cache}))
	params := openai.ChatCompletionNewParams{
		Model: "m", Temperature: openai.Float(0), Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hi")},
	}
	t.Run("chat", func(t *testing.T) {
		twice(t, func() (string, error) {
			c, err := client.Chat.Completions.New(t.Context(), params)
			if err != nil {
				return "", err
			}
			return c.Choices[0].Message.Content, nil
		})
	})
	t.Run("stream", func(t *testing.T) {
		twice(t, func() (text string, err error) {
			stream := client.Chat.Completions.NewStreaming(t.Context(), params)
			defer stream.Close()
			for stream.Next() {
				for _, choice := range stream.Current().Choices {
					text += choice.Delta.Content
				}
			}
			return text, stream.Err()
		})
	})
	t.Run("response stream", func(t *testing.T) {
		twice(t, func() (text string, err error) {
			stream := client.Responses.NewStreaming(t.Context(), responses.ResponseNewParams{Model: "m", Temperature: openai.Float(0),
				Store: openai.Bool(false), Input: responses.ResponseNewParamsInputUnion{OfString: openai.String("Hi")}})
			defer stream.Close()
			for stream.Next() {
				text += stream.Current().Type + " "
			}
			return text, stream.Err()
		})
	})
	t.Run("embeddings", func(t *testing.T) {
		twice(t, func() (string, error) {
			e, err := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "m",
				Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("Hi")}})
			if err != nil {
				return "", err
			}
			return e.Data[0].RawJSON(), nil
		})
	})
}
