package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

const (
	prompt = "a prompt that must not leak"
	answer = "Hello from the other side of the wire, in several chunks."

	// soon is the time limit for anything with a bound here. It is far above every bound that the tests set and far
	// below the delays of the server.
	soon = 5 * time.Second
	// never is such a delay, in milliseconds.
	never = 20_000
)

func TestMain(m *testing.M) {
	code := m.Run()
	if running != nil {
		// Check for leaks before the server ends, because its end would close leaked connections.
		running.client.CloseIdleConnections()
		if left := leftovers(); code == 0 && left != "" {
			fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
			code = 1
		}
		running.stop()
	}
	os.Exit(code)
}

// leftovers waits a moment for goroutines that end by themselves. It then returns the stacks of the remaining
// goroutines of the project and of unclosed connections.
func leftovers() string {
	for deadline := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		var left []string
		for _, stack := range strings.Split(string(buf), "\n\n")[1:] { // the first stack is the current goroutine
			if strings.Contains(stack, "integration.startAimock") {
				continue // waits for the server to end
			}
			if strings.Contains(stack, "aiguard-go/aiguard") || strings.Contains(stack, "net/http.(*") {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
	}
}

func TestChatAnswers(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}})

	resp, err := ask(t.Context(), client, model)
	require.NoError(t, err)
	require.Len(t, resp.Choices, 1)
	assert.Equal(t, answer, resp.Choices[0].Message.Content)
	assert.Equal(t, openai.FinishReasonStop, resp.Choices[0].FinishReason)
	assert.NotZero(t, resp.Usage.TotalTokens)
	assert.NotEmpty(t, resp.Header().Get("X-Request-Id"))

	stats := client.Guard().Stats()
	assert.EqualValues(t, 1, stats.Calls)
	assert.EqualValues(t, 1, stats.Succeeded)
	assert.Zero(t, stats.Retries)
}

func TestChatCallsTools(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{
		ToolCalls: []toolCall{{Name: "get_weather", Arguments: map[string]any{"city": "Vienna"}}},
	}})

	resp, err := ask(t.Context(), client, model)
	require.NoError(t, err)
	require.Len(t, resp.Choices, 1)
	require.Len(t, resp.Choices[0].Message.ToolCalls, 1)
	assert.Equal(t, "get_weather", resp.Choices[0].Message.ToolCalls[0].Function.Name)
	assert.JSONEq(t, `{"city":"Vienna"}`, resp.Choices[0].Message.ToolCalls[0].Function.Arguments)
	assert.Equal(t, openai.FinishReasonToolCalls, resp.Choices[0].FinishReason)

	stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.NoError(t, err)
	defer stream.Close()
	var arguments string
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		for _, choice := range event.Choices {
			for _, call := range choice.Delta.ToolCalls {
				arguments += call.Function.Arguments
			}
		}
	}
	assert.JSONEq(t, `{"city":"Vienna"}`, arguments)
}

func TestChatStreamIsWhole(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}, ChunkSize: 3})

	request := chatRequest(model)
	request.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
	stream, err := client.CreateChatCompletionStream(t.Context(), request)
	require.NoError(t, err)
	defer stream.Close()
	text, usage, err := readChat(stream)
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, answer, text)
	assert.NotNil(t, usage, "the usage event follows the finish reason")

	_, err = stream.Recv()
	assert.ErrorIs(t, err, io.EOF, "a second Recv returns io.EOF too")
	assert.Zero(t, client.Guard().Stats().InFlight, "a stream read to its end releases its slot without Close")
}

func TestStreamOutlivesCallTimeout(t *testing.T) {
	t.Parallel()
	s := server(t)
	const limit = 2 * time.Second // for the first event
	client := s.guarded(t, aiguard.Config{CallTimeout: limit, StreamIdleTimeout: soon})
	model := s.serve(t, fixture{Response: response{Content: answer}, ChunkSize: 3, Latency: 120}) // 21 events

	start := time.Now()
	stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.NoError(t, err)
	defer stream.Close()
	text, _, err := readChat(stream)
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, answer, text)
	assert.Greater(t, time.Since(start), limit)
}

func TestEmbeddingsAnswer(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Embedding: []float32{0.1, -0.2, 0.3}}})

	resp, err := client.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{
		Model: openai.EmbeddingModel(model),
		Input: []string{"one", "two"},
	})
	require.NoError(t, err)
	require.Len(t, resp.Data, 2)
	assert.Equal(t, []float32{0.1, -0.2, 0.3}, resp.Data[1].Embedding)
}

func TestResponsesAnswer(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}})

	resp, err := client.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: model, Input: prompt})
	require.NoError(t, err)
	assert.Equal(t, openai.ResponseStatusCompleted, resp.Status)
	assert.Equal(t, answer, resp.GetOutputText())
}

func TestResponsesStreamIsWhole(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}, ChunkSize: 3})

	stream, err := client.CreateResponseStream(t.Context(), openai.CreateResponseRequest{Model: model, Input: prompt})
	require.NoError(t, err)
	defer stream.Close()
	text, last, err := readResponse(stream)
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, answer, text)
	assert.Equal(t, openai.ResponseStreamEventCompleted, last, "this API sends no [DONE]")
}

// The transport applies the limits to methods that Client does not override too.
func TestOtherMethodsPassTheGuard(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	s.serve(t, fixture{Response: response{Content: answer}})

	models, err := client.ListModels(t.Context())
	require.NoError(t, err)
	assert.NotEmpty(t, models.Models)
	assert.EqualValues(t, 1, client.Guard().Stats().Calls)
}

func TestInjectedStatusMapsToKind(t *testing.T) {
	t.Parallel()
	s := server(t)
	const secret = "text of the provider, not for users"
	const attempts = 3 // the default of Retry.MaxAttempts
	for _, test := range []struct {
		status     int
		code       string
		kind       aiguard.Kind
		httpStatus int
		requests   int
	}{
		{400, "", aiguard.ErrRejected, 400, 1},
		{400, "context_length_exceeded", aiguard.ErrPromptTooLarge, 413, 1},
		{400, "content_policy_violation", aiguard.ErrRejected, 422, 1},
		{401, "invalid_api_key", aiguard.ErrUnauthorized, 502, 1},
		{403, "", aiguard.ErrUnauthorized, 502, 1},
		{404, "model_not_found", aiguard.ErrMisconfigured, 500, 1},
		{408, "", aiguard.ErrUnavailable, 502, attempts},
		{409, "", aiguard.ErrUnavailable, 502, attempts},
		{422, "", aiguard.ErrRejected, 400, 1},
		{429, "insufficient_quota", aiguard.ErrQuota, 503, 1},
		{429, "billing_not_active", aiguard.ErrQuota, 503, 1},
		{500, "", aiguard.ErrUnavailable, 502, attempts},
		{502, "", aiguard.ErrUnavailable, 502, attempts},
		{503, "", aiguard.ErrUnavailable, 503, attempts},
		{504, "", aiguard.ErrUnavailable, 502, attempts},
		{529, "", aiguard.ErrUnavailable, 502, attempts},
	} {
		t.Run(strings.TrimSuffix(fmt.Sprintf("%d_%s", test.status, test.code), "_"), func(t *testing.T) {
			t.Parallel()
			client := s.guarded(t, aiguard.Config{})
			model := s.serve(t, fixture{Response: response{
				Status: test.status,
				Error:  &apiError{Message: secret, Type: errorType(test.status), Code: test.code},
			}})

			_, err := ask(t.Context(), client, model)
			require.ErrorIs(t, err, test.kind)
			assert.Equal(t, test.kind, aiguard.KindOf(err))
			assert.Equal(t, test.httpStatus, aiguard.HTTPStatus(err))
			assert.Equal(t, test.requests, s.requests(t, model))

			var facts *aiguard.Error
			require.ErrorAs(t, err, &facts)
			assert.Equal(t, test.status, facts.StatusCode)
			assert.Equal(t, test.requests, facts.Attempts)
			assert.Equal(t, model, facts.Model)
			assert.NotEmpty(t, facts.Op)
			assert.Regexp(t, "^req-", facts.RequestID)
			var provider *openai.APIError
			require.ErrorAs(t, err, &provider)
			assert.Equal(t, test.status, provider.HTTPStatusCode)

			assert.NotEmpty(t, aiguard.UserMessage(err))
			assert.NotContains(t, aiguard.UserMessage(err), secret)
			assertNoSecrets(t, err)

			// A stream and the other endpoints are rejected in the same way.
			_, err = client.CreateChatCompletionStream(t.Context(), chatRequest(model))
			assert.Equal(t, test.kind, aiguard.KindOf(err))
			_, err = client.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: openai.EmbeddingModel(model), Input: "x"})
			assert.Equal(t, test.kind, aiguard.KindOf(err))
			_, err = client.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: model, Input: prompt})
			assert.Equal(t, test.kind, aiguard.KindOf(err))
		})
	}
}

// errorType returns OpenAI's error type for a status. The server would send server_error for all of them.
func errorType(status int) string {
	switch {
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status >= 500:
		return "server_error"
	}
	return "invalid_request_error"
}

// The server itself rejects the key, without a fixture.
func TestWrongKeyIsUnauthorized(t *testing.T) {
	t.Parallel()
	s := server(t)
	const wrong = "wrong-key-that-must-not-leak"
	oc := openai.DefaultConfig(wrong)
	oc.BaseURL = s.url + "/v1"
	client := guardedWith(t, oc, aiguard.Config{})

	_, err := ask(t.Context(), client, "any")
	require.ErrorIs(t, err, aiguard.ErrUnauthorized)
	assert.NotContains(t, err.Error(), wrong)
	assertNoSecrets(t, err)
}

func TestRateLimitCarriesRetryAfter(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{TotalTimeout: 30 * time.Second, QueueTimeout: soon})
	model := s.serve(t, rateLimited(90))

	within(t, soon, func() {
		_, err := ask(t.Context(), client, model)
		require.ErrorIs(t, err, aiguard.ErrRateLimited)
		assert.Equal(t, http.StatusTooManyRequests, aiguard.HTTPStatus(err))
		var facts *aiguard.Error
		require.ErrorAs(t, err, &facts)
		assert.InDelta(t, 90, facts.RetryAfter.Seconds(), 2)
		assert.Equal(t, 1, facts.Attempts, "a wait longer than the time left does not begin")
	})
	// The route is now paused for every call, and the pause is longer than the calls may wait.
	within(t, soon, func() {
		_, err := ask(t.Context(), client, model)
		require.ErrorIs(t, err, aiguard.ErrRateLimited)
	})
	assert.Equal(t, 1, s.requests(t, model))
}

func TestRetryWaitsAsLongAsAsked(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, rateLimited(1).once(), fixture{Response: response{Content: answer}})

	took := within(t, soon, func() {
		resp, err := ask(t.Context(), client, model)
		require.NoError(t, err)
		assert.Equal(t, answer, resp.Choices[0].Message.Content)
	})
	assert.GreaterOrEqual(t, took, time.Second)
	assert.Equal(t, 2, s.requests(t, model))
	assert.EqualValues(t, 1, client.Guard().Stats().Retries)
}

func TestOneFailureIsRetried(t *testing.T) {
	t.Parallel()
	s := server(t)
	for name, failure := range map[string]fixture{
		"status 500":         {Response: response{Status: 500, Error: &apiError{Message: "boom"}}},
		"status 503":         {Response: response{Status: 503, Error: &apiError{Message: "boom"}}},
		"connection dropped": {Response: response{Content: answer}, Chaos: &chaos{Disconnect: 1}},
		"no JSON":            {Response: response{Content: answer}, Chaos: &chaos{Malformed: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := s.guarded(t, aiguard.Config{})
			model := s.serve(t, failure.once(), fixture{Response: response{Content: answer}})
			resp, err := ask(t.Context(), client, model)
			require.NoError(t, err)
			assert.Equal(t, answer, resp.Choices[0].Message.Content)
			assert.Equal(t, 2, s.requests(t, model))
			assert.EqualValues(t, 1, client.Guard().Stats().Retries)

			model = s.serve(t, failure.once(), fixture{Response: response{Content: answer}})
			stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
			require.NoError(t, err)
			defer stream.Close()
			text, _, err := readChat(stream)
			require.ErrorIs(t, err, io.EOF)
			assert.Equal(t, answer, text)
			assert.Equal(t, 2, s.requests(t, model))
		})
	}
}

func TestSilentProviderEndsAtCallTimeout(t *testing.T) {
	t.Parallel()
	s := server(t)
	const limit = 300 * time.Millisecond
	silent := fixture{Response: response{Content: answer}, Chaos: &chaos{LatencyMs: never}}
	slowToStart := fixture{Response: response{Content: answer}, Profile: &profile{TTFT: never, TPS: 1000}}
	for name, test := range map[string]struct {
		fixture fixture
		phase   string
		call    func(client *aiguard.Client, model string) error
	}{
		"chat": {silent, "call", func(client *aiguard.Client, model string) error {
			_, err := ask(t.Context(), client, model)
			return err
		}},
		"embeddings": {silent, "call", func(client *aiguard.Client, model string) error {
			_, err := client.CreateEmbeddings(t.Context(), openai.EmbeddingRequest{Model: openai.EmbeddingModel(model), Input: "x"})
			return err
		}},
		"responses": {silent, "call", func(client *aiguard.Client, model string) error {
			_, err := client.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: model, Input: prompt})
			return err
		}},
		"chat stream": {slowToStart, "first_event", func(client *aiguard.Client, model string) error {
			_, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
			return err
		}},
		"responses stream": {slowToStart, "first_event", func(client *aiguard.Client, model string) error {
			_, err := client.CreateResponseStream(t.Context(), openai.CreateResponseRequest{Model: model, Input: prompt})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := s.guarded(t, aiguard.Config{CallTimeout: limit})
			model := s.serve(t, test.fixture)
			took := within(t, soon, func() {
				err := test.call(client, model)
				require.ErrorIs(t, err, aiguard.ErrTimeout)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				assert.Equal(t, http.StatusGatewayTimeout, aiguard.HTTPStatus(err))
				var facts *aiguard.Error
				require.ErrorAs(t, err, &facts)
				assert.Equal(t, test.phase, facts.Phase)
				assert.Equal(t, limit, facts.Limit)
				assert.Equal(t, 1, facts.Attempts)
				assertNoSecrets(t, err)
			})
			assert.GreaterOrEqual(t, took, limit)
			assert.EqualValues(t, 1, client.Guard().Stats().Timeouts)
		})
	}
}

func TestStalledStreamEndsAtIdleTimeout(t *testing.T) {
	t.Parallel()
	s := server(t)
	const limit = 300 * time.Millisecond
	client := s.guarded(t, aiguard.Config{StreamIdleTimeout: limit})
	model := s.serve(t, fixture{Response: response{Content: answer}, Profile: &profile{TTFT: 1, TPS: 1}})

	stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.NoError(t, err)
	defer stream.Close()
	within(t, soon, func() {
		_, _, err = readChat(stream)
		assertTimeout(t, err, "stream_idle", limit)
	})
}

func TestSlowStreamEndsAtStreamTimeout(t *testing.T) {
	t.Parallel()
	s := server(t)
	const limit = 2 * time.Second
	client := s.guarded(t, aiguard.Config{StreamIdleTimeout: limit * 3 / 4, StreamTimeout: limit})
	model := s.serve(t, fixture{Response: response{Content: strings.Repeat(answer, 10)}, ChunkSize: 3, Latency: 50})

	stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.NoError(t, err)
	defer stream.Close()
	within(t, soon, func() {
		text, _, err := readChat(stream)
		assertTimeout(t, err, "stream", limit)
		assert.NotEmpty(t, text, "the text before the timeout was delivered")
	})
}

func TestCutStreamIsTruncated(t *testing.T) {
	t.Parallel()
	s := server(t)
	// The latency lets each event leave before the cut. Without it the connection ends with all events still in the
	// server's buffers.
	cut := fixture{Response: response{Content: answer}, ChunkSize: 5, Latency: 20, TruncateAfterChunks: 6}
	// On a busy machine the first event may be as late as the eighth is here.
	disconnect := fixture{Response: response{Content: answer}, ChunkSize: 5, Latency: 200, DisconnectAfterMs: 1700}
	for name, failure := range map[string]fixture{"after some events": cut, "after some time": disconnect} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := s.guarded(t, aiguard.Config{})
			model := s.serve(t, failure)

			stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
			require.NoError(t, err)
			defer stream.Close()
			text, _, err := readChat(stream)
			assertTruncated(t, err)
			assert.NotEmpty(t, text)
			assert.True(t, strings.HasPrefix(answer, text), "%q", text)

			// The Responses API sends more events before the first text, so only the end of the stream is checked.
			responses, err := client.CreateResponseStream(t.Context(), openai.CreateResponseRequest{Model: model, Input: prompt})
			require.NoError(t, err)
			defer responses.Close()
			_, _, err = readResponse(responses)
			assertTruncated(t, err)

			assert.Equal(t, 2, s.requests(t, model), "a stream is not retried after an event reached the caller")
		})
	}
}

func TestStreamCutBeforeItsFirstEventIsRetried(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	failure := fixture{Response: response{Content: answer}, Latency: never, DisconnectAfterMs: 30}
	model := s.serve(t, failure.once(), fixture{Response: response{Content: answer}})

	stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.NoError(t, err)
	defer stream.Close()
	text, _, err := readChat(stream)
	require.ErrorIs(t, err, io.EOF)
	assert.Equal(t, answer, text)
	assert.Equal(t, 2, s.requests(t, model))
}

func TestDroppedConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}, Chaos: &chaos{Disconnect: 1}})

	_, err := ask(t.Context(), client, model)
	assert.Contains(t, []aiguard.Kind{aiguard.ErrUnavailable, aiguard.ErrTruncated}, aiguard.KindOf(err), "%v", err)
	var facts *aiguard.Error
	require.ErrorAs(t, err, &facts)
	assert.Equal(t, facts.Attempts, s.requests(t, model))
	assert.Greater(t, facts.Attempts, 1)
	assertNoSecrets(t, err)

	_, err = client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	assert.Contains(t, []aiguard.Kind{aiguard.ErrUnavailable, aiguard.ErrTruncated}, aiguard.KindOf(err), "%v", err)
}

// The answer is a 200 with "application/json" and bytes that are not JSON, for a chat and for a stream.
func TestAnswerThatIsNoJSONIsInvalid(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}, Chaos: &chaos{Malformed: 1}})

	_, err := ask(t.Context(), client, model)
	require.ErrorIs(t, err, aiguard.ErrInvalidResponse)
	assert.Equal(t, http.StatusBadGateway, aiguard.HTTPStatus(err))
	assert.NotContains(t, aiguard.UserMessage(err), "chaos")

	_, err = client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.ErrorIs(t, err, aiguard.ErrInvalidResponse)
}

func TestLargeAnswerIsRefusedAtTheCap(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{MaxResponseBytes: 64 << 10})
	model := s.serve(t, fixture{Response: response{Content: strings.Repeat("x", 200_000)}, ChunkSize: 1000})

	_, err := ask(t.Context(), client, model)
	require.ErrorIs(t, err, aiguard.ErrResponseTooLarge)
	assert.Equal(t, 1, s.requests(t, model))

	stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.NoError(t, err)
	defer stream.Close()
	_, _, err = readChat(stream)
	require.ErrorIs(t, err, aiguard.ErrResponseTooLarge)
}

func TestOverlongEventLineIsRefused(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{MaxEventBytes: 1 << 20})
	model := s.serve(t, fixture{Response: response{Content: strings.Repeat("x", 2<<20)}, ChunkSize: 2 << 20})

	_, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
	require.ErrorIs(t, err, aiguard.ErrResponseTooLarge, "the first event with content is too long")
}

func TestOversizedPromptIsNeverSent(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{MaxPromptChars: len(prompt) - 1})
	model := s.serve(t, fixture{Response: response{Content: answer}})

	_, err := ask(t.Context(), client, model)
	require.ErrorIs(t, err, aiguard.ErrPromptTooLarge)
	assert.Zero(t, s.requests(t, model))
	assertNoSecrets(t, err)
}

func TestCallerLeavesWithItsOwnError(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{})
	model := s.serve(t, fixture{Response: response{Content: answer}, Chaos: &chaos{LatencyMs: never}})

	within(t, soon, func() {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := ask(ctx, client, model)
		require.ErrorIs(t, err, context.Canceled)
		assert.Empty(t, aiguard.KindOf(err))
		assert.Zero(t, client.Guard().Stats().InFlight)
	})
	within(t, soon, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := ask(ctx, client, model)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, aiguard.ErrTimeout)
		assert.Zero(t, client.Guard().Stats().InFlight)
	})
	assert.Zero(t, client.Guard().Stats().Timeouts)
}

func TestClosingAStreamFreesItsSlot(t *testing.T) {
	t.Parallel()
	s := server(t)
	client := s.guarded(t, aiguard.Config{MaxConcurrent: 1})
	model := s.serve(t, fixture{Response: response{Content: answer}, Profile: &profile{TTFT: 1, TPS: 1}})

	for range 3 {
		stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
		require.NoError(t, err)
		assert.EqualValues(t, 1, client.Guard().Stats().InFlight)
		require.NoError(t, stream.Close())
		assert.Zero(t, client.Guard().Stats().InFlight)
	}
}

func TestCallsNeverExceedTheirSlots(t *testing.T) {
	t.Parallel()
	s := server(t)
	const calls, slots, latency = 20, 5, 100 * time.Millisecond
	upstream, peak := countInFlight(t, s)
	oc := openai.DefaultConfig(apiKey)
	oc.BaseURL = upstream + "/v1"
	client := guardedWith(t, oc, aiguard.Config{MaxConcurrent: slots})
	model := s.serve(t, fixture{
		Response:  response{Content: answer},
		Chaos:     &chaos{LatencyMs: int(latency.Milliseconds())},
		ChunkSize: 3,
	})

	var wg sync.WaitGroup
	start := time.Now()
	for i := range calls {
		wg.Go(func() {
			if i%2 == 0 {
				resp, err := ask(t.Context(), client, model)
				if assert.NoError(t, err) {
					assert.Equal(t, answer, resp.Choices[0].Message.Content)
				}
				return
			}
			stream, err := client.CreateChatCompletionStream(t.Context(), chatRequest(model))
			if assert.NoError(t, err) {
				defer stream.Close()
				text, _, err := readChat(stream)
				assert.ErrorIs(t, err, io.EOF)
				assert.Equal(t, answer, text)
			}
		})
	}
	wg.Wait()
	assert.EqualValues(t, slots, peak(), "peak of requests in flight")
	assert.GreaterOrEqual(t, time.Since(start), (calls/slots)*(latency-5*time.Millisecond))
	assert.Equal(t, calls, s.requests(t, model))
	stats := client.Guard().Stats()
	assert.EqualValues(t, calls, stats.Succeeded)
	assert.EqualValues(t, slots, stats.MaxConcurrent)
	assert.Positive(t, stats.WaitCount)
	assert.Positive(t, stats.WaitTime)
}

// countInFlight starts a proxy in front of s that counts the requests in progress.
func countInFlight(t *testing.T, s *aimock) (upstream string, peak func() int64) {
	t.Helper()
	target, err := url.Parse(s.url)
	require.NoError(t, err)
	transport := &http.Transport{}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
	}
	var current, most atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		now := current.Add(1)
		defer current.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.Close()
		transport.CloseIdleConnections()
	})
	return server.URL, most.Load
}

// readChat reads stream until Recv returns an error, which includes io.EOF.
func readChat(stream *openai.ChatCompletionStream) (text string, usage *openai.Usage, err error) {
	for {
		event, err := stream.Recv()
		if err != nil {
			return text, usage, err
		}
		if event.Usage != nil {
			usage = event.Usage
		}
		for _, choice := range event.Choices {
			text += choice.Delta.Content
		}
	}
}

func readResponse(stream *openai.ResponseStream) (text string, last openai.ResponseStreamEventType, err error) {
	for {
		event, err := stream.Recv()
		if err != nil {
			return text, last, err
		}
		last = event.Type
		if event.Type == openai.ResponseStreamEventOutputTextDelta {
			text += event.Delta
		}
	}
}

func rateLimited(seconds int) fixture {
	return fixture{Response: response{
		Status:     http.StatusTooManyRequests,
		RetryAfter: seconds,
		Error:      &apiError{Message: "slow down", Type: "rate_limit_error", Code: "rate_limit_exceeded"},
	}}
}

func assertTimeout(t *testing.T, err error, phase string, limit time.Duration) {
	t.Helper()
	require.ErrorIs(t, err, aiguard.ErrTimeout)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	var facts *aiguard.Error
	require.ErrorAs(t, err, &facts)
	assert.Equal(t, phase, facts.Phase)
	assert.Equal(t, limit, facts.Limit)
}

func assertTruncated(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	require.False(t, errors.Is(err, io.EOF), "a cut stream must not look complete: %v", err)
	require.ErrorIs(t, err, aiguard.ErrTruncated)
	assert.Equal(t, http.StatusBadGateway, aiguard.HTTPStatus(err))
	assertNoSecrets(t, err)
}

// assertNoSecrets checks that the texts of err contain neither the key nor the prompt.
func assertNoSecrets(t *testing.T, err error) {
	t.Helper()
	for _, text := range []string{err.Error(), aiguard.UserMessage(err)} {
		assert.NotContains(t, text, apiKey)
		assert.NotContains(t, text, prompt)
		assert.NotContains(t, text, answer)
	}
}
