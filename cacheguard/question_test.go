package cacheguard

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/linear"
)

func newComparer(t testing.TB) *Transport {
	return newKeyer(t, Config{Similar: Similar{Embed: func(context.Context, []string) ([][]float32, error) { return nil, nil }, Threshold: 1}})
}

// questionOf returns the question of a request with this body.
func questionOf(t testing.TB, tr *Transport, body string) *question {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, chatURL, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sk-one")
	q, err := tr.read(req, Policy{})
	require.NoError(t, err)
	return q.question
}

func TestQuestionIsTheUnescapedText(t *testing.T) {
	tr := newComparer(t)
	q := questionOf(t, tr, `{"temperature":0,"messages":[{"role":"user","content":"What is \"\u0047o\"?\n"}]}`)
	require.NotNil(t, q)
	assert.Equal(t, "What is \"Go\"?\n", q.text)
	for name, content := range map[string]string{
		"no text":          `""`,
		"no word":          `"?!"`,
		"no meaning":       `"Please!"`,
		"broken Unicode":   `"What is \ud800?"`,
		"replaced Unicode": `"What is ` + "\ufffd" + `?"`,
		"invalid UTF-8":    "\"What is \xff?\"",
		"null":             `null`,
		"a number":         `7`,
	} {
		assert.Nil(t, questionOf(t, tr, `{"temperature":0,"messages":[{"role":"user","content":`+content+`}]}`), name)
	}
}

func TestFindingTheQuestionIsLinear(t *testing.T) {
	tr := newComparer(t)
	for name, body := range map[string]func(size int) string{
		"messages": func(size int) string {
			return `{"temperature":0,"messages":[` + strings.Repeat(`{"role":"system","content":"x"},`, size/32) + `{"role":"user","content":"What is Go?"}]}`
		},
		"parts": func(size int) string {
			return `{"temperature":0,"messages":[{"role":"user","content":[` + strings.Repeat(`{"type":"text","text":"x"},`, size/28) + `{}]}]}`
		},
		"one question": func(size int) string {
			return `{"temperature":0,"messages":[{"role":"user","content":"` + strings.Repeat("what is ", size/8) + `"}]}`
		},
		"nested": func(size int) string {
			return `{"temperature":0,"messages":[{"role":"user","content":` + repeated(strings.Repeat("[", 80)+strings.Repeat("]", 80), size) + `}]}`
		},
	} {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 40, func(size int) (int, func()) {
				text := body(size)
				return len(text), func() { questionOf(t, tr, text) }
			})
		})
	}
}

// Whatever a client sends, the text that is found is a string of the body, and the rest of the body counts.
func FuzzFindQuestion(f *testing.F) {
	for _, seed := range []string{
		`{"messages":[{"content":"Hi","role":"user"}]}`, `{"input":"Hi","store":false}`, `{"input":[{"content":[{"text":"a","type":"input_text"}],"role":"user"}]}`,
		`{"messages":[{"content":[],"role":"user"},{"role":"system"}]}`, `{"messages":{"a":[{}]},"input":[[]]}`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		plain, ok := canonical([]byte(body))
		if !ok {
			return
		}
		start, end, ok := findQuestion(plain)
		if !ok {
			return
		}
		require.LessOrEqual(t, 0, start)
		require.Less(t, start, end)
		_, isText := jsonscan.Text(plain[start:end])
		require.True(t, isText, "%s", plain[start:end])
		other := string(plain[:start]) + `"another question"` + string(plain[end:])
		again, ok := canonical([]byte(other))
		require.True(t, ok)
		require.Equal(t, other, string(again))
		from, to, ok := findQuestion(again)
		require.True(t, ok)
		require.Equal(t, `"another question"`, string(again[from:to]))
	})
}
