package tokenguard_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/tokenguard"
)

type messages = []openai.ChatCompletionMessage

func say(role, text string) openai.ChatCompletionMessage {
	return openai.ChatCompletionMessage{Role: role, Content: text}
}

func calls(ids ...string) openai.ChatCompletionMessage {
	m := openai.ChatCompletionMessage{Role: "assistant"}
	for _, id := range ids {
		m.ToolCalls = append(m.ToolCalls, openai.ToolCall{ID: id, Type: "function", Function: openai.FunctionCall{Name: "look_up", Arguments: `{"q":"x"}`}})
	}
	return m
}

func result(id, text string) openai.ChatCompletionMessage {
	return openai.ChatCompletionMessage{Role: "tool", ToolCallID: id, Content: text}
}

func size(t testing.TB, m messages) int {
	n, err := tokenguard.CountMessages("gpt-4o", m)
	require.NoError(t, err)
	return n
}

func TestTrimDropsTheOldestMessages(t *testing.T) {
	all := messages{
		say("system", "Be brief."),
		say("user", "First question?"), calls("1", "2"), result("1", "one"), result("2", "two"), say("assistant", "First answer."),
		say("developer", "Be polite."),
		say("user", "Second question?"), say("assistant", "Second answer."),
		say("user", "Third question?"), calls("1"), result("1", "three"),
	}
	for _, c := range []struct {
		name string
		kept []int
	}{
		{"all", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		{"without the first question", []int{0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}},
		{"without its tool calls, which go together", []int{0, 5, 6, 7, 8, 9, 10, 11}},
		{"without its answer", []int{0, 6, 7, 8, 9, 10, 11}},
		{"without the second question", []int{0, 6, 8, 9, 10, 11}},
		{"without its answer", []int{0, 6, 9, 10, 11}},
		{"only messages that are always kept", []int{0, 6, 9}},
	} {
		var want messages
		for _, i := range c.kept {
			want = append(want, all[i])
		}
		max := size(t, want)
		got, err := tokenguard.Trim("gpt-4o", max, all)
		require.NoError(t, err, c.name)
		assert.Equal(t, want, got, c.name)
	}
	least := size(t, messages{all[0], all[6], all[9]})
	got, err := tokenguard.Trim("gpt-4o", least-1, all)
	assert.Nil(t, got)
	require.ErrorIs(t, err, aiguard.ErrPromptTooLarge)
	var e *aiguard.Error
	require.ErrorAs(t, err, &e)
	assert.EqualValues(t, least, e.Size)
	assert.EqualValues(t, least-1, e.Max)
	assert.Equal(t, "gpt-4o", e.Model)
	assert.Equal(t, 413, aiguard.HTTPStatus(err))
	assert.NotContains(t, err.Error(), "question")
}

func TestTrimKeepsAFunctionCallWithItsResult(t *testing.T) {
	call := openai.ChatCompletionMessage{Role: "assistant", FunctionCall: &openai.FunctionCall{Name: "look_up", Arguments: "{}"}}
	all := messages{say("user", "one"), call, {Role: "function", Name: "look_up", Content: "found"}, say("user", "two")}
	got, err := tokenguard.Trim("gpt-4o", size(t, all[2:]), all)
	require.NoError(t, err)
	assert.Equal(t, all[3:], got)
	got, err = tokenguard.Trim("gpt-4o", size(t, all[1:]), all)
	require.NoError(t, err)
	assert.Equal(t, all[1:], got)
}

func TestAppendToTrimResultKeepsTheInput(t *testing.T) {
	all := messages{say("user", "one"), say("assistant", "two"), say("user", "three")}
	got, err := tokenguard.Trim("gpt-4o", 1000, all[:2])
	require.NoError(t, err)
	_ = append(got, say("user", "other"))
	assert.Equal(t, "three", all[2].Content)
}

func TestTrimOfNoMessages(t *testing.T) {
	got, err := tokenguard.Trim("gpt-4o", 3, nil)
	require.NoError(t, err)
	assert.Empty(t, got)
	_, err = tokenguard.Trim("gpt-4o", 2, nil)
	assert.ErrorIs(t, err, aiguard.ErrPromptTooLarge, "the reply takes three")
	_, err = tokenguard.Trim("gpt-4o", -1, messages{say("user", "x")})
	assert.ErrorIs(t, err, aiguard.ErrPromptTooLarge)
}

func TestTrimOfRandomConversations(t *testing.T) {
	for seed := range uint64(1000) {
		checkTrim(t, rand.New(rand.NewPCG(seed, 0)))
	}
}

func FuzzTrim(f *testing.F) {
	f.Add([]byte("some bytes that choose"))
	f.Fuzz(func(t *testing.T, choices []byte) {
		var seed [32]byte
		copy(seed[:], choices)
		checkTrim(t, rand.New(rand.NewChaCha8(seed)))
	})
}

// checkTrim trims a random conversation with repeated IDs to a random size and checks the guarantees of Trim.
func checkTrim(t *testing.T, r *rand.Rand) {
	var all messages
	units := map[int]int{} // index at which the unit of each message with a call starts
	text := func() string { return strings.Repeat(" word", r.IntN(30)) }
	for range r.IntN(12) {
		switch r.IntN(6) {
		case 0:
			all = append(all, say([]string{"system", "developer"}[r.IntN(2)], text()))
		case 1, 2:
			all = append(all, say("user", text()))
		case 3:
			all = append(all, say("assistant", text()))
		default:
			begin, ids := len(all), []string{}
			for i := range 1 + r.IntN(3) {
				ids = append(ids, fmt.Sprint("call", i))
			}
			all = append(all, calls(ids...))
			r.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
			for _, id := range ids {
				units[len(all)] = begin
				all = append(all, result(id, text()))
			}
			units[begin] = begin
		}
	}
	for i := range all {
		all[i].Name = fmt.Sprint("m", i) // makes messages distinguishable
	}
	before := slices.Clone(all)
	limit := 3 + r.IntN(size(t, all)+20)
	got, err := tokenguard.Trim("gpt-4o", limit, all)
	require.True(t, reflect.DeepEqual(before, all), "the input is unchanged")

	question := -1
	for i, m := range all {
		if m.Role == "user" {
			question = i
		}
	}
	fixed := func(i int) bool { return all[i].Role == "system" || all[i].Role == "developer" || i == question }
	if err != nil {
		require.ErrorIs(t, err, aiguard.ErrPromptTooLarge)
		var least messages
		for i := range all {
			if fixed(i) {
				least = append(least, all[i])
			}
		}
		require.Greater(t, size(t, least), limit, "fails only if the messages to keep are too large")
		return
	}
	require.LessOrEqual(t, size(t, got), limit, "the result fits")
	kept := make([]bool, len(all))
	at := 0
	for _, m := range got {
		for at < len(all) && all[at].Name != m.Name {
			at++
		}
		require.Less(t, at, len(all), "the order is unchanged, and no message is new")
		require.Equal(t, all[at], m)
		kept[at] = true
	}
	newest := -1 // start of the newest dropped unit
	for i := range all {
		if fixed(i) {
			require.True(t, kept[i], "message %d was dropped but must be kept", i)
			continue
		}
		begin, isCall := units[i]
		if !isCall {
			begin = i
		}
		require.Equal(t, kept[begin], kept[i], "a tool call was split")
		if !kept[i] {
			newest = max(newest, begin)
		}
	}
	if newest < 0 {
		return
	}
	var more messages
	for i := range all {
		begin, isCall := units[i]
		if !isCall {
			begin = i
		}
		if !fixed(i) && begin < newest {
			require.False(t, kept[i], "kept although older than a dropped unit")
		}
		if kept[i] || begin == newest {
			more = append(more, all[i])
		}
	}
	require.Greater(t, size(t, more), limit, "more was dropped than necessary")
}
