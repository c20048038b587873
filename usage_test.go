package aiguard_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// usages are what the events of the types given tell, in order.
func (r *recorder) usages(types ...aiguard.EventType) (all []aiguard.Usage) {
	for _, e := range r.all(types...) {
		all = append(all, e.Usage)
	}
	return all
}

// What the provider may charge for is an estimate in the events, whether a Budget asks for it or not.
func TestEventsEstimateWhatMayBeBilled(t *testing.T) {
	all := map[string]end{
		"canceled in a stream": {reply: aiguardtest.HangAfter(aiguardtest.Events(hello)), end: func(t *testing.T, c *aiguard.Client) error {
			ctx, cancel := context.WithCancel(t.Context())
			s, err := c.CreateChatCompletionStream(ctx, chatRequest)
			require.NoError(t, err)
			defer s.Close()
			time.AfterFunc(time.Second, cancel)
			_, err = recvAll(s)
			return err
		}},
		"cut stream": {reply: aiguardtest.Bytes("data: " + hello + "\n\n"), end: func(t *testing.T, c *aiguard.Client) error {
			_, err := streamChat(t.Context(), c)
			return err
		}},
	}
	for name, tc := range ends {
		all[name] = tc
	}
	for name, tc := range all {
		for who, budget := range map[string]aiguard.Budget{"": nil, ", with a budget": newLedger(t)} {
			t.Run(name+who, func(t *testing.T) {
				rec := &recorder{}
				cfg := tc.cfg
				cfg.Budget, cfg.OnEvent = budget, rec.OnEvent
				inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
					srv.SetDefault(tc.reply)
					_ = tc.end(t, c)
					synctest.Wait()
					require.Equal(t, []aiguard.Usage{estimated, estimated}, rec.usages(aiguard.EventAttemptDone, aiguard.EventDone))
				})
			})
		}
	}
}

func TestEventsTellNoUsageWhereNothingWasUsed(t *testing.T) {
	once := aiguard.Retry{MaxAttempts: 1}
	for name, tc := range map[string]struct {
		cfg   aiguard.Config
		reply aiguardtest.Reply
	}{
		"refused by the provider": {aiguard.Config{Retry: once}, aiguardtest.Error(401, "invalid_api_key")},
		"rate limited":            {aiguard.Config{Retry: once}, aiguardtest.Error(429, "")},
		"prompt too long":         {aiguard.Config{MaxPromptChars: 1}, nil},
		"over memory":             {aiguard.Config{MemoryLimit: 1}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recorder{}
			tc.cfg.OnEvent = rec.OnEvent
			inVirtualTime(t, tc.cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				_, err := chat(t.Context(), c)
				require.Error(t, err)
				for _, e := range rec.all(aiguard.EventAttemptDone, aiguard.EventDone, aiguard.EventRefused) {
					require.Zero(t, e.Usage)
				}
			})
		})
	}
	t.Run("never connected", func(t *testing.T) {
		rec := &recorder{}
		g := newGuard(t, aiguard.Config{OnEvent: rec.OnEvent, Retry: once})
		_, err := g.Transport(nil).RoundTrip(jsonRequest(t, "http://127.0.0.1:1/v1/chat/completions", `{"model":"m","messages":[{"content":"Hi"}]}`))
		require.ErrorIs(t, err, aiguard.ErrUnavailable)
		require.Equal(t, []aiguard.Usage{nothing, nothing}, rec.usages(aiguard.EventAttemptDone, aiguard.EventDone))
	})
	t.Run("a Do", func(t *testing.T) {
		rec := &recorder{}
		g := newGuard(t, aiguard.Config{OnEvent: rec.OnEvent})
		require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
		require.Equal(t, []aiguard.Usage{nothing, nothing}, rec.usages(aiguard.EventAttemptDone, aiguard.EventDone))
	})
}

// Each attempt tells its own usage, and the call tells that of its last one.
func TestEachAttemptTellsItsOwnUsage(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Drop(), aiguardtest.Error(500, ""), withUsage(7, 11))
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		told := aiguard.Usage{Input: 7, Output: 11}
		require.Equal(t, []aiguard.Usage{estimated, nothing, told}, rec.usages(aiguard.EventAttemptDone))
		require.Equal(t, []aiguard.Usage{told}, rec.usages(aiguard.EventDone))

		srv.SetDefault(aiguardtest.Drop())
		_, err = chat(t.Context(), c)
		require.Error(t, err)
		last := rec.usages(aiguard.EventDone)[1]
		require.Equal(t, aiguard.Usage{Input: 3, Output: 11, Estimated: true}, last, "with the output that is usual on the route")
	})
}

// A request of any SDK is estimated as one of the Client is, and as it was sent: with its own limit of output.
func TestRequestsOfEverySDKAreEstimatedInEvents(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent, MaxOutputTokens: 50}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Cut(20, withUsage(1, 1)))
		cut := []aiguard.Usage{{Input: 3, Output: 50, Estimated: true}}
		c = c.With(aiguard.Call{Attempts: 1})
		_, err := chat(t.Context(), c)
		require.ErrorIs(t, err, aiguard.ErrTruncated)
		require.Equal(t, cut, rec.usages(aiguard.EventDone))
		base := srv.Transport()
		defer base.CloseIdleConnections()
		_, err = c.Guard().Transport(base).RoundTrip(jsonRequest(t, srv.URL+"/chat/completions", `{"model":"m","max_tokens":4000,"messages":[{"content":"Say hello."}]}`))
		require.ErrorIs(t, err, aiguard.ErrTruncated)
		require.Equal(t, append(cut, cut...), rec.usages(aiguard.EventDone))
	})
}

// Whatever ends an attempt: events and the Budget are told the same.
func TestEventsAndBudgetAgree(t *testing.T) {
	replies := map[string]aiguardtest.Reply{
		"answer": withUsage(5, 9), "answer without usage": aiguardtest.JSON(200, `{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}`),
		"stream": aiguardtest.TextN("a long answer", 5), "error": aiguardtest.Error(500, ""), "gateway": aiguardtest.Error(504, ""),
		"hang": aiguardtest.Hang(), "dropped": aiguardtest.Drop(), "cut": aiguardtest.Cut(40, aiguardtest.TextN("a long answer", 5)),
	}
	for name, reply := range replies {
		for form, call := range map[string]func(context.Context, *aiguard.Client) (string, error){"whole": chat, "stream": streamChat} {
			t.Run(name+"/"+form, func(t *testing.T) {
				rec, l := &recorder{}, newLedger(t)
				inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent, Budget: l}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
					srv.SetDefault(reply)
					_, _ = call(t.Context(), c)
					require.Equal(t, l.used(), rec.usages(aiguard.EventAttemptDone))
					require.NotEmpty(t, l.used())
				})
			})
		}
	}
}
