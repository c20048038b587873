package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

// tries records which alternatives were asked, in order.
type tries struct{ asked []string }

func (r *tries) fails(name string, err error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		r.asked = append(r.asked, name)
		return "half of " + name, err
	}
}

func (r *tries) answers(name string) func(context.Context) (string, error) { return r.fails(name, nil) }

func TestFallbackGoesOnOnlyWhereAnotherModelCouldHelp(t *testing.T) {
	curable := map[aiguard.Kind]bool{
		aiguard.ErrTimeout: true, aiguard.ErrOverloaded: true, aiguard.ErrRateLimited: true, aiguard.ErrQuota: true, aiguard.ErrBudget: true,
		aiguard.ErrUnavailable: true, aiguard.ErrTruncated: true, aiguard.ErrInvalidResponse: true,
		aiguard.ErrPromptTooLarge: true, aiguard.ErrResponseTooLarge: true,
		aiguard.ErrRejected: false, aiguard.ErrUnauthorized: false, aiguard.ErrMisconfigured: true, aiguard.ErrClosed: false,
	}
	require.Len(t, curable, len(kindTable), "every kind is decided on")
	for kind, goesOn := range curable {
		for form, err := range map[string]error{
			"kind": kind, "error": &aiguard.Error{Kind: kind}, "wrapped": fmt.Errorf("service: %w", &aiguard.Error{Kind: kind}),
		} {
			t.Run(string(kind)+"/"+form, func(t *testing.T) {
				var r tries
				got, gotErr := aiguard.Fallback(t.Context(), r.fails("first", err), r.answers("second"))
				if goesOn {
					require.NoError(t, gotErr)
					assert.Equal(t, "half of second", got)
					assert.Equal(t, []string{"first", "second"}, r.asked)
					return
				}
				assert.Equal(t, err, gotErr, "a single failure is returned as it is")
				assert.Empty(t, got)
				assert.Equal(t, []string{"first"}, r.asked)
			})
		}
	}
}

func TestFallbackUnderstandsErrorsOfUnguardedAlternatives(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		goesOn bool
	}{
		"provider's 503":    {&openai.APIError{HTTPStatusCode: 503}, true},
		"provider's 401":    {&openai.APIError{HTTPStatusCode: 401}, false},
		"its own deadline":  {fmt.Errorf("small model: %w", context.DeadlineExceeded), true}, // ours is still open
		"a bug":             {errors.New("index out of range"), false},
		"it cancelled it":   {context.Canceled, false},
		"provider's filter": {&openai.APIError{HTTPStatusCode: 400, Code: "content_filter"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var r tries
			_, err := aiguard.Fallback(t.Context(), r.fails("first", c.err), r.answers("second"))
			assert.Equal(t, c.goesOn, err == nil, "%v", err)
			if !c.goesOn {
				assert.Equal(t, c.err, err)
			}
		})
	}
}

func TestFallbackStopsAtTheFirstSuccess(t *testing.T) {
	var r tries
	got, err := aiguard.Fallback(t.Context(), r.fails("a", aiguard.ErrTimeout), r.answers("b"), r.answers("c"))
	require.NoError(t, err)
	assert.Equal(t, "half of b", got)
	assert.Equal(t, []string{"a", "b"}, r.asked)
}

func TestFallbackJoinsEveryFailureAndSpeaksOfTheLast(t *testing.T) {
	provider := &openai.APIError{HTTPStatusCode: 503}
	for name, last := range map[string]struct {
		err    error
		kind   aiguard.Kind
		status int
	}{
		"an Error":        {&aiguard.Error{Kind: aiguard.ErrQuota}, aiguard.ErrQuota, 503},
		"a wrapped Error": {fmt.Errorf("x: %w", &aiguard.Error{Kind: aiguard.ErrRejected}), aiguard.ErrRejected, 400},
		"a Kind":          {aiguard.ErrUnauthorized, aiguard.ErrUnauthorized, 502},
		"a provider's":    {&openai.APIError{HTTPStatusCode: 401}, aiguard.ErrUnauthorized, 502},
		"unknown":         {errors.New("a bug"), aiguard.ErrTruncated, 502}, // the latest that is known
	} {
		t.Run(name, func(t *testing.T) {
			var r tries
			first := &aiguard.Error{Kind: aiguard.ErrRateLimited, Err: provider}
			second := fmt.Errorf("x: %w", &aiguard.Error{Kind: aiguard.ErrTruncated})
			got, err := aiguard.Fallback(t.Context(), r.fails("a", first), r.fails("b", second), r.fails("c", last.err))
			assert.Empty(t, got, "no half of an answer")
			for _, e := range []error{first, second, last.err, aiguard.ErrRateLimited, aiguard.ErrTruncated, provider} {
				assert.ErrorIs(t, err, e)
			}
			assert.Equal(t, []string{"a", "b", "c"}, r.asked)
			assert.Equal(t, last.kind, aiguard.KindOf(err))
			assert.Equal(t, last.status, aiguard.HTTPStatus(err))
			assert.Equal(t, aiguard.UserMessage(last.kind), aiguard.UserMessage(err))
		})
	}
}

func TestFallbackReturnsTheCallersEndUnchanged(t *testing.T) {
	gone := errors.New("user closed the tab")
	ctx, cancel := context.WithCancelCause(t.Context())
	g := newGuard(t, aiguard.Config{})
	var r tries
	var own error
	_, err := aiguard.Fallback(ctx,
		r.fails("a", aiguard.ErrTimeout),
		func(ctx context.Context) (string, error) {
			return aiguard.Do(ctx, g, func(ctx context.Context) (string, error) {
				cancel(gone)
				own = fmt.Errorf("asking: %w", ctx.Err())
				return "", own
			})
		},
		r.answers("c"))
	assert.Equal(t, own, err)
	assert.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, aiguard.KindOf(err), "no failure of ours")
	assert.Equal(t, 499, aiguard.HTTPStatus(err))
	assert.Equal(t, []string{"a"}, r.asked, "nobody is left to answer to")
}

func TestFallbackGoesNoFurtherOnceTheCallerIsGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var r tries
	_, err := aiguard.Fallback(ctx,
		func(context.Context) (string, error) {
			cancel()
			return "", &aiguard.Error{Kind: aiguard.ErrUnavailable}
		},
		r.answers("b"))
	assert.ErrorIs(t, err, aiguard.ErrUnavailable)
	assert.Empty(t, r.asked)
}

func TestFallbackKeepsAnAnswerThatCameAsTheCallerLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	got, err := aiguard.Fallback(ctx, func(context.Context) (int, error) {
		cancel()
		return 42, nil
	})
	require.NoError(t, err)
	assert.Equal(t, 42, got)
}

func TestAlternativeWhoseShareIsOverIsNotTheCallersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err := aiguard.Fallback(ctx, func(ctx context.Context) (string, error) {
			<-ctx.Done()
			return "", ctx.Err() // as a function without a guard returns it
		}, func(context.Context) (string, error) { return "", errors.New("broken") })
		took(t, start, 50*time.Second) // ten are left for the other
		e := facts(t, err, aiguard.ErrTimeout)
		require.Equal(t, aiguard.PhaseShare, e.Phase)
		require.Equal(t, 50*time.Second, e.Limit)
	})
}
