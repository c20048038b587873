package aiguard_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 2}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		ends := map[string]error{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		under := func(way string, call func() error) {
			wg.Go(func() {
				err := call()
				mu.Lock()
				defer mu.Unlock()
				ends[way] = err
			})
			synctest.Wait()
		}
		srv.Enqueue(aiguardtest.Error(503, "", "Retry-After", "20"), aiguardtest.HangAfter(aiguardtest.Events(hello)))
		srv.SetDefault(aiguardtest.Hang())
		hang := func() error { _, err := chat(t.Context(), c); return err }
		start := time.Now()
		under("backing off", hang)
		under("stream", func() error { _, err := streamChat(t.Context(), c); return err })
		under("in flight", hang)
		under("queued", hang)
		under("task", func() error {
			return g.RunTask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		})
		require.Empty(t, ends)
		require.EqualValues(t, 2, g.Stats().InFlight)

		require.NoError(t, g.Close())
		wg.Wait()
		took(t, start, 0)
		require.Len(t, ends, 5)
		for way, err := range ends {
			require.ErrorIs(t, err, aiguard.ErrClosed, way)
			require.NotErrorIs(t, err, context.Canceled, "%s: the caller has not left", way)
		}
		synctest.Wait()
		require.Equal(t, 2, srv.Disconnects(), "the provider is told")
		_, err := chat(t.Context(), c)
		facts(t, err, aiguard.ErrClosed)
	})
}

func TestCloseEndsThoseInLineWhoeverHoldsTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		holding, release := make(chan struct{}), make(chan struct{})
		go do(t.Context(), g, func(context.Context) error { close(holding); <-release; return nil })
		<-holding
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			g.Close()
		}()
		facts(t, do(t.Context(), g, func(context.Context) error { return nil }), aiguard.ErrClosed)
		took(t, start, time.Second)
		close(release)
		synctest.Wait()
	})
}

func TestShutdownRefusesNewCallsAndWaitsForTheOthers(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		srv.SetDefault(aiguardtest.After(10*time.Second, aiguardtest.Text("Hello!")))
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		wg.Go(func() {
			assert.NoError(t, g.RunTask(t.Context(), func(ctx context.Context) error {
				for range 3 {
					if _, err := chat(ctx, c); err != nil {
						return err
					}
				}
				return nil
			}), "a task under way may finish its calls")
		})
		synctest.Wait()
		wg.Go(func() {
			assert.NoError(t, g.Shutdown(t.Context()))
			assert.Equal(t, 30*time.Second, time.Since(start))
		})
		synctest.Wait()
		_, err := chat(t.Context(), c)
		facts(t, err, aiguard.ErrClosed)
		took(t, start, 0)
		wg.Wait()
		require.Equal(t, 4, srv.Count())
		require.NoError(t, g.Shutdown(t.Context()), "again")
	})
}

func TestShutdownCancelsTheRestWhenItsTimeIsOver(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := chat(t.Context(), c)
			assert.ErrorIs(t, err, aiguard.ErrClosed)
			assert.Equal(t, 5*time.Second, time.Since(start))
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, c.Guard().Shutdown(ctx))
		wg.Wait()
	})
}
