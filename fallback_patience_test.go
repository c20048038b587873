package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// alternative asks a model.
func alternative(c *aiguard.Client, model string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) { return model, askModel(ctx, c, model) }
}

func TestFallbackIsNotKeptWaitingByItsFirstChoice(t *testing.T) {
	for name, reply := range map[string]aiguardtest.Reply{
		"retry after 1s": retryAfter(1), "2s": retryAfter(2), "10s": retryAfter(10), "30s": retryAfter(30), "100s": retryAfter(100),
		"no retry after": aiguardtest.Error(429, "rate_limit_exceeded"),
		"down":           aiguardtest.Error(503, ""),
		"drops":          aiguardtest.Drop(),
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.Handle(byModel(map[string]aiguardtest.Reply{"a": reply}))
				var took []time.Duration
				for range 200 {
					start := time.Now()
					text, err := aiguard.Fallback(t.Context(), alternative(c, "a"), alternative(c, "b"))
					require.NoError(t, err)
					require.Equal(t, "b", text)
					took = append(took, time.Since(start))
					time.Sleep(200 * time.Millisecond)
				}
				require.LessOrEqual(t, slices.Max(took), 3*time.Second, "Retry.Patience")
				require.LessOrEqual(t, slices.Max(took[5:]), 10*time.Millisecond, "known to be of no use: %v", took)
			})
		})
	}
}

func TestAlternativeOfAnInnerFallbackIsNotTheLastOne(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(byModel(map[string]aiguardtest.Reply{"a": retryAfter(20), "b": retryAfter(20)}))
		start := time.Now()
		text, err := aiguard.Fallback(t.Context(), func(ctx context.Context) (string, error) {
			return aiguard.Fallback(ctx, alternative(c, "a"), alternative(c, "b"))
		}, alternative(c, "c"))
		require.NoError(t, err)
		require.Equal(t, "c", text)
		took(t, start, 0)
	})
}

// The last alternative, and a call without one, wait as long as they may.
func TestOnlyAnAlternativeWithAnotherBehindItHurries(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(retryAfter(10))
		start := time.Now()
		require.NoError(t, askModel(t.Context(), c, "a"))
		require.GreaterOrEqual(t, time.Since(start), 10*time.Second)
		srv.Enqueue(retryAfter(300), retryAfter(10))
		start = time.Now()
		text, err := aiguard.Fallback(t.Context(), alternative(c, "a"), alternative(c, "b"))
		require.NoError(t, err)
		require.Equal(t, "b", text)
		require.GreaterOrEqual(t, time.Since(start), 10*time.Second)
	})
}

func TestSilentProviderLeavesTheOthersTheirShareOfTheCallersTime(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(byModel(map[string]aiguardtest.Reply{"a": aiguardtest.Hang(), "b": aiguardtest.Hang()}))
		for _, tc := range []struct {
			left, after time.Duration
		}{
			{time.Second, 2 * time.Second / 3},       // a third each
			{15 * time.Second, 10 * time.Second},     // the same
			{40 * time.Second, 30 * time.Second},     // ten seconds are enough for each of the others
			{2 * time.Minute, 60 * time.Second},      // CallTimeout is shorter than any share
			{90 * time.Second, 60 * time.Second},     // the same
			{25 * time.Second, 50 * time.Second / 3}, // a third each
		} {
			ctx, cancel := context.WithTimeout(t.Context(), tc.left)
			start := time.Now()
			text, err := aiguard.Fallback(ctx, alternative(c, "a"), alternative(c, "b"), alternative(c, "c"))
			require.NoError(t, err, "%v", tc.left)
			require.Equal(t, "c", text)
			require.InDelta(t, tc.after.Seconds(), time.Since(start).Seconds(), 0.01, "%v", tc.left)
			cancel()
			time.Sleep(time.Minute)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := aiguard.Fallback(ctx, alternative(c, "a"), alternative(c, "b"))
		require.Error(t, err)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestRelayThatHasSentTextIsNotRepeated(t *testing.T) {
	cut := &aiguard.Error{Kind: aiguard.ErrTruncated}
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		for name, err := range map[string]error{
			"final": aiguard.Final(cut), "wrapped": fmt.Errorf("relay: %w", aiguard.Final(cut)), "around": aiguard.Final(fmt.Errorf("relay: %w", cut)),
		} {
			runs := 0
			relay := func(context.Context) (string, error) {
				runs++
				return "", err
			}
			_, got := aiguard.Do(t.Context(), g, relay)
			require.Equal(t, 1, runs, name)
			require.ErrorIs(t, got, aiguard.ErrTruncated)
			_, got = aiguard.Fallback(t.Context(), relay, func(context.Context) (string, error) {
				t.Error("the second alternative is asked")
				return "", nil
			})
			require.ErrorIs(t, got, aiguard.ErrTruncated)
			_, got = aiguard.Fallback(t.Context(), func(ctx context.Context) (string, error) { return aiguard.Do(ctx, g, relay) },
				func(context.Context) (string, error) { return "", errors.New("asked") })
			require.ErrorIs(t, got, aiguard.ErrTruncated, "through a Do")
			require.Equal(t, 3, runs, name)
			var e *aiguard.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, aiguard.ErrTruncated, aiguard.KindOf(err))
		}
		require.NoError(t, aiguard.Final(nil))
		_, err := aiguard.Do(t.Context(), g, func(context.Context) (string, error) { return "", cut })
		require.Equal(t, 3, facts(t, err, aiguard.ErrTruncated).Attempts, "without the mark it is")
	})
}

// A call that has an alternative and happens to be the probe of a provider that is down does not wait for it longer than
// Retry.Patience.
func TestProbeOfACallWithAnAlternativeIsShort(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(byModel(map[string]aiguardtest.Reply{"a": aiguardtest.Hang()}))
		var calls sync.WaitGroup
		for range 5 {
			calls.Go(func() { assert.ErrorIs(t, askModel(t.Context(), c, "a"), aiguard.ErrTimeout) })
		}
		calls.Wait()
		time.Sleep(time.Second)
		start := time.Now()
		text, err := aiguard.Fallback(t.Context(), alternative(c, "a"), alternative(c, "b"))
		require.NoError(t, err)
		require.Equal(t, "b", text)
		took(t, start, 3*time.Second)
	})
}
