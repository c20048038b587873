package aiguard_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

// A Do whose call meets a pause repeats what came before it in fn: within its own attempts and the retry budget.
func TestPauseInsideADoDoesNotRepeatItsOtherCallsWithoutLimit(t *testing.T) {
	for _, tc := range []struct {
		attempts    int
		callers     int
		cfg         aiguard.Config
		most        int // requests to the healthy model
		mostWaiting int64
	}{
		{0, 100, aiguard.Config{}, 130, 100},
		{1, 100, aiguard.Config{MaxConcurrent: 10}, 100, 100},
		{0, 5000, aiguard.Config{MaxQueue: 10}, 5000, 20},
	} {
		inVirtualTime(t, tc.cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.Handle(byModel(map[string]aiguardtest.Reply{"down": retryAfter(20)}))
			g := c.Guard().With(aiguard.Call{Attempts: tc.attempts})
			var calls sync.WaitGroup
			for range tc.callers {
				calls.Go(func() {
					_ = do(t.Context(), g, func(ctx context.Context) error {
						if err := askModel(ctx, c, "healthy"); err != nil {
							return err
						}
						return askModel(ctx, c, "down")
					})
				})
			}
			for range 50 {
				time.Sleep(500 * time.Millisecond)
				require.LessOrEqual(t, c.Guard().Stats().Waiting, tc.mostWaiting)
			}
			calls.Wait()
			healthy := 0
			for _, r := range srv.Requests() {
				if r.Model == "healthy" {
					healthy++
				}
			}
			require.LessOrEqual(t, healthy, tc.most)
		})
	}
}

// What is made with a context that does not end with its Do takes a slot of its own: it may outlive the Do.
func TestContextThatOutlivesItsDoIsNotInsideIt(t *testing.T) {
	detached := map[string]func(context.Context) (context.Context, context.CancelFunc){
		"without cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithoutCancel(ctx), func() {}
		},
		"with a longer deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(context.WithoutCancel(ctx), time.Hour)
		},
		"with a cancel of its own": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithCancel(context.WithoutCancel(ctx))
		},
	}
	for name, detach := range detached {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{MaxConcurrent: 2}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
				var calls sync.WaitGroup
				require.NoError(t, do(t.Context(), c.Guard(), func(ctx context.Context) error {
					for range 20 {
						calls.Go(func() {
							ctx, cancel := detach(ctx)
							defer cancel()
							_, err := chat(ctx, c)
							assert.NoError(t, err)
						})
					}
					return sleep(ctx, 500*time.Millisecond)
				}))
				calls.Wait()
				require.LessOrEqual(t, srv.Peak(), 2)
			})
		})
	}
}

func TestDosOfTwoGuardsInsideEachOtherDoNotBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newGuard(t, aiguard.Config{MaxConcurrent: 1}), newGuard(t, aiguard.Config{MaxConcurrent: 1})
		start := time.Now()
		require.NoError(t, do(t.Context(), one, func(ctx context.Context) error {
			return do(ctx, two, func(ctx context.Context) error {
				return do(ctx, one, func(ctx context.Context) error { return do(ctx, two, work) })
			})
		}))
		took(t, start, time.Second)
	})
}

// A call made in a callback, with the context of the call that the callback is about, is a call of its own.
func TestCallMadeInACallbackIsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if r.Stream {
				return aiguardtest.TextN("one two", 2)
			}
			return aiguardtest.Text("Hello!")
		})
		var g *aiguard.Guard
		inner := func(ctx context.Context) error { // a raw request through the same guard
			oc := openai.DefaultConfig("key")
			oc.BaseURL = srv.URL
			oc.HTTPClient = doer{g.Transport(srv.Transport())}
			_, err := openai.NewClientWithConfig(oc).CreateChatCompletion(ctx, openai.ChatCompletionRequest{Model: "inner"})
			return err
		}
		var once, made atomic.Int32
		g = newGuard(t, aiguard.Config{
			Middleware: []aiguard.Middleware{func(ctx context.Context, call aiguard.Call, next func(context.Context) error) error {
				if call.Model != "inner" && once.CompareAndSwap(0, 1) {
					if err := inner(ctx); err != nil {
						return err
					}
					made.Add(1)
				}
				return next(ctx)
			}},
			OnEvent: func(ctx context.Context, e aiguard.Event) {
				if e.Type == aiguard.EventAdmitted && e.Call.Model != "inner" && once.CompareAndSwap(1, 2) {
					assert.NoError(t, inner(ctx))
					made.Add(1)
				}
			},
		})
		oc := openai.DefaultConfig("key")
		oc.BaseURL = srv.URL
		oc.HTTPClient = doer{srv.Transport()}
		text, err := streamChat(t.Context(), g.Client(oc))
		require.NoError(t, err)
		require.Equal(t, "one two", text)
		require.EqualValues(t, 2, made.Load())
	})
}

func TestMiddlewareThatSwallowsAnErrorMakesNoSuccess(t *testing.T) {
	for name, m := range map[string]aiguard.Middleware{
		"swallows": func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
			_ = next(ctx)
			return nil
		},
		"never asks": func(context.Context, aiguard.Call, func(context.Context) error) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuard(t, aiguard.Config{Middleware: []aiguard.Middleware{m}})
			v, err := aiguard.Do(t.Context(), g, func(context.Context) (int, error) { return 0, errors.New("no") })
			require.ErrorContains(t, err, "a Middleware returned nil, but the call did not succeed")
			require.Zero(t, v)
		})
	}
}

// doer makes an HTTPDoer of a RoundTripper, which sends a request without an http.Client around it.
type doer struct{ http.RoundTripper }

func (d doer) Do(r *http.Request) (*http.Response, error) { return d.RoundTrip(r) }

func TestContextKeptByFnDoesNotReachALaterDo(t *testing.T) {
	g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
	for range 100 { // a Do may reuse the memory of an earlier one
		var asked, kept context.Context
		var call any
		require.NoError(t, do(t.Context(), g, func(ctx context.Context) error {
			asked, call = ctx, ctx.Value(callctx.Key{})
			return nil
		}))
		require.NoError(t, do(t.Context(), g, func(ctx context.Context) error { kept = ctx; return nil }))
		require.NoError(t, do(t.Context(), g, func(ctx context.Context) error {
			require.False(t, callctx.HoldsSlot(asked))
			require.False(t, callctx.HoldsSlot(kept))
			require.NotSame(t, call, ctx.Value(callctx.Key{}))
			return nil
		}))
		require.ErrorIs(t, kept.Err(), context.Canceled)
		_, limited := kept.Deadline()
		require.True(t, limited)
	}
}
