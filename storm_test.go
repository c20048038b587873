package aiguard_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

func TestLogOfAStormIsBoundedAndSaysHowMuchItLeavesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncbuf.Buffer
		g := newGuard(t, aiguard.Config{Logger: slog.New(slog.NewTextHandler(&out, nil)), MaxConcurrent: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1}})
		fail := func(model string, k aiguard.Kind) {
			_, err := aiguard.Do(t.Context(), g.With(aiguard.Call{Op: "ask", Model: model, Tenant: "acme"}), func(context.Context) (int, error) {
				return 0, &aiguard.Error{Kind: k}
			})
			require.Error(t, err)
		}
		for range 100 {
			fail("a", aiguard.ErrRejected)
		}
		fail("b", aiguard.ErrRejected)
		fail("a", aiguard.ErrInvalidResponse)
		assert.Equal(t, 5, strings.Count(out.String(), "\n"), "another model and another kind have lines of their own")
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Equal(t, 1, strings.Count(out.String(), "similar lines suppressed"))
		assert.Contains(t, out.String(), `line="aiguard: call failed" kind=rejected phase="" host="" model=a suppressed=97`)
		assert.Contains(t, out.String(), "tenant=acme")
		assert.Contains(t, out.String(), "call_id=")

		before := strings.Count(out.String(), "\n")
		fail("a", aiguard.ErrRejected)
		assert.Equal(t, before+1, strings.Count(out.String(), "\n"), "a new second")
	})
}

func TestLogOfManyModelsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncbuf.Buffer
		g := newGuard(t, aiguard.Config{Logger: slog.New(slog.NewTextHandler(&out, nil)), MaxConcurrent: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1}})
		for i := range 5000 {
			_, _ = aiguard.Do(t.Context(), g.With(aiguard.Call{Model: fmt.Sprint(i)}), func(context.Context) (int, error) {
				return 0, aiguard.ErrRejected
			})
		}
		assert.Less(t, strings.Count(out.String(), "\n"), 1010)
		time.Sleep(time.Second)
		synctest.Wait()
		assert.Contains(t, out.String(), "suppressed=3997")
	})
}
