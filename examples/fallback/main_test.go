package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sony/gobreaker/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// play runs a recipe and returns what it printed, line by line, and the fakes.
func play(t *testing.T, r recipe) ([]string, *providers) {
	t.Helper()
	p := startProviders()
	t.Cleanup(p.close)
	var out strings.Builder
	require.NoError(t, r(t.Context(), p, &out))
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), p
}

func TestAnotherModelAnswersUnlessTheQuestionIsRefused(t *testing.T) {
	out, p := play(t, otherModel)
	require.Len(t, out, 4)
	assert.Equal(t, []string{"answer: Rome, says gpt-4o-mini.", "requests: 2 to gpt-4o, 1 to gpt-4o-mini"}, out[:2])
	assert.Contains(t, out[2], "failed (rejected); the user reads: ")
	assert.Contains(t, out[2], "content policy")
	assert.NotContains(t, out[2], aiguardtest.ProviderText)
	assert.Equal(t, "requests: 1, another model would say no as well", out[3])
	assert.Equal(t, 0, count(p.openai, "gpt-4o-mini"), "of the second part")
}

func TestAnotherProviderAnswers(t *testing.T) {
	out, p := play(t, otherProvider)
	assert.Equal(t, []string{
		"down: OpenAI", "answer: Rome, says Azure.", "requests: 2 to OpenAI, 1 to Azure, 0 to our own",
		"down: Azure too", "answer: Rome, says the machine in the cellar.", "requests: 4 to OpenAI, 3 to Azure, 1 to our own",
	}, out)
	azure := p.azure.Requests()[0]
	assert.Equal(t, "/openai/deployments/our-gpt-4o/chat/completions", azure.Path)
	assert.Equal(t, "key", azure.Header.Get("Api-Key"))
	assert.Equal(t, "llama3", p.local.Requests()[0].Model)
}

func TestAnOldAnswerIsMarkedAsOld(t *testing.T) {
	out, p := play(t, cachedAnswer)
	require.Len(t, out, 3)
	assert.Equal(t, "answer: Sunny, 24 degrees.", out[0])
	assert.Regexp(t, `^answer: Sunny, 24 degrees\. \[from \d\d:\d\d; the AI service cannot be reached now\]$`, out[1])
	assert.Contains(t, out[2], "failed (unavailable)", "what was never answered has no last answer")
	assert.Equal(t, 5, p.openai.Count(), "each question was asked first, twice where it failed")
}

func TestLastAnswersAreBounded(t *testing.T) {
	l := newLastAnswers(2)
	put := func(question, text string) {
		got, err := l.put(question, canned(text))(t.Context())
		require.NoError(t, err)
		assert.Equal(t, text, got)
	}
	put("a", "1")
	put("b", "2")
	put("a", "3")
	put("c", "4")
	assert.Len(t, l.entries, 2)
	_, err := l.get("b")(t.Context())
	assert.ErrorIs(t, err, aiguard.ErrUnavailable, "the oldest went")
	for question, want := range map[string]string{"a": "3", "c": "4"} {
		got, err := l.get(question)(t.Context())
		require.NoError(t, err)
		assert.Contains(t, got, want+" [from ")
	}
	_, err = l.put("a", func(context.Context) (string, error) { return "half", aiguard.ErrTruncated })(t.Context())
	require.ErrorIs(t, err, aiguard.ErrTruncated)
	got, err := l.get("a")(t.Context())
	require.NoError(t, err)
	assert.Contains(t, got, "3", "a failure is not remembered")

	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			question := fmt.Sprint(i % 5)
			_, _ = l.put(question, canned(question))(t.Context())
			_, _ = l.get(question)(t.Context())
		})
	}
	wg.Wait()
	assert.Len(t, l.entries, 2)
	assert.Equal(t, 2, l.order.Len())
}

func TestACannedAnswerComesLastAndHidesNoMistake(t *testing.T) {
	out, p := play(t, cannedAnswer)
	require.Len(t, out, 3)
	assert.Contains(t, out[0], "answer: What is the difference between a slice's length")
	assert.Contains(t, out[1], "failed (unauthorized)")
	assert.Contains(t, out[2], "unauthorized, status code: 401")
	assert.Equal(t, 3, p.openai.Count())
}

func TestTheBreakerOfOneModelOpensAloneAndLetsOneCallTry(t *testing.T) {
	out, p := play(t, circuitBreaker)
	var want []string
	for i, gpt4o := range []string{"closed, 2", "closed, 4", "open, 6", "open, 6", "open, 6", "closed, 7"} {
		mini, answer := i+1, "Rome, says the small model."
		if i == 5 {
			mini, answer = 5, "Rome, says the big model, back again."
		}
		want = append(want, fmt.Sprintf("call %d: gpt-4o %s requests", i+1, gpt4o),
			fmt.Sprintf("call %d: gpt-4o-mini closed, %d requests", i+1, mini), "answer: "+answer)
	}
	assert.Equal(t, want, out)
	assert.Equal(t, 7, count(p.openai, "gpt-4o"), "both models are on this host")
	assert.Equal(t, 5, count(p.openai, "gpt-4o-mini"))
}

func TestTheBreakerCountsOnlyWhatIsTheProvidersFault(t *testing.T) {
	var call = aiguard.Call{Op: "chat.completions", Model: "m"}
	for err, counts := range map[error]bool{
		aiguard.ErrTimeout: true, aiguard.ErrUnavailable: true, aiguard.ErrRateLimited: true, aiguard.ErrQuota: true,
		aiguard.ErrTruncated: true, aiguard.ErrInvalidResponse: true,
		aiguard.ErrOverloaded: false, aiguard.ErrClosed: false, aiguard.ErrPromptTooLarge: false, aiguard.ErrResponseTooLarge: false,
		aiguard.ErrUnauthorized: false, aiguard.ErrRejected: false,
		context.Canceled: false, context.DeadlineExceeded: false, errors.New("a bug"): false,
	} {
		b := newBreakers(2, time.Minute)
		for range 5 {
			_ = b.middleware(t.Context(), call, func(context.Context) error { return err })
		}
		assert.Equal(t, counts, b.of(route{call.Op, call.Model}).State() == gobreaker.StateOpen, "%v", err)
	}
}

func TestAHalfOpenBreakerLetsOneCallTryAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakers(1, time.Minute)
		call := aiguard.Call{Op: "chat.completions", Model: "m"}
		cb := b.of(route{call.Op, call.Model})
		try := func(err error) error {
			return b.middleware(t.Context(), call, func(context.Context) error { return err })
		}
		refused := func() {
			t.Helper()
			err := b.middleware(t.Context(), call, func(context.Context) error { t.Error("called"); return nil })
			var e *aiguard.Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, aiguard.ErrOverloaded, e.Kind)
			assert.Equal(t, time.Minute, e.RetryAfter)
			answer, err := aiguard.Fallback(t.Context(), func(context.Context) (string, error) { return "", err }, canned("next"))
			require.NoError(t, err, "Fallback goes on")
			assert.Equal(t, "next", answer)
		}
		require.Error(t, try(aiguard.ErrTimeout))
		refused()
		time.Sleep(time.Minute + 1)
		require.Equal(t, gobreaker.StateHalfOpen, cb.State())

		// Who leaves, panics or exits while trying is no witness, and blocks nobody.
		require.ErrorIs(t, try(context.Canceled), context.Canceled)
		assert.Panics(t, func() {
			_ = b.middleware(t.Context(), call, func(context.Context) error { panic("bug") })
		})
		exited := make(chan struct{})
		go func() {
			defer close(exited)
			_ = b.middleware(t.Context(), call, func(context.Context) error { runtime.Goexit(); return nil })
		}()
		<-exited
		require.Equal(t, gobreaker.StateHalfOpen, cb.State())

		require.NoError(t, b.middleware(t.Context(), call, func(context.Context) error { refused(); return nil }), "while one tries")
		require.Equal(t, gobreaker.StateClosed, cb.State())

		require.Error(t, try(aiguard.ErrTimeout))
		time.Sleep(time.Minute + 1)
		require.Error(t, try(aiguard.ErrTimeout))
		refused() // open again after one failed try
	})
}

func TestTheCallersEndDoesNotOpenTheBreaker(t *testing.T) {
	fake := aiguardtest.NewServer(t)
	fake.SetDefault(aiguardtest.Hang())
	b := newBreakers(1, time.Minute)
	client, err := aiguard.NewClient(config(fake), aiguard.Config{Middleware: []aiguard.Middleware{b.middleware}})
	require.NoError(t, err)
	defer client.Guard().Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = ask(client, "m", "?")(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, gobreaker.StateClosed, b.of(route{"chat.completions", "m"}).State())
	_, err = ask(client.With(aiguard.Call{Timeout: 20 * time.Millisecond, Attempts: 1}), "m", "?")(t.Context())
	require.ErrorIs(t, err, aiguard.ErrTimeout)
	assert.Equal(t, gobreaker.StateOpen, b.of(route{"chat.completions", "m"}).State())
}

func TestAStreamIsWholeOrAnError(t *testing.T) {
	out, _ := play(t, wholeStream)
	assert.Equal(t, []string{
		"cut once: 2 requests to gpt-4o, 0 to gpt-4o-mini", "answer: Rome, in one piece.",
		"cut always: 2 requests to gpt-4o, 1 to gpt-4o-mini", "answer: Rome, by the small model, from the start.",
		"both cut: 2 requests to gpt-4o, 2 to gpt-4o-mini",
		"failed (truncated); the user reads: " + aiguard.UserMessage(aiguard.ErrTruncated),
	}, out)
}

// Wherever a stream is cut, its answer is whole or an error.
func TestAStreamThatIsCutAnywhereGivesNoHalfAnswer(t *testing.T) {
	const text = "Rome was not built in a day."
	fake := aiguardtest.NewServer(t)
	client, err := aiguard.NewClient(config(fake), aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	require.NoError(t, err)
	defer client.Guard().Close()
	complete, failed := 0, 0
	for n := 0; n < 2600; n += 40 {
		fake.Enqueue(aiguardtest.Cut(n, aiguardtest.TextN(text, 8)))
		got, err := whole(client, "gpt-4o", "?", time.Minute)(t.Context())
		if err != nil {
			require.Empty(t, got)
			require.NotEmpty(t, aiguard.KindOf(err))
			failed++
			continue
		}
		require.Equal(t, text, got, "cut after %d bytes", n)
		complete++
	}
	assert.Greater(t, failed, 20)
	assert.Positive(t, complete)
}

func TestAnAnswerThatMaxTokensCutShortIsNotWhole(t *testing.T) {
	fake := aiguardtest.NewServer(t)
	fake.SetDefault(aiguardtest.Events(
		`{"choices":[{"index":0,"delta":{"content":"Rome was"}}]}`,
		`{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}`, "[DONE]"))
	client, err := aiguard.NewClient(config(fake), aiguard.Config{Retry: quick})
	require.NoError(t, err)
	defer client.Guard().Close()
	got, err := aiguard.Fallback(t.Context(), whole(client, "gpt-4o", "?", time.Minute), canned("another"))
	require.NoError(t, err)
	assert.Equal(t, "another", got)
	assert.Equal(t, 1, fake.Count(), "asking again would end at the same limit")
}

func TestAStreamThatTakesTooLongIsTimedOut(t *testing.T) {
	fake := aiguardtest.NewServer(t)
	fake.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"index":0,"delta":{"content":"Rome was"}}]}`)))
	client, err := aiguard.NewClient(config(fake), aiguard.Config{Retry: quick})
	require.NoError(t, err)
	defer client.Guard().Close()
	got, err := whole(client, "gpt-4o", "?", 50*time.Millisecond)(t.Context())
	require.ErrorIs(t, err, aiguard.ErrTimeout)
	assert.Empty(t, got)
	assert.Zero(t, client.Guard().Stats().InFlight)
}

func TestTheCommandRunsOneRecipeOrAll(t *testing.T) {
	for _, r := range recipes {
		var out strings.Builder
		require.NoError(t, run(t.Context(), r.name, &out))
		assert.Equal(t, 1, strings.Count(out.String(), "== "))
		assert.Contains(t, out.String(), "== "+r.title+"\n")
	}
	var out strings.Builder
	require.NoError(t, run(t.Context(), "", &out))
	assert.Equal(t, len(recipes), strings.Count(out.String(), "== "))
	assert.ErrorContains(t, run(t.Context(), "stew", &out), `"stew"`)
}

// A Do whose calls the breaker refuses gives up at once instead of waiting for the breaker: there is a plan B.
func TestAnOpenBreakerDoesNotHoldUpAStreamsFallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := aiguardtest.NewServer(t, aiguardtest.Pipe())
		fake.SetDefault(down())
		b := newBreakers(1, time.Minute)
		oc := config(fake)
		oc.HTTPClient = &http.Client{Transport: fake.Transport()}
		client, err := aiguard.NewClient(oc, aiguard.Config{Middleware: []aiguard.Middleware{b.middleware}})
		require.NoError(t, err)
		defer client.Guard().Close()
		_, err = ask(client.With(aiguard.Call{Attempts: 1, Op: "chat.completions"}), "gpt-4o", "?")(t.Context())
		require.ErrorIs(t, err, aiguard.ErrUnavailable)
		start := time.Now()
		got, err := aiguard.Fallback(t.Context(), whole(client, "gpt-4o", "?", time.Minute), canned("next"))
		require.NoError(t, err)
		assert.Equal(t, "next", got)
		assert.Zero(t, time.Since(start))
		assert.Equal(t, 1, fake.Count())
		assert.Equal(t, gobreaker.StateClosed, b.of(route{"whole stream", "gpt-4o"}).State(), "its refusals are no failures")
	})
}

func TestStreamsThatBreakMidwayOpenTheBreakerOfTheDoAroundThem(t *testing.T) {
	fake := aiguardtest.NewServer(t)
	fake.SetDefault(aiguardtest.Cut(600, aiguardtest.TextN("Rome was not built in a day.", 8)))
	b := newBreakers(2, time.Minute)
	client, err := aiguard.NewClient(config(fake), aiguard.Config{Retry: quick, Middleware: []aiguard.Middleware{b.middleware}})
	require.NoError(t, err)
	defer client.Guard().Close()
	for range 3 {
		_, err = whole(client, "gpt-4o", "?", time.Minute)(t.Context())
	}
	require.ErrorIs(t, err, aiguard.ErrOverloaded)
	require.ErrorIs(t, err, gobreaker.ErrOpenState)
	assert.Equal(t, 4, fake.Count())
	assert.Equal(t, gobreaker.StateClosed, b.of(route{"chat.completions", "gpt-4o"}).State(), "each began well")
}
