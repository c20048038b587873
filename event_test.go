package aiguard_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// lives checks, event by event, that each moment of a call is told exactly once and in order.
type lives struct {
	t     testing.TB
	mu    sync.Mutex
	calls map[aiguard.CallID]*life
}

// life is one call's.
type life struct {
	begun, open, streams map[int]bool // attempts
	hedged, over         bool
}

func newLives(t testing.TB) *lives { return &lives{t: t, calls: map[aiguard.CallID]*life{}} }

func (l *lives) OnEvent(_ context.Context, e aiguard.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.Type == aiguard.EventTask {
		return
	}
	c := l.calls[e.ID]
	if c == nil {
		c = &life{begun: map[int]bool{}, open: map[int]bool{}, streams: map[int]bool{}}
		l.calls[e.ID] = c
	}
	must := func(ok bool, rule string) {
		if !ok {
			l.t.Errorf("%s: %v (%+v)", rule, e, *c)
		}
	}
	must(e.ID != 0 && e.ID != e.Parent, "a call has an ID of its own")
	must(!c.over || e.Type == aiguard.EventMemorySpike, "nothing follows the end")
	switch e.Type {
	case aiguard.EventHedge:
		must(!c.hedged && len(c.open) == 1, "one hedge beside an attempt")
		c.hedged = true
	case aiguard.EventAdmitted:
		must(!c.begun[e.Attempt], "an attempt begins once")
		must(len(c.open) == 0 || c.hedged && len(c.open) == 1, "only a hedge is beside another attempt")
		c.begun[e.Attempt], c.open[e.Attempt] = true, true
	case aiguard.EventFirstEvent:
		must(c.open[e.Attempt] && !c.streams[e.Attempt], "a stream is handed over once, within its attempt")
		c.streams[e.Attempt] = true
	case aiguard.EventAttemptDone:
		must(c.open[e.Attempt], "an attempt ends once, after it began")
		delete(c.open, e.Attempt)
	case aiguard.EventRetry, aiguard.EventQueued:
		must(len(c.open) == 0, "the call goes on when its attempt is over")
	case aiguard.EventRefused:
		must(len(c.begun) == 0, "a refused call has no attempt")
		c.over = true
	case aiguard.EventDone:
		must(len(c.open) == 0, "the end follows those of the attempts")
		c.over = true
	}
}

// ended checks that so many calls were told (-1: any number), each to its end.
func (l *lives) ended(calls int) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if calls >= 0 {
		require.Len(l.t, l.calls, calls)
	}
	for id, c := range l.calls {
		require.True(l.t, c.over, "call %v has no end: %+v", id, *c)
	}
}

func TestEachMomentIsToldExactlyOnceOnEveryPath(t *testing.T) {
	const (
		admitted, done, refused = aiguard.EventAdmitted, aiguard.EventDone, aiguard.EventRefused
		attemptDone, first      = aiguard.EventAttemptDone, aiguard.EventFirstEvent
		queued, retry, hedge    = aiguard.EventQueued, aiguard.EventRetry, aiguard.EventHedge
	)
	ask := func(ctx context.Context, c *aiguard.Client) { _, _ = chat(ctx, c) }
	stream := func(ctx context.Context, c *aiguard.Client) { _, _ = streamChat(ctx, c) }
	inDo := func(fn func(context.Context) error) func(context.Context, *aiguard.Client) {
		return func(ctx context.Context, c *aiguard.Client) {
			defer func() { _ = recover() }()
			_ = do(ctx, c.Guard().With(aiguard.Call{Op: "work"}), fn)
		}
	}
	atEvent := func(at aiguard.EventType, f func()) func(aiguard.Event) {
		once := false
		return func(e aiguard.Event) {
			if e.Type == at && !once {
				once = true
				f()
			}
		}
	}
	for _, tc := range []struct {
		name    string
		cfg     aiguard.Config
		replies []aiguardtest.Reply
		act     func(context.Context, *aiguard.Client)
		inEvent func(aiguard.Event)
		calls   int // 1 if 0
		want    []aiguard.EventType
	}{
		{name: "answer", act: ask, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "refusal", cfg: aiguard.Config{MaxPromptChars: 1}, act: ask, want: []aiguard.EventType{refused}},
		{name: "weight", act: func(ctx context.Context, c *aiguard.Client) { ask(ctx, c.With(aiguard.Call{Weight: 9})) },
			want: []aiguard.EventType{refused}},
		{name: "failure", replies: []aiguardtest.Reply{aiguardtest.Error(400, "")}, act: ask, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "retry", replies: []aiguardtest.Reply{aiguardtest.Error(503, ""), nil}, act: ask,
			want: []aiguard.EventType{admitted, attemptDone, retry, admitted, attemptDone, done}},
		{name: "timeout", replies: []aiguardtest.Reply{aiguardtest.Hang()}, act: ask, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "stream", replies: []aiguardtest.Reply{aiguardtest.Events(hello, finished, "[DONE]")}, act: stream,
			want: []aiguard.EventType{admitted, first, attemptDone, done}},
		{name: "cut stream", replies: []aiguardtest.Reply{aiguardtest.Events(hello)}, act: stream,
			want: []aiguard.EventType{admitted, first, attemptDone, done}},
		{name: "silent stream", replies: []aiguardtest.Reply{aiguardtest.HangAfter(aiguardtest.Events(hello))}, act: stream,
			want: []aiguard.EventType{admitted, first, attemptDone, done}},
		{name: "closed stream", replies: []aiguardtest.Reply{aiguardtest.HangAfter(aiguardtest.Events(hello))},
			act: func(ctx context.Context, c *aiguard.Client) {
				s, err := c.CreateChatCompletionStream(ctx, chatRequest)
				require.NoError(t, err)
				s.Close()
				s.Close()
			}, want: []aiguard.EventType{admitted, first, attemptDone, done}},
		{name: "abandoned stream", replies: []aiguardtest.Reply{aiguardtest.HangAfter(aiguardtest.Events(hello))},
			act: func(ctx context.Context, c *aiguard.Client) {
				s, err := c.CreateChatCompletionStream(ctx, chatRequest)
				require.NoError(t, err)
				time.Sleep(11 * time.Minute)
				s.Close()
			}, want: []aiguard.EventType{admitted, first, aiguard.EventAbandoned, attemptDone, done}},
		{name: "caller leaves in the attempt", replies: []aiguardtest.Reply{aiguardtest.Hang()},
			act: func(ctx context.Context, c *aiguard.Client) {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				ask(ctx, c)
			}, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "caller leaves in the backoff", replies: []aiguardtest.Reply{aiguardtest.Error(503, "", "Retry-After", "20")},
			act: func(ctx context.Context, c *aiguard.Client) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Second, cancel)
				ask(ctx, c)
			}, want: []aiguard.EventType{admitted, attemptDone, retry, done}},
		{name: "caller has left before", act: func(ctx context.Context, c *aiguard.Client) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			_ = do(ctx, c.Guard(), func(context.Context) error { return nil })
		}, want: []aiguard.EventType{done}},
		{name: "caller leaves the queue", cfg: aiguard.Config{MaxConcurrent: 1}, calls: 2,
			act: func(ctx context.Context, c *aiguard.Client) {
				_ = do(ctx, c.Guard(), func(context.Context) error {
					left, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
					defer cancel()
					ask(left, c)
					return nil
				})
			}, want: []aiguard.EventType{admitted, queued, done, attemptDone, done}},
		{name: "closed while in flight", replies: []aiguardtest.Reply{aiguardtest.Hang()},
			act: func(ctx context.Context, c *aiguard.Client) {
				time.AfterFunc(time.Second, func() { _ = c.Guard().Close() })
				ask(ctx, c)
			}, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "closed before", act: func(ctx context.Context, c *aiguard.Client) {
			_ = c.Guard().Close()
			ask(ctx, c)
		}, want: []aiguard.EventType{refused}},
		{name: "Do", act: inDo(func(context.Context) error { return nil }), want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "error of its own", act: inDo(func(context.Context) error { return io.EOF }), want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "panic", act: inDo(func(context.Context) error { panic("boom") }), want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "Goexit", act: func(ctx context.Context, c *aiguard.Client) {
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				_ = do(ctx, c.Guard(), func(context.Context) error { runtime.Goexit(); return nil })
			}()
			<-gone
		}, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "panic of a callback", act: func(ctx context.Context, c *aiguard.Client) {
			defer func() { _ = recover() }()
			ask(ctx, c)
		}, inEvent: atEvent(admitted, func() { panic("boom") }), want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "panic of a base", act: func(ctx context.Context, c *aiguard.Client) {
			defer func() { _ = recover() }()
			oc := openai.DefaultConfig("key")
			oc.HTTPClient = &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) { panic("boom") })}
			ask(ctx, c.Guard().Client(oc))
		}, want: []aiguard.EventType{admitted, attemptDone, done}},
		{name: "nested", calls: 2, act: func(ctx context.Context, c *aiguard.Client) {
			_ = do(ctx, c.Guard(), func(ctx context.Context) error { ask(ctx, c); return nil })
		}, want: []aiguard.EventType{admitted, admitted, attemptDone, done, attemptDone, done}},
		{name: "nested refusal", calls: 2, replies: []aiguardtest.Reply{aiguardtest.Error(429, "", "Retry-After", "60")},
			act: func(ctx context.Context, c *aiguard.Client) {
				_ = do(ctx, c.Guard(), func(ctx context.Context) error { _, err := chat(ctx, c); return err })
			}, want: []aiguard.EventType{admitted, admitted, attemptDone, aiguard.EventPaused, done, attemptDone, done}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec, lives := &recorder{}, newLives(t)
			tc.cfg.OnEvent = func(ctx context.Context, e aiguard.Event) {
				rec.OnEvent(ctx, e)
				lives.OnEvent(ctx, e)
				if tc.inEvent != nil {
					tc.inEvent(e)
				}
			}
			inVirtualTime(t, tc.cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.Enqueue(tc.replies...)
				tc.act(t.Context(), c)
				synctest.Wait()
				var got []aiguard.EventType
				for _, e := range rec.all(admitted, attemptDone, first, queued, retry, hedge, refused, done, aiguard.EventAbandoned, aiguard.EventPaused) {
					got = append(got, e.Type)
				}
				require.Equal(t, tc.want, got)
				lives.ended(max(tc.calls, 1))
				st := c.Guard().Stats()
				require.Zero(t, st.InFlight)
			})
		})
	}
}

func TestBothAttemptsOfAHedgedCallAreToldToTheirEnd(t *testing.T) {
	for _, firstWins := range []bool{true, false} {
		rec := &recorder{}
		cfg := hedging
		cfg.OnEvent = rec.OnEvent
		inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
			rec.events = nil
			if firstWins {
				srv.Enqueue(answersIn(3*time.Second, "first"), aiguardtest.Hang())
			} else {
				srv.Enqueue(aiguardtest.Hang(), answersIn(100*time.Millisecond, "second"))
			}
			_, err := ask.text(t.Context(), c)
			require.NoError(t, err)
			synctest.Wait()
			lives := newLives(t)
			for _, e := range rec.events {
				lives.OnEvent(t.Context(), e)
			}
			lives.ended(1)
			over := rec.all(aiguard.EventAttemptDone)
			require.Len(t, over, 2)
			loser, winner := over[0], over[1]
			require.Error(t, loser.Err)
			require.NoError(t, winner.Err)
			require.Equal(t, loser.ID, winner.ID)
			if firstWins {
				require.Equal(t, []int{2, 1}, []int{loser.Attempt, winner.Attempt})
			} else {
				require.Equal(t, []int{1, 2}, []int{loser.Attempt, winner.Attempt})
			}
		})
	}
}

func TestEventsSayWhatTheyAreAbout(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.After(2*time.Second, aiguardtest.Events(hello, finished, "[DONE]")))
		err := do(t.Context(), c.Guard().With(aiguard.Call{Op: "work", Model: "m"}), func(ctx context.Context) error {
			_, err := streamChat(ctx, c.With(aiguard.Call{Op: "report", Tenant: "t"}))
			return err
		})
		require.NoError(t, err)
		done := rec.all(aiguard.EventDone)
		require.Len(t, done, 2)
		inner, outer := done[0], done[1]
		require.NotZero(t, outer.ID)
		require.Zero(t, outer.Parent)
		require.Equal(t, outer.ID, inner.Parent)
		require.Equal(t, "work m", outer.Route)
		require.Empty(t, outer.Host)
		require.Empty(t, outer.Endpoint)
		require.Equal(t, "fake.openai", inner.Host)
		require.Equal(t, openai.GPT4oMini, inner.Route)
		require.Equal(t, "report", inner.Call.Op)
		require.Equal(t, "chat.completions", inner.Endpoint)
		require.Equal(t, "t", inner.Call.Tenant)
		require.Equal(t, 2*time.Second, inner.FirstEvent)
		require.Len(t, inner.ID.String(), 16)
		routes := c.Guard().Routes()
		require.Equal(t, inner.Route, routes[0].Name)
	})
}

func TestEventsTellWhichAlternativeOfAFallbackMakesTheCall(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent, Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(500, ""), aiguardtest.Error(500, ""), nil)
		ask := func(ctx context.Context) (string, error) { return chat(ctx, c) }
		_, err := aiguard.Fallback(t.Context(), ask, ask, ask)
		require.NoError(t, err)
		_, err = ask(t.Context())
		require.NoError(t, err)
		var alternatives []int
		for _, e := range rec.all(aiguard.EventDone) {
			alternatives = append(alternatives, e.Alternative)
		}
		require.Equal(t, []int{0, 1, 2, 0}, alternatives)
	})
}

func TestCallIDsOfTwoGuardsDiffer(t *testing.T) {
	seen := map[aiguard.CallID]bool{}
	for range 2 {
		g := newGuard(t, aiguard.Config{OnEvent: func(_ context.Context, e aiguard.Event) {
			if e.Type == aiguard.EventDone {
				require.False(t, seen[e.ID])
				seen[e.ID] = true
			}
		}})
		for range 100 {
			require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
		}
	}
	require.Len(t, seen, 200)
	require.Equal(t, "00000000000000ff", aiguard.CallID(255).String())
	require.Empty(t, aiguard.CallID(0).String())
}

func TestEventsTellThatAFailureMayBeBilled(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(400, ""), aiguardtest.Hang(), aiguardtest.Hang(), aiguardtest.Text("Hello!"))
		_, _ = chat(t.Context(), c)
		_, _ = chat(t.Context(), c)
		left, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = chat(left, c)
		_, _ = chat(t.Context(), c)
		var billed []bool
		for _, e := range rec.all(aiguard.EventAttemptDone, aiguard.EventDone) {
			billed = append(billed, e.MayBeBilled)
		}
		require.Equal(t, []bool{false, false, true, true, true, true, false, false}, billed, "refused, timed out, left, answered")
	})
}

// The caller owns the error it gets, and the guard goes on with it: neither may be the one that a callback keeps.
func TestAnAttemptsErrorInAnEventIsACopy(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent, Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(500, ""))
		_, err := chat(t.Context(), c)
		var returned, told *aiguard.Error
		require.ErrorAs(t, err, &returned)
		require.True(t, errors.As(rec.all(aiguard.EventAttemptDone)[0].Err, &told))
		require.NotSame(t, returned, told)
		require.Equal(t, 1, told.Attempts)
		require.Equal(t, "fake.openai", told.Host)
	})
}
