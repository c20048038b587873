package aiguard_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"

	"io"

	"net/http"

	"strings"
	"sync"

	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

var hedging = aiguard.Config{Hedge: aiguard.Hedge{Quantile: 0.95}}

const (
	hedgeEvidence = 20          // answers that a hedge needs
	hedgeUsual    = time.Second // what each of them took
)

// form is a call that may be hedged.
type form struct {
	name string
	text func(context.Context, *aiguard.Client) (string, error)
}

var forms = []form{{"whole", chat}, {"stream", streamChat}}

// inHedging runs f for each form of a call, when the guard has seen enough of the route: each answer took hedgeUsual.
func inHedging(t *testing.T, cfg aiguard.Config, f func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form)) {
	t.Helper()
	for _, ask := range forms {
		t.Run(ask.name, func(t *testing.T) {
			inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				usual(t, c, srv, ask, hedgeEvidence)
				f(t, c, srv, ask)
				synctest.Wait()
				require.Zero(t, srv.Active(), "requests left behind")
			})
		})
	}
}

// usual has n calls answered in the usual time.
func usual(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form, n int) {
	t.Helper()
	for range n {
		srv.Enqueue(answersIn(hedgeUsual, "usual"))
		_, err := ask.text(t.Context(), c)
		require.NoError(t, err)
	}
	require.Equal(t, n, srv.Count(), "no hedge while nothing is late")
	srv.Reset()
}

// answersIn answers after d.
func answersIn(d time.Duration, text string) aiguardtest.Reply {
	return aiguardtest.After(d, aiguardtest.TextN(text, 3))
}

func failsIn(d time.Duration, status int, headers ...string) aiguardtest.Reply {
	return aiguardtest.After(d, aiguardtest.Error(status, "", headers...))
}

// adds asserts that each call was counted once.
func adds(t testing.TB, st aiguard.Stats) {
	t.Helper()
	require.Zero(t, st.InFlight)
	require.Equal(t, st.Calls, st.Succeeded+st.Failed+st.Refused, "counters: %+v", st)
}

func TestSlowFirstAttemptIsBeatenByItsHedge(t *testing.T) {
	rec := &recorder{}
	cfg := hedging
	cfg.OnEvent = rec.OnEvent
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		rec.events = nil
		var firstLeft time.Duration
		start := time.Now()
		srv.Enqueue(func(_ http.ResponseWriter, r *aiguardtest.Request) {
			<-r.Context().Done()
			firstLeft = time.Since(start)
		}, answersIn(100*time.Millisecond, "hedge"))
		text, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "hedge", text)
		took(t, start, hedgeUsual+100*time.Millisecond)
		synctest.Wait()
		require.Equal(t, hedgeUsual+100*time.Millisecond, firstLeft.Round(time.Millisecond), "the loser is cancelled at once")
		require.Equal(t, 2, srv.Count())

		st := c.Guard().Stats()
		adds(t, st)
		require.EqualValues(t, hedgeEvidence+1, st.Calls)
		require.EqualValues(t, hedgeEvidence+1, st.Succeeded)
		require.EqualValues(t, 1, st.Retries)

		admitted, hedge, done := rec.all(aiguard.EventAdmitted), rec.all(aiguard.EventHedge), rec.all(aiguard.EventDone)
		require.Len(t, admitted, 2)
		require.Equal(t, 1, admitted[0].Attempt)
		require.Equal(t, 2, admitted[1].Attempt)
		require.Len(t, hedge, 1)
		require.Equal(t, 1, hedge[0].Attempt)
		require.Equal(t, hedgeUsual, hedge[0].InFlight.Round(time.Millisecond))
		require.Len(t, done, 1)
		require.Equal(t, 2, done[0].Attempt)
		require.Equal(t, done[0].Elapsed, done[0].InFlight)
		require.Equal(t, aiguard.EventDone, rec.events[len(rec.events)-1].Type)
		require.Empty(t, rec.all(aiguard.EventRetry))
		if ask.name == "stream" {
			require.Len(t, rec.all(aiguard.EventFirstEvent), 1)
		}
	})
}

func TestFirstAttemptThatAnswersCancelsItsHedge(t *testing.T) {
	rec := &recorder{}
	cfg := hedging
	cfg.OnEvent = rec.OnEvent
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		rec.events = nil
		var hedgeLeft time.Duration
		start := time.Now()
		srv.Enqueue(answersIn(3*time.Second, "first"), func(_ http.ResponseWriter, r *aiguardtest.Request) {
			<-r.Context().Done()
			hedgeLeft = time.Since(start)
		})
		text, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "first", text)
		took(t, start, 3*time.Second)
		synctest.Wait()
		require.Equal(t, 3*time.Second, hedgeLeft.Round(time.Millisecond))
		adds(t, c.Guard().Stats())
		require.EqualValues(t, 1, c.Guard().Stats().Retries)
		done := rec.all(aiguard.EventDone)
		require.Len(t, done, 1)
		require.Equal(t, 2, done[0].Attempt, "attempts made")
	})
}

// busy has a call of another route ask for a slot after some time, and hold it for d.
func busy(t *testing.T, c *aiguard.Client, after time.Duration, weight int64, d time.Duration) (end func()) {
	return beside(func() {
		time.Sleep(after)
		_ = do(t.Context(), c.Guard().With(aiguard.Call{Op: "busy", Weight: weight}), func(context.Context) error {
			time.Sleep(d)
			return nil
		})
	})
}

// beside runs f in another goroutine, as far as it comes without waiting; end waits for its end.
func beside(f func()) (end func()) {
	var g sync.WaitGroup
	g.Go(f)
	synctest.Wait()
	return g.Wait
}

// failing has n calls fail while another is under way.
func failing(n int, reply aiguardtest.Reply) func(*testing.T, *aiguard.Client, *aiguardtest.Server) func() {
	return func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) func() {
		ctx := aiguard.WithCall(t.Context(), aiguard.Call{Attempts: aiguard.Off})
		return beside(func() {
			var g sync.WaitGroup
			for range n {
				srv.Enqueue(aiguardtest.After(hedgeUsual/2, reply))
				g.Go(func() { _, _ = chat(ctx, c) })
			}
			g.Wait()
		})
	}
}

func TestHedgeIsInNobodysWayAndAsksNoProviderInTrouble(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cfg    aiguard.Config
		beside func(*testing.T, *aiguard.Client, *aiguardtest.Server) (end func())
		hedged bool
	}{
		{name: "control", hedged: true},
		{name: "a slot is free", cfg: aiguard.Config{MaxConcurrent: 3}, hedged: true,
			beside: func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) func() {
				return busy(t, c, 0, 1, time.Minute)
			}},
		{name: "no slot is free", cfg: aiguard.Config{MaxConcurrent: 2},
			beside: func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) func() {
				return busy(t, c, 0, 1, time.Minute)
			}},
		{name: "a slot is free, but not the two that somebody waits for", cfg: aiguard.Config{MaxConcurrent: 4, MinConcurrent: 4},
			beside: func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) func() {
				first, second := busy(t, c, 0, 2, time.Minute), busy(t, c, hedgeUsual/2, 2, 0)
				return func() { first(); second() }
			}},
		{name: "background work waits", cfg: aiguard.Config{MaxConcurrent: 4, MaxBackground: 1},
			beside: func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) func() {
				background := aiguard.WithCall(t.Context(), aiguard.Call{Op: "background", Priority: aiguard.Background})
				work := func() {
					_ = do(background, c.Guard(), func(context.Context) error { time.Sleep(time.Minute); return nil })
				}
				first, second := beside(work), beside(work)
				return func() { first(); second() }
			}},
		{name: "the route is paused", beside: failing(1, aiguardtest.Error(429, "", "Retry-After", "120"))},
		{name: "the route was paused and has not answered since", beside: failing(1, aiguardtest.Error(429, "", "Retry-After-Ms", "1"))},
		{name: "a request was lost", beside: failing(1, aiguardtest.Error(500, ""))},
		{name: "the route is down", cfg: aiguard.Config{MaxConcurrent: 10}, beside: failing(5, aiguardtest.Error(500, ""))},
		{name: "a request was rejected", hedged: true, beside: failing(1, aiguardtest.Error(400, ""))},
		{name: "another route is paused", hedged: true,
			beside: func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) func() {
				other := chatRequest
				other.Model = "another"
				srv.Enqueue(aiguardtest.Error(429, "", "Retry-After", "120"))
				_, _ = c.CreateChatCompletion(aiguard.WithCall(t.Context(), aiguard.Call{Attempts: aiguard.Off}), other)
				return func() {}
			}},
		{name: "the guard shuts down",
			beside: func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) func() {
				return beside(func() {
					time.Sleep(hedgeUsual / 2)
					_ = c.Guard().Shutdown(context.Background())
				})
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.cfg
			cfg.Hedge = hedging.Hedge
			inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
				end := func() {}
				if tc.beside != nil {
					end = tc.beside(t, c, srv)
				}
				srv.Enqueue(answersIn(5*time.Second, "first"))
				retries := c.Guard().Stats().Retries
				text, err := ask.text(t.Context(), c)
				require.NoError(t, err)
				require.Equal(t, tc.hedged, text != "first")
				require.Equal(t, tc.hedged, c.Guard().Stats().Retries > retries)
				end()
			})
		})
	}
}

func TestHedgeNeedsEvidence(t *testing.T) {
	for _, ask := range forms {
		inVirtualTime(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			usual(t, c, srv, ask, hedgeEvidence-1)
			for _, hedged := range []int{0, 1} { // the slow answer is the last that was missing
				srv.Reset()
				srv.Enqueue(answersIn(10*time.Second, "first"))
				_, err := ask.text(t.Context(), c)
				require.NoError(t, err)
				require.Equal(t, 1+hedged, srv.Count())
			}
		})
	}
}

func TestEvidenceOfStreamsSaysNothingOfWholeAnswers(t *testing.T) {
	inVirtualTime(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		usual(t, c, srv, forms[1], hedgeEvidence)
		srv.Enqueue(answersIn(10*time.Second, "first"))
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, 1, srv.Count())
	})
}

func TestZeroHedgeSendsNothingTwice(t *testing.T) {
	inHedging(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		srv.Enqueue(answersIn(20*time.Second, "first"))
		_, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, 1, srv.Count())
	})
}

func TestUnsafeAndNestedCallsAreNotHedged(t *testing.T) {
	store := true
	for name, call := range map[string]func(context.Context, *aiguard.Client) error{
		"with one attempt": func(ctx context.Context, c *aiguard.Client) error {
			_, err := chat(aiguard.WithCall(ctx, aiguard.Call{Attempts: 1}), c)
			return err
		},
		"inside a Do": func(ctx context.Context, c *aiguard.Client) error {
			return do(ctx, c.Guard(), func(ctx context.Context) error {
				_, err := chat(ctx, c)
				return err
			})
		},
		"that create something": func(ctx context.Context, c *aiguard.Client) error {
			_, err := c.CreateResponse(ctx, openai.CreateResponseRequest{Model: chatRequest.Model, Input: "x", Store: &store})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				usual(t, c, srv, forms[0], hedgeEvidence)
				srv.Enqueue(answersIn(10*time.Second, "first"))
				require.NoError(t, call(t.Context(), c))
				require.Equal(t, 1, srv.Count())
				require.Zero(t, c.Guard().Stats().Retries)
			})
		})
	}
}

func TestRequestThatCannotBeReplayedIsNotHedged(t *testing.T) {
	inVirtualTime(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		hc := &http.Client{Transport: c.Guard().Transport(base)}
		post := func(body io.Reader) {
			req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/chat/completions", body)
			require.NoError(t, err)
			resp, err := hc.Do(req)
			require.NoError(t, err)
			resp.Body.Close()
		}
		for _, replayable := range []bool{true, false} {
			srv.Reset()
			for range hedgeEvidence {
				srv.Enqueue(answersIn(hedgeUsual, "usual"))
				post(strings.NewReader("{}"))
			}
			srv.Enqueue(answersIn(10*time.Second, "first"))
			if replayable {
				post(strings.NewReader("{}"))
				require.Equal(t, hedgeEvidence+2, srv.Count())
			} else {
				post(io.MultiReader(strings.NewReader("{}" + strings.Repeat(" ", 1<<20)))) // longer than what is kept
				require.Equal(t, hedgeEvidence+1, srv.Count())
			}
		}
	})
}

func TestSecondAttemptIsNotHedgedAndNorIsASecondTime(t *testing.T) {
	inHedging(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		srv.Enqueue(aiguardtest.Raw(200, "text/html", "<p>"), answersIn(10*time.Second, "second"))
		text, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "second", text)
		require.Equal(t, 2, srv.Count())

		srv.Reset()
		srv.Enqueue(answersIn(20*time.Second, "first"), failsIn(time.Second, 400)) // the hedge is over, and stays the only one
		text, err = ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "first", text)
		require.Equal(t, 2, srv.Count())
	})
}

func TestHedgesTakeRetryTokens(t *testing.T) {
	cfg := hedging
	cfg.Retry.Budget = 1e-9
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		start := time.Now()
		const calls = 30
		for range calls {
			srv.Enqueue(aiguardtest.Hang())
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			_, err := ask.text(ctx, c)
			cancel()
			if err != nil {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			srv.Reset()
		}
		most := 10 + time.Since(start).Seconds()/10
		require.LessOrEqual(t, c.Guard().Stats().Retries, int64(most))
		require.Greater(t, c.Guard().Stats().Retries, int64(5))
	})
}

func TestBothAttemptsFail(t *testing.T) {
	for _, tc := range []struct {
		name         string
		first, hedge time.Duration // when they fail
		over         time.Duration
	}{
		{name: "the first one first", first: 2 * time.Second, hedge: 2 * time.Second, over: 3 * time.Second},
		{name: "the hedge first", first: 4 * time.Second, hedge: time.Second, over: 4 * time.Second},
		{name: "both at once", first: 2 * time.Second, hedge: time.Second, over: 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &recorder{}
			cfg := hedging
			cfg.OnEvent = rec.OnEvent
			cfg.Retry = aiguard.Retry{MaxAttempts: 2}
			inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
				rec.events = nil
				start := time.Now()
				srv.Enqueue(failsIn(tc.first, 500), failsIn(tc.hedge, 400))
				_, err := ask.text(t.Context(), c)
				e := facts(t, err, aiguard.ErrUnavailable) // that of the first
				took(t, start, tc.over)
				require.Equal(t, 500, e.StatusCode)
				require.Equal(t, 2, e.Attempts)
				require.Equal(t, tc.over, e.InFlight.Round(time.Millisecond))
				require.Equal(t, 2, srv.Count())
				require.Len(t, rec.all(aiguard.EventDone), 1)
				adds(t, c.Guard().Stats())
				require.EqualValues(t, 1, c.Guard().Stats().Retries)
			})
			cfg.Retry.MaxAttempts = 3
			inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
				rec.events = nil
				srv.Enqueue(failsIn(tc.first, 500), failsIn(tc.hedge, 400), answersIn(20*time.Second, "third"))
				text, err := ask.text(t.Context(), c)
				require.NoError(t, err)
				require.Equal(t, "third", text)
				require.Equal(t, 3, srv.Count(), "the third is not hedged")
				retry := rec.all(aiguard.EventRetry)
				require.Len(t, retry, 1)
				require.Equal(t, 2, retry[0].Attempt)
				require.Equal(t, 3, rec.all(aiguard.EventDone)[0].Attempt)
				adds(t, c.Guard().Stats())
			})
		})
	}
}

func TestFailureOfTheFirstAttemptWaitsForItsHedge(t *testing.T) {
	rec := &recorder{}
	cfg := hedging
	cfg.OnEvent = rec.OnEvent
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		rec.events = nil
		start := time.Now()
		srv.Enqueue(failsIn(2*time.Second, 429, "Retry-After", "60"), answersIn(3*time.Second, "hedge"))
		text, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "hedge", text)
		took(t, start, 4*time.Second)
		require.Equal(t, 2, srv.Count())
		adds(t, c.Guard().Stats())
		require.Len(t, rec.all(aiguard.EventPaused), 1, "that of the first is told all the same")
		require.Equal(t, aiguard.EventDone, rec.events[len(rec.events)-1].Type)
	})
}

func TestPauseThatOnlyTheHedgeMeetsIsTold(t *testing.T) {
	rec := &recorder{}
	cfg := hedging
	cfg.OnEvent = rec.OnEvent
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		rec.events = nil
		srv.Enqueue(answersIn(3*time.Second, "first"), failsIn(time.Second, 429, "Retry-After", "60"))
		text, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "first", text)
		require.Len(t, rec.all(aiguard.EventPaused), 1)
		require.WithinDuration(t, time.Now().Add(59*time.Second), c.Guard().Stats().PausedUntil, time.Second)
	})
}

func TestCancelledLoserSaysNothingOfItsProvider(t *testing.T) {
	inHedging(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		before := c.Guard().Routes()[0]
		for i := range 8 {
			srv.Reset()
			if i%2 == 0 {
				srv.Enqueue(aiguardtest.Hang(), answersIn(time.Second/10, "hedge"))
			} else {
				srv.Enqueue(answersIn(3*time.Second, "first"), aiguardtest.HeadersThen(time.Second, aiguardtest.Hang()))
			}
			_, err := ask.text(t.Context(), c)
			require.NoError(t, err)
		}
		after := c.Guard().Routes()[0]
		require.Equal(t, before.Limit, after.Limit)
		require.Zero(t, after.DownSince)
		require.Zero(t, after.InFlight)
		require.GreaterOrEqual(t, c.Guard().Stats().Retries, int64(4))
	})
}

func TestCallersEndEndsBothAttempts(t *testing.T) {
	inHedging(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		srv.SetDefault(aiguardtest.Hang())
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, err := ask.text(ctx, c)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Empty(t, aiguard.KindOf(err))
		took(t, start, 5*time.Second)
		require.Equal(t, 2, srv.Count())
		synctest.Wait()
		require.Zero(t, srv.Active())
		require.Zero(t, c.Guard().Stats().Failed, "the caller left")
	})
}

func TestCloseEndsBothAttempts(t *testing.T) {
	inHedging(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		srv.SetDefault(aiguardtest.Hang())
		time.AfterFunc(5*time.Second, func() { _ = c.Guard().Close() })
		start := time.Now()
		_, err := ask.text(t.Context(), c)
		require.Equal(t, 2, facts(t, err, aiguard.ErrClosed).Attempts)
		took(t, start, 5*time.Second)
		synctest.Wait()
		require.Zero(t, srv.Active())
		adds(t, c.Guard().Stats())
	})
}

func TestHedgeMakesNoCallLonger(t *testing.T) {
	cfg := hedging
	cfg.DeadlineHeader = "X-Left"
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		srv.SetDefault(aiguardtest.Hang())
		for range 3 { // an outage begins with the fifth request that is lost
			srv.Reset()
			start := time.Now()
			_, err := ask.text(t.Context(), c)
			e := facts(t, err, aiguard.ErrTimeout)
			require.Equal(t, aiguard.DefaultCallTimeout, e.Limit)
			require.NotEqual(t, "total", e.Phase)
			took(t, start, aiguard.DefaultCallTimeout)
			if srv.Count() == 2 {
				require.Equal(t, 2, e.Attempts)
				require.Equal(t, "30.000", srv.Requests()[0].Header.Get("X-Left"))
				require.Equal(t, "29.000", srv.Requests()[1].Header.Get("X-Left"))
			}
		}
		require.EqualValues(t, 1, c.Guard().Stats().Retries, "the route was healthy once")
		require.Zero(t, c.Guard().Routes()[0].DownSince, "an attempt that had less time says nothing of the provider")
	})
}

func TestStreamOfAHedgeIsACallLikeAnyOther(t *testing.T) {
	open := func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) *openai.ChatCompletionStream {
		usual(t, c, srv, forms[1], hedgeEvidence)
		srv.Enqueue(aiguardtest.Hang(), aiguardtest.After(time.Second, aiguardtest.HangAfter(aiguardtest.Events(hello))))
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		_, err = s.Recv()
		require.NoError(t, err)
		require.EqualValues(t, 1, c.Guard().Stats().InFlight, "one slot is the stream's, the other one is back")
		return s
	}
	for name, end := range map[string]func(*testing.T, *aiguard.Client, *openai.ChatCompletionStream){
		"closed by its reader": func(t *testing.T, c *aiguard.Client, s *openai.ChatCompletionStream) {
			s.Close()
		},
		"closed with its guard": func(t *testing.T, c *aiguard.Client, s *openai.ChatCompletionStream) {
			require.NoError(t, c.Guard().Close())
			_, err := s.Recv()
			require.Equal(t, 2, facts(t, err, aiguard.ErrClosed).Attempts)
		},
		"waited for by Shutdown": func(t *testing.T, c *aiguard.Client, s *openai.ChatCompletionStream) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.ErrorIs(t, c.Guard().Shutdown(ctx), context.DeadlineExceeded)
			_, err := s.Recv()
			facts(t, err, aiguard.ErrClosed)
			require.NoError(t, c.Guard().Shutdown(t.Context()), "nothing is left")
		},
		"silent": func(t *testing.T, c *aiguard.Client, s *openai.ChatCompletionStream) {
			_, err := s.Recv()
			require.Equal(t, 2, facts(t, err, aiguard.ErrTimeout).Attempts)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, hedging, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				s := open(t, c, srv)
				defer s.Close()
				end(t, c, s)
				synctest.Wait()
				require.Zero(t, srv.Active())
				require.Zero(t, c.Guard().Stats().InFlight)
			})
		})
	}
}

// hedgeBase is a provider in memory that handles each request in the goroutine of its attempt.
type hedgeBase struct {
	handle   func(n int64, req *http.Request) (*http.Response, error)
	requests atomic.Int64
	open     atomic.Int64 // attempts under way and bodies that are not closed
}

func (b *hedgeBase) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	b.open.Add(1)
	defer func() {
		if resp == nil {
			b.open.Add(-1)
		}
	}()
	if req.Body != nil {
		defer req.Body.Close()
	}
	return b.handle(b.requests.Add(1), req)
}

// pause waits for d, or for the end of the request.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// hedgeBody sends parts, with a pause before each.
type hedgeBody struct {
	base  *hedgeBase
	ctx   context.Context
	every time.Duration
	parts []string
	end   error // nil: io.EOF
	once  sync.Once
}

func (b *hedgeBody) Read(p []byte) (int, error) {
	if len(b.parts) == 0 {
		if b.end != nil {
			return 0, b.end
		}
		return 0, io.EOF
	}
	if err := pause(b.ctx, b.every); err != nil {
		return 0, err
	}
	n := copy(p, b.parts[0])
	if b.parts[0] = b.parts[0][n:]; b.parts[0] == "" {
		b.parts = b.parts[1:]
	}
	return n, nil
}

func (b *hedgeBody) Close() error {
	b.once.Do(func() { b.base.open.Add(-1) })
	return nil
}

func (b *hedgeBase) response(req *http.Request, status int, every time.Duration, end error, parts ...string) *http.Response {
	media := "application/json"
	if strings.HasPrefix(parts[0], "data:") {
		media = "text/event-stream"
	}
	return &http.Response{StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {media}}, Request: req,
		ContentLength: -1, Body: &hedgeBody{base: b, ctx: req.Context(), every: every, parts: parts, end: end}}
}

// answer is a good answer with a text, in the form that is asked for.
func (b *hedgeBase) answer(req *http.Request, every time.Duration, text string) *http.Response {
	if req.Header.Get("Accept") == "text/event-stream" {
		event := `data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":%q},"finish_reason":%s}]}` + "\n\n"
		return b.response(req, 200, every, nil, fmt.Sprintf(event, text, "null"), fmt.Sprintf(event, "", `"stop"`), "data: [DONE]\n\n")
	}
	return b.response(req, 200, every, nil, fmt.Sprintf(`{"object":"chat.completion","choices":[{"index":0,`+
		`"message":{"role":"assistant","content":%q},"finish_reason":"stop"}]}`, text))
}

// hedgeClient makes a client whose requests base handles, and has it see enough of the route.
func hedgeClient(t *testing.T, base *hedgeBase, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	cfg.Hedge = hedging.Hedge
	oc := openai.DefaultConfig("sk-secret-key")
	oc.HTTPClient = &http.Client{Transport: base}
	c := newGuard(t, cfg).Client(oc)
	handle := base.handle
	base.handle = func(_ int64, req *http.Request) (*http.Response, error) {
		return base.answer(req, hedgeUsual, "usual"), nil
	}
	for range hedgeEvidence {
		for _, ask := range forms {
			_, err := ask.text(t.Context(), c)
			require.NoError(t, err)
		}
	}
	base.handle = handle
	base.requests.Store(0)
	return c
}

func TestPanicOrGoexitInEitherAttemptLosesNothing(t *testing.T) {
	type event = aiguard.EventType
	boom := func() { panic("boom") }
	for _, tc := range []struct {
		name          string
		first, hedge  time.Duration // until it is ready, from its beginning
		unwindsFirst  bool          // when it is ready or cancelled
		unwindsHedge  bool
		unwindsInside event // of OnEvent, at the second attempt
		answered      bool  // counted as a success
		over          time.Duration
	}{
		{name: "hedge", first: time.Minute, hedge: time.Second, unwindsHedge: true, over: 2 * time.Second},
		{name: "hedge that lost", first: 3 * time.Second, hedge: time.Minute, unwindsHedge: true, over: 3 * time.Second},
		{name: "first", first: 3 * time.Second, hedge: time.Minute, unwindsFirst: true, over: 3 * time.Second},
		{name: "first that lost", first: time.Minute, hedge: time.Second, unwindsFirst: true, over: 2 * time.Second},
		{name: "both", first: 2 * time.Second, hedge: time.Second, unwindsFirst: true, unwindsHedge: true, over: 2 * time.Second},
		{name: "event hedge", first: time.Minute, hedge: time.Second, unwindsInside: aiguard.EventHedge, over: 1 * time.Second},
		{name: "event admitted", first: time.Minute, hedge: time.Second, unwindsInside: aiguard.EventAdmitted, over: 1 * time.Second},
		{name: "event done", first: time.Minute, hedge: time.Second, unwindsInside: aiguard.EventDone, answered: true, over: 2 * time.Second},
	} {
		for how, unwind := range map[string]func(){"panic": boom, "Goexit": runtime.Goexit} {
			for _, ask := range forms {
				if tc.unwindsInside == aiguard.EventDone && ask.name == "stream" {
					continue // it comes when the caller has the stream
				}
				t.Run(tc.name+" "+how+" "+ask.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						base := &hedgeBase{}
						base.handle = func(n int64, req *http.Request) (*http.Response, error) {
							ready, unwinds := tc.first, tc.unwindsFirst
							if n == 2 {
								ready, unwinds = tc.hedge, tc.unwindsHedge
							}
							err := pause(req.Context(), ready)
							if unwinds {
								unwind()
							}
							if err != nil {
								return nil, err
							}
							return base.answer(req, 0, "good"), nil
						}
						var armed atomic.Bool
						cfg := aiguard.Config{Budget: newLedger(t), OnEvent: func(_ context.Context, e aiguard.Event) {
							if armed.Load() && e.Type == tc.unwindsInside && (e.Attempt == 2 || e.Type == aiguard.EventHedge) {
								unwind()
							}
						}}
						c := hedgeClient(t, base, cfg)
						before := c.Guard().Stats()
						armed.Store(true)
						var panicked any
						returned, start := false, time.Now()
						beside(func() {
							defer func() { panicked = recover() }()
							_, _ = ask.text(t.Context(), c)
							returned = true
						})()
						armed.Store(false)
						require.False(t, returned, "the caller's goroutine goes on with it")
						took(t, start, tc.over)
						if how == "panic" {
							require.Contains(t, fmt.Sprint(panicked), "boom")
						} else {
							require.Nil(t, panicked)
						}
						synctest.Wait()
						require.Zero(t, base.open.Load(), "attempts and bodies left")
						st := c.Guard().Stats()
						adds(t, st)
						require.Equal(t, tc.answered, st.Succeeded > before.Succeeded)

						base.handle = func(_ int64, req *http.Request) (*http.Response, error) { return base.answer(req, 0, "good"), nil }
						_, err := ask.text(t.Context(), c)
						require.NoError(t, err, "the guard works on")
					})
				})
			}
		}
	}
}

// deaf makes a request that does not notice its cancellation.
func deaf(req *http.Request) *http.Request {
	return req.WithContext(context.WithoutCancel(req.Context()))
}

func TestAttemptsThatAnswerTogetherHaveOneWinner(t *testing.T) {
	for _, ask := range forms {
		for apart := -2 * time.Nanosecond; apart <= 2*time.Nanosecond; apart++ {
			synctest.Test(t, func(t *testing.T) {
				rec := &recorder{}
				base := &hedgeBase{}
				base.handle = func(n int64, req *http.Request) (*http.Response, error) {
					time.Sleep(2 * time.Second)
					if n == 2 {
						time.Sleep(apart + 2*time.Nanosecond)
					} else {
						time.Sleep(time.Second + 3*time.Nanosecond)
					}
					return base.answer(deaf(req), 0, "good"), nil
				}
				c := hedgeClient(t, base, aiguard.Config{OnEvent: rec.OnEvent})
				before := c.Guard().Routes()[0]
				for i := range 8 {
					for range hedgeEvidence { // this is and remains the usual time
						handle := base.handle
						base.handle = func(_ int64, req *http.Request) (*http.Response, error) {
							return base.answer(req, hedgeUsual, "usual"), nil
						}
						_, err := ask.text(t.Context(), c)
						require.NoError(t, err)
						base.handle = handle
					}
					base.requests.Store(0)
					rec.events = nil
					text, err := ask.text(t.Context(), c)
					require.NoError(t, err)
					require.Equal(t, "good", text)
					require.EqualValues(t, 2, base.requests.Load())
					require.Len(t, rec.all(aiguard.EventDone), 1)
					require.Zero(t, base.open.Load())
					require.EqualValues(t, i+1, c.Guard().Stats().Retries)
				}
				adds(t, c.Guard().Stats())
				after := c.Guard().Routes()[0]
				require.Equal(t, before.Limit, after.Limit, "the loser says nothing of the provider")
				require.Zero(t, after.DownSince)
			})
		}
	}
}

func TestCallerWhoHasLeftGetsNoHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &hedgeBase{}
		base.handle = func(_ int64, req *http.Request) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			return base.answer(deaf(req), 0, "late"), nil
		}
		c := hedgeClient(t, base, aiguard.Config{})
		ctx, cancel := context.WithTimeout(t.Context(), hedgeUsual/2)
		defer cancel()
		_, _ = chat(ctx, c)
		require.EqualValues(t, 1, base.requests.Load())
		require.Zero(t, c.Guard().Stats().Retries)
	})
}

func TestHedgeThatLosesBeforeItBeginsIsNotWaitedFor(t *testing.T) {
	for _, at := range []aiguard.EventType{aiguard.EventHedge, aiguard.EventAdmitted} {
		cfg := hedging
		cfg.OnEvent = func(_ context.Context, e aiguard.Event) {
			if e.Type == at && (e.Type == aiguard.EventHedge || e.Attempt == 2) {
				time.Sleep(5 * time.Second)
			}
		}
		inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
			srv.SetDefault(aiguardtest.Hang())
			srv.Enqueue(answersIn(3*time.Second, "first"))
			start := time.Now()
			text, err := ask.text(t.Context(), c)
			require.NoError(t, err)
			require.Equal(t, "first", text)
			took(t, start, 6*time.Second) // until the callback has returned
			require.Equal(t, 1, srv.Count())
		})
	}
}

func TestPanicThatAbortsAHandlerComesUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &hedgeBase{}
		base.handle = func(n int64, req *http.Request) (*http.Response, error) {
			if n == 2 {
				panic(http.ErrAbortHandler)
			}
			return nil, pause(req.Context(), time.Minute)
		}
		c := hedgeClient(t, base, aiguard.Config{})
		require.PanicsWithValue(t, http.ErrAbortHandler, func() { _, _ = chat(t.Context(), c) })
	})
}

// Some SDKs' GetBody rewinds the one body and returns it again, and some transports change the headers of what they send.
func TestAttemptsShareNeitherBodyNorHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const prompt = `{"model":"gpt-4o-mini","messages":[{"role":"user","content":"all of this"}]}`
		base := &hedgeBase{}
		var mu sync.Mutex
		var got []string
		base.handle = func(n int64, req *http.Request) (*http.Response, error) {
			req.Header.Set("X-Attempt", fmt.Sprint(n))
			req.URL.RawQuery = fmt.Sprint(n)
			var body []byte
			for p := make([]byte, 1); ; {
				k, err := req.Body.Read(p)
				body = append(body, p[:k]...)
				if err != nil {
					break
				}
				if err := pause(req.Context(), 100*time.Millisecond); err != nil { // the hedge begins meanwhile
					return nil, err
				}
			}
			mu.Lock()
			got = append(got, string(body))
			mu.Unlock()
			require.Equal(t, fmt.Sprint(n), req.Header.Get("X-Attempt"))
			require.Equal(t, fmt.Sprint(n), req.URL.RawQuery)
			if n == 2 {
				return nil, pause(req.Context(), time.Minute)
			}
			return base.answer(req, 3*time.Second, "first"), nil
		}
		c := hedgeClient(t, base, aiguard.Config{})
		body := strings.NewReader(prompt)
		req, err := http.NewRequestWithContext(t.Context(), "POST", "https://api.openai.com/v1/chat/completions", io.NopCloser(body))
		require.NoError(t, err)
		req.ContentLength = int64(len(prompt))
		req.Header.Set("Content-Type", "application/json")
		req.GetBody = func() (io.ReadCloser, error) {
			_, err := body.Seek(0, io.SeekStart)
			return io.NopCloser(body), err
		}
		resp, err := c.Guard().Transport(base).RoundTrip(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, []string{prompt, prompt}, got)
	})
}

func TestHedgesAreAsRareAsTheQuantileSays(t *testing.T) {
	for _, q := range []float64{0.5, 0.9, 0.95} {
		for seed := range uint64(3) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				var mu sync.Mutex
				base := &hedgeBase{}
				base.handle = func(_ int64, req *http.Request) (*http.Response, error) {
					mu.Lock()
					d := time.Duration(rng.ExpFloat64() * float64(time.Second))
					mu.Unlock()
					if err := pause(req.Context(), d); err != nil {
						return nil, err
					}
					return base.answer(req, 0, "good"), nil
				}
				g := newGuard(t, aiguard.Config{Hedge: aiguard.Hedge{Quantile: q}, Retry: aiguard.Retry{Budget: aiguard.Off}})
				oc := openai.DefaultConfig("sk-secret-key")
				oc.HTTPClient = &http.Client{Transport: base}
				c := g.Client(oc)
				const calls = 2000
				for range calls {
					_, err := chat(t.Context(), c)
					require.NoError(t, err)
				}
				perAnswer := float64(base.requests.Load()) / calls
				require.InDelta(t, 1+(1-q), perAnswer, 0.02, "requests per answer at quantile %v", q)
			})
		}
	}
}

type hedgeCallKey struct{}

// hedgeCall is what the test knows of one call.
type hedgeCall struct {
	inside   atomic.Int32 // callbacks under way
	requests atomic.Int32
	admitted int // like the rest, by one callback after another
	hedges   int
	done     int
	left     int
}

// Any two attempts end in any order and in any way, callers leave and close their streams, and the guard is closed: nothing
// is lost, no call is told twice, and none gets the answer of another.
func TestHedgesSurviveAnyOrderOfEvents(t *testing.T) {
	const callers, calls = 4, 6
	hedges := 0
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(seed, 7))
			random := func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return rng.IntN(n)
			}
			step := func(n int) time.Duration { return time.Duration(random(n)) * hedgeUsual / 4 } // many fall on one moment
			base := &hedgeBase{}
			base.handle = func(n int64, req *http.Request) (*http.Response, error) {
				call := req.Context().Value(hedgeCallKey{}).(*hedgeCall)
				call.requests.Add(1)
				fate := random(30)
				err := pause(req.Context(), step(16))
				switch {
				case fate == 0:
					panic("boom")
				case fate == 1:
					runtime.Goexit()
				case err != nil:
					return nil, err
				case fate == 2:
					return base.response(req, 500, 0, nil, "{}"), nil
				case fate == 3:
					resp := base.response(req, 429, 0, nil, "{}")
					resp.Header.Set("Retry-After-Ms", fmt.Sprint(1+random(3000)))
					return resp, nil
				case fate == 4:
					return base.response(req, 400, step(4), nil, "{}"), nil
				case fate == 5:
					return base.response(req, 200, step(4), io.ErrUnexpectedEOF, "{"), nil
				case fate == 6:
					return nil, io.ErrUnexpectedEOF
				case fate == 7:
					return base.response(req, 200, time.Hour, nil, "data: never"), nil
				}
				return base.answer(req, step(8), fmt.Sprintf("%p", call)), nil
			}
			var armed atomic.Bool
			lives := newLives(t)
			cfg := aiguard.Config{
				MaxConcurrent: int64(2 + random(12)), CallTimeout: 5 * time.Second, StreamIdleTimeout: 5 * time.Second, TotalTimeout: 20 * time.Second,
				Retry: aiguard.Retry{Budget: aiguard.Off}, Budget: newLedger(t),
				OnEvent: func(ctx context.Context, e aiguard.Event) {
					call, ok := ctx.Value(hedgeCallKey{}).(*hedgeCall)
					if !armed.Load() || !ok {
						return
					}
					lives.OnEvent(ctx, e)
					if call.inside.Add(1) != 1 {
						t.Error("two callbacks of a call at once")
					}
					defer call.inside.Add(-1)
					if call.done > 0 {
						t.Errorf("%s after the end of the call", e.Type)
					}
					switch e.Type {
					case aiguard.EventAdmitted:
						call.admitted++
					case aiguard.EventHedge:
						call.hedges++
					case aiguard.EventDone, aiguard.EventRefused:
						call.done++
						if e.Err != nil && e.Err != aiguard.ErrUnwound && aiguard.KindOf(e.Err) == "" {
							call.left++
						}
						if e.Attempt != call.admitted {
							t.Errorf("%d attempts, %d were told", call.admitted, e.Attempt)
						}
					}
					if random(30) == 0 {
						time.Sleep(step(3))
					}
					if random(100) == 0 && e.Type == aiguard.EventHedge {
						panic("boom")
					}
				},
			}
			c := hedgeClient(t, base, cfg)
			before := c.Guard().Stats()
			armed.Store(true)
			if random(3) == 0 {
				time.AfterFunc(step(60), func() { _ = c.Guard().Close() })
			}
			var all []*hedgeCall
			var g sync.WaitGroup
			for range callers {
				for range calls {
					call := &hedgeCall{}
					mu.Lock()
					all = append(all, call)
					mu.Unlock()
				}
			}
			for i := range callers {
				for _, call := range all[i*calls : (i+1)*calls] {
					wait, patience, whole, early := step(40), 60*time.Second, random(2) == 0, random(4) == 0
					if random(4) == 0 {
						patience = step(16)
					}
					g.Go(func() {
						defer func() { _ = recover() }()
						time.Sleep(wait)
						ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), hedgeCallKey{}, call), patience)
						defer cancel()
						var text string
						var err error
						switch {
						case whole:
							text, err = chat(ctx, c)
						case early:
							var s *openai.ChatCompletionStream
							if s, err = c.CreateChatCompletionStream(ctx, chatRequest); err == nil {
								s.Close()
								text = fmt.Sprintf("%p", call)
							}
						default:
							text, err = streamChat(ctx, c)
						}
						if err == nil && text != fmt.Sprintf("%p", call) {
							t.Errorf("the answer of another call: %q", text)
						}
						if err != nil && aiguard.KindOf(err) == "" && ctx.Err() == nil {
							t.Errorf("not typed: %v", err)
						}
					})
				}
			}
			g.Wait()
			time.Sleep(time.Minute) // a stream that its context has ended is told in another goroutine
			synctest.Wait()
			require.Zero(t, base.open.Load(), "seed %d: attempts and bodies left", seed)
			st := c.Guard().Stats()
			left := int64(0)
			for _, call := range all {
				left += int64(call.left)
				hedges += call.hedges
				require.LessOrEqual(t, call.hedges, 1)
				require.LessOrEqual(t, call.done, 1)
				require.LessOrEqual(t, int(call.requests.Load()), aiguard.DefaultMaxAttempts)
			}
			require.Zero(t, st.InFlight, "seed %d", seed)
			require.Equal(t, st.Calls, st.Succeeded+st.Failed+st.Refused+left, "seed %d: %+v", seed, st)
			require.EqualValues(t, callers*calls, st.Calls-before.Calls)
			lives.ended(callers * calls)
			for _, r := range c.Guard().Routes() {
				require.Zero(t, r.InFlight, "seed %d: %+v", seed, r)
				require.Zero(t, r.Waiting, "seed %d: %+v", seed, r)
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	require.Greater(t, hedges, 500, "or the test says little")
}
