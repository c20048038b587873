package marks

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/linear"
)

func TestWordingThatChangesNoMeaningHasNoMark(t *testing.T) {
	for _, same := range [][]string{
		{"How do I reset my password?", "how can i reset the password", "Please tell me how to reset a password!", "What is the best way to reset my password?", "I want to reset my password."},
		{"What is photosynthesis?", "what's photosynthesis", "Explain photosynthesis.", "Could you please explain photosynthesis?", "Photosynthesis"},
		{"Why is the sky blue?", "What is the reason the sky is blue?", "How come the sky is blue?"},
		{"I can't log in.", "I cannot sign in", "i can’t log in"},
		{"1,000 km", "1000 kilometers", "1000km", "１０００ km", "١٠٠٠ km"},
		{"3 dogs", "three dogs", "3 dog"},
		{"the 2nd world war", "the 2 world war"},
		{"5%", "5 percent", "five percent"},
		{"Is it possible to freeze rice?", "Can I freeze rice?"},
		{"How do I turn off Siri?", "How can I disable Siri?"},
		{"¿Dónde está la biblioteca?", "Dónde está la biblioteca"},
		{"東京の天気は？", "東京の天気は"},
	} {
		for _, text := range same[1:] {
			assert.Equal(t, Of(same[0]), Of(text), text)
		}
	}
}

func TestDifferencesOfMeaningHaveMarks(t *testing.T) {
	for _, pair := range [][2]string{
		{"Can dogs eat grapes?", "Can't dogs eat grapes?"},
		{"Which foods contain gluten?", "Which foods contain no gluten?"},
		{"with sugar", "without sugar"},
		{"a smoking area", "a non-smoking area"},
		{"What is 5 + 7?", "What is 5 - 7?"},
		{"What is 5 - 7?", "What is -5 - 7?"},
		{"15", "1,5"},
		{"1.5", "15"},
		{"3 km", "3 mi"},
		{"$5", "€5"},
		{"2024-05-06", "2024-06-05"},
		{"10:30", "10:31"},
		{"two", "three"},
		{"from Paris to London", "from London to Paris"},
		{"Did Ali beat Frazier?", "Did Frazier beat Ali?"},
		{"all users", "some users"},
		{"more than 5", "less than 5"},
		{"before lunch", "after lunch"},
		{"enable logging", "disable logging"},
		{"Who was the president?", "Who is the president?"},
		{"When was Bach born?", "Where was Bach born?"},
		{"How do I freeze rice?", "Can I freeze rice?"},
		{"What is the population of the US?", "What is the population of us?"},
		{"What is the weather in May?", "What is the weather in may?"},
		{"Please do NOT cancel my order.", "Please do cancel my order."},
		{"Who is Serena Williams?", "Who is Serena William?"},
		{"What is C?", "What is C++?"},
		{"What is C#?", "What is C?"},
		{"What is node.js?", "What is node?"},
		{"/etc/hosts", "/etc/passwd"},
		{"a@example.com", "b@example.com"},
		{"What does \"please\" mean?", "What does \"the\" mean?"},
		{"What does `a` do?", "What does `b` do?"},
		{"ls -l", "ls -a"},
		{"x < 5", "x > 5"},
		{"東京の天気は？", "大阪の天気は？"},
		{"Сколько стоит хлеб?", "Сколько стоит молоко?"},
		{"ราคาข้าว", "ราคานม"},
		{"हाँ", "नहीं"},
		{"\xff", "\xff\xff"},
	} {
		assert.NotEqual(t, Of(pair[0]), Of(pair[1]), "%q", pair)
	}
}

func TestMarkingIsLinear(t *testing.T) {
	for name, unit := range map[string]string{
		"words": "the quick brown fox ", "phrases": "how do i ", "half phrases": "what is the best way ", "one word": "x", "numbers": "1,000 ",
		"one number": "1,000,", "hyphens": "a-", "apostrophes": "a'", "quotes": "\"", "symbols": "$-", "Han": "東", "digits": "١", "broken": "\xff",
	} {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 120, func(size int) (int, func()) {
				text := strings.Repeat(unit, size/len(unit)+1)
				return len(text), func() { Of(text) }
			})
		})
	}
}

func FuzzOf(f *testing.F) {
	for _, seed := range []string{"How do I reset my password?", "I can't pay $1,000.50", "C++ -5 ١٢٣ \"a\" e-mail 東京", "how do how do i", "\xff’s-'"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m := Of(text)
		require.Equal(t, m, Of(text))
		require.LessOrEqual(t, len(m), 12*len(text)+16)
		require.Equal(t, m, Of("  "+text+" "), "spaces around it")
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\"`“”„«»「」『』") {
			return
		}
		for _, change := range []string{" 7", " not", " Zanzibar", " zanzibar", " %"} {
			require.NotEqual(t, m, Of(text+change), change)
		}
	})
}
