package httpguard_test

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

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

// events writes n events with a pause before each, until its context ends.
func events(n int, pause time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range n {
			_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(pause):
			case <-r.Context().Done():
				_, _ = fmt.Fprintf(w, "event: error\ndata: %s\n\n", context.Cause(r.Context())) // without Flush
				return
			}
		}
	}
}

func TestStreamInProgressIsNotCut(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		s := serve(limited(t, newGuard(t, aiguard.Config{}), events(20, 10*time.Second), httpguard.Config{}))
		r := s.get(t)
		require.NoError(t, r.err)
		require.Equal(t, 200*time.Second, r.took)
		require.Contains(t, r.body, "data: 19\n\n")
		require.NotContains(t, r.body, "error")
	})
}

func TestCutStreamSendsTheLastEvent(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg    httpguard.Config
		header string
		stream http.HandlerFunc
		took   time.Duration
		last   string
		limit  string // reported as the limit
	}{
		"no progress": {httpguard.Config{Timeout: 10 * time.Second}, "", events(5, time.Minute), 10 * time.Second, "data: 0", "10s"},
		"progress stops": {httpguard.Config{Timeout: 10 * time.Second}, "", func(w http.ResponseWriter, r *http.Request) {
			events(3, 9*time.Second)(w, r)
			events(1, time.Minute)(w, r)
		}, 37 * time.Second, "data: 0", "10s"},
		"at StreamTimeout":                            {httpguard.Config{StreamTimeout: 35 * time.Second, Timeout: 10 * time.Second}, "", events(100, 2*time.Second), 35 * time.Second, "data: 17", "35s"},
		"guard's StreamTimeout":                       {httpguard.Config{}, "", events(1000, 7*time.Second), time.Minute, "data: 8", "1m0s"},
		"client's timeout":                            {httpguard.Config{}, "20", events(100, 3*time.Second), 20 * time.Second, "data: 6", "20s"},
		"StreamTimeout is never shorter than Timeout": {httpguard.Config{Timeout: 10 * time.Second, StreamTimeout: 10 * time.Second}, "", events(100, 3*time.Second), 10 * time.Second, "data: 3", "10s"},
	} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
				s := serve(limited(t, newGuard(t, aiguard.Config{StreamTimeout: time.Minute}), tc.stream, tc.cfg))
				start := time.Now()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://site/", nil)
				require.NoError(t, err)
				req.Header.Set(httpguard.TimeoutHeader, tc.header)
				resp, err := s.client.Do(req)
				require.NoError(t, err)
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				require.Error(t, err, "the stream does not look complete")
				require.Equal(t, tc.took, time.Since(start))
				require.Contains(t, string(body), tc.last+"\n\nevent: error\ndata: aiguard: timeout: task ran longer than "+tc.limit)
			})
		})
	}
}

func TestStreamTimeoutOffLimitsOnlyIdleStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		edge := limited(t, newGuard(t, aiguard.Config{StreamTimeout: time.Minute}), events(3000, 2*time.Second),
			httpguard.Config{StreamTimeout: aiguard.Off})
		r := serve(t, edge, false).get(t)
		require.NoError(t, r.err)
		require.Equal(t, 6000*time.Second, r.took)
	})
}

// Contexts derived from the handler's context report the time limit as their cause, never a cancellation.
func TestDerivedContextsEndAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			within, cancel := context.WithCancel(context.WithValue(r.Context(), http.LocalAddrContextKey, nil))
			defer cancel()
			longer, cancel := context.WithTimeout(r.Context(), time.Hour)
			defer cancel()
			ended := make(chan struct{})
			defer context.AfterFunc(r.Context(), func() { close(ended) })()
			time.Sleep(10 * time.Second)
			assert.NoError(t, http.NewResponseController(w).Flush())
			deadline, ok := within.Deadline()
			assert.True(t, ok)
			assert.Equal(t, httpguard.DefaultTimeout, time.Until(deadline), "the deadline has moved")
			<-within.Done()
			<-longer.Done()
			<-ended
			for _, ctx := range []context.Context{r.Context(), within, longer} {
				assert.Equal(t, context.DeadlineExceeded, ctx.Err())
				assert.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(context.Cause(ctx)))
			}
		})
		r := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}), false).get(t)
		require.Error(t, r.err)
		require.Equal(t, 10*time.Second+httpguard.DefaultTimeout, r.took)
	})
}

func TestTimeoutHeaderOnlyShortensTheLimit(t *testing.T) {
	for header, took := range map[string]time.Duration{
		"20": 20 * time.Second, "1.5": 1500 * time.Millisecond, "1500ms": 1500 * time.Millisecond, "2s": 2 * time.Second, "1m": 30 * time.Second,
		"": 30 * time.Second, "30": 30 * time.Second, "31": 30 * time.Second, "1e9": 30 * time.Second, "1e300": 30 * time.Second,
		"0": 30 * time.Second, "-1": 30 * time.Second, "-1s": 30 * time.Second, "NaN": 30 * time.Second, "Inf": 30 * time.Second,
		"soon": 30 * time.Second, "10 s": 30 * time.Second, strings.Repeat("0", 100) + "1": 30 * time.Second,
	} {
		t.Run(header, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					deadline, _ := r.Context().Deadline()
					assert.Equal(t, took, time.Until(deadline))
					<-r.Context().Done()
				})
				s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: 30 * time.Second}), false)
				start := time.Now()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://site/", nil)
				require.NoError(t, err)
				req.Header.Set(httpguard.TimeoutHeader, header)
				resp, err := s.client.Do(req)
				require.NoError(t, err)
				defer resp.Body.Close()
				require.Equal(t, http.StatusGatewayTimeout, resp.StatusCode)
				require.Equal(t, took, time.Since(start))
			})
		})
	}
}

func TestTimeoutHeaderIncludesTheQueueAndWorksWithoutATimeout(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"default": 0, "off": aiguard.Off} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var causes sync.Map
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
					causes.Store(time.Now(), context.Cause(r.Context()))
					w.WriteHeader(http.StatusNoContent)
				})
				s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h,
					httpguard.Config{Timeout: timeout, MaxConcurrent: 1, QueueTimeout: aiguard.Off}), false)
				ask := func(seconds string) <-chan int {
					return async(func() int {
						req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://site/", nil)
						req.Header.Set(httpguard.TimeoutHeader, seconds)
						resp, err := s.client.Do(req)
						if err != nil {
							return 0
						}
						resp.Body.Close()
						return resp.StatusCode
					})
				}
				start := time.Now()
				first := ask("10")
				synctest.Wait()
				second := ask("4")
				require.Equal(t, http.StatusGatewayTimeout, <-second, "time in the queue counts")
				require.Equal(t, 4*time.Second, time.Since(start))
				<-first
				require.Equal(t, 10*time.Second, time.Since(start))
				synctest.Wait() // the handler may be woken after the client
				cause, ok := causes.Load(time.Now())
				require.True(t, ok)
				require.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(cause.(error)))
			})
		})
	}
}

// Without CloseNotifier, gin's Context.Stream panics.
func TestCloseNotifyReportsDisconnectAndLimit(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		told := make(chan time.Time, 1)
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
			told <- time.Now()
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}))
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		require.Error(t, s.do(ctx, http.MethodGet, "", nil).err)
		require.Equal(t, 3*time.Second, (<-told).Sub(start))
		require.Equal(t, http.StatusGatewayTimeout, s.get(t).StatusCode)
		require.Equal(t, httpguard.DefaultTimeout, (<-told).Sub(start)-3*time.Second, "the limit also ends the channel's wait")
	})
}

// The race detector fails this test if the next informational header is prepared while the previous one is still
// being written.
func TestStreamResetDuringInformationalResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var done sync.WaitGroup
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer done.Done()
			for i := range 50 {
				for j := range 20 {
					w.Header().Set(fmt.Sprintf("X-%d", j), strings.Repeat("x", i+1))
				}
				w.WriteHeader(http.StatusEarlyHints)
			}
			w.WriteHeader(http.StatusOK)
		})
		s := serve(t, limited(t, newGuard(t, aiguard.Config{MaxConcurrent: 100}), h, httpguard.Config{}), true)
		for range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://site/", nil)
			require.NoError(t, err)
			done.Add(1)
			go func() {
				if resp, err := s.client.Do(req); err == nil {
					resp.Body.Close()
				}
			}()
			go cancel()
		}
		synctest.Wait()
	})
}
