package cacheguard_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

// The Timeout of a caller's http.Client closes the request's Cancel channel. This must end only that caller's wait.
func TestClientTimeoutEndsOnlyItsOwnCall(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(10*time.Second, aiguardtest.Text("Hello!")))
		ask := func(timeout time.Duration) answer {
			client := &http.Client{Transport: w.cache, Timeout: timeout}
			return read(client.Do(newRequest(t.Context(), w.srv.URL+"/chat/completions", certain)))
		}
		hasty, patient := make(chan answer, 1), make(chan answer, 1)
		go func() { hasty <- ask(time.Second) }()
		synctest.Wait()
		go func() { patient <- ask(0) }()
		a := <-hasty
		require.ErrorIs(t, a.err, context.DeadlineExceeded)
		require.Empty(t, aiguard.KindOf(a.err), "the caller's own timeout")
		require.NoError(t, (<-patient).err)
		require.Equal(t, 1, w.srv.Count())
		require.Zero(t, w.guard.Stats().Retries)
	})
}

func TestClosedCancelChannelEndsTheCall(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Hang())
		cancel := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(cancel) })
		req := newRequest(t.Context(), w.srv.URL+"/chat/completions", certain)
		req.Cancel = cancel
		start := time.Now()
		_, err := w.cache.RoundTrip(req) //nolint:bodyclose // fails
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, time.Second, time.Since(start))
		synctest.Wait()
		require.Zero(t, w.guard.Stats().InFlight, "the last caller has left")
	})
}
