package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// play runs a recipe and returns its output lines and the fakes.
func play(t *testing.T, r recipe) ([]string, *providers) {
	t.Helper()
	p := startProviders()
	t.Cleanup(p.close)
	var out strings.Builder
	require.NoError(t, r(t.Context(), p, &out))
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"), p
}

func TestAnotherModelAnswersUnlessTheQuestionIsRejected(t *testing.T) {
	out, p := play(t, otherModel)
	require.Len(t, out, 4)
	assert.Equal(t, []string{"answer: Rome, says gpt-4o-mini.", "requests: 2 to gpt-4o, 1 to gpt-4o-mini"}, out[:2])
	assert.Contains(t, out[2], "failed (rejected); the user reads: ")
	assert.Contains(t, out[2], "content policy")
	assert.NotContains(t, out[2], aiguardtest.ProviderText)
	assert.Equal(t, "requests: 1; another model would reject it too", out[3])
	assert.Equal(t, 0, count(p.openai, "gpt-4o-mini"), "of the second part")
}

func TestAnotherProviderAnswers(t *testing.T) {
	out, p := play(t, otherProvider)
	assert.Equal(t, []string{
		"down: OpenAI", "answer: Rome, says Azure.", "requests: 2 to OpenAI, 1 to Azure, 0 to our own",
		"down: Azure too", "answer: Rome, says our own server.", "requests: 4 to OpenAI, 3 to Azure, 1 to our own",
	}, out)
	azure := p.azure.Requests()[0]
	assert.Equal(t, "/openai/deployments/our-gpt-4o/chat/completions", azure.Path)
	assert.Equal(t, "key", azure.Header.Get("Api-Key"))
	assert.Equal(t, "llama3", p.local.Requests()[0].Model)
}

func TestOldAnswerIsMarkedAsOld(t *testing.T) {
	out, p := play(t, cachedAnswer)
	require.Len(t, out, 3)
	assert.Equal(t, "answer: Sunny, 24 degrees.", out[0])
	assert.Regexp(t, `^answer: Sunny, 24 degrees\. \[from \d\d:\d\d; the AI service cannot be reached now\]$`, out[1])
	assert.Contains(t, out[2], "failed (unavailable)", "a question without an answer has no stored answer")
	assert.Equal(t, 5, p.openai.Count(), "each question was sent first, twice if it failed")
}

func TestLastAnswersAreLimited(t *testing.T) {
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
	assert.ErrorIs(t, err, aiguard.ErrUnavailable, "the oldest answer was removed")
	for question, want := range map[string]string{"a": "3", "c": "4"} {
		got, err := l.get(question)(t.Context())
		require.NoError(t, err)
		assert.Contains(t, got, want+" [from ")
	}
	_, err = l.put("a", func(context.Context) (string, error) { return "half", aiguard.ErrTruncated })(t.Context())
	require.ErrorIs(t, err, aiguard.ErrTruncated)
	got, err := l.get("a")(t.Context())
	require.NoError(t, err)
	assert.Contains(t, got, "3", "a failure is not stored")

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

func TestCannedAnswerHidesNoMistake(t *testing.T) {
	out, p := play(t, cannedAnswer)
	require.Len(t, out, 3)
	assert.Contains(t, out[0], "answer: What is the difference between a slice's length")
	assert.Contains(t, out[1], "failed (unauthorized)")
	assert.Contains(t, out[2], "unauthorized, status code: 401")
	assert.Equal(t, 3, p.openai.Count())
}

func TestStreamIsCompleteOrAnError(t *testing.T) {
	out, _ := play(t, wholeStream)
	assert.Equal(t, []string{
		"cut once: 2 requests to gpt-4o, 0 to gpt-4o-mini", "answer: Rome, in one piece.",
		"cut always: 2 requests to gpt-4o, 1 to gpt-4o-mini", "answer: Rome, by the small model, from the start.",
		"both cut: 2 requests to gpt-4o, 2 to gpt-4o-mini",
		"failed (truncated); the user reads: " + aiguard.UserMessage(aiguard.ErrTruncated),
	}, out)
}

// Wherever a stream is cut, the result is a complete answer or an error.
func TestCutStreamGivesNoTruncatedAnswer(t *testing.T) {
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

func TestAnswerCutAtMaxTokensIsAnError(t *testing.T) {
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
	assert.Equal(t, 1, fake.Count(), "a retry would end at the same limit")
}

func TestSlowStreamTimesOut(t *testing.T) {
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

func TestCommandRunsOneRecipeOrAll(t *testing.T) {
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

// inVirtualTime runs f in a synctest bubble with a client of an in-memory fake.
func inVirtualTime(t *testing.T, f func(t *testing.T, client *aiguard.Client, fake *aiguardtest.Server)) {
	synctest.Test(t, func(t *testing.T) {
		fake := aiguardtest.NewServer(t, aiguardtest.Pipe())
		oc := config(fake)
		oc.HTTPClient = &http.Client{Transport: fake.Transport()}
		client, err := aiguard.NewClient(oc, aiguard.Config{Retry: quick})
		require.NoError(t, err)
		defer client.Guard().Close()
		f(t, client, fake)
	})
}

// The guard acts as a circuit breaker. It stops sending to the model that is down, and only to that model.
func TestDownModelIsSkippedUntilAProbeSucceeds(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, client *aiguard.Client, fake *aiguardtest.Server) {
		big := down()
		fake.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if r.Model == "gpt-4o" {
				return big
			}
			return aiguardtest.Text("small")
		})
		call := func(want string) {
			t.Helper()
			got, err := aiguard.Fallback(t.Context(), ask(client, "gpt-4o", "?"), ask(client, "gpt-4o-mini", "?"))
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		for range 3 {
			call("small")
		}
		require.Equal(t, 5, count(fake, "gpt-4o"), "two attempts per call, until five in a row have failed")
		start := time.Now()
		for range 100 {
			call("small")
		}
		require.Zero(t, time.Since(start), "Fallback does not wait for a model that is down")
		require.Equal(t, 5, count(fake, "gpt-4o"))

		time.Sleep(time.Second)
		for range 100 {
			call("small")
		}
		require.Equal(t, 6, count(fake, "gpt-4o"), "one probe")
		big = aiguardtest.Text("big")
		time.Sleep(time.Second)
		for range 10 {
			call("big")
		}
	})
}

// The same holds for the alternative that collects a stream.
func TestWholeStreamSkipsDownAndPausedModels(t *testing.T) {
	for name, failure := range map[string]aiguardtest.Reply{"down": down(), "paused": aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After", "60")} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, func(t *testing.T, client *aiguard.Client, fake *aiguardtest.Server) {
				fake.SetDefault(failure)
				alternative := whole(client, "gpt-4o", "?", time.Minute)
				for range 5 {
					_, err := aiguard.Fallback(t.Context(), alternative, canned("next"))
					require.NoError(t, err)
				}
				start, sent := time.Now(), fake.Count()
				got, err := aiguard.Fallback(t.Context(), alternative, canned("next"))
				require.NoError(t, err)
				assert.Equal(t, "next", got)
				assert.Zero(t, time.Since(start))
				assert.Equal(t, sent, fake.Count())
			})
		})
	}
}

func TestRelayFallsBackOnlyBeforeTheFirstText(t *testing.T) {
	out, p := play(t, relayedStream)
	require.Len(t, out, 4)
	assert.Equal(t, []string{"down: Rome, by the small model.", "2 requests to gpt-4o, 1 to gpt-4o-mini"}, out[:2])
	assert.Regexp(t, `^cut: Rome.* \[`+regexp.QuoteMeta(aiguard.UserMessage(aiguard.ErrTruncated))+`\]$`, out[2])
	assert.Equal(t, "1 requests to gpt-4o, 0 to gpt-4o-mini", out[3])
	assert.Equal(t, 1, p.openai.Count())
}

// Wherever a relayed stream is cut, the user sees the start of one answer, never parts of two.
func TestRelayNeverMixesTwoAnswers(t *testing.T) {
	const first, second = "Rome was not built in a day.", "All roads lead there."
	inVirtualTime(t, func(t *testing.T, client *aiguard.Client, fake *aiguardtest.Server) {
		seconds, halves := 0, 0
		for n := 0; n < 2600; n += 100 {
			cut := aiguardtest.Cut(n, aiguardtest.TextN(first, 8))
			fake.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
				if r.Model == "gpt-4o" {
					return cut
				}
				return aiguardtest.TextN(second, 8)
			})
			var seen strings.Builder
			send := func(part string) error { seen.WriteString(part); return nil }
			_, err := aiguard.Fallback(t.Context(), relay(client, "gpt-4o", "?", send), relay(client, "gpt-4o-mini", "?", send))
			switch {
			case err != nil:
				require.ErrorIs(t, err, aiguard.ErrTruncated, "cut after %d bytes", n)
				require.NotEmpty(t, seen.String())
				require.True(t, strings.HasPrefix(first, seen.String()), "cut after %d bytes: %q", n, seen.String())
				halves++
			case seen.String() == second:
				seconds++
			default:
				require.Equal(t, first, seen.String(), "cut after %d bytes", n)
			}
			time.Sleep(10 * time.Second) // a route that was down is probed again
		}
		assert.Positive(t, seconds)
		assert.Greater(t, halves, 5)
	})
}

func TestRelayStopsWhenItsUserLeaves(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, client *aiguard.Client, fake *aiguardtest.Server) {
		fake.SetDefault(aiguardtest.TextN("Rome was not built in a day.", 8))
		left := errors.New("broken pipe")
		send := func(string) error { return left }
		_, err := aiguard.Fallback(t.Context(), relay(client, "gpt-4o", "?", send), relay(client, "gpt-4o-mini", "?", send))
		require.ErrorIs(t, err, left)
		require.Equal(t, 1, fake.Count())
		require.Zero(t, client.Guard().Stats().InFlight)
	})
}
