package cacheguard_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/internal/pairs"
)

const (
	original = "How do I reset the password?"
	similar  = "How can I reset my password?"
	other    = "How should I reset our password?"
)

// angles is an embedder that knows the direction of each text in degrees.
type angles map[string]float64

func (a angles) embed(_ context.Context, texts []string) (vectors [][]float32, err error) {
	for _, text := range texts {
		degrees, ok := a[text]
		if !ok {
			return nil, fmt.Errorf("no vector for a text of %d bytes", len(text))
		}
		sin, cos := math.Sincos(degrees * math.Pi / 180)
		vectors = append(vectors, []float32{float32(3 * cos), float32(3 * sin)}) // not of length 1
	}
	return vectors, nil
}

var directions = angles{original: 0, similar: 20, other: 90}

// similarity returns a configuration that compares questions by directions.
func similarity() cacheguard.Config {
	return cacheguard.Config{Similar: cacheguard.Similar{Embed: directions.embed, Threshold: 0.9}}
}

// chatOf returns the body of a chat with one question.
func chatOf(question string) string {
	text, err := json.Marshal(question)
	if err != nil {
		panic(err)
	}
	return `{"model":"m","temperature":0,"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":` + string(text) + `}]}`
}

// question asks a question and waits until the cache is idle.
func (w *world) question(t *testing.T, ctx context.Context, question string, headers ...string) answer {
	t.Helper()
	a := w.chat(ctx, chatOf(question), headers...)
	require.NoError(t, a.err)
	synctest.Wait()
	return a
}

func TestSimilarQuestionGetsTheCachedAnswer(t *testing.T) {
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		first := w.question(t, t.Context(), original)
		assert.Equal(t, "miss", first.source)
		time.Sleep(5 * time.Second)

		a := w.question(t, t.Context(), similar)
		assert.Equal(t, "similar", a.source)
		assert.Equal(t, first.body, a.body)
		assert.Equal(t, "5", a.header.Get("Age"))
		assert.Equal(t, "0.9397", a.header.Get(cacheguard.SimilarityHeader))
		assert.Regexp(t, "^[0-9a-f]{64}$", a.header.Get(cacheguard.SimilarToHeader))

		assert.Equal(t, "miss", w.question(t, t.Context(), other).source)
		hit := w.question(t, t.Context(), original)
		assert.Equal(t, "hit", hit.source)
		assert.Empty(t, hit.header.Get(cacheguard.SimilarityHeader))
		assert.Empty(t, hit.header.Get(cacheguard.SimilarToHeader))

		assert.Equal(t, 2, w.srv.Count())
		st := w.cache.Stats()
		assert.Equal(t, []int64{1, 1, 2, 2}, []int64{st.SimilarHits, st.Hits, st.SimilarMisses, st.Misses})
		assert.Zero(t, st.SimilarFailures)
		assert.Equal(t, 2, st.Questions)
	})
}

func TestSimilarStreamIsReplayed(t *testing.T) {
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		stream := func(question string) string {
			return strings.Replace(chatOf(question), `"model"`, `"stream":true,"model"`, 1)
		}
		first := w.chat(t.Context(), stream(original))
		require.NoError(t, first.err)
		synctest.Wait()
		a := w.chat(t.Context(), stream(similar))
		require.NoError(t, a.err)
		assert.Equal(t, "similar", a.source)
		assert.Equal(t, first.body, a.body)
		assert.Equal(t, "miss", w.question(t, t.Context(), similar).source, "an answer that is not a stream")
	})
}

// A similar answer is not stored under the question that got it. Otherwise a chain of similar questions could lead
// anywhere, and Reject could not take the answer back.
func TestSimilarAnswerIsNotStoredAgain(t *testing.T) {
	cfg := similarity()
	const far = "How does one reset my password?"
	cfg.Similar.Embed = angles{original: 0, similar: 20, far: 40}.embed
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		assert.Equal(t, "similar", w.question(t, t.Context(), similar).source)
		assert.Equal(t, "similar", w.question(t, t.Context(), similar).source)
		assert.Equal(t, "miss", w.question(t, t.Context(), far).source)
	})
}

func TestOnlyTheQuestionMayDiffer(t *testing.T) {
	const (
		chat      = "/chat/completions"
		messages  = "/messages"
		responses = "/responses"
	)
	// %s is the question as a JSON string.
	user := `{"role":"user","content":%s}`
	body := func(fields string) string { return `{"temperature":0,` + fields + `}` }
	for name, c := range map[string]struct {
		endpoint, first, second string // second: "" means the same as first
		similar                 bool
	}{
		"chat":                          {chat, body(`"messages":[` + user + `]`), "", true},
		"chat with system message":      {chat, body(`"messages":[{"role":"system","content":"x"},{"role":"developer","content":"y"},` + user + `]`), "", true},
		"chat with a text part":         {chat, body(`"messages":[{"role":"user","content":[{"type":"text","text":%s}]}]`), "", true},
		"chat with the same tools":      {chat, body(`"tools":[{"a":1}],"messages":[` + user + `]`), "", true},
		"chat with a name":              {chat, body(`"messages":[{"role":"user","name":"n","content":%s}]`), "", true},
		"fields in another order":       {chat, body(`"messages":[` + user + `],"seed":1`), body(`"seed":1,"messages":[{"content":%s,"role":"user"}]`), true},
		"Anthropic messages":            {messages, body(`"max_tokens":9,"system":"x","messages":[{"role":"user","content":[{"type":"text","text":%s,"cache_control":{"type":"ephemeral"}}]}]`), "", true},
		"responses with a text":         {responses, body(`"store":false,"instructions":"x","input":%s`), "", true},
		"responses with a message":      {responses, body(`"store":false,"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":%s}]}]`), "", true},
		"another model":                 {chat, body(`"model":"a","messages":[` + user + `]`), body(`"model":"b","messages":[` + user + `]`), false},
		"another system message":        {chat, body(`"messages":[{"role":"system","content":"x"},` + user + `]`), body(`"messages":[{"role":"system","content":"y"},` + user + `]`), false},
		"another system prompt":         {messages, body(`"max_tokens":9,"system":"x","messages":[` + user + `]`), body(`"max_tokens":9,"system":"y","messages":[` + user + `]`), false},
		"other tools":                   {chat, body(`"tools":[{"a":1}],"messages":[` + user + `]`), body(`"tools":[{"a":2}],"messages":[` + user + `]`), false},
		"another parameter":             {chat, body(`"seed":1,"messages":[` + user + `]`), body(`"seed":2,"messages":[` + user + `]`), false},
		"another user name":             {chat, body(`"messages":[{"role":"user","name":"a","content":%s}]`), body(`"messages":[{"role":"user","name":"b","content":%s}]`), false},
		"another form of the question":  {chat, body(`"messages":[` + user + `]`), body(`"messages":[{"role":"user","content":[{"type":"text","text":%s}]}]`), false},
		"an earlier answer":             {chat, body(`"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"},` + user + `]`), "", false},
		"two questions":                 {chat, body(`"messages":[{"role":"user","content":"x"},` + user + `]`), "", false},
		"an answer after the question":  {chat, body(`"messages":[` + user + `,{"role":"assistant","content":"y"}]`), "", false},
		"a system message after it":     {chat, body(`"messages":[` + user + `,{"role":"system","content":"y"}]`), "", false},
		"no user message":               {chat, body(`"messages":[{"role":"system","content":%s}]`), "", false},
		"a result of a tool":            {chat, body(`"messages":[{"role":"tool","content":"x"},` + user + `]`), "", false},
		"a tool result in the question": {messages, body(`"max_tokens":9,"messages":[{"role":"user","content":[{"type":"tool_result","content":"x"},{"type":"text","text":%s}]}]`), "", false},
		"an image":                      {chat, body(`"messages":[{"role":"user","content":[{"type":"text","text":%s},{"type":"image_url","image_url":{"url":"data:,"}}]}]`), "", false},
		"an image as a text":            {chat, body(`"messages":[{"role":"user","content":[{"type":"image","text":%s}]}]`), "", false},
		"two texts":                     {chat, body(`"messages":[{"role":"user","content":[{"type":"text","text":%s},{"type":"text","text":"x"}]}]`), "", false},
		"an unknown member":             {chat, body(`"messages":[{"role":"user","content":%s,"audio":{}}]`), "", false},
		"an unknown member of a part":   {chat, body(`"messages":[{"role":"user","content":[{"type":"text","text":%s,"file":"x"}]}]`), "", false},
		"an item that is no message":    {responses, body(`"store":false,"input":[{"type":"item_reference","role":"user","content":%s}]`), "", false},
		"two lists":                     {chat, body(`"messages":[` + user + `],"input":"x"`), "", false},
		"no content":                    {chat, body(`"messages":[{"role":"user","x":%s}]`), "", false},
		"completions":                   {"/completions", body(`"prompt":%s`), "", false},
		"a temperature above 0":         {chat, `{"temperature":1,"messages":[` + user + `]}`, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
				second := c.second
				if second == "" {
					second = c.first
				}
				for i, pair := range [][2]string{{c.first, original}, {second, similar}} {
					text, err := json.Marshal(pair[1])
					require.NoError(t, err)
					a := w.ask(t.Context(), c.endpoint, strings.Replace(pair[0], "%s", string(text), 1))
					require.NoError(t, a.err)
					synctest.Wait()
					want := "miss"
					if i == 1 && c.similar {
						want = "similar"
					}
					require.Equal(t, want, a.source)
				}
			})
		})
	}
}

func TestAccountsAndTenantsDoNotShareSimilarAnswers(t *testing.T) {
	type tenant struct{ header, value, scope, tenant string }
	base := tenant{"Authorization", "Bearer a", "s", "t"}
	for name, c := range map[string]struct {
		second tenant
		want   string
	}{
		"the same":        {base, "similar"},
		"another account": {tenant{"Authorization", "Bearer b", "s", "t"}, "miss"},
		"another header":  {tenant{"X-Gateway-Key", "k", "s", "t"}, "miss"},
		"another scope":   {tenant{"Authorization", "Bearer a", "z", "t"}, "miss"},
		"another tenant":  {tenant{"Authorization", "Bearer a", "s", "u"}, "miss"},
		"no tenant":       {tenant{"Authorization", "Bearer a", "s", ""}, "miss"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := similarity()
			cfg.Scope = func(req *http.Request) string { return req.Context().Value(tenantKey{}).(string) }
			inVirtualTime(t, cfg, func(t *testing.T, w *world) {
				ask := func(who tenant, question string) string {
					ctx := context.WithValue(t.Context(), tenantKey{}, who.scope)
					if who.tenant != "" {
						ctx = aiguard.WithCall(ctx, aiguard.Call{Tenant: who.tenant})
					}
					return w.question(t, ctx, question, who.header, who.value).source
				}
				require.Equal(t, "miss", ask(base, original))
				require.Equal(t, c.want, ask(c.second, similar))
			})
		})
	}
}

func TestExactHeaderAndPolicyTurnSimilarityOff(t *testing.T) {
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		assert.Equal(t, "miss", w.question(t, cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true}), similar).source)
		assert.Equal(t, "", w.question(t, cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Bypass: true}), similar).source)
	})
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		assert.Equal(t, "hit", w.question(t, t.Context(), original, cacheguard.ExactHeader, "1").source)
		a := w.question(t, t.Context(), similar, cacheguard.ExactHeader, "")
		assert.Equal(t, "miss", a.source)
		assert.Equal(t, "hit", w.question(t, t.Context(), similar).source, "the header is not part of the key")
		for _, r := range w.srv.Requests() {
			assert.NotContains(t, r.Header, cacheguard.ExactHeader)
		}
	})
}

// A caller without the header may join the request of one with it, but not the reverse.
func TestExactCallerDoesNotJoinASimilarLookup(t *testing.T) {
	cfg := similarity()
	cfg.Similar.Embed = func(ctx context.Context, texts []string) ([][]float32, error) {
		time.Sleep(100 * time.Millisecond)
		return directions.embed(ctx, texts)
	}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		answers := all(3, func(i int) answer {
			time.Sleep(time.Duration(i) * time.Millisecond)
			if i == 1 {
				return w.chat(t.Context(), chatOf(similar), cacheguard.ExactHeader, "1")
			}
			return w.chat(t.Context(), chatOf(similar))
		})
		assert.Equal(t, []string{"similar", "miss", "similar"}, []string{answers[0].source, answers[1].source, answers[2].source})
		for _, i := range []int{0, 2} {
			assert.NotEmpty(t, answers[i].header.Get(cacheguard.SimilarToHeader))
		}
		assert.EqualValues(t, 2, w.cache.Stats().SimilarHits)
	})
}

func TestRejectedAnswerIsNotGivenToSimilarQuestionsAgain(t *testing.T) {
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		resp, err := w.open(t.Context(), "/chat/completions", chatOf(similar))
		require.Equal(t, "similar", read(resp, err).source)
		require.NoError(t, cacheguard.Reject(resp))
		assert.Equal(t, "hit", w.question(t, t.Context(), original).source)
		a := w.question(t, t.Context(), similar)
		assert.Equal(t, "miss", a.source)
		assert.EqualValues(t, 1, w.cache.Stats().Rejected)

		// From now on there is the answer to the other question.
		assert.Equal(t, "hit", w.question(t, t.Context(), similar).source)
	})
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		to := w.question(t, t.Context(), similar).header.Get(cacheguard.SimilarToHeader)
		require.NoError(t, w.cache.Reject(t.Context(), to))
		assert.Equal(t, "miss", w.question(t, t.Context(), similar).source)
	})
}

func TestRejectNeedsASimilarAnswer(t *testing.T) {
	const want = "cacheguard: Reject: the response is not an answer to a similar question"
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		resp, err := w.open(t.Context(), "/chat/completions", chatOf(original))
		require.NoError(t, read(resp, err).err)
		assert.EqualError(t, cacheguard.Reject(resp), want)
		assert.EqualError(t, cacheguard.Reject(nil), want)
		assert.EqualError(t, cacheguard.Reject(&http.Response{}), want)
		assert.EqualError(t, w.cache.Reject(t.Context(), "How do I?"), "cacheguard: Reject: similarTo has 9 characters; want 64 hexadecimal digits, the value of the header X-Aiguard-Similar-To")
		require.NoError(t, w.cache.Close())
		assert.ErrorIs(t, w.cache.Reject(t.Context(), strings.Repeat("0", 64)), aiguard.ErrClosed)
		assert.Zero(t, w.cache.Stats().Rejected)
	})
	plain := newTransport(t, http.DefaultTransport, cacheguard.Config{})
	assert.EqualError(t, plain.Reject(t.Context(), ""), "cacheguard: Reject: Config.Similar is not set")
}

func TestQuestionLeavesTheIndexWithItsAnswer(t *testing.T) {
	t.Run("expired", func(t *testing.T) {
		inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
			w.question(t, cacheguard.WithPolicy(t.Context(), cacheguard.Policy{TTL: time.Minute}), original)
			time.Sleep(time.Minute - 1)
			require.Equal(t, "similar", w.question(t, t.Context(), similar).source)
			time.Sleep(time.Nanosecond)
			require.Equal(t, "miss", w.question(t, t.Context(), similar).source)
		})
	})
	t.Run("evicted", func(t *testing.T) {
		index, err := cacheguard.NewMemoryIndex(0)
		require.NoError(t, err)
		for name, own := range map[string]cacheguard.Index{"own index": nil, "another index": index} {
			cfg := similarity()
			cfg.MaxBytes = 20 << 10
			cfg.Similar.Index = own
			embed := cfg.Similar.Embed
			cfg.Similar.Embed = func(ctx context.Context, texts []string) ([][]float32, error) {
				if strings.HasPrefix(texts[0], "x") {
					return [][]float32{{0, 1}}, nil
				}
				return embed(ctx, texts)
			}
			inVirtualTime(t, cfg, func(t *testing.T, w *world) {
				w.question(t, t.Context(), original)
				for i := range 200 {
					w.question(t, t.Context(), "x"+strings.Repeat("y", i), cacheguard.ExactHeader, "1")
					w.question(t, t.Context(), "x"+strings.Repeat("y", i), cacheguard.ExactHeader, "1")
				}
				require.Equal(t, "miss", w.question(t, t.Context(), similar).source, name)
			})
		}
		assert.Equal(t, 1, index.Len(), "the question without an answer is gone")
	})
}

func TestQuestionWithoutAStoredAnswerIsNotFound(t *testing.T) {
	cfg := similarity()
	cfg.MaxEntryBytes = 300
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Text(strings.Repeat("x", 300)))
		w.question(t, t.Context(), original)
		assert.Equal(t, "miss", w.question(t, t.Context(), similar).source)
		assert.Zero(t, w.cache.Stats().Stored)
	})
}

func TestLongQuestionsAreNotCompared(t *testing.T) {
	asked := new(atomic.Int64)
	cfg := similarity()
	cfg.Similar.Embed = func(context.Context, []string) ([][]float32, error) { asked.Add(1); return [][]float32{{1}}, nil }
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		long := strings.Repeat("x", cacheguard.MaxQuestionBytes-1)
		w.question(t, t.Context(), long)
		assert.Zero(t, asked.Load())
		w.question(t, t.Context(), long[2:])
		assert.EqualValues(t, 1, asked.Load())
	})
}

func TestSimilarSettingsAreChecked(t *testing.T) {
	embed := directions.embed
	for want, s := range map[string]cacheguard.Similar{
		"cacheguard: Config.Similar.Embed is nil, but other fields of Config.Similar are set; want a function such as the Embed method of NewEmbedder": {Threshold: 0.9},
		"cacheguard: Config.Similar.Threshold is 0; want more than 0 and at most 1, such as 0.9":                                                       {Embed: embed},
		"cacheguard: Config.Similar.Threshold is NaN; want more than 0 and at most 1, such as 0.9":                                                     {Embed: embed, Threshold: math.NaN()},
		"cacheguard: Config.Similar.Threshold is 1.5; want more than 0 and at most 1, such as 0.9":                                                     {Embed: embed, Threshold: 1.5},
		"cacheguard: Config.Similar.Threshold is -0.9; want more than 0 and at most 1, such as 0.9":                                                    {Embed: embed, Threshold: -0.9},
		"cacheguard: Config.Similar.Timeout is -1s; want 0 (the default) or more":                                                                      {Embed: embed, Threshold: 0.9, Timeout: -time.Second},
	} {
		_, err := cacheguard.New(http.DefaultTransport, cacheguard.Config{Similar: s})
		require.EqualError(t, err, want)
	}
	_, err := cacheguard.NewMemoryIndex(-1)
	require.EqualError(t, err, "cacheguard: NewMemoryIndex: most is -1; want 0 (the default, 10000) or more")
}

// The cache decides about each pair exactly as its label, its marks and its vectors demand.
func TestPairsOfQuestionsAreDecidedExactly(t *testing.T) {
	const threshold = 0.5
	want := pairs.Measure(threshold, true)
	hits := 0
	inVirtualTime(t, cacheguard.Config{Similar: cacheguard.Similar{Embed: pairs.Embed, Threshold: threshold}}, func(t *testing.T, w *world) {
		for i, p := range pairs.All() {
			tenant := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: fmt.Sprint(i)})
			account := fmt.Sprint("Bearer ", i) // so that no pair gets the answer of another
			require.Equal(t, "miss", w.question(t, tenant, p.A, "Authorization", account).source)
			got := w.question(t, tenant, p.B, "Authorization", account).source
			if p.Guarded() && p.Similarity() >= threshold {
				require.True(t, p.Same(), "%+v", p)
				require.Equal(t, "similar", got, "%+v", p)
				hits++
			} else {
				require.Equal(t, "miss", got, "%+v", p)
			}
		}
	})
	assert.Equal(t, want.Hits, hits)
	assert.Zero(t, want.FalseHits)
}
