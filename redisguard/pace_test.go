package redisguard_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/redisguard"
)

var _ aiguard.Budget = (*redisguard.Pace)(nil)

func newPace(t *testing.T, addr string, cfg redisguard.PaceConfig) *redisguard.Pace {
	t.Helper()
	if cfg.Key == "" {
		cfg.Key = "test"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	p, err := redisguard.NewPace(newClient(t, addr), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.NoError(t, p.Close())
	})
	return p
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestProcessesShareARequestRate(t *testing.T) {
	s := startRedis(t)
	cfg := redisguard.PaceConfig{RequestsPerMinute: 600} // 10 a second, 60 at once
	one, two := newPace(t, s.Addr, cfg), newPace(t, s.Addr, cfg)
	start := time.Now()
	var all sync.WaitGroup
	const calls = 75
	for i := range calls {
		p := one
		if i%3 == 0 {
			p = two
		}
		all.Go(func() {
			_, err := p.Reserve(t.Context(), aiguard.Call{Model: "m"}, aiguard.Usage{})
			assert.NoError(t, err)
		})
	}
	all.Wait()
	took := time.Since(start)
	assert.GreaterOrEqual(t, took, 1300*time.Millisecond, "15 calls wait for their turn")
	assert.Less(t, took, 5*time.Second)

	slow := newPace(t, s.Addr, redisguard.PaceConfig{Key: "slow", RequestsPerMinute: 6}) // one each 10 s
	_, err := slow.Reserve(t.Context(), aiguard.Call{Model: "m"}, aiguard.Usage{})
	require.NoError(t, err)
	_, err = slow.Reserve(within(t, 2*time.Second), aiguard.Call{Model: "m"}, aiguard.Usage{})
	e := aiguard.Explain(err)
	require.NotNil(t, e, "%v", err)
	require.ErrorIs(t, err, aiguard.ErrRateLimited)
	require.Positive(t, e.RetryAfter)
	_, err = slow.Reserve(within(t, 2*time.Second), aiguard.Call{Model: "another"}, aiguard.Usage{})
	require.NoError(t, err, "each model has its own pace")
}

func TestUnusedTokensComeBack(t *testing.T) {
	s := startRedis(t)
	cfg := redisguard.PaceConfig{TokensPerMinute: 10_000} // 1,000 at once
	one, two := newPace(t, s.Addr, cfg), newPace(t, s.Addr, cfg)
	most := aiguard.Usage{Input: 200, Output: 800, Estimated: true}
	start := time.Now()
	settle, err := one.Reserve(t.Context(), aiguard.Call{Model: "m"}, most)
	require.NoError(t, err)
	ctx := within(t, 20*time.Second)
	_, err = two.Reserve(within(t, 2*time.Second), aiguard.Call{Model: "m"}, most)
	require.ErrorIs(t, err, aiguard.ErrRateLimited)
	settle(aiguard.Usage{Input: 50})
	settle(aiguard.Usage{})
	eventually(t, func() bool {
		_, err := two.Reserve(within(t, 100*time.Millisecond), aiguard.Call{Model: "m"}, aiguard.Usage{Input: 900})
		return err == nil
	}, "950 of the tokens are back")
	require.Less(t, time.Since(start), 5400*time.Millisecond, "which the rate alone does not allow")
	_, err = two.Reserve(within(t, 2*time.Second), aiguard.Call{Model: "m"}, aiguard.Usage{Input: 900})
	require.ErrorIs(t, err, aiguard.ErrRateLimited, "and no more")
	require.NoError(t, ctx.Err())
}

// Processes have different settings while a service is deployed.
func TestPaceLeavesALimitThatItDoesNotHaveAsItIs(t *testing.T) {
	s := startRedis(t)
	requests := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 6}) // one each 10 s
	tokens := newPace(t, s.Addr, redisguard.PaceConfig{TokensPerMinute: 1000})
	reserve := func(p *redisguard.Pace) error {
		_, err := p.Reserve(within(t, 5*time.Second), aiguard.Call{}, aiguard.Usage{Input: 1})
		return err
	}
	require.NoError(t, reserve(tokens))
	require.NoError(t, reserve(requests), "no request was made")
	require.NoError(t, reserve(tokens))
	require.ErrorIs(t, reserve(requests), aiguard.ErrRateLimited)
}

func TestCanceledWaitGivesItsTurnBack(t *testing.T) {
	s := startRedis(t)
	p := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 6}) // one each 10 s
	_, err := p.Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = p.Reserve(ctx, aiguard.Call{}, aiguard.Usage{})
	require.ErrorIs(t, err, context.Canceled)
	eventually(t, func() bool {
		_, err := p.Reserve(within(t, time.Second), aiguard.Call{}, aiguard.Usage{})
		e := aiguard.Explain(err)
		return e != nil && e.RetryAfter < 10*time.Second
	}, "its turn is free again")
}

type refusing struct{ settled []aiguard.Usage }

func (r *refusing) Reserve(_ context.Context, call aiguard.Call, _ aiguard.Usage) (func(aiguard.Usage), error) {
	if call.Tenant == "poor" {
		return nil, errors.New("no money")
	}
	return func(u aiguard.Usage) { r.settled = append(r.settled, u) }, nil
}

func TestPaceAsksTheBudgetFirst(t *testing.T) {
	s := startRedis(t)
	inner := &refusing{}
	p := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 10, Budget: inner})
	_, err := p.Reserve(t.Context(), aiguard.Call{Tenant: "poor"}, aiguard.Usage{})
	require.ErrorContains(t, err, "no money")
	settle, err := p.Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
	require.NoError(t, err)
	settle(aiguard.Usage{Input: 3})
	require.Equal(t, []aiguard.Usage{{Input: 3}}, inner.settled)
	_, err = p.Reserve(within(t, 2*time.Second), aiguard.Call{}, aiguard.Usage{})
	require.ErrorIs(t, err, aiguard.ErrRateLimited)
	require.Equal(t, aiguard.Usage{}, inner.settled[1], "what is too late costs nothing")
}

func TestPaceWithoutRedis(t *testing.T) {
	needsTime(t)
	s := startRedis(t)
	var lg record
	share := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 1200, Logger: lg.logger(), Timeout: 300 * time.Millisecond})
	closed := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 1200, OnFailure: redisguard.FailClosed, Timeout: 300 * time.Millisecond})
	for _, p := range []*redisguard.Pace{share, closed, share} {
		_, err := p.Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
		require.NoError(t, err)
	}
	s.Kill()
	start := time.Now()
	for range 5 {
		_, err := share.Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
		require.NoError(t, err)
	}
	assert.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond, "half of 20 a second, for two processes")
	_, err := closed.Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
	require.ErrorIs(t, err, aiguard.ErrOverloaded)
	assert.Equal(t, 1, lg.count("Redis does not answer"))
	s.Restart(t)
	eventually(t, func() bool {
		_, err := closed.Reserve(t.Context(), aiguard.Call{}, aiguard.Usage{})
		return err == nil && lg.count("Redis answers again") == 1
	}, "it is back by itself")
}

func TestMistakesAreReportedByNewPace(t *testing.T) {
	c := newClient(t, "127.0.0.1:1")
	for want, cfg := range map[string]redisguard.PaceConfig{
		"neither RequestsPerMinute nor TokensPerMinute": {Key: "k"},
		"PaceConfig.RequestsPerMinute is -1":            {Key: "k", RequestsPerMinute: -1},
		"PaceConfig.TokensPerMinute is -1":              {Key: "k", TokensPerMinute: -1},
		"PaceConfig.Key":                                {RequestsPerMinute: 1},
		"PaceConfig.Timeout is 1h0m0s":                  {Key: "k", RequestsPerMinute: 1, Timeout: time.Hour},
		"PaceConfig.OnFailure is 5":                     {Key: "k", RequestsPerMinute: 1, OnFailure: 5},
	} {
		_, err := redisguard.NewPace(c, cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestGuardSendsNoRequestBeforeItsTurn(t *testing.T) {
	s, srv := startRedis(t), aiguardtest.NewServer(t)
	pace := newPace(t, s.Addr, redisguard.PaceConfig{RequestsPerMinute: 6}) // one each 10 s
	g, err := aiguard.New(aiguard.Config{Budget: pace, QueueTimeout: 5 * time.Second})
	require.NoError(t, err)
	defer func() { require.NoError(t, g.Close()) }()
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = srv.URL
	client := g.Client(oc)
	ask := func() error {
		_, err := client.CreateChatCompletion(t.Context(), openai.ChatCompletionRequest{Model: "m",
			Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: "Say hello."}}})
		return err
	}
	require.NoError(t, ask())
	start := time.Now()
	err = ask()
	require.ErrorIs(t, err, aiguard.ErrRateLimited)
	assert.Less(t, time.Since(start), 3*time.Second, "it is rejected at once")
	assert.InDelta(t, 10, aiguard.Explain(err).RetryAfter.Seconds(), 5)
	assert.Equal(t, 1, srv.Count())
}
