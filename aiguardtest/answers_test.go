package aiguardtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

const long = "The quick brown fox – žluťoučký kůň – <jumps> & runs."

func chatRequest() openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:    openai.GPT4oMini,
		Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "Hi"}},
	}
}

func TestChatIsAnsweredPlainAndStreamed(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		s.SetDefault(aiguardtest.Text(long))
		c := newClient(s, hc)

		resp, err := c.CreateChatCompletion(t.Context(), chatRequest())
		require.NoError(t, err)
		require.Len(t, resp.Choices, 1)
		assert.Equal(t, long, resp.Choices[0].Message.Content)
		assert.Equal(t, openai.FinishReasonStop, resp.Choices[0].FinishReason)
		assert.Equal(t, openai.GPT4oMini, resp.Model)
		assert.Positive(t, resp.Usage.PromptTokens)
		assert.Equal(t, resp.Usage.PromptTokens+resp.Usage.CompletionTokens, resp.Usage.TotalTokens)
		assert.Equal(t, "req_fake_1", resp.Header().Get("X-Request-Id"))

		req := chatRequest()
		req.N = 3
		resp, err = c.CreateChatCompletion(t.Context(), req)
		require.NoError(t, err)
		assert.Len(t, resp.Choices, 3)

		for _, usage := range []bool{false, true} {
			req := chatRequest()
			if usage {
				req.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
			}
			stream, err := c.CreateChatCompletionStream(t.Context(), req)
			require.NoError(t, err)
			var text strings.Builder
			var finish openai.FinishReason
			var got *openai.Usage
			for {
				ev, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				if ev.Usage != nil {
					got = ev.Usage
				}
				for _, ch := range ev.Choices {
					text.WriteString(ch.Delta.Content)
					if ch.FinishReason != "" {
						finish = ch.FinishReason
					}
				}
			}
			require.NoError(t, stream.Close())
			assert.Equal(t, long, text.String())
			assert.Equal(t, openai.FinishReasonStop, finish)
			assert.Equal(t, usage, got != nil)
		}
	})
}

func TestCompletionsAreAnsweredPlainAndStreamed(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		s.SetDefault(aiguardtest.Text(long))
		c := newClient(s, hc)
		req := openai.CompletionRequest{Model: openai.GPT3Dot5TurboInstruct, Prompt: "Hi"}

		resp, err := c.CreateCompletion(t.Context(), req)
		require.NoError(t, err)
		require.Len(t, resp.Choices, 1)
		assert.Equal(t, long, resp.Choices[0].Text)
		assert.Equal(t, "stop", resp.Choices[0].FinishReason)

		req.Prompt, req.N = []string{"a", "b"}, 2
		resp, err = c.CreateCompletion(t.Context(), req)
		require.NoError(t, err)
		assert.Len(t, resp.Choices, 4)

		req.Prompt, req.N = "Hi", 0
		stream, err := c.CreateCompletionStream(t.Context(), req)
		require.NoError(t, err)
		defer stream.Close()
		text, finish := "", ""
		for {
			ev, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			for _, ch := range ev.Choices {
				text += ch.Text
				finish += ch.FinishReason
			}
		}
		assert.Equal(t, long, text)
		assert.Equal(t, "stop", finish)
	})
}

func TestResponsesAreAnsweredPlainAndStreamed(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		s.SetDefault(aiguardtest.Text(long))
		c := newClient(s, hc)
		req := openai.CreateResponseRequest{Model: openai.GPT4oMini, Input: "Hi"}

		resp, err := c.CreateResponse(t.Context(), req)
		require.NoError(t, err)
		assert.Equal(t, long, resp.GetOutputText())
		assert.Equal(t, openai.ResponseStatusCompleted, resp.Status)
		assert.Positive(t, resp.Usage.InputTokens)

		stream, err := c.CreateResponseStream(t.Context(), req)
		require.NoError(t, err)
		defer stream.Close()
		var types []string
		text := ""
		for n := 0; ; n++ {
			ev, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			assert.Equal(t, n, ev.SequenceNumber)
			if len(types) == 0 || types[len(types)-1] != string(ev.Type) {
				types = append(types, string(ev.Type))
			}
			text += ev.Delta
			if ev.Type == openai.ResponseStreamEventCompleted {
				assert.Equal(t, long, ev.Response.GetOutputText())
				assert.Equal(t, openai.ResponseStatusCompleted, ev.Response.Status)
			}
		}
		assert.Equal(t, long, text)
		assert.Equal(t, []string{
			"response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
			"response.output_text.delta", "response.output_text.done", "response.content_part.done",
			"response.output_item.done", "response.completed",
		}, types)
	})
}

// TestNamedEventsMatchTheirTypes reads the raw bytes, because go-openai skips event lines.
func TestNamedEventsMatchTheirTypes(t *testing.T) {
	s := aiguardtest.NewServer(t)
	hc := newHTTP(t, s)
	for path, last := range map[string]string{"/responses": "response.completed", "/messages": "message_stop"} {
		resp, body, err := postTo(t.Context(), s, hc, path, `{"model":"m","stream":true,"input":"Hi","messages":[]}`)
		require.NoError(t, err)
		assert.Contains(t, resp.Header.Get("Content-Type"), "text/event-stream")
		events := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n")
		var name string
		for _, ev := range events {
			var data string
			var ok bool
			name, data, ok = strings.Cut(strings.TrimPrefix(ev, "event: "), "\ndata: ")
			require.True(t, ok, ev)
			assert.True(t, strings.HasPrefix(data, fmt.Sprintf(`{"type":%q`, name)), ev)
			assert.True(t, json.Valid([]byte(data)), ev)
		}
		assert.Equal(t, last, name)
	}
}

func TestMessagesAreAnsweredPlainAndStreamed(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		s.SetDefault(aiguardtest.Text(long))
		_, body, err := postTo(t.Context(), s, hc, "/messages", `{"model":"claude","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}`)
		require.NoError(t, err)
		var msg struct {
			Type, Role, Model string
			StopReason        string `json:"stop_reason"`
			Content           []struct{ Type, Text string }
			Usage             struct {
				InputTokens int `json:"input_tokens"`
			}
		}
		require.NoError(t, json.Unmarshal([]byte(body), &msg))
		assert.Equal(t, "message assistant claude end_turn", strings.Join([]string{msg.Type, msg.Role, msg.Model, msg.StopReason}, " "))
		assert.Equal(t, long, msg.Content[0].Text)
		assert.Positive(t, msg.Usage.InputTokens)

		_, body, err = postTo(t.Context(), s, hc, "/messages", `{"model":"claude","stream":true,"messages":[]}`)
		require.NoError(t, err)
		text := ""
		for line := range strings.Lines(body) {
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				var ev struct{ Delta struct{ Text string } }
				require.NoError(t, json.Unmarshal([]byte(data), &ev))
				text += ev.Delta.Text
			}
		}
		assert.Equal(t, long, text)
	})
}

func TestEmbeddingsDependOnTheInputOnly(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		c := newClient(s, hc)
		embed := func(req openai.EmbeddingRequest) []openai.Embedding {
			t.Helper()
			req.Model = openai.SmallEmbedding3
			resp, err := c.CreateEmbeddings(t.Context(), req)
			require.NoError(t, err)
			assert.Positive(t, resp.Usage.TotalTokens)
			return resp.Data
		}
		floats := embed(openai.EmbeddingRequest{Input: []string{"a", "b", "a"}})
		require.Len(t, floats, 3)
		assert.Equal(t, 2, floats[2].Index)
		assert.Equal(t, floats[0].Embedding, floats[2].Embedding)
		assert.NotEqual(t, floats[0].Embedding, floats[1].Embedding)
		unit, err := floats[0].DotProduct(&floats[0])
		require.NoError(t, err)
		assert.InDelta(t, 1, unit, 1e-5)

		base64 := embed(openai.EmbeddingRequest{Input: []string{"a", "b", "a"}, EncodingFormat: "base64"})
		assert.Equal(t, floats, base64)

		one := embed(openai.EmbeddingRequest{Input: "a", Dimensions: 256})
		require.Len(t, one, 1)
		assert.Len(t, one[0].Embedding, 256)
		assert.Len(t, embed(openai.EmbeddingRequest{Input: []int{1, 2, 3}}), 1, "token numbers are one input")
		assert.Len(t, embed(openai.EmbeddingRequest{Input: [][]int{{1, 2}, {3}}}), 2)
	})
}

func TestModelsAndModerationsAreAnswered(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		c := newClient(s, hc)
		list, err := c.ListModels(t.Context())
		require.NoError(t, err)
		assert.NotEmpty(t, list.Models)
		m, err := c.GetModel(t.Context(), "ft:my-model")
		require.NoError(t, err)
		assert.Equal(t, "ft:my-model", m.ID)
		mod, err := c.Moderations(t.Context(), openai.ModerationRequest{Input: "Hi", Model: openai.ModerationOmniLatest})
		require.NoError(t, err)
		require.Len(t, mod.Results, 1)
		assert.False(t, mod.Results[0].Flagged)
	})
}

func TestUnknownPathsAndMethodsAreErrorsOfOpenAIForm(t *testing.T) {
	s := aiguardtest.NewServer(t)
	c := newClient(s, newHTTP(t, s))
	_, err := c.ListFiles(t.Context())
	var apiErr *openai.APIError
	require.ErrorAs(t, err, &apiErr)
	assert.Equal(t, http.StatusNotFound, apiErr.HTTPStatusCode)
	assert.Contains(t, apiErr.Message, aiguardtest.ProviderText)

	_, err = c.DeleteFineTuneModel(t.Context(), "m")
	require.ErrorAs(t, err, &apiErr)
	assert.Equal(t, http.StatusMethodNotAllowed, apiErr.HTTPStatusCode)
}

func TestAzurePathsAreAnswered(t *testing.T) {
	s := aiguardtest.NewServer(t)
	cfg := openai.DefaultAzureConfig("key", strings.TrimSuffix(s.URL, "/v1"))
	cfg.HTTPClient = newHTTP(t, s)
	resp, err := openai.NewClientWithConfig(cfg).CreateChatCompletion(t.Context(), chatRequest())
	require.NoError(t, err)
	assert.Equal(t, "Hello!", resp.Choices[0].Message.Content)
	assert.Equal(t, "/openai/deployments/gpt-4o-mini/chat/completions", s.Requests()[0].Path)
	assert.NotEmpty(t, s.Requests()[0].Query.Get("api-version"))
}

func TestTextNStreamsTheGivenNumberOfChunks(t *testing.T) {
	s := aiguardtest.NewServer(t)
	c := newClient(s, newHTTP(t, s))
	for _, text := range []string{"", "žlu", long} {
		for _, n := range []int{0, 1, 2, 3, 7, 100} {
			s.SetDefault(aiguardtest.TextN(text, n))
			stream, err := c.CreateChatCompletionStream(context.Background(), chatRequest())
			require.NoError(t, err)
			chunks, got := 0, ""
			for {
				ev, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				require.NoError(t, err)
				if ev.Choices[0].FinishReason == "" {
					chunks++
				}
				got += ev.Choices[0].Delta.Content
			}
			require.NoError(t, stream.Close())
			assert.Equal(t, max(n, 1), chunks)
			assert.Equal(t, text, got)
		}
	}
}
