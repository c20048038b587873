package otelguard_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/otelguard"
)

const hello = `{"id":"1","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}`

func TestEachPathHasASpanWithItsAttempts(t *testing.T) {
	ask := func(ctx context.Context, w *world) { _ = w.chat(ctx) }
	stream := func(ctx context.Context, w *world) { _ = w.stream(ctx) }
	do := func(ctx context.Context, w *world, fn func(context.Context) error) {
		defer func() { _ = recover() }()
		_, _ = aiguard.Do(ctx, w.Guard().With(aiguard.Call{Op: "work"}), func(ctx context.Context) (int, error) { return 0, fn(ctx) })
	}
	for _, tc := range []struct {
		name    string
		cfg     aiguard.Config
		replies []aiguardtest.Reply
		act     func(context.Context, *world)
		want    []string
	}{
		{name: "answer", act: ask, want: []string{"chat gpt-4o-mini(aiguard.attempt)"}},
		{name: "failure", replies: []aiguardtest.Reply{aiguardtest.Error(400, "")}, act: ask,
			want: []string{"chat gpt-4o-mini!rejected(aiguard.attempt!rejected)"}},
		{name: "retry", replies: []aiguardtest.Reply{aiguardtest.Error(503, ""), nil}, act: ask,
			want: []string{"chat gpt-4o-mini(aiguard.attempt!unavailable aiguard.attempt) +aiguard.backoff"}},
		{name: "pause", replies: []aiguardtest.Reply{aiguardtest.Error(429, "", "Retry-After", "2"), nil}, act: ask,
			want: []string{"chat gpt-4o-mini(aiguard.attempt!rate_limited aiguard.attempt) +aiguard.route_paused +aiguard.backoff"}},
		{name: "timeout", replies: []aiguardtest.Reply{aiguardtest.Hang()}, act: ask,
			want: []string{"chat gpt-4o-mini!timeout(aiguard.attempt!timeout)"}},
		{name: "prompt refused", cfg: aiguard.Config{MaxPromptChars: 1}, act: ask, want: []string{"chat gpt-4o-mini!prompt_too_large"}},
		{name: "weight refused", act: func(ctx context.Context, w *world) {
			_, _ = w.With(aiguard.Call{Weight: 9}).CreateChatCompletion(ctx, chatRequest)
		}, want: []string{"chat gpt-4o-mini!overloaded"}},
		{name: "stream", act: stream, want: []string{"chat gpt-4o-mini(aiguard.attempt) +aiguard.first_event"}},
		{name: "cut stream", replies: []aiguardtest.Reply{aiguardtest.Events(hello)}, act: stream,
			want: []string{"chat gpt-4o-mini!truncated(aiguard.attempt!truncated) +aiguard.first_event"}},
		{name: "abandoned stream", replies: []aiguardtest.Reply{aiguardtest.HangAfter(aiguardtest.Events(hello))},
			act: func(ctx context.Context, w *world) {
				s, err := w.CreateChatCompletionStream(ctx, chatRequest)
				require.NoError(t, err)
				time.Sleep(11 * time.Minute)
				s.Close()
			}, want: []string{"chat gpt-4o-mini!timeout(aiguard.attempt!timeout) +aiguard.first_event +aiguard.abandoned"}},
		{name: "closed stream", replies: []aiguardtest.Reply{aiguardtest.HangAfter(aiguardtest.Events(hello))},
			act: func(ctx context.Context, w *world) {
				s, err := w.CreateChatCompletionStream(ctx, chatRequest)
				require.NoError(t, err)
				s.Close()
			}, want: []string{"chat gpt-4o-mini!canceled(aiguard.attempt!canceled) +aiguard.first_event"}},
		{name: "caller leaves", replies: []aiguardtest.Reply{aiguardtest.Hang()}, act: func(ctx context.Context, w *world) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			ask(ctx, w)
		}, want: []string{"chat gpt-4o-mini!deadline_exceeded(aiguard.attempt!deadline_exceeded)"}},
		{name: "queue", cfg: aiguard.Config{MaxConcurrent: 1}, act: func(ctx context.Context, w *world) {
			go do(ctx, w, func(context.Context) error { time.Sleep(time.Second); return nil })
			time.Sleep(time.Millisecond) // it begins before
			ask(ctx, w)
		}, want: []string{"work(aiguard.attempt)", "chat gpt-4o-mini(aiguard.attempt) +aiguard.queued"}},
		{name: "Do", act: func(ctx context.Context, w *world) { do(ctx, w, func(context.Context) error { return nil }) },
			want: []string{"work(aiguard.attempt)"}},
		{name: "Do with an error", act: func(ctx context.Context, w *world) {
			do(ctx, w, func(context.Context) error { return errors.New("secret") })
		}, want: []string{"work!_OTHER(aiguard.attempt!_OTHER)"}},
		{name: "panic", act: func(ctx context.Context, w *world) { do(ctx, w, func(context.Context) error { panic("secret") }) },
			want: []string{"work!panic(aiguard.attempt!panic)"}},
		{name: "nested", act: func(ctx context.Context, w *world) {
			do(ctx, w, func(ctx context.Context) error { return w.chat(ctx) })
		}, want: []string{"work(aiguard.attempt(chat gpt-4o-mini(aiguard.attempt)))"}},
		{name: "nested refusal of a prompt", cfg: aiguard.Config{MaxPromptChars: 1}, act: func(ctx context.Context, w *world) {
			do(ctx, w, func(ctx context.Context) error { return w.chat(ctx) })
		}, want: []string{"work!prompt_too_large(aiguard.attempt!prompt_too_large(chat gpt-4o-mini!prompt_too_large))"}},
		{name: "embeddings", act: func(ctx context.Context, w *world) {
			_, _ = w.CreateEmbeddings(ctx, openai.EmbeddingRequest{Model: "e", Input: []string{"x"}})
		}, want: []string{"embeddings e(aiguard.attempt)"}},
		{name: "outage", replies: []aiguardtest.Reply{aiguardtest.Error(500, ""), aiguardtest.Error(500, ""), aiguardtest.Error(500, ""),
			aiguardtest.Error(500, ""), aiguardtest.Error(500, ""), nil}, cfg: aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}},
			act: func(ctx context.Context, w *world) {
				for range 5 {
					ask(ctx, w)
				}
				ask(ctx, w)
				time.Sleep(time.Minute)
				ask(ctx, w)
			}, want: append(repeated("chat gpt-4o-mini!unavailable(aiguard.attempt!unavailable)", 4),
				"chat gpt-4o-mini!unavailable(aiguard.attempt!unavailable) +aiguard.route_down", "chat gpt-4o-mini!unavailable",
				"chat gpt-4o-mini(aiguard.attempt) +aiguard.route_up")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inVirtualTime(t, tc.cfg, otelguard.Config{}, func(t *testing.T, w *world) {
				w.srv.Enqueue(tc.replies...)
				tc.act(t.Context(), w)
				synctest.Wait()
				roots := w.tree()
				require.Equal(t, tc.want, texts(roots))
				for _, s := range w.spans.Ended() {
					kind := textOf(s.Attributes(), "error.type")
					failed := kind != "" && kind != "canceled" && kind != "deadline_exceeded"
					require.Equal(t, failed, s.Status().Code == codes.Error)
					require.NotContains(t, s.Status().Description, "secret")
				}
			})
		})
	}
}

func repeated(s string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = s
	}
	return all
}

func TestSpansLastAsLongAsWhatTheyStandFor(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.After(time.Second, aiguardtest.Error(503, "", "Retry-After", "4")),
			aiguardtest.Slowly(2*time.Second, aiguardtest.TextN("Hello", 3)))
		require.NoError(t, w.stream(t.Context()))
		call := w.tree()[0]
		took := func(s *span) time.Duration { return s.EndTime().Sub(s.StartTime()).Round(time.Millisecond) }
		require.Len(t, call.children, 2)
		first, second := call.children[0], call.children[1]
		require.Equal(t, time.Second, took(first))
		backoff := second.StartTime().Sub(first.EndTime())
		require.Equal(t, took(call), took(first)+backoff.Round(time.Millisecond)+took(second))
		require.Equal(t, call.EndTime(), second.EndTime(), "a stream ends with its last event")
		require.Greater(t, took(second), 6*time.Second)
		for _, e := range call.Events() {
			switch e.Name {
			case "aiguard.backoff":
				require.Equal(t, textOf(e.Attributes, "aiguard.wait"), seconds(backoff))
			case "aiguard.first_event":
				require.Equal(t, "2", textOf(e.Attributes, "aiguard.wait"))
			}
		}
		require.Equal(t, trace.SpanKindClient, call.SpanKind())
		require.Equal(t, "2", call.attr("gen_ai.response.time_to_first_chunk"))
	})
}

func TestCallSpansHaveTheAttributesOfTheConventions(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{Name: "main"}, func(t *testing.T, w *world) {
		ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: "acme", Priority: aiguard.Critical, Op: "report"})
		require.NoError(t, w.chat(ctx))
		call := w.tree()[0]
		for key, want := range map[string]string{
			"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
			"server.address": "fake.openai", "server.port": "443",
			"aiguard.guard": "main", "aiguard.op": "report", "aiguard.tenant": "acme", "aiguard.priority": "critical", "aiguard.attempts": "1",
		} {
			require.Equal(t, want, call.attr(key), key)
		}
		require.NotEmpty(t, call.attr("gen_ai.usage.input_tokens"))
		require.NotEmpty(t, call.attr("gen_ai.usage.output_tokens"))

		w.srv.Enqueue(aiguardtest.Error(503, ""), aiguardtest.Error(400, ""))
		require.Error(t, w.chat(t.Context()))
		failed := w.tree()[1]
		require.Len(t, failed.attr("aiguard.call.id"), 16)
		require.Equal(t, "2", failed.attr("aiguard.attempts"))
		require.Equal(t, "2", failed.children[1].attr("aiguard.attempt"))
		require.Equal(t, "503", failed.children[0].attr("http.response.status_code"))
	})
}

func TestSpansMadeInACallAreChildrenOfItsAttempt(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{}, func(t *testing.T, w *world) {
		ctx, outer := w.tracer.Tracer("test").Start(t.Context(), "request")
		_, err := aiguard.Do(ctx, w.Guard().With(aiguard.Call{Op: "work"}), func(ctx context.Context) (int, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			_, inner := w.tracer.Tracer("test").Start(ctx, "inner")
			inner.End()
			return 0, nil
		})
		outer.End()
		require.NoError(t, err)
		require.Equal(t, []string{"request(work(aiguard.attempt(inner)))"}, texts(w.tree()))
	})
}

func TestTheProviderLearnsOfTheTraceOnlyIfAsked(t *testing.T) {
	for _, asked := range []bool{false, true} {
		own := otelguard.Config{}
		if asked {
			own.Propagator = propagation.TraceContext{}
		}
		inVirtualTime(t, aiguard.Config{}, own, func(t *testing.T, w *world) {
			w.srv.Enqueue(aiguardtest.Error(503, ""), nil)
			ctx, outer := w.tracer.Tracer("test").Start(t.Context(), "request")
			require.NoError(t, w.chat(ctx))
			outer.End()
			requests := w.srv.Requests()
			require.Len(t, requests, 2)
			attempts := w.tree()[0].children[0].children
			for i, r := range requests {
				header := r.Header.Get("Traceparent")
				if !asked {
					require.Empty(t, header)
					continue
				}
				require.Contains(t, header, attempts[i].SpanContext().SpanID().String(), "each attempt is the parent of its request")
			}
		})
	}
}

func TestBothAttemptsOfAHedgeHaveSpans(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Hedge: aiguard.Hedge{Quantile: 0.95}}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
		for range 25 {
			require.NoError(t, w.chat(t.Context()))
		}
		w.srv.Enqueue(aiguardtest.Hang(), nil)
		require.NoError(t, w.chat(t.Context()))
		synctest.Wait()
		roots := w.tree()
		last := roots[len(roots)-1]
		require.Equal(t, "chat gpt-4o-mini(aiguard.attempt!closed aiguard.attempt) +aiguard.hedge", last.text())
		require.Equal(t, 1., only(t, w.collect(t), "aiguard.hedges").sum)
	})
}

func TestASharedAnswerHasALinkToTheCallerWhoseRequestItIs(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{}, func(t *testing.T, w *world) {
		first, leader := w.tracer.Tracer("test").Start(t.Context(), "first")
		ctx, follower := w.tracer.Tracer("test").Start(t.Context(), "second")
		time.Sleep(time.Second)
		w.telemetry.CacheAnswer(first, "miss", time.Second, first)
		w.telemetry.CacheAnswer(ctx, "shared", time.Second, first)
		w.telemetry.CacheAnswer(ctx, "hit", 0, ctx)
		leader.End()
		follower.End()
		roots := w.tree()
		require.Equal(t, []string{"first", "second(aiguard.cache aiguard.cache)"}, texts(roots))
		shared, hit := roots[1].children[0], roots[1].children[1]
		require.Len(t, shared.Links(), 1)
		require.Equal(t, leader.SpanContext().SpanID(), shared.Links()[0].SpanContext.SpanID())
		require.Equal(t, time.Second, shared.EndTime().Sub(shared.StartTime()))
		require.Empty(t, hit.Links())
		sources := map[string]float64{}
		for _, p := range pointsOf(w.collect(t)["aiguard.cache.answers"]) {
			sources[p.attr("aiguard.cache.source")] = p.sum
		}
		require.Equal(t, map[string]float64{"hit": 1, "miss": 1, "shared": 1}, sources)
	})
}

// The context of a call must not make package context watch it with a goroutine of its own.
func TestContextsDerivedInACallStartNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), aiguard.Config{CallTimeout: aiguard.Off, TotalTimeout: aiguard.Off}, otelguard.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := aiguard.Do(ctx, w.Guard(), func(inner context.Context) (int, error) {
			derived, stop := context.WithCancel(inner)
			defer stop()
			cancel()
			require.Error(t, derived.Err(), "ends at once with the caller's")
			return 0, nil
		})
		require.NoError(t, err)
	})
}

func TestNothingThatIsRecordedShowsContent(t *testing.T) {
	for _, f := range aiguardtest.Faults() {
		t.Run(f.String(), func(t *testing.T) {
			if strings.Contains(f.String(), "huge") || strings.Contains(f.String(), "many-headers") {
				t.Skip("size makes no difference to what is recorded")
			}
			t.Parallel()
			srv := aiguardtest.NewServer(t)
			srv.Play(f)
			w := newWorld(t, srv, aiguard.Config{
				CallTimeout: 200 * time.Millisecond, StreamIdleTimeout: 200 * time.Millisecond, StreamTimeout: 400 * time.Millisecond, TotalTimeout: 2 * time.Second,
				MaxResponseBytes: 1 << 20, Retry: aiguard.Retry{MaxAttempts: 2, BaseDelay: time.Millisecond},
			}, otelguard.Config{})
			_ = w.chat(t.Context())
			_ = w.stream(t.Context())
			var all strings.Builder
			for _, s := range w.spans.Started() {
				for _, a := range s.Attributes() {
					all.WriteString(a.Value.Emit() + "\n")
				}
				for _, e := range s.Events() {
					for _, a := range e.Attributes {
						all.WriteString(a.Value.Emit() + "\n")
					}
				}
				all.WriteString(s.Name() + s.Status().Description + "\n")
			}
			for _, m := range w.collect(t) {
				for _, p := range pointsOf(m) {
					for _, a := range p.attrs.ToSlice() {
						all.WriteString(a.Value.Emit() + "\n")
					}
				}
			}
			for _, secret := range []string{aiguardtest.ProviderText, chatRequest.Messages[0].Content, "sk-secret-key"} {
				require.NotContains(t, all.String(), secret)
			}
		})
	}
}

// An endpoint that no dialect knows is not an inference.
func TestRequestsOfUnknownEndpointsAreNamedByTheirPath(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.JSON(200, `{"data":[]}`))
		resp, err := (&http.Client{Transport: w.Guard().Transport(w.srv.Transport())}).Get(w.srv.URL + "/files")
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, 1, len(w.tree()))
		all := w.collect(t)
		require.EqualValues(t, 1, only(t, all, "gen_ai.client.operation.duration").count)
		require.Empty(t, pointsOf(all["gen_ai.client.inference.duration"]))
	})
}
