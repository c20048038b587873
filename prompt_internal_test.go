package aiguard

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/runes"
)

var promptSeeds = []string{
	"", "a", "hello, world: more than eight bytes", "中文字符一二三四五六七八", "😀👍🏽👨‍👩‍👧", "e\u0301a\u0308 combining",
	"mixed a中😀é", "\x80", "\xff\xfe", strings.Repeat("\x80", 64), strings.Repeat("\x80", 1000), strings.Repeat("\xbf", 95), "a\xc3", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80",
	strings.Repeat("中", 1000), "\ufffd", "\u007f\u0080\u07ff\u0800\uffff\U00010000\U0010ffff",
}

// checkCount is what the prompt check relies on: exact for text, never too strict for anything.
func checkCount(t *testing.T, s string) {
	got, want := runes.Count(s), utf8.RuneCountInString(s)
	if utf8.ValidString(s) {
		require.Equal(t, want, got, "%q", s)
	}
	require.LessOrEqual(t, got, want, "%q", s)
	require.GreaterOrEqual(t, got, 0, "%q", s)
}

func FuzzCountRunes(f *testing.F) {
	for _, s := range promptSeeds {
		f.Add(s)
	}
	f.Fuzz(checkCount)
}

func TestCountRunesIsExactForTextAtEveryAlignment(t *testing.T) {
	alphabet := []rune("aé中😀\u0301\x00\u007f\u0080\U0010ffff")
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		var b strings.Builder
		for range r.IntN(120) {
			if r.IntN(20) == 0 {
				b.WriteByte(byte(r.IntN(256))) // and invalid UTF-8, sometimes
			} else {
				b.WriteRune(alphabet[r.IntN(len(alphabet))])
			}
		}
		checkCount(t, b.String())
	}
}

func TestCheckingAPlainRequestAllocatesNothing(t *testing.T) {
	for name, text := range map[string]string{
		"fewer bytes than the limit": strings.Repeat("x", 2000),
		"more bytes than the limit":  strings.Repeat("中", 2500), // so that it is counted
	} {
		t.Run(name, func(t *testing.T) {
			g, err := New(Config{MaxPromptChars: 6000})
			require.NoError(t, err)
			r := openai.ChatCompletionRequest{Model: "m", Messages: []openai.ChatCompletionMessage{
				{Role: "system", Content: "Be kind."}, {Role: "user", Content: text, Name: "u"}, {Role: "user", Content: text},
			}}
			var refused error
			allocs := testing.AllocsPerRun(100, func() {
				p := prompt{texts: make([]string, 0, 16)}
				p.chat(&r)
				refused = g.usual().checkPrompt(&p)
			})
			require.NoError(t, refused)
			require.LessOrEqual(t, allocs, 1.0, "the list of texts")

			texts := []string{"Be kind.", text, text}
			allocs = testing.AllocsPerRun(100, func() { refused = g.CheckPrompt("m", texts...) })
			require.NoError(t, refused)
			require.Zero(t, allocs, "CheckPrompt")
		})
	}
}
