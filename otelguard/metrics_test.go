package otelguard_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/budget"
	"github.com/aiguard-go/aiguard/otelguard"
)

const finished = `{"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":10,` +
	`"prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":3}}}`

var update = flag.Bool("update", false, "write testdata/metrics.txt")

// everything makes a guard do all that has a metric.
func everything(t *testing.T, w *world) {
	ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: "acme"})
	w.srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
	for range 25 {
		require.NoError(t, w.chat(ctx))
	}
	w.srv.Enqueue(aiguardtest.Hang(), nil) // hedged
	require.NoError(t, w.chat(ctx))
	w.srv.Enqueue(aiguardtest.Error(503, ""), nil) // retried
	require.NoError(t, w.chat(ctx))
	w.srv.Enqueue(aiguardtest.Slowly(time.Second, aiguardtest.Events(hello, hello, finished, "[DONE]")))
	require.NoError(t, w.stream(ctx))
	w.srv.Enqueue(aiguardtest.JSON(200, `{"type":"message","content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn",`+
		`"usage":{"input_tokens":5,"cache_creation_input_tokens":7,"output_tokens":3}}`))
	sdk := &http.Client{Transport: w.Guard().Transport(w.srv.Transport())}
	resp, err := sdk.Post(w.srv.URL+"/messages", "application/json", strings.NewReader(`{"model":"claude","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}`))
	require.NoError(t, err)
	resp.Body.Close()
	_, err = w.CreateEmbeddings(ctx, openai.EmbeddingRequest{Model: "e", Input: []string{"x"}})
	require.NoError(t, err)
	resp, err = sdk.Get(w.srv.URL + "/files")
	require.NoError(t, err)
	resp.Body.Close()
	_, err = aiguard.Do(ctx, w.Guard().With(aiguard.Call{Op: "work"}), func(context.Context) (int, error) { return 0, nil })
	require.NoError(t, err)
	_, err = aiguard.Fallback(ctx, func(context.Context) (int, error) { return 0, aiguard.ErrUnavailable },
		func(ctx context.Context) (int, error) { return 0, w.chat(ctx) })
	require.NoError(t, err)
	require.Error(t, w.chat(aiguard.WithCall(ctx, aiguard.Call{Weight: 100}))) // refused
	w.srv.SetDefault(aiguardtest.Hang())
	for range 5 { // timeouts, then an outage
		require.Error(t, w.chat(ctx))
	}
	w.telemetry.CacheAnswer(ctx, "hit", 0, ctx)
	w.telemetry.BudgetReached(ctx, budget.Reached{Limit: "day", What: "cost", Until: time.Now().Add(time.Hour)})
	for range 2 { // one has to wait
		go func() {
			_, _ = aiguard.Do(ctx, w.Guard().With(aiguard.Call{Op: "work", Weight: 5}), func(context.Context) (int, error) {
				time.Sleep(time.Second)
				return 0, nil
			})
		}()
	}
	time.Sleep(time.Minute)
	synctest.Wait()
}

// Dashboards and alerts depend on each name, unit, bucket and attribute: go test -run Pinned -update writes what there is.
func TestNamesUnitsBucketsAndAttributesOfMetricsArePinned(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Hedge: aiguard.Hedge{Quantile: 0.95}}, otelguard.Config{}, func(t *testing.T, w *world) {
		everything(t, w)
		all := w.collect(t)
		var out strings.Builder
		for _, name := range slices.Sorted(maps.Keys(all)) {
			m := all[name]
			fmt.Fprintf(&out, "%s [%s] %s\n", name, m.Unit, shape(m))
			keys := map[string]bool{}
			points := pointsOf(m)
			require.NotEmpty(t, points, name)
			for _, p := range points {
				for _, a := range p.attrs.ToSlice() {
					keys[string(a.Key)] = true
				}
			}
			fmt.Fprintf(&out, "\t%s\n", strings.Join(slices.Sorted(maps.Keys(keys)), " "))
		}
		if *update {
			require.NoError(t, os.WriteFile("testdata/metrics.txt", []byte(out.String()), 0o644))
		}
		want, err := os.ReadFile("testdata/metrics.txt")
		require.NoError(t, err)
		require.Equal(t, string(want), out.String())
	})
}

func shape(m metricdata.Metrics) string {
	switch data := m.Data.(type) {
	case metricdata.Sum[int64]:
		return fmt.Sprintf("counter, monotonic %v", data.IsMonotonic)
	case metricdata.Gauge[int64]:
		return "gauge"
	case metricdata.Histogram[float64]:
		return fmt.Sprint("histogram ", data.DataPoints[0].Bounds)
	case metricdata.Histogram[int64]:
		return fmt.Sprint("histogram ", data.DataPoints[0].Bounds)
	}
	return "unknown"
}

func TestAStreamIsMeasuredAsTheConventionsSay(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.Slowly(time.Second, aiguardtest.Events(hello, hello, hello, finished, "[DONE]")))
		require.NoError(t, w.stream(t.Context()))
		all := w.collect(t)
		duration := only(t, all, "gen_ai.client.inference.duration")
		require.EqualValues(t, 1, duration.count)
		require.InDelta(t, w.tree()[0].EndTime().Sub(w.tree()[0].StartTime()).Seconds(), duration.sum, 1e-3, "as long as the span")
		require.Equal(t, "chat", duration.attr("gen_ai.operation.name"))
		require.Equal(t, "openai", duration.attr("gen_ai.provider.name"))
		require.Equal(t, "gpt-4o-mini", duration.attr("gen_ai.request.model"))
		require.Equal(t, "fake.openai", duration.attr("server.address"))
		require.Equal(t, "443", duration.attr("server.port"))
		require.Empty(t, duration.attr("error.type"))
		first := only(t, all, "gen_ai.client.inference.time_to_first_chunk")
		require.EqualValues(t, 1, first.count)
		require.InDelta(t, 1, first.sum, 1e-3)
		chunks := only(t, all, "gen_ai.client.inference.time_per_output_chunk")
		require.EqualValues(t, 3, chunks.count, "of each event but the first")
		require.InDelta(t, 3, chunks.sum, 1e-3)
		for name, want := range map[string]float64{"input_tokens": 20, "output_tokens": 10, "cache_read.input_tokens": 5, "reasoning.output_tokens": 3} {
			p := only(t, all, "gen_ai.client.inference.usage."+name)
			require.Equal(t, want, p.sum, name)
			require.Equal(t, "unknown", p.attr("gen_ai.token.modality"))
		}
	})
}

func TestEachTimeoutIsCountedOnceByItsPhase(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{Timeouts: true, MaxAttempts: 2}}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Hang())
		require.Error(t, w.chat(t.Context()))
		require.Error(t, w.Guard().RunTask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }))
		got := map[string]float64{}
		for _, p := range pointsOf(w.collect(t)["aiguard.timeouts"]) {
			got[p.attr("aiguard.phase")] = p.sum
		}
		require.Equal(t, map[string]float64{"call": 2, "task": 1}, got)
	})
}

func TestATimeoutInsideADoIsCountedOnce(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Hang())
		_, err := aiguard.Do(t.Context(), w.Guard().With(aiguard.Call{Op: "work", Timeout: time.Minute}), func(ctx context.Context) (int, error) {
			return 0, w.chat(ctx)
		})
		require.ErrorIs(t, err, aiguard.ErrTimeout)
		require.Equal(t, "chat", only(t, w.collect(t), "aiguard.timeouts").attr("gen_ai.operation.name"))
	})
}

func TestACallerWhoLeavesTheQueueIsNeitherRefusedNorServed(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(5*time.Second, aiguardtest.Text("Hello!")))
		go func() { _ = w.chat(t.Context()) }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		require.Error(t, w.chat(ctx))
		time.Sleep(time.Minute)
		all := w.collect(t)
		require.EqualValues(t, 1, only(t, all, "gen_ai.client.inference.duration").count)
		require.Empty(t, pointsOf(all["aiguard.refused"]))
		require.InDelta(t, 1, only(t, all, "aiguard.queue.wait").sum, 1e-3)
	})
}

func TestRefusalsAreCountedByReasonAndAreNoInference(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxPromptChars: 5}, otelguard.Config{}, func(t *testing.T, w *world) {
		require.Error(t, w.chat(t.Context()))
		require.NoError(t, w.Guard().Close())
		_, err := aiguard.Do(t.Context(), w.Guard(), func(context.Context) (int, error) { return 0, nil })
		require.Error(t, err)
		all := w.collect(t)
		got := map[string]float64{}
		for _, p := range pointsOf(all["aiguard.refused"]) {
			got[p.attr("error.type")+" "+p.attr("aiguard.phase")] = p.sum
		}
		require.Equal(t, map[string]float64{"prompt_too_large prompt": 1, "closed ": 1}, got)
		require.Empty(t, pointsOf(all["gen_ai.client.inference.duration"]))
		require.Empty(t, pointsOf(all["aiguard.do.duration"]))
	})
}

func TestGaugesTellWhatTheGuardDoesNow(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.After(time.Minute/4, aiguardtest.Error(429, "", "Retry-After", "60")))
		go func() { _ = w.chat(t.Context()) }()
		synctest.Wait()
		go func() { _ = w.chat(aiguard.WithCall(t.Context(), aiguard.Call{Tenant: "acme"})) }()
		synctest.Wait()
		all := w.collect(t)
		for name, want := range map[string]float64{"aiguard.in_flight": 1, "aiguard.waiting": 1, "aiguard.limit": 1, "aiguard.buffered": 0,
			"aiguard.route.in_flight": 1, "aiguard.route.paused": 0, "aiguard.route.down": 0} {
			require.Equal(t, want, only(t, all, name).sum, name)
		}
		waits := map[string]float64{}
		for _, p := range pointsOf(all["aiguard.tenant.waiting"]) {
			waits[p.attr("aiguard.tenant")] = p.sum
		}
		require.Equal(t, map[string]float64{"": 0, "acme": 1}, waits)
		time.Sleep(20 * time.Second)
		paused := only(t, w.collect(t), "aiguard.route.paused")
		require.Equal(t, 1., paused.sum)
		require.Equal(t, "gpt-4o-mini", paused.attr("aiguard.route"))
		require.Equal(t, "fake.openai", paused.attr("server.address"))
	})
}

func TestLabelsBeyondOneHundredValuesAreOther(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1000}, otelguard.Config{}, func(t *testing.T, w *world) {
		for i := range 150 {
			request := chatRequest
			request.Model = fmt.Sprintf("model-%d", i)
			ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: fmt.Sprintf("tenant-%d", i), Op: fmt.Sprintf("op-%d", i)})
			_, err := w.CreateChatCompletion(ctx, request)
			require.NoError(t, err)
		}
		all := w.collect(t)
		for metric, label := range map[string]string{"gen_ai.client.inference.duration": "gen_ai.request.model",
			"aiguard.tenant.in_flight": "aiguard.tenant", "aiguard.route.in_flight": "aiguard.route"} {
			points := pointsOf(all[metric])
			require.Len(t, points, 101, metric)
			require.True(t, slices.ContainsFunc(points, func(p point) bool { return p.attr(label) == "other" }), metric)
		}
		last := w.spans.Ended()[299]
		require.Equal(t, "model-149", textOf(last.Attributes(), "gen_ai.request.model"), "spans have no such bound")
	})
}

// Users may choose the names of models, of any length.
func TestLongNamesAreBoundedToo(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1000}, otelguard.Config{}, func(t *testing.T, w *world) {
		for i := range 150 {
			request := chatRequest
			request.Model = fmt.Sprintf("%s-%03d", strings.Repeat("m", 120), i)
			ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: request.Model, Op: request.Model})
			_, err := w.CreateChatCompletion(ctx, request)
			require.NoError(t, err)
		}
		for metric, data := range w.collect(t) {
			require.LessOrEqual(t, len(pointsOf(data)), 101, metric)
		}
	})
}

func TestAnAlmostSpentBudgetIsToldUntilItsWindowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		var w *world
		b, err := budget.New(budget.Config{
			Limits: []budget.Limit{{Name: "tenant and minute", Calls: 10, Per: budget.Tenant, Window: budget.Minute}},
			OnSoft: func(ctx context.Context, r budget.Reached) { w.telemetry.BudgetReached(ctx, r) },
		})
		require.NoError(t, err)
		w = newWorld(t, srv, aiguard.Config{Budget: b}, otelguard.Config{})
		for _, tenant := range []string{"a", "b", "c"} {
			for range map[string]int{"a": 9, "b": 8, "c": 2}[tenant] {
				require.NoError(t, w.chat(aiguard.WithCall(t.Context(), aiguard.Call{Tenant: tenant})))
			}
		}
		reached := only(t, w.collect(t), "aiguard.budget.reached")
		require.Equal(t, 2., reached.sum)
		require.Equal(t, "tenant and minute", reached.attr("aiguard.budget.limit"))
		require.Equal(t, "calls", reached.attr("aiguard.budget.unit"))
		time.Sleep(2 * time.Minute)
		require.Zero(t, only(t, w.collect(t), "aiguard.budget.reached").sum)
	})
}

func TestInstallKeepsWhatTheConfigHad(t *testing.T) {
	var events []aiguard.EventType
	var saw bool
	cfg := aiguard.Config{
		OnEvent: func(_ context.Context, e aiguard.Event) { events = append(events, e.Type) },
		Middleware: []aiguard.Middleware{func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
			saw = true
			return next(ctx)
		}},
	}
	inVirtualTime(t, cfg, otelguard.Config{}, func(t *testing.T, w *world) {
		require.NoError(t, w.chat(t.Context()))
		require.True(t, saw)
		require.Equal(t, []aiguard.EventType{aiguard.EventAdmitted, aiguard.EventAttemptDone, aiguard.EventDone}, events)
		require.Len(t, cfg.Middleware, 1)
	})
}

func TestObserveRefusesNil(t *testing.T) {
	telemetry, err := otelguard.New(otelguard.Config{})
	require.NoError(t, err, "the global providers do")
	_, err = telemetry.Observe(nil)
	require.ErrorContains(t, err, "nil Guard")
}

// Tokens that no answer has reported are counted apart from those that one has, for each attempt.
func TestEstimatedTokensAreMarked(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{Timeouts: true}}, otelguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.Hang(), aiguardtest.Events(hello, finished, "[DONE]"))
		require.NoError(t, w.stream(t.Context()))
		w.srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		require.Error(t, w.stream(t.Context()))
		synctest.Wait() // a stream that its timeout has ended is told in another goroutine
		all := w.collect(t)
		for name, want := range map[string]map[string]float64{
			"input_tokens": {"": 20, "true": 2 * 3}, "output_tokens": {"": 10, "true": 1000 + 10}, // nothing was known of the route, then one answer
		} {
			got := map[string]float64{}
			for _, p := range pointsOf(all["gen_ai.client.inference.usage."+name]) {
				got[p.attr("aiguard.usage.estimated")] = p.sum
			}
			require.Equal(t, want, got, name)
		}
		answered, cut := w.tree()[0], w.tree()[1]
		require.Empty(t, answered.attr("aiguard.usage.estimated"))
		require.Equal(t, "10", cut.attr("gen_ai.usage.output_tokens"))
		require.Equal(t, "true", cut.attr("aiguard.usage.estimated"))
	})
}
