package cacheguard_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

// withEmbedder runs f in virtual time with an Embedder over a guard and a fake provider.
func withEmbedder(t *testing.T, cfg cacheguard.EmbedderConfig, f func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		base := srv.Transport()
		oc := openai.DefaultConfig("key")
		oc.BaseURL, oc.HTTPClient = srv.URL, &http.Client{Transport: base}
		client, err := aiguard.NewClient(oc, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
		require.NoError(t, err)
		t.Cleanup(func() {
			require.Zero(t, client.Guard().Stats().InFlight)
			require.NoError(t, client.Guard().Close())
			base.CloseIdleConnections()
		})
		e, err := cacheguard.NewEmbedder(client, cfg)
		require.NoError(t, err)
		f(t, e, srv)
	})
}

// embedOne returns the vector of a text.
func embedOne(t *testing.T, e *cacheguard.Embedder, text string) []float32 {
	t.Helper()
	vectors, err := e.Embed(t.Context(), []string{text})
	require.NoError(t, err)
	require.Len(t, vectors, 1)
	return vectors[0]
}

func TestEmbeddingsAtTheSameTimeShareARequest(t *testing.T) {
	withEmbedder(t, cacheguard.EmbedderConfig{}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		want := map[string][]float32{}
		for i := range 10 {
			want[fmt.Sprint(i)] = embedOne(t, e, fmt.Sprint(i))
		}
		require.Equal(t, 10, srv.Count(), "one after the other")
		require.NotEqual(t, want["1"], want["2"])
	})
	withEmbedder(t, cacheguard.EmbedderConfig{}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		start := time.Now()
		got := make([][]float32, 20)
		all(20, func(i int) answer {
			vectors, err := e.Embed(t.Context(), []string{fmt.Sprint(i % 10)})
			if assert.NoError(t, err) {
				got[i] = vectors[0]
			}
			return answer{}
		})
		assert.Equal(t, 2*time.Millisecond, time.Since(start))
		require.Equal(t, 1, srv.Count())
		var sent struct {
			Input      []string
			Model      string
			Dimensions int
		}
		require.NoError(t, json.Unmarshal(srv.Requests()[0].Body, &sent))
		assert.Equal(t, strings.Split("0123456789", ""), sent.Input)
		assert.Equal(t, "text-embedding-3-small", sent.Model)
		assert.Equal(t, 256, sent.Dimensions)
		for i := range 20 {
			assert.Equal(t, embedOne(t, e, fmt.Sprint(i%10)), got[i], "cached, and the vector of its text")
		}
		assert.Equal(t, 1, srv.Count())
	})
}

func TestManyTextsAreSeveralRequests(t *testing.T) {
	withEmbedder(t, cacheguard.EmbedderConfig{}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		texts := make([]string, 600)
		for i := range texts {
			texts[i] = fmt.Sprint(i)
		}
		vectors, err := e.Embed(t.Context(), texts)
		require.NoError(t, err)
		assert.Equal(t, 3, srv.Count())
		assert.Equal(t, embedOne(t, e, "599"), vectors[599])
		assert.NotContains(t, vectors, []float32(nil))
		none, err := e.Embed(t.Context(), nil)
		require.NoError(t, err)
		assert.Empty(t, none)
	})
}

func TestEmbedderCacheIsBounded(t *testing.T) {
	withEmbedder(t, cacheguard.EmbedderConfig{CacheSize: 10}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		for range 2 {
			for i := range 100 {
				embedOne(t, e, fmt.Sprint(i))
			}
		}
		assert.GreaterOrEqual(t, srv.Count(), 190)
	})
}

func TestEmbeddingsRequestEndsWithItsLastCaller(t *testing.T) {
	withEmbedder(t, cacheguard.EmbedderConfig{}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Hang())
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		patient, leave := context.WithTimeout(t.Context(), 3*time.Second)
		defer leave()
		ended := make(chan error)
		go func() {
			_, err := e.Embed(patient, []string{"a", "b"})
			ended <- err
		}()
		_, err := e.Embed(ctx, []string{"a"})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(start))
		synctest.Wait()
		assert.Equal(t, 1, srv.Count())
		require.ErrorIs(t, <-ended, context.DeadlineExceeded)
		assert.Equal(t, 3*time.Second, time.Since(start))
		assert.Equal(t, 1, srv.Count(), "the second caller kept the request alive")
		srv.Reset()

		// A canceled call sends no request, and the next call starts a new batch.
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = e.Embed(gone, []string{"c"})
		require.ErrorIs(t, err, context.Canceled)
		assert.Zero(t, srv.Count())
		assert.NotEmpty(t, embedOne(t, e, "c"))
	})
}

func TestFailedEmbeddingsReachAllCallersAndAreNotKept(t *testing.T) {
	withEmbedder(t, cacheguard.EmbedderConfig{}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		for name, reply := range map[string]aiguardtest.Reply{
			"failure":        aiguardtest.Error(http.StatusInternalServerError, "server_error"),
			"too few":        embeddings(`{"index":0,"embedding":[1]}`),
			"too many":       embeddings(`{"index":0,"embedding":[1]},{"index":1,"embedding":[1]},{"index":2,"embedding":[1]}`),
			"twice":          embeddings(`{"index":0,"embedding":[1]},{"index":0,"embedding":[2]}`),
			"out of range":   embeddings(`{"index":0,"embedding":[1]},{"index":2,"embedding":[2]}`),
			"below zero":     embeddings(`{"index":0,"embedding":[1]},{"index":-1,"embedding":[2]}`),
			"without vector": embeddings(`{"index":0,"embedding":[1]},{"index":1,"embedding":[]}`),
		} {
			srv.Enqueue(reply)
			errs := make([]error, 2)
			all(2, func(i int) answer {
				_, errs[i] = e.Embed(t.Context(), []string{fmt.Sprint("secret ", i)})
				return answer{}
			})
			for _, err := range errs {
				require.Error(t, err, name)
				assert.NotContains(t, err.Error(), "secret")
			}
		}
		// Vectors in another order are those of their texts.
		srv.Enqueue(embeddings(`{"index":1,"embedding":[2]},{"index":0,"embedding":[1]}`))
		vectors, err := e.Embed(t.Context(), []string{"a", "b"})
		require.NoError(t, err)
		assert.Equal(t, [][]float32{{1}, {2}}, vectors)
	})
}

func embeddings(data string) aiguardtest.Reply {
	return aiguardtest.JSON(http.StatusOK, `{"object":"list","model":"m","data":[`+data+`],"usage":{"prompt_tokens":1,"total_tokens":1}}`)
}

func TestEmbedderSettings(t *testing.T) {
	withEmbedder(t, cacheguard.EmbedderConfig{Model: "own", Dimensions: -1}, func(t *testing.T, e *cacheguard.Embedder, srv *aiguardtest.Server) {
		embedOne(t, e, "a")
		assert.Contains(t, string(srv.Requests()[0].Body), `"own"`)
		assert.NotContains(t, string(srv.Requests()[0].Body), "dimensions")
	})
	client, err := aiguard.NewClient(openai.DefaultConfig("key"), aiguard.Config{})
	require.NoError(t, err)
	defer client.Guard().Close()
	_, err = cacheguard.NewEmbedder(nil, cacheguard.EmbedderConfig{})
	assert.EqualError(t, err, "cacheguard: NewEmbedder: client is nil; want a client such as guard.Client(config)")
	_, err = cacheguard.NewEmbedder(client, cacheguard.EmbedderConfig{Dimensions: -2})
	assert.EqualError(t, err, "cacheguard: EmbedderConfig.Dimensions is -2; want -1 (the model's own), 0 (the default, 256) or more")
	_, err = cacheguard.NewEmbedder(client, cacheguard.EmbedderConfig{CacheSize: -1})
	assert.EqualError(t, err, "cacheguard: EmbedderConfig.CacheSize is -1; want 0 (the default, 1000) or more")
}

// A question and its embedding are calls of the same guard.
func TestSimilarQuestionsOverTheGuardedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		base := srv.Transport()
		g, err := aiguard.New(aiguard.Config{MaxConcurrent: 1})
		require.NoError(t, err)
		oc := openai.DefaultConfig("key")
		oc.BaseURL, oc.HTTPClient = srv.URL, &http.Client{Transport: base}
		e, err := cacheguard.NewEmbedder(g.Client(oc), cacheguard.EmbedderConfig{})
		require.NoError(t, err)
		cache := newTransport(t, g.Transport(base), cacheguard.Config{Similar: cacheguard.Similar{Embed: e.Embed, Threshold: 0.01}})
		t.Cleanup(func() { require.NoError(t, g.Close()); base.CloseIdleConnections() })
		w := &world{cache, g, srv}
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if strings.HasSuffix(r.Path, "/embeddings") {
				return embeddings(`{"index":0,"embedding":[1]}`)
			}
			return aiguardtest.Text("Hello")
		})
		assert.Equal(t, "miss", w.question(t, t.Context(), original).source)
		assert.Equal(t, "similar", w.question(t, t.Context(), similar).source)
		assert.Equal(t, 3, srv.Count(), "a chat and two embeddings")
		assert.EqualValues(t, 3, g.Stats().Calls)
	})
}
