package tokenguard

import (
	"encoding/json"
	"math"
	"os"
	"strings"
	"sync"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// modelFor maps each encoding to a model that uses it.
var modelFor = map[string]string{o200k: "gpt-4o", cl100: "gpt-4", p50k: "text-davinci-003", r50k: "text-davinci-001"}

func TestCountsMatchOpenAI(t *testing.T) {
	type counts map[string]int
	for text, want := range map[string]counts{
		// From OpenAI's cookbook, "How to count tokens with tiktoken".
		"tiktoken is great!":           {o200k: 6, cl100: 6},
		"antidisestablishmentarianism": {o200k: 6, cl100: 6, p50k: 5, r50k: 5},
		"2 + 2 = 4":                    {o200k: 7, cl100: 7, p50k: 5, r50k: 5},
		"お誕生日おめでとう":                    {o200k: 8, cl100: 9, p50k: 14, r50k: 14},
		// From tiktoken's own tests.
		"":                  {o200k: 0, cl100: 0, p50k: 0, r50k: 0},
		"hello world":       {cl100: 2, r50k: 2, p50k: 2},
		"rer":               {cl100: 1},
		"'rer":              {cl100: 2},
		"today\n ":          {cl100: 3},
		"today\n \n":        {cl100: 2},
		"today\n  \n":       {cl100: 2},
		" \u00850":          {cl100: 4},
		"👍":                 {cl100: 3},
		"0000000000000000":  {r50k: 1},
		"00000000000000000": {r50k: 3},
	} {
		for encoding, n := range want {
			got, err := Count(modelFor[encoding], text)
			require.NoError(t, err)
			assert.Equal(t, n, got, "%q in %s", text, encoding)
		}
	}
}

// The counts in testdata come from tiktoken (npm package tiktoken 1.0.22, which contains its Rust core). The texts
// are random combinations of words, scripts, marks, contractions, numbers, symbols and white space.
func TestCountsMatchTiktoken(t *testing.T) {
	data, err := os.ReadFile("testdata/tiktoken.json")
	require.NoError(t, err)
	var rows []map[string]any
	require.NoError(t, json.Unmarshal(data, &rows))
	require.Greater(t, len(rows), 200)
	for _, row := range rows {
		for encoding, model := range modelFor {
			got, err := Count(model, row["text"].(string))
			require.NoError(t, err)
			assert.EqualValues(t, row[encoding], got, "%.100q in %s", row["text"], encoding)
		}
	}
}

var cookbook = []openai.ChatCompletionMessage{
	{Role: "system", Content: "You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
	{Role: "system", Name: "example_user", Content: "New synergies will help drive top-line growth."},
	{Role: "system", Name: "example_assistant", Content: "Things working well together will increase revenue."},
	{Role: "system", Name: "example_user", Content: "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
	{Role: "system", Name: "example_assistant", Content: "Let's talk later when we're less busy about how to do better."},
	{Role: "user", Content: "This late pivot means we don't have time to boil the ocean for the client deliverable."},
}

func TestMessageCountsMatchTheAPI(t *testing.T) {
	for model, want := range map[string]int{
		"gpt-3.5-turbo": 129, "gpt-4-0613": 129, "gpt-4": 129, "gpt-4o": 124, "gpt-4o-mini": 124, // figures from the cookbook
	} {
		got, err := CountMessages(model, cookbook)
		require.NoError(t, err)
		assert.Equal(t, want, got, model)
	}
}

func TestEveryTextOfAMessageIsCounted(t *testing.T) {
	const model = "gpt-4o"
	bare, err := CountMessages(model, []openai.ChatCompletionMessage{{Role: "assistant"}})
	require.NoError(t, err)
	assert.Equal(t, perReply+perMessage+perRole, bare)
	call := openai.FunctionCall{Name: "weather", Arguments: `{"city":"Rome"}`}
	inside, err := Count(model, call.Name)
	require.NoError(t, err)
	arguments, err := Count(model, call.Arguments)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		msg  openai.ChatCompletionMessage
		more int
	}{
		"content":   {openai.ChatCompletionMessage{Content: "hello world"}, 2},
		"parts":     {openai.ChatCompletionMessage{MultiContent: []openai.ChatMessagePart{{Text: "hello"}, {Text: " world"}, {ImageURL: &openai.ChatMessageImageURL{URL: "data:"}}}}, 2},
		"name":      {openai.ChatCompletionMessage{Name: "hello world"}, 3},
		"refusal":   {openai.ChatCompletionMessage{Refusal: "hello world"}, 2},
		"reasoning": {openai.ChatCompletionMessage{ReasoningContent: "hello world"}, 2},
		"function":  {openai.ChatCompletionMessage{FunctionCall: &call}, perToolCall + inside + arguments},
		"two tools": {openai.ChatCompletionMessage{ToolCalls: []openai.ToolCall{{ID: "a", Function: call}, {ID: "b", Function: call}}}, 2 * (perToolCall + inside + arguments)},
	} {
		c.msg.Role = "assistant"
		got, err := CountMessages(model, []openai.ChatCompletionMessage{c.msg})
		require.NoError(t, err)
		assert.Equal(t, bare+c.more, got, name)
	}
}

func TestEncodingOfModels(t *testing.T) {
	for encoding, models := range map[string]string{
		o200k: "gpt-4o gpt-4o-mini gpt-4o-2024-08-06 chatgpt-4o-latest gpt-4.1 gpt-4.1-nano-2025-04-14 gpt-4.5-preview gpt-5 gpt-5-mini gpt-5.1 " +
			"gpt-oss-120b o1 o1-preview o3 o3-mini o4-mini-2025-04-16 ft:gpt-4o-mini-2024-07-18:acme::abc123 ft:gpt-4.1:acme gpt-4o-eu openai/o3-mini GPT-4o gpt-4o_prod",
		cl100: "gpt-4 gpt-4-turbo gpt-4-0613 gpt-4-32k gpt-4-1106-preview gpt-3.5-turbo gpt-3.5-turbo-0125 gpt-3.5 gpt-35-turbo gpt-35-turbo-16k-eu " +
			"ft:gpt-3.5-turbo-0125:acme::abc ft:gpt-4-0613:acme ft:davinci-002:acme text-embedding-3-small text-embedding-3-large text-embedding-ada-002 babbage-002",
		p50k: "text-davinci-003 text-davinci-002 code-davinci-002 code-cushman-001 text-davinci-edit-001 davinci-codex",
		r50k: "text-davinci-001 davinci curie babbage ada text-ada-001 text-search-ada-doc-001 ft:davinci:acme gpt2 gpt-2",
	} {
		for model := range strings.FieldsSeq(models) {
			got, known := Encoding(model)
			assert.True(t, known, model)
			assert.Equal(t, encoding, got, model)
		}
	}
	for model := range strings.FieldsSeq("prod gpt gpt-6 gpt-40 o10 o1x adam claude-sonnet-4 llama-3.1-8b my-gpt-4o") {
		_, known := Encoding(model)
		assert.False(t, known, model)
	}
	_, known := Encoding("")
	assert.False(t, known)
}

func TestUnknownModelUsesTheLargerCount(t *testing.T) {
	for text, want := range map[string]int{
		"お誕生日おめでとう":                      9, // cl100k_base's count; o200k_base has 8
		strings.Repeat("\n", 1000) + "x": 64,
	} {
		o, err := Count("gpt-4o", text)
		require.NoError(t, err)
		c, err := Count("gpt-4", text)
		require.NoError(t, err)
		got, err := Count("a-deployment", text)
		require.NoError(t, err)
		assert.Equal(t, want, got, "%.20q", text)
		assert.Equal(t, max(o, c), got)
	}
}

func TestInvalidUTF8IsCountedAsSent(t *testing.T) {
	for _, text := range []string{"\xff", "a\xffb", "caf\xe9 au lait", "\xe4\xb8", "\xff\xfe\xfd !"} {
		sent, err := json.Marshal(text)
		require.NoError(t, err)
		var arrived string
		require.NoError(t, json.Unmarshal(sent, &arrived))
		for _, model := range modelFor {
			want, err := Count(model, arrived)
			require.NoError(t, err)
			got, err := Count(model, text)
			require.NoError(t, err)
			assert.Equal(t, want, got, "%q", text)
		}
	}
}

func TestCountIsSafeForConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for _, model := range modelFor {
				n, err := Count(model, "antidisestablishmentarianism, twice: "+strings.Repeat("antidisestablishmentarianism", 2))
				assert.NoError(t, err)
				assert.Greater(t, n, 10)
			}
		})
	}
	wg.Wait()
}

func TestCountingAllocatesNothing(t *testing.T) {
	text := strings.Repeat("A few words, 中文 and numbers: 12345.\n", 20)
	for _, model := range []string{"gpt-4o", "gpt-4", "unknown"} {
		assert.Zero(t, testing.AllocsPerRun(10, func() { _, _ = Count(model, text) }), model)
	}
}

func FuzzCount(f *testing.F) {
	for _, seed := range []string{"", "hello world", "it'S  \n \n x", "中A\u0301B", "\xff\xfe", strings.Repeat("a", 200), " \t\r\n/", "!\n/\n 12345"} {
		f.Add(seed, 3)
	}
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = max(0, limit%1000)
		for name, model := range modelFor {
			e, err := encodingOf(name)
			require.NoError(t, err)
			exact := e.count(text, math.MaxInt)
			require.LessOrEqual(t, exact, atMost(text), "a token has at least one byte")
			require.GreaterOrEqual(t, exact, e.atLeast(text))

			limited := e.count(text, limit)
			require.LessOrEqual(t, limited, exact)
			if exact <= limit {
				require.Equal(t, exact, limited)
			} else {
				require.Greater(t, limited, limit)
			}
			fits, err := Fits(model, limit, text)
			require.NoError(t, err)
			require.Equal(t, exact <= limit, fits)

			for rest := valid(text); rest != ""; {
				size := e.split(rest)
				require.Positive(t, size)
				if piece := rest[:size]; size <= scanned {
					require.Equal(t, e.scan(piece), e.merge(piece), "%q", piece)
				}
				rest = rest[size:]
			}
		}
	})
}

func BenchmarkCount(b *testing.B) {
	for name, text := range map[string]string{
		"English": strings.Repeat("The quick brown fox jumps over the lazy dog. ", 23)[:1000],
		"Chinese": strings.Repeat("敏捷的棕色狐狸，跳过了懒狗。", 24)[:999],
		"letters": strings.Repeat("a", 1000),
	} {
		_, err := Count("gpt-4o", text) // loads the vocabulary
		require.NoError(b, err)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = Count("gpt-4o", text)
			}
		})
	}
	b.Run("fits because of its size", func(b *testing.B) {
		text := strings.Repeat("a", 1000)
		b.ReportAllocs()
		for b.Loop() {
			_, _ = Fits("gpt-4o", 1000, text)
		}
	})
}
