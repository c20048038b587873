package aiguard_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

func TestInspectShowsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		done := make(chan struct{})
		run := func(c aiguard.Call) {
			go func() {
				_, _ = aiguard.Do(t.Context(), g.With(c), func(context.Context) (int, error) { <-done; return 0, nil })
			}()
			synctest.Wait()
		}
		go func() { _ = g.RunTask(t.Context(), func(context.Context) error { <-done; return nil }) }()
		synctest.Wait()
		run(aiguard.Call{Op: "first", Tenant: "a", Priority: aiguard.Critical})
		time.Sleep(time.Second)
		run(aiguard.Call{Op: "second", Model: "m"})
		time.Sleep(time.Second)

		in := g.Inspect()
		assert.Equal(t, []aiguard.CallStats{
			{State: aiguard.CallTask, Age: 2 * time.Second},
			{Op: "first", Tenant: "a", Priority: aiguard.Critical, State: aiguard.CallInFlight, Age: 2 * time.Second},
			{Op: "second", Model: "m", State: aiguard.CallWaiting, Age: time.Second},
		}, in.Calls)
		assert.EqualValues(t, 1, in.Stats.InFlight)
		assert.Len(t, in.Routes, 2)
		close(done)
		synctest.Wait()
		assert.Empty(t, g.Inspect().Calls)
	})
}

func TestInspectKeepsTheLastFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, MaxQueue: 1, Retry: aiguard.Retry{MaxAttempts: 1}})
		fail := func(op string) {
			_, err := aiguard.Do(t.Context(), g.With(aiguard.Call{Op: op}), func(context.Context) (int, error) {
				return 0, fmt.Errorf("secret: %w", &aiguard.Error{Kind: aiguard.ErrRejected, StatusCode: 400})
			})
			require.Error(t, err)
		}
		fail("before the first Inspect")
		assert.Empty(t, g.Inspect().Failures)
		for i := range 60 {
			fail(fmt.Sprint(i))
		}
		failures := g.Inspect().Failures
		require.Len(t, failures, 50)
		assert.Equal(t, "59", failures[0].Op)
		assert.Equal(t, "10", failures[49].Op)
		assert.Equal(t, aiguard.ErrRejected, failures[0].Kind)
		assert.Equal(t, 400, failures[0].StatusCode)
		assert.NotContains(t, fmt.Sprintf("%+v", failures), "secret")

		_, err := aiguard.Do(t.Context(), g.With(aiguard.Call{Op: "no kind"}), func(context.Context) (int, error) { return 0, errors.New("secret") })
		require.Error(t, err)
		assert.Equal(t, "no kind", g.Inspect().Failures[0].Op)
		assert.Empty(t, g.Inspect().Failures[0].Kind)

		done := make(chan struct{})
		for range 2 {
			go func() {
				_, _ = aiguard.Do(t.Context(), g, func(context.Context) (int, error) { <-done; return 0, nil })
			}()
			synctest.Wait()
		}
		_, err = aiguard.Do(t.Context(), g.With(aiguard.Call{Op: "refused"}), func(context.Context) (int, error) { return 0, nil })
		require.ErrorIs(t, err, aiguard.ErrOverloaded)
		refused := g.Inspect().Failures[0]
		assert.Equal(t, "refused", refused.Op)
		assert.Equal(t, aiguard.PhaseQueue, refused.Phase)
		assert.Zero(t, refused.Attempts)
		close(done)
		synctest.Wait()
	})
}

func TestInspectionIsBoundedWhateverNamesAre(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	g.Inspect()
	_, err := aiguard.Do(t.Context(), g.With(aiguard.Call{Op: strings.Repeat("x", 1<<20)}), func(context.Context) (int, error) {
		return 0, aiguard.ErrRejected
	})
	require.Error(t, err)
	assert.LessOrEqual(t, len(g.Inspect().Failures[0].Op), 128)
}
