package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestMetricsCountWhatUsersAsk(t *testing.T) {
	provider := aiguardtest.NewServer(t)
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = provider.URL
	s, err := newService(oc)
	require.NoError(t, err)
	defer s.close()
	web := httptest.NewServer(s.handler())
	defer web.Close()
	get := func(path string) string {
		resp, err := web.Client().Get(web.URL + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(body)
	}
	require.Equal(t, "Hello!\n", get("/ask?q=Why"))
	_, err = s.ask(context.Background(), question{text: "Why", stream: true})
	require.NoError(t, err)
	metrics := get("/metrics")
	require.Contains(t, metrics, "gen_ai_client_inference_duration_seconds_count{")
	require.Contains(t, metrics, "gen_ai_client_inference_time_to_first_chunk_seconds_count{")
	require.Contains(t, metrics, "aiguard_limit{")
}
