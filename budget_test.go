package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
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
)

// ledger is a Budget that keeps what it is asked and told.
type ledger struct {
	refuse func(ctx context.Context, call aiguard.Call) error // nil: nothing is refused

	mu      sync.Mutex
	entries []*entry
}

type entry struct {
	call       aiguard.Call
	most, used aiguard.Usage
	settled    int
}

// newLedger makes a ledger. At the end of the test each of its reservations must have been settled once.
func newLedger(t testing.TB) *ledger {
	l := &ledger{}
	t.Cleanup(func() {
		for i, e := range l.all() {
			assert.Equal(t, 1, e.settled, "reservation %d of %s was settled so often", i, e.call.Op)
		}
	})
	return l
}

func (l *ledger) Reserve(ctx context.Context, call aiguard.Call, most aiguard.Usage) (func(aiguard.Usage), error) {
	if l.refuse != nil {
		if err := l.refuse(ctx, call); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &entry{call: call, most: most}
	l.entries = append(l.entries, e)
	return func(used aiguard.Usage) {
		l.mu.Lock()
		defer l.mu.Unlock()
		e.used = used
		e.settled++
	}, nil
}

func (l *ledger) all() []entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]entry, len(l.entries))
	for i, e := range l.entries {
		all[i] = *e
	}
	return all
}

func (l *ledger) used() (all []aiguard.Usage) {
	for _, e := range l.all() {
		all = append(all, e.used)
	}
	return all
}

// withUsage is a whole answer that has taken so much.
func withUsage[T int | int64](input, output T) aiguardtest.Reply {
	return aiguardtest.JSON(200, fmt.Sprintf(`{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],`+
		`"usage":{"prompt_tokens":%d,"completion_tokens":%d}}`, input, output))
}

var (
	nothing   = aiguard.Usage{}
	estimated = aiguard.Usage{Input: 3, Output: 1000, Estimated: true} // of chatRequest, whose prompt has twelve bytes
)

func TestEachAttemptIsReservedAndSettledForItself(t *testing.T) {
	l := newLedger(t)
	inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(500, ""), aiguardtest.Drop(), withUsage(7, 11))
		ctx := aiguard.WithCall(t.Context(), aiguard.Call{Tenant: "acme"})
		_, err := chat(ctx, c)
		require.NoError(t, err)
		require.Equal(t, []aiguard.Usage{nothing, estimated, {Input: 7, Output: 11}}, l.used())
		for _, e := range l.all() {
			require.Equal(t, estimated, e.most)
			require.Equal(t, "chat.completions gpt-4o-mini acme", e.call.Op+" "+e.call.Model+" "+e.call.Tenant)
		}
	})
}

func TestCallThatTheBudgetRefusesIsNotSent(t *testing.T) {
	cause := errors.New("no more money")
	for name, tc := range map[string]struct {
		err    error
		kind   aiguard.Kind
		status int
		text   string
	}{
		"any error": {cause, aiguard.ErrBudget, 403, "This request has used all that it may use, and was stopped."},
		"a window": {&aiguard.Error{Kind: aiguard.ErrBudget, RetryAfter: 10 * time.Minute, Err: cause}, aiguard.ErrBudget, 429,
			"The usage limit is reached for now. Please try again in about 10 minutes."},
		"another kind": {fmt.Errorf("store: %w", &aiguard.Error{Kind: aiguard.ErrUnavailable, Err: cause}), aiguard.ErrUnavailable, 502,
			"The AI service is temporarily unavailable. Please try again in a moment."},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			l.refuse = func(_ context.Context, call aiguard.Call) error {
				if call.Model == openai.GPT4oMini {
					return tc.err
				}
				return nil
			}
			rec := &recorder{}
			inVirtualTime(t, aiguard.Config{Budget: l, OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				start := time.Now()
				_, err := chat(t.Context(), c)
				e := facts(t, err, tc.kind)
				require.ErrorIs(t, err, cause)
				require.Zero(t, e.Attempts)
				require.False(t, e.MayBeBilled)
				require.Equal(t, "chat.completions", e.Op)
				require.NotContains(t, err.Error(), "money", "a Budget's text may say anything")
				require.Equal(t, tc.status, aiguard.HTTPStatus(err))
				require.Equal(t, tc.text, aiguard.UserMessage(err))
				require.Zero(t, srv.Count())
				require.Empty(t, l.all())
				took(t, start, 0)
				require.EqualValues(t, 1, c.Guard().Stats().Refused)
				require.Len(t, rec.all(aiguard.EventRefused), 1)

				_, err = aiguard.Fallback(t.Context(), func(ctx context.Context) (string, error) { return chat(ctx, c) },
					func(ctx context.Context) (string, error) { return "", askModel(ctx, c, "cheaper") })
				require.NoError(t, err, "a cheaper model may fit")
			})
		})
	}
}

// sayable is an error that knows what a log may say of it.
type sayable struct{ error }

func (sayable) LogText() string { return "98 of 100 tokens spent" }

func TestBudgetSaysWhatALogMaySay(t *testing.T) {
	l := newLedger(t)
	l.refuse = func(context.Context, aiguard.Call) error { return sayable{errors.New("secret")} }
	inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) {
		_, err := chat(t.Context(), c)
		require.EqualError(t, err, "aiguard: chat.completions gpt-4o-mini: budget_exceeded, host "+facts(t, err, aiguard.ErrBudget).Host+
			": 98 of 100 tokens spent")
	})
}

func TestBudgetIsNotWaitedForWithoutEnd(t *testing.T) {
	l := newLedger(t)
	l.refuse = func(ctx context.Context, _ aiguard.Call) error {
		<-ctx.Done()
		return ctx.Err()
	}
	inVirtualTime(t, aiguard.Config{Budget: l, QueueTimeout: 3 * time.Second}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		start := time.Now()
		_, err := chat(t.Context(), c)
		e := facts(t, err, aiguard.ErrOverloaded)
		require.Equal(t, aiguard.PhaseBudget, e.Phase)
		require.Contains(t, err.Error(), "no decision of the budget within 3s")
		took(t, start, 3*time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = chat(ctx, c)
		require.Equal(t, context.DeadlineExceeded, err, "the caller's own end")

		time.AfterFunc(time.Second, func() { c.Guard().Close() })
		_, err = chat(t.Context(), c)
		facts(t, err, aiguard.ErrClosed)
		require.Zero(t, srv.Count())
	})
}

func TestWhatIsNotSentUsesNothing(t *testing.T) {
	l := newLedger(t)
	cfg := aiguard.Config{Budget: l, MaxConcurrent: 1, MaxQueue: 2, QueueTimeout: 5 * time.Second}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(20*time.Second, withUsage(1, 1)))
		var calls sync.WaitGroup
		calls.Go(func() { _, _ = chat(t.Context(), c) })
		synctest.Wait()
		calls.Go(func() { // waits too long
			_, err := chat(t.Context(), c)
			assert.ErrorIs(t, err, aiguard.ErrOverloaded)
		})
		synctest.Wait()
		calls.Go(func() { // leaves
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := chat(ctx, c)
			assert.Equal(t, context.DeadlineExceeded, err)
		})
		calls.Wait()
		require.Equal(t, []aiguard.Usage{{Input: 1, Output: 1}, nothing, nothing}, l.used())
		srv.Close()
		synctest.Wait() // the pool has seen that its connections are closed: none carries the next request
		_, err := chat(t.Context(), c)
		e := facts(t, err, aiguard.ErrUnavailable)
		require.False(t, e.MayBeBilled)
		for _, used := range l.used()[3:] {
			require.Equal(t, nothing, used)
		}
	})
}

type end struct {
	reply aiguardtest.Reply
	cfg   aiguard.Config
	end   func(t *testing.T, c *aiguard.Client) error
	kind  aiguard.Kind // no kind: the caller's own end, or none
}

// ends are the ends of an attempt after its request has been sent, without an answer that tells its usage.
var ends = map[string]end{
	"timed out": {reply: aiguardtest.Hang(), kind: aiguard.ErrTimeout, end: func(t *testing.T, c *aiguard.Client) error {
		_, err := chat(t.Context(), c)
		return err
	}},
	"cut": {reply: aiguardtest.Cut(20, withUsage(1, 1)), cfg: aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, kind: aiguard.ErrTruncated,
		end: func(t *testing.T, c *aiguard.Client) error {
			_, err := chat(t.Context(), c)
			return err
		}},
	"left by its caller": {reply: aiguardtest.Hang(), end: func(t *testing.T, c *aiguard.Client) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := chat(ctx, c)
		return err
	}},
	"closed guard": {reply: aiguardtest.Hang(), kind: aiguard.ErrClosed, end: func(t *testing.T, c *aiguard.Client) error {
		time.AfterFunc(time.Second, func() { c.Guard().Close() })
		_, err := chat(t.Context(), c)
		return err
	}},
	"stream left by its reader": {reply: aiguardtest.TextN("a long answer", 5), end: func(t *testing.T, c *aiguard.Client) error {
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		return s.Close()
	}},
	"stream that falls silent": {reply: aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"delta":{"content":"Hi"}}]}`)), kind: aiguard.ErrTimeout,
		end: func(t *testing.T, c *aiguard.Client) error {
			_, err := streamChat(t.Context(), c)
			return err
		}},
	"abandoned stream": {reply: aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"delta":{"content":"Hi"}}]}`)), end: func(t *testing.T, c *aiguard.Client) error {
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		time.Sleep(aiguard.DefaultStreamTimeout + time.Second)
		return s.Close()
	}},
}

func TestWhatMayBeBilledIsEstimated(t *testing.T) {
	for name, tc := range ends {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			cfg := tc.cfg
			cfg.Budget = l
			inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				err := tc.end(t, c)
				synctest.Wait()
				require.Equal(t, []aiguard.Usage{estimated}, l.used())
				if tc.kind != "" {
					require.True(t, facts(t, err, tc.kind).MayBeBilled)
				}
			})
		})
	}
}

// partial is the start of a stream that tells a part of its usage.
const partial = "event: message_start\n" +
	`data: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"usage":{"input_tokens":25,"output_tokens":1}}}` + "\n\n" +
	"event: content_block_delta\n" + `data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}` + "\n\n"

func TestWhatACutStreamHasToldIsKept(t *testing.T) {
	l := newLedger(t)
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		g := newGuard(t, aiguard.Config{Budget: l})
		srv.SetDefault(aiguardtest.Bytes(partial))
		base := srv.Transport()
		defer base.CloseIdleConnections()
		resp, err := g.Transport(base).RoundTrip(jsonRequest(t, srv.URL+"/messages", `{"model":"claude","max_tokens":300,"stream":true,"messages":[]}`))
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.True(t, facts(t, err, aiguard.ErrTruncated).MayBeBilled)
		require.Equal(t, []aiguard.Usage{{Input: 25, Output: 300, Estimated: true}}, l.used())
	})
}

func jsonRequest(t *testing.T, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	return r
}

func TestCompleteStreamWithoutUsageIsEstimatedByItsLength(t *testing.T) {
	for text, want := range map[string]int64{
		strings.Repeat("a", 4000): 1000, // bytes/4
		strings.Repeat("a", 100):  100,  // an event is a token at least
	} {
		l := newLedger(t)
		inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.SetDefault(aiguardtest.TextN(text, 100))
			_, err := streamChat(t.Context(), c)
			require.NoError(t, err)
			used := l.used()[0]
			require.True(t, used.Estimated)
			require.InDelta(t, want, used.Output, 3, "and the events around the text")
		})
	}
}

// Usage may be any number. It neither overflows a sum, nor does it close the route for longer than a minute.
func TestAbsurdUsageIsBounded(t *testing.T) {
	for _, n := range []int64{math.MinInt, -1, math.MaxInt >> 13, math.MaxInt} { // go-openai reads an int
		l := newLedger(t)
		rec := &recorder{}
		inVirtualTime(t, aiguard.Config{Budget: l, OnEvent: rec.OnEvent, TokensPerMinute: 100_000}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
			srv.Enqueue(withUsage(n, n))
			_, err := chat(t.Context(), c)
			require.NoError(t, err)
			time.Sleep(time.Minute)
			_, err = chat(t.Context(), c)
			require.NoError(t, err)
		})
		for _, u := range append(l.used(), rec.all(aiguard.EventDone)[0].Usage) {
			for _, tokens := range []int64{u.Input, u.Output, u.Input + u.Output} {
				require.GreaterOrEqual(t, tokens, int64(0))
				require.LessOrEqual(t, tokens, int64(2e12))
			}
		}
	}
}

func TestStreamThatTellsItsUsageIsSettledWithIt(t *testing.T) {
	l := newLedger(t)
	inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.TextN("Hello!", 3))
		r := chatRequest
		r.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
		s, err := c.CreateChatCompletionStream(t.Context(), r)
		require.NoError(t, err)
		defer s.Close()
		_, err = recvAll(s)
		require.Equal(t, io.EOF, err)
		used := l.used()[0]
		require.False(t, used.Estimated)
		require.EqualValues(t, 2, used.Output)
	})
}

// unwinding is a base that ends the goroutine of its call.
type unwinding func()

func (p unwinding) RoundTrip(*http.Request) (*http.Response, error) {
	p()
	return nil, nil
}

func TestPanicAndGoexitSettle(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("the base's") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			g := newGuard(t, aiguard.Config{Budget: l})
			ended := make(chan struct{})
			for _, call := range []func(){
				func() {
					_, _ = g.Transport(unwinding(end)).RoundTrip(jsonRequest(t, "http://provider/v1/chat/completions", `{"model":"m","messages":[{"content":"Hi"}]}`))
				},
				func() { _ = do(t.Context(), g, func(context.Context) error { end(); return nil }) },
			} {
				go func() {
					defer func() { ended <- struct{}{} }()
					defer func() { _ = recover() }()
					call()
				}()
				<-ended
			}
			require.Equal(t, []aiguard.Usage{{Input: 1, Output: 1000, Estimated: true}, {Estimated: true}}, l.used())
		})
	}
}

func TestPanicInABudgetLosesNothing(t *testing.T) {
	l := newLedger(t)
	l.refuse = func(context.Context, aiguard.Call) error { panic("the budget's") }
	g := newGuard(t, aiguard.Config{Budget: l})
	require.PanicsWithValue(t, "the budget's", func() { _ = do(t.Context(), g, func(context.Context) error { return nil }) })
	require.EqualValues(t, 1, g.Stats().Failed)
}

// breaks is a Budget whose settle panics.
type breaks struct{}

func (breaks) Reserve(context.Context, aiguard.Call, aiguard.Usage) (func(aiguard.Usage), error) {
	return func(aiguard.Usage) { panic("the budget's") }, nil
}

func TestPanicAtTheEndOfAStreamLetsItsCallerCloseIt(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Budget: breaks{}}, func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) {
		require.PanicsWithValue(t, "the budget's", func() { _, _ = streamChat(t.Context(), c) }) // it closes the stream in a defer
	})
}

func TestBothAttemptsOfAHedgeAreSettled(t *testing.T) {
	l := newLedger(t)
	cfg := hedging
	cfg.Budget = l
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		l.mu.Lock()
		l.entries = nil
		l.mu.Unlock()
		srv.Enqueue(aiguardtest.Hang(), answersIn(100*time.Millisecond, "hedge"))
		_, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		synctest.Wait()
		all := l.all()
		require.Len(t, all, 2)
		require.True(t, all[0].used.Estimated, "the loser was sent")
		require.Equal(t, all[0].most.Output, all[0].used.Output)
		if ask.name == "whole" {
			require.False(t, all[1].used.Estimated, "the winner has told its usage")
		}
		require.Positive(t, all[1].used.Output)
	})
}

func TestHedgeThatTheBudgetRefusesIsNotSent(t *testing.T) {
	l := newLedger(t)
	var refusing atomic.Bool
	asked := 0
	l.refuse = func(context.Context, aiguard.Call) error {
		if asked++; refusing.Load() && asked > 1 {
			return errors.New("the second attempt does not fit")
		}
		return nil
	}
	cfg := hedging
	cfg.Budget = l
	inHedging(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server, ask form) {
		refusing.Store(true)
		defer refusing.Store(false)
		asked = 0
		srv.Enqueue(answersIn(3*hedgeUsual, "late"))
		text, err := ask.text(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "late", text)
		require.Equal(t, 1, srv.Count())
		require.Equal(t, 2, asked)
	})
}

// A limit of one call must suffice for a Do and the one call that it makes.
func TestDoHandsItsReservationToTheCallsInside(t *testing.T) {
	l := newLedger(t)
	open := func() (n int) {
		for _, e := range l.all() {
			n += 1 - e.settled
		}
		return n
	}
	l.refuse = func(context.Context, aiguard.Call) error {
		if open() > 0 {
			return errors.New("one at a time")
		}
		return nil
	}
	inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(503, ""))
		srv.SetDefault(withUsage(3, 4))
		require.NoError(t, do(t.Context(), c.Guard(), func(ctx context.Context) error {
			for range 2 {
				if _, err := chat(ctx, c); err != nil {
					return err
				}
			}
			return nil
		}))
		four := aiguard.Usage{Input: 3, Output: 4}
		require.Equal(t, []aiguard.Usage{nothing, nothing, nothing, four, four}, l.used(), "Do and the 503; Do again, and two answers")
	})
}

func TestDoCountsWhatItsErrorSaysWasDone(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		used aiguard.Usage
	}{
		"answered":             {nil, aiguard.Usage{Estimated: true}},
		"refused":              {&openai.APIError{HTTPStatusCode: 400}, nothing},
		"not sent":             {&aiguard.Error{Kind: aiguard.ErrPromptTooLarge}, nothing},
		"cut":                  {io.ErrUnexpectedEOF, aiguard.Usage{Estimated: true}},
		"gateway timed out":    {&openai.APIError{HTTPStatusCode: 504}, aiguard.Usage{Estimated: true}},
		"anything of the user": {errors.New("not saved"), aiguard.Usage{Estimated: true}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			g := newGuard(t, aiguard.Config{Budget: l, Retry: aiguard.Retry{MaxAttempts: 1}})
			err := do(t.Context(), g, func(context.Context) error { return tc.err })
			require.Equal(t, []aiguard.Usage{tc.used}, l.used())
			var e *aiguard.Error
			if errors.As(err, &e) {
				require.Equal(t, tc.used.Estimated, e.MayBeBilled)
			}
		})
	}
}

func TestFailureOfACallTellsWhetherAnyAttemptMayBeBilled(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Drop(), aiguardtest.Error(500, ""), aiguardtest.Error(400, ""))
		_, err := chat(t.Context(), c)
		require.True(t, facts(t, err, aiguard.ErrRejected).MayBeBilled)
		srv.Enqueue(aiguardtest.Error(500, ""), aiguardtest.Error(500, ""), aiguardtest.Error(400, ""))
		_, err = chat(t.Context(), c)
		require.False(t, facts(t, err, aiguard.ErrRejected).MayBeBilled)
	})
}

func TestRetryUnbilledRepeatsOnlyWhatCannotBeBilled(t *testing.T) {
	cfg := aiguard.Config{Retry: aiguard.Retry{Unbilled: true, Timeouts: true}}
	for name, tc := range map[string]struct {
		reply aiguardtest.Reply
		sent  int
	}{
		"cut":       {aiguardtest.Drop(), 1},
		"truncated": {aiguardtest.Cut(20, withUsage(1, 1)), 1},
		"timed out": {aiguardtest.Hang(), 1},
		"504":       {aiguardtest.Error(504, ""), 1},
		"500":       {aiguardtest.Error(500, ""), 3},
		"429":       {aiguardtest.Error(429, ""), 3},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				_, err := chat(t.Context(), c)
				require.Error(t, err)
				require.Equal(t, tc.sent, srv.Count())
			})
		})
	}
}

func TestMostIsEstimatedFromTheRequest(t *testing.T) {
	for name, tc := range map[string]struct {
		path, body string
		cfg        aiguard.Config
		most       aiguard.Usage
	}{
		"prompt and limit":        {"/v1/chat/completions", `{"model":"m","max_tokens":50,"messages":[{"role":"user","content":"eight by"}]}`, aiguard.Config{}, aiguard.Usage{Input: 2, Output: 50}},
		"no limit":                {"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"eight by"}]}`, aiguard.Config{}, aiguard.Usage{Input: 2, Output: 1000}},
		"limit of the guard":      {"/v1/chat/completions", `{"model":"m","max_tokens":50,"messages":[]}`, aiguard.Config{MaxOutputTokens: 20}, aiguard.Usage{Output: 20}},
		"only that of the guard":  {"/v1/chat/completions", `{"model":"m","messages":[]}`, aiguard.Config{MaxOutputTokens: 20}, aiguard.Usage{Output: 20}},
		"below the guard's":       {"/v1/chat/completions", `{"model":"m","max_tokens":5,"messages":[]}`, aiguard.Config{MaxOutputTokens: 20}, aiguard.Usage{Output: 5}},
		"choices":                 {"/v1/chat/completions", `{"n":3,"model":"m","max_tokens":50,"messages":[]}`, aiguard.Config{}, aiguard.Usage{Output: 150}},
		"choices without a limit": {"/v1/chat/completions", `{"n":3,"model":"m","messages":[]}`, aiguard.Config{}, aiguard.Usage{Output: 3000}},
		"an absurd number of choices": {"/v1/chat/completions", `{"n":99999999999999999,"model":"m","max_tokens":50,"messages":[]}`, aiguard.Config{},
			aiguard.Usage{Output: 50_000}},
		"an absurd limit":          {"/v1/chat/completions", `{"n":1000,"model":"m","max_tokens":9223372036854775807,"messages":[]}`, aiguard.Config{}, aiguard.Usage{Output: 1_000_000_000_000}},
		"best of completions":      {"/v1/completions", `{"best_of":4,"n":2,"model":"m","max_tokens":10,"prompt":"eight by"}`, aiguard.Config{}, aiguard.Usage{Input: 2, Output: 40}},
		"tokens":                   {"/v1/completions", `{"model":"m","max_tokens":10,"prompt":[1,2,3]}`, aiguard.Config{}, aiguard.Usage{Input: 3, Output: 10}},
		"embeddings":               {"/v1/embeddings", `{"model":"m","input":["four","four"]}`, aiguard.Config{}, aiguard.Usage{Input: 3}},
		"Anthropic":                {"/v1/messages", `{"model":"m","max_tokens":70,"messages":[{"role":"user","content":"eight by"}]}`, aiguard.Config{}, aiguard.Usage{Input: 2, Output: 70}},
		"Gemini":                   {"/v1beta/models/g:generateContent", `{"contents":[{"parts":[{"text":"eight by"}]}],"generationConfig":{"candidateCount":2,"maxOutputTokens":9}}`, aiguard.Config{}, aiguard.Usage{Input: 2, Output: 18}},
		"Ollama":                   {"/api/chat", `{"model":"m","options":{"num_predict":30},"messages":[{"content":"eight by"}]}`, aiguard.Config{}, aiguard.Usage{Input: 2, Output: 30}},
		"a picture is no text":     {"/v1/chat/completions", `{"model":"m","max_tokens":50,"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAAAAAAAAAAAAAAAAAA"}}]}]}`, aiguard.Config{}, aiguard.Usage{Output: 50}},
		"a body that is not read":  {"/v1/chat/completions", strings.Repeat("x", 40), aiguard.Config{MaxRequestBytes: 1000}, aiguard.Usage{Input: 10, Output: 1000}},
		"unknown, without a model": {"/v1/files", `{"purpose":"x"}`, aiguard.Config{}, aiguard.Usage{}},
		"unknown, with a model":    {"/v1/fine_tuning/jobs", `{"model":"m","x":"yyyyyyyyyy"}`, aiguard.Config{}, aiguard.Usage{Input: 7, Output: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			tc.cfg.Budget = l
			g := newGuard(t, tc.cfg)
			r := jsonRequest(t, "http://provider"+tc.path, tc.body)
			if name == "a body that is not read" {
				r.Header.Set("Content-Encoding", "zstd")
			}
			resp, err := g.Transport(refusal400{}).RoundTrip(r)
			require.NoError(t, err)
			resp.Body.Close()
			tc.most.Estimated = true
			require.Equal(t, tc.most, l.all()[0].most)
		})
	}
}

// refusal400 is a base that refuses all.
type refusal400 struct{}

func (refusal400) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		r.Body.Close()
	}
	return &http.Response{StatusCode: 400, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
}

// Client tells the transport of its requests; for a budget they are read all the same.
func TestMostOfClientIsThatOfItsRequest(t *testing.T) {
	l := newLedger(t)
	inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, _ *aiguardtest.Server) {
		r := chatRequest
		r.MaxCompletionTokens, r.N = 40, 2
		_, err := c.CreateChatCompletion(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, aiguard.Usage{Input: 3, Output: 80, Estimated: true}, l.all()[0].most)
	})
}

func TestOutputIsEstimatedFromTheRoutesAnswers(t *testing.T) {
	l := newLedger(t)
	inVirtualTime(t, aiguard.Config{Budget: l}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for i := range 100 {
			srv.Enqueue(withUsage(1, 10*(i+1)))
		}
		for range 100 {
			_, err := chat(t.Context(), c)
			require.NoError(t, err)
		}
		all := l.all()
		require.EqualValues(t, 1000, all[0].most.Output)
		require.EqualValues(t, 10, all[1].most.Output)
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		require.EqualValues(t, 950, l.all()[100].most.Output, "the 95th percentile")
		require.NoError(t, askModel(t.Context(), c, "another"))
		require.EqualValues(t, 1000, l.all()[101].most.Output, "of which nothing is known")
	})
}

// What is settled is what the provider has billed, to the token, whatever happens; what nobody knows is marked.
func TestSumOfWhatIsSettledIsWhatWasBilled(t *testing.T) {
	l := newLedger(t)
	cfg := aiguard.Config{Budget: l, MaxConcurrent: 20, MaxQueue: 1000, Retry: aiguard.Retry{Timeouts: true, Budget: aiguard.Off}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		random := rand.New(rand.NewPCG(7, 7))
		var mu sync.Mutex
		var billed aiguard.Usage
		var told, unknown int
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			mu.Lock()
			defer mu.Unlock()
			input, output := random.IntN(1000), 1+random.IntN(1000)
			switch random.IntN(6) {
			case 0:
				return aiguardtest.Error(500, "")
			case 1:
				unknown++
				return aiguardtest.Drop()
			case 2:
				unknown++
				return aiguardtest.Cut(10, withUsage(input, output))
			case 3:
				unknown++
				return aiguardtest.Hang()
			}
			billed.Input += int64(input)
			billed.Output += int64(output)
			told++
			return aiguardtest.After(time.Duration(random.IntN(1000))*time.Millisecond, withUsage(input, output))
		})
		var calls sync.WaitGroup
		for range 300 {
			calls.Go(func() { _, _ = chat(t.Context(), c) })
		}
		calls.Wait()
		synctest.Wait()
		var settled aiguard.Usage
		var exact, marked int
		for _, used := range l.used() {
			switch {
			case used.Estimated:
				marked++
			case used != nothing:
				exact++
				settled.Input += used.Input
				settled.Output += used.Output
			}
		}
		require.Equal(t, billed, settled)
		require.Equal(t, told, exact)
		require.Equal(t, unknown, marked)
		require.Positive(t, marked)
	})
}
