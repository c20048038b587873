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
		{"What if I'm late?", "what if i'm late"},
		{"What is n't?", "what is N't"},
		{"How far is 1,000 km?", "How far is 1000 kilometers?", "how far is 1000km", "How far is １０００ km?", "How far is ١٠٠٠ km?"},
		{"What do 3 dogs eat?", "What do three dogs eat?"},
		{"What are the benefits?", "What is the benefit?", "What's the advantage?"},
		{"the 2nd world war", "the 2 world war"},
		{"What is 5%?", "What is 5 percent?", "What is five percent?"},
		{"Hello! Can you explain photosynthesis to me?", "Photosynthesis, please.", "So what is photosynthesis?"},
		{"Pourquoi le ciel est-il bleu ?", "pourquoi le ciel est-il bleu"},
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
		{"Why is \"a\" a word?", "Why is \"the\" a word?"},
		{"What does `a` do?", "What does `b` do?"},
		{"ls -l", "ls -a"},
		{"x < 5", "x > 5"},
		{"東京の天気は？", "大阪の天気は？"},
		{"Сколько стоит хлеб?", "Сколько стоит молоко?"},
		{"ราคาข้าว", "ราคานม"},
		{"हाँ", "नहीं"},
		{"\xff", "\xff\xff"},

		// Names that differ in an s, a number after a name, and units that differ in their case.
		{"who is john adams", "who is john adam"},
		{"how do i install windows", "how do i install a window"},
		{"what is the news in berlin", "what is new in berlin"},
		{"Who was Henry I?", "Who was Henry?"},
		{"what is hepatitis a", "what is hepatitis"},
		{"How much is 5 mW?", "How much is 5 MW?"},
		{"How much is 5mW?", "How much is 5MW?"},
		{"How many kB are in 5 Mb?", "How many kB are in 5 MB?"},
		{"What is a mW?", "What is a MW?"},
		{"Is the meeting at 5 am?", "Is the meeting at 5?"},
		{"Is 5' long?", "Is 5 long?"},

		// Words that the question is about.
		{"How do I say hello in Japanese?", "How do I say thanks in Japanese?"},
		{"How do you say please?", "How do you say sorry?"},
		{"How do you say thank you in French?", "How do you say tell me in French?"},
		{"What does just mean?", "What does exactly mean?"},
		{"What does with mean in Python?", "What does as mean in Python?"},
		{"How do I use explain in SQL?", "How do I use describe in SQL?"},
		{"How deep is a well?", "How deep is it?"},
		{"Is he well?", "Is he sorry?"},

		// Small words that change the meaning.
		{"What is aspirin for?", "What is aspirin in?"},
		{"Is the light on?", "Is the light?"},
		{"Is he here?", "Is he there?"},
		{"How do I look for a star?", "How do I look at a star?"},
		{"Must I file taxes?", "May I file taxes?"},
		{"Has Poland attacked?", "Is Poland attacked?"},
		{"Which animals are eaten?", "Which animals have eaten?"},
		{"Where'd he live?", "Where does he live?"},
		{"What is our salary?", "What is my salary?"},

		// Words with several meanings.
		{"How do I pick a lock?", "How do I choose a lock?"},
		{"What is the mean of the data?", "What is the meaning of the data?"},
		{"How do I sort a list?", "How do I type a list?"},
		{"How do I store milk?", "How do I shop milk?"},

		// Punctuation that stands alone.
		{"What does [] mean in Go?", "What does {} mean in Go?"},
		{"What does ? mean in a regex?", "What does . mean in a regex?"},
		{"What does ; do in SQL?", "What does , do in SQL?"},
		{"What does ... do in Go?", "What does . do in Go?"},
		{"What does (abc) match?", "What does [abc] match?"},
		{"What is .NET?", "What is net?"},
		{"What is x - 1?", "What is x 1?"},

		// Other languages: ten and two, whom and who, you and she, decimals.
		{"On iki ay kaç gün?", "İki ay kaç gün?"},
		{"on iki elma", "iki elma"},
		{"Hvad koster to øl?", "Hvad koster øl?"},
		{"Koster to is mere?", "Koster is mere?"},
		{"¿Quién ama a María?", "¿A quién ama María?"},
		{"¿Dónde vives?", "¿Dónde vive?"},
		{"Was wiegt 1,500 kg?", "Was wiegt 1500 kg?"},
		{"Quem mora no Rio?", "Quem mora not Rio?"},
	} {
		assert.NotEqual(t, Of(pair[0]), Of(pair[1]), "%q", pair)
	}
}

func TestMarkingIsLinear(t *testing.T) {
	for name, unit := range map[string]string{
		"words": "the quick brown fox ", "phrases": "how do i ", "half phrases": "what is the best way ", "one word": "x", "numbers": "1,000 ",
		"one number": "1,000,", "hyphens": "a-", "apostrophes": "a'", "quotes": "\"", "symbols": "$-", "Han": "東", "digits": "١", "broken": "\xff",
		"dots": ". ", "dots in a row": ".", "brackets": "( )", "dots and spaces": "." + strings.Repeat(" ", 50), "sentences": "the. ",
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
	for _, seed := range []string{"How do I reset my password?", "I can't pay $1,000.50", "C++ -5 ١٢٣ \"a\" e-mail 東京", "how do how do i", "\xff’s-'", "Can n't", ""} {
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
			if other := Of(text + change); m != "" || other != "" { // without marks they are not compared
				require.NotEqual(t, m, other, change)
			}
		}
	})
}
