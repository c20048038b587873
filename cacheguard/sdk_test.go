package cacheguard_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

// twice calls ask twice. The second answer must be the same, without a slot or a request.
func (w *world) twice(t *testing.T, ask func() (string, error)) {
	t.Helper()
	first, err := ask()
	require.NoError(t, err)
	require.NotEmpty(t, first)
	w.settle(t)
	calls, requests, hits := w.guard.Stats().Calls, w.srv.Count(), w.cache.Stats().Hits
	second, err := ask()
	require.NoError(t, err)
	assert.Equal(t, first, second)
	assert.Equal(t, calls, w.guard.Stats().Calls)
	assert.Equal(t, requests, w.srv.Count())
	assert.Equal(t, hits+1, w.cache.Stats().Hits)
}

var chatRequest = openai.ChatCompletionRequest{
	Model: openai.GPT4oMini, Temperature: math.SmallestNonzeroFloat32,
	Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "Hi"}},
}

// goOpenAI is implemented by go-openai's client and by the guarded client.
type goOpenAI interface {
	CreateChatCompletion(context.Context, openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error)
	CreateChatCompletionStream(context.Context, openai.ChatCompletionRequest) (*openai.ChatCompletionStream, error)
	CreateResponseStream(context.Context, openai.CreateResponseRequest) (*openai.ResponseStream, error)
	CreateEmbeddings(context.Context, openai.EmbeddingRequestConverter) (openai.EmbeddingResponse, error)
}

func testGoOpenAI(t *testing.T, w *world, client goOpenAI) {
	t.Run("chat", func(t *testing.T) {
		w.twice(t, func() (string, error) {
			resp, err := client.CreateChatCompletion(t.Context(), chatRequest)
			if err != nil {
				return "", err
			}
			return resp.Choices[0].Message.Content, nil
		})
	})
	t.Run("stream", func(t *testing.T) {
		w.twice(t, func() (string, error) {
			stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest)
			if err != nil {
				return "", err
			}
			defer stream.Close()
			return recvAll(stream.Recv, func(ev openai.ChatCompletionStreamResponse) string { return ev.Choices[0].Delta.Content })
		})
	})
	t.Run("response stream", func(t *testing.T) {
		no, nought := false, float32(math.SmallestNonzeroFloat32)
		w.twice(t, func() (string, error) {
			stream, err := client.CreateResponseStream(t.Context(), openai.CreateResponseRequest{
				Model: "m", Input: "Hi", Store: &no, Temperature: &nought})
			if err != nil {
				return "", err
			}
			defer stream.Close()
			return recvAll(stream.Recv, func(ev openai.ResponseStreamEvent) string { return string(ev.Type) + " " })
		})
	})
	t.Run("embeddings", func(t *testing.T) {
		w.twice(t, func() (string, error) {
			resp, err := client.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: "m", Input: "Hi"})
			if err != nil {
				return "", err
			}
			return resp.Object, nil
		})
	})
}

// recvAll joins the texts of a stream's events. io.EOF is a complete end.
func recvAll[E any](recv func() (E, error), textOf func(E) string) (text string, err error) {
	for {
		ev, err := recv()
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil {
			return "", err
		}
		text += textOf(ev)
	}
}

func TestGoOpenAI(t *testing.T) {
	w := newWorld(t, aiguardtest.NewServer(t), cacheguard.Config{})
	oc := openai.DefaultConfig("sk-one")
	oc.BaseURL, oc.HTTPClient = w.srv.URL, &http.Client{Transport: w.cache}
	client := openai.NewClientWithConfig(oc)
	testGoOpenAI(t, w, client)

	w.srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
	_, err := client.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: "other"})
	require.Equal(t, aiguard.ErrUnauthorized, aiguard.KindOf(err))
}

// The guard's own client in front of the cache keeps its prompt limits, output limits and errors.
func TestGuardsOwnClient(t *testing.T) {
	w := newGuardedWorld(t, aiguardtest.NewServer(t), cacheguard.Config{}, aiguard.Config{MaxPromptChars: 100, MaxOutputTokens: 50})
	oc := openai.DefaultConfig("sk-one")
	oc.BaseURL = w.srv.URL
	client := w.guard.Client(oc)
	oc.HTTPClient = &http.Client{Transport: w.cache}
	client.Client = openai.NewClientWithConfig(oc)
	testGoOpenAI(t, w, client)

	require.Contains(t, string(w.srv.Requests()[0].Body), `"max_tokens":50`)
	long := chatRequest
	long.Messages = []openai.ChatCompletionMessage{{Role: "user", Content: string(make([]rune, 101))}}
	_, err := client.CreateChatCompletion(t.Context(), long)
	require.ErrorIs(t, err, aiguard.ErrPromptTooLarge)

	w.srv.SetDefault(aiguardtest.Error(401, "invalid_api_key"))
	_, err = client.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: "other"})
	e, ok := err.(*aiguard.Error)
	require.True(t, ok, "%T", err)
	assert.Equal(t, "other", e.Model)
}

// Real connections under load, in both protocols, test what virtual time cannot.
func TestManyCallersOverRealConnections(t *testing.T) {
	for name, opts := range map[string][]aiguardtest.Option{"HTTP1": nil, "HTTP2": {aiguardtest.TLS()}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, aiguardtest.NewServer(t, opts...), cacheguard.Config{})
			w.srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply { return aiguardtest.TextN(string(r.Body), 20) })
			answers := all(200, func(i int) answer {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%4 == 3 {
					cancel()
				}
				return w.chat(ctx, []string{certain, certainStream, numbered(3)}[i%3])
			})
			bodies := map[int]string{}
			for i, a := range answers {
				if i%4 == 3 {
					require.ErrorIs(t, a.err, context.Canceled)
					continue
				}
				require.NoError(t, a.err)
				if bodies[i%3] == "" {
					bodies[i%3] = a.body
				}
				require.Equal(t, bodies[i%3], a.body)
			}
			w.settle(t)
			st := w.cache.Stats()
			assert.EqualValues(t, 3, w.guard.Stats().Succeeded)
			assert.EqualValues(t, 3, st.Stored)
			assert.EqualValues(t, 150-3, st.Hits+st.Shared)
		})
	}
}
