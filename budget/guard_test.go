package budget_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/budget"
)

// inVirtualTime runs f with a guard under b and a fake provider, whose answers take tenTokens.
func inVirtualTime(t *testing.T, b *budget.Budget, f func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		srv.SetDefault(tenTokens)
		base := srv.Transport()
		defer base.CloseIdleConnections()
		g, err := aiguard.New(aiguard.Config{Budget: b, MaxConcurrent: 1000, MaxQueue: 1000})
		require.NoError(t, err)
		defer g.Close()
		oc := openai.DefaultConfig("sk-secret-key")
		oc.BaseURL, oc.HTTPClient = srv.URL, &http.Client{Transport: base}
		f(t, g.Client(oc), srv)
	})
}

var tenTokens = aiguardtest.After(time.Second, aiguardtest.JSON(200, `{"object":"chat.completion",`+
	`"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":4,"completion_tokens":6}}`))

func ask(ctx context.Context, c *aiguard.Client) error {
	_, err := c.CreateChatCompletion(ctx, openai.ChatCompletionRequest{Model: "gpt-4o", MaxTokens: 8,
		Messages: []openai.ChatCompletionMessage{{Role: "user", Content: "Hi"}}})
	return err
}

func TestExactlyWhatFitsIsSent(t *testing.T) {
	const fit = 100
	b := newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "calls", Calls: fit, Window: budget.Day}}})
	inVirtualTime(t, b, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		ctx := budget.WithRun(t.Context(), budget.Run{})
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if err := ask(ctx, c); err != nil {
					assert.ErrorIs(t, err, aiguard.ErrBudget)
				}
			})
		}
		all.Wait()
		require.Equal(t, fit, srv.Count())
		require.EqualValues(t, 10*fit, budget.Spent(ctx).Tokens, "to the token")
		require.Zero(t, budget.Spent(ctx).Estimated)
	})
}

// A call spends from the run of its context, whichever way it is made.
func TestRunBoundsCallsOfEveryKind(t *testing.T) {
	for name, calls := range map[string]func(ctx context.Context, c *aiguard.Client) error{
		"client": ask,
		"transport": func(ctx context.Context, c *aiguard.Client) error {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://provider/v1/chat/completions", strings.NewReader(`{"model":"gpt-4o","messages":[]}`))
			if err != nil {
				return err
			}
			resp, err := c.Guard().Transport(answering{}).RoundTrip(r)
			if err == nil {
				err = resp.Body.Close()
			}
			return err
		},
		"Do": func(ctx context.Context, c *aiguard.Client) error {
			_, err := aiguard.Do(ctx, c.Guard(), func(context.Context) (int, error) { return 1, nil })
			return err
		},
		"call in a Do": func(ctx context.Context, c *aiguard.Client) error {
			_, err := aiguard.Do(ctx, c.Guard(), func(ctx context.Context) (int, error) { return 1, ask(ctx, c) })
			return err
		},
		"task": func(ctx context.Context, c *aiguard.Client) error {
			return c.Guard().RunTask(ctx, func(ctx context.Context) error { return ask(ctx, c) })
		},
		"retries": func(ctx context.Context, c *aiguard.Client) error {
			return ask(ctx, c.With(aiguard.Call{Attempts: 3}))
		},
		"another guard": func(ctx context.Context, c *aiguard.Client) error {
			g, err := aiguard.New(aiguard.Config{Budget: c.Guard().Config().Budget})
			if err != nil {
				return err
			}
			defer g.Close()
			_, err = aiguard.Do(ctx, g, func(context.Context) (int, error) { return 1, nil })
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBudget(t, budget.Config{})
			inVirtualTime(t, b, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				ctx := budget.WithRun(t.Context(), budget.Run{Calls: 5})
				for range 5 {
					require.NoError(t, calls(ctx, c))
				}
				require.ErrorIs(t, calls(ctx, c), aiguard.ErrBudget)
				require.LessOrEqual(t, srv.Count(), 5)
				spent := budget.Spent(ctx)
				require.EqualValues(t, 5, spent.Calls)
				require.Zero(t, spent.ReservedCalls)
			})
		})
	}
}

type answering struct{}

func (answering) RoundTrip(r *http.Request) (*http.Response, error) {
	_ = r.Body.Close()
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
		Body: io.NopCloser(strings.NewReader(`{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}`)), ContentLength: -1}, nil
}

// Many calls of several tenants, with failures of all sorts, leave nothing reserved.
func TestNothingStaysReserved(t *testing.T) {
	b := newBudget(t, budget.Config{Limits: []budget.Limit{{Name: "tenant", Tokens: 1000, Per: budget.Tenant, Window: budget.Day}}})
	inVirtualTime(t, b, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		replies := []aiguardtest.Reply{aiguardtest.Error(500, ""), aiguardtest.Error(429, ""), aiguardtest.Drop(), aiguardtest.Hang(), tenTokens, aiguardtest.Error(400, "")}
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply { return replies[r.Number%len(replies)] })
		ctx := budget.WithRun(t.Context(), budget.Run{})
		var all sync.WaitGroup
		for i := range 500 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(i%40)*time.Second)
				defer cancel()
				_ = ask(aiguard.WithCall(ctx, aiguard.Call{Tenant: fmt.Sprint(i % 7)}), c)
			})
		}
		all.Wait()
		spent := budget.Spent(ctx)
		require.Zero(t, spent.ReservedTokens)
		require.Zero(t, spent.ReservedCalls)
		require.Positive(t, spent.Estimated)
	})
}
