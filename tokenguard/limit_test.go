package tokenguard_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/linear"
	"github.com/aiguard-go/aiguard/tokenguard"
)

func TestGuardCountsPromptsWithLimit(t *testing.T) {
	const max = 1000
	fake := aiguardtest.NewServer(t)
	oc := openai.DefaultConfig("key")
	oc.BaseURL = fake.URL
	client, err := aiguard.NewClient(oc, aiguard.Config{MaxPromptTokens: max, CountTokens: tokenguard.Limit(max)})
	require.NoError(t, err)
	defer client.Guard().Close()
	ask := func(n int) error {
		_, err := client.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: "gpt-4o",
			Messages: []openai.ChatCompletionMessage{{Role: "user", Content: strings.Repeat(" word", n)}}})
		return err
	}
	require.NoError(t, ask(max-4), "a message takes four tokens more than its text")
	err = ask(max - 3)
	require.ErrorIs(t, err, aiguard.ErrPromptTooLarge)
	var e *aiguard.Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, "prompt_tokens", e.Phase)
	assert.EqualValues(t, max, e.Max)
	assert.EqualValues(t, max+1, e.Size)
	assert.Equal(t, 1, fake.Count(), "the request was not sent")
}

func TestLimitMatchesCountMessages(t *testing.T) {
	messages := []openai.ChatCompletionMessage{
		{Role: "system", Content: "You are terse."}, {Role: "user", Content: "Who wrote Faust?"},
		{Role: "assistant", Content: "Goethe."}, {Role: "user", Content: "And Tosca?"},
	}
	want, err := tokenguard.CountMessages("gpt-4o", messages)
	require.NoError(t, err)
	sum := 3 // start of the reply
	for _, m := range messages {
		n, err := tokenguard.Limit(100)("gpt-4o", m.Content)
		require.NoError(t, err)
		sum += n
	}
	assert.Equal(t, want, sum)

	n, err := tokenguard.Limit(100)("text-embedding-3-small", "hello world")
	require.NoError(t, err)
	assert.Equal(t, 2, n, "an embedding has no messages")
}

func TestFitsCountsTextsTogether(t *testing.T) {
	for _, c := range []struct {
		max  int
		want bool
	}{{9, true}, {4, true}, {3, false}, {0, false}, {-1, false}} {
		got, err := tokenguard.Fits("gpt-4", c.max, "hello world", "", "hello world")
		require.NoError(t, err)
		assert.Equal(t, c.want, got, "%d", c.max)
	}
	got, err := tokenguard.Fits("gpt-4", 0)
	require.NoError(t, err)
	assert.True(t, got)
}

// A vocabulary takes 0.1 s and megabytes to build. It must not be built if no text needs to be counted.
func TestSmallPromptsLoadNoVocabulary(t *testing.T) {
	if os.Getenv("TOKENGUARD_CHILD") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "TOKENGUARD_CHILD=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	before := allocated()
	text := strings.Repeat("word ", 1000)
	fits, err := tokenguard.Fits("gpt-4o", len(text), text)
	require.NoError(t, err)
	assert.True(t, fits)
	messages := []openai.ChatCompletionMessage{{Role: "user", Content: text}}
	kept, err := tokenguard.Trim("gpt-4o", len(text)+7, messages)
	require.NoError(t, err)
	assert.Equal(t, messages, kept)
	assert.Less(t, allocated()-before, uint64(1<<20))

	_, err = tokenguard.Count("gpt-4o", "") // even an empty text loads the vocabulary
	require.NoError(t, err)
	assert.Greater(t, allocated()-before, uint64(5<<20), "the test must detect a loaded vocabulary")
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestHugePathologicalTextsAreRejectedAtOnce(t *testing.T) {
	const max, size = 8000, 20 << 20
	_, err := tokenguard.Count("unknown", "") // loads the vocabularies
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for _, unit := range []string{"a", " ", " \n", "Aa", "中", "中A", "\u0301", "\xff", "x=1;\n  \n", string(noise)} {
		name, text := fmt.Sprintf("%.20q", unit), strings.Repeat(unit, size/len(unit))
		t.Run(name, func(t *testing.T) {
			linear.Within(t, time.Second, func() {
				fits, err := tokenguard.Fits("unknown", max, text)
				require.NoError(t, err)
				assert.False(t, fits, name)
				n, err := tokenguard.Limit(max)("gpt-4o", text)
				require.NoError(t, err)
				assert.Greater(t, n, max, name)
				_, err = tokenguard.Trim("gpt-4o", max, []openai.ChatCompletionMessage{{Role: "user", Content: text}})
				assert.ErrorIs(t, err, aiguard.ErrPromptTooLarge, name)
			})
			linear.Within(t, 4*time.Second, func() {
				n, err := tokenguard.Limit(max)("gpt-4o", text[:50_000]) // its size does not decide
				require.NoError(t, err)
				assert.Positive(t, n)
			})
		})
	}
}

// Time must be about linear in the length, because a user's text could otherwise block a service.
func TestCountTimeIsLinear(t *testing.T) {
	for _, unit := range []string{"a", " ", " \n", "  \n\n", "\t\n", "Aa", "中A", "A中", "\u0301A", "''", "!\n/"} {
		text := strings.Repeat(unit, 48_000/len(unit))
		count := func(t *testing.T, text string) {
			_, err := tokenguard.Count("gpt-4o", text)
			require.NoError(t, err)
		}
		part := time.Hour
		for range 3 {
			start := time.Now()
			count(t, text[:len(text)/8])
			part = min(part, time.Since(start))
		}
		t.Run(unit, func(t *testing.T) {
			linear.Within(t, 30*part+100*time.Millisecond, func() { count(t, text) }) // quadratic would be 64 times
		})
	}
}

// The limit is configured twice and must agree.
func TestLimitBelowMaxPromptTokensIsAnError(t *testing.T) {
	_, err := aiguard.New(aiguard.Config{MaxPromptTokens: 500, CountTokens: tokenguard.Limit(100)})
	require.ErrorContains(t, err, "want one that reaches MaxPromptTokens (500)")
	for _, max := range []int{1, 100, 8000, 200_000} {
		_, err = aiguard.New(aiguard.Config{MaxPromptTokens: max, CountTokens: tokenguard.Limit(max)})
		require.NoError(t, err, "%d", max)
	}
	_, err = aiguard.New(aiguard.Config{MaxPromptTokens: 500, CountTokens: tokenguard.Count})
	require.NoError(t, err)
}
