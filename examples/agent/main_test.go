package main

import (
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func answer(t *testing.T, fake *aiguardtest.Server) string {
	t.Helper()
	defer fake.Close()
	oc := openai.DefaultConfig("key")
	oc.BaseURL = fake.URL
	var out strings.Builder
	require.NoError(t, run(t.Context(), oc, &out))
	return out.String()
}

func TestLoopWithoutEndIsStoppedByItsBudget(t *testing.T) {
	fake := startFake()
	start := time.Now()
	out := answer(t, fake)
	require.Less(t, time.Since(start), 20*time.Second)
	require.Contains(t, out, "\nThis request has used all that it may use, and was stopped.\n")
	steps := strings.Count(out, "step ")
	require.Greater(t, steps, 3, out)
	require.Less(t, steps, 20, "the cost ends it, and not the number of calls: %s", out)
	require.Equal(t, steps, fake.Count(), "the step that would not fit is not sent")
	require.Contains(t, out, "read: 2006 bytes", "the result of a tool is cut")
	require.Contains(t, out, "read: 23 bytes", "a tool that hangs is stopped")
}

func TestAnswerEndsTheLoop(t *testing.T) {
	fake := aiguardtest.Start()
	fake.SetDefault(aiguardtest.Text("rome.html"))
	out := answer(t, fake)
	require.Contains(t, out, "step 1: cost 0.0000")
	require.Contains(t, out, "\nrome.html\nspent: 1 calls, ")
}
