package aiguardtest_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestScriptThenHandleThenDefaultDecide(t *testing.T) {
	s := aiguardtest.NewServer(t)
	c := newHTTP(t, s)
	status := func(code int) aiguardtest.Reply { return aiguardtest.JSON(code, "{}") }
	ask := func(model string, want int) {
		t.Helper()
		resp, _, err := post(t.Context(), s, c, fmt.Sprintf(`{"model":%q}`, model))
		require.NoError(t, err)
		assert.Equal(t, want, resp.StatusCode)
	}
	s.SetDefault(status(203))
	s.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		if r.Model == "picky" {
			return status(202)
		}
		return nil
	})
	s.Enqueue(status(201), nil)
	s.Enqueue(status(206))
	ask("picky", 201)
	ask("picky", 203) // nil in the script: the default
	ask("picky", 206)
	ask("picky", 202)
	ask("other", 203)
	s.Handle(nil)
	ask("picky", 203)
	s.SetDefault(nil)
	ask("picky", 200)
}

func TestJournalHoldsWhatWasSent(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		before := time.Now()
		for i := range 3 {
			_, _, err := postTo(t.Context(), s, c, fmt.Sprintf("/chat/completions?i=%d", i), streamBody)
			require.NoError(t, err)
		}
		_, _, err := postTo(t.Context(), s, c, "/audio/speech", "not JSON")
		require.NoError(t, err)
		reqs := s.Requests()
		require.Len(t, reqs, 4)
		for i, r := range reqs[:3] {
			assert.Equal(t, i+1, r.Number)
			assert.Equal(t, fmt.Sprint(i), r.Query.Get("i"))
			assert.Equal(t, "/v1/chat/completions", r.Path)
			assert.Equal(t, http.MethodPost, r.Method)
			assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
			assert.Equal(t, streamBody, string(r.Body))
			assert.Equal(t, "m", r.Model)
			assert.True(t, r.Stream)
			assert.Contains(t, s.URL, r.Host)
			assert.False(t, r.Time.Before(before))
			if strings.HasPrefix(s.URL, "https") {
				assert.Equal(t, "HTTP/2.0", r.Proto)
			} else {
				assert.Equal(t, "HTTP/1.1", r.Proto)
			}
		}
		assert.Empty(t, reqs[3].Model)
		assert.Equal(t, "not JSON", string(reqs[3].Body))
	})
}

func TestJournalKeepsTheLatestRequests(t *testing.T) {
	t.Parallel()
	s := aiguardtest.NewServer(t, aiguardtest.Pipe())
	c := newHTTP(t, s)
	s.SetDefault(aiguardtest.JSON(200, "{}"))
	const kept, extra = 10_000, 7
	for range kept + extra {
		_, _, err := post(t.Context(), s, c, "{}")
		require.NoError(t, err)
	}
	reqs := s.Requests()
	require.Len(t, reqs, kept)
	assert.Equal(t, kept+extra, s.Count())
	for i, r := range reqs {
		require.Equal(t, extra+1+i, r.Number)
	}
}

func TestOversizedBodyIsRefusedNotKept(t *testing.T) {
	t.Parallel()
	s := aiguardtest.NewServer(t)
	c := newHTTP(t, s)
	resp, err := c.Post(s.URL+"/chat/completions", "application/json", bytes.NewReader(make([]byte, 64<<20+1)))
	require.NoError(t, err)
	_ = resp.Body.Close()
	assert.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
	assert.Len(t, s.Requests()[0].Body, 64<<20)
}

func TestPeakActiveAndConnsCountWhatHappens(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		const n = 8
		gate := make(chan struct{})
		s.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
			<-gate
			aiguardtest.Text("Hi")(w, r)
		})
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				_, _, err := post(t.Context(), s, c, chatBody)
				assert.NoError(t, err)
			})
		}
		eventually(t, func() bool { return s.Active() == n }, "all in progress")
		open, total := s.Conns()
		if strings.HasPrefix(s.URL, "https") {
			// Concurrent first requests may race to dial.
			assert.GreaterOrEqual(t, total, 1)
		} else {
			assert.Equal(t, []int{n, n}, []int{open, total})
		}
		close(gate)
		wg.Wait()
		assert.Zero(t, s.Active(), "an answered request is no longer active")
		assert.Equal(t, n, s.Peak())
		assert.Equal(t, n, s.Count())
		assert.Zero(t, s.Disconnects())

		eventually(t, func() bool {
			c.CloseIdleConnections() // in a loop, because a connection may become idle only now
			open, _ := s.Conns()
			return open == 0
		}, "connections closed")

		s.Enqueue(aiguardtest.Error(500, ""))
		s.Reset()
		assert.Zero(t, s.Count()+s.Peak()+len(s.Requests()))
		_, total = s.Conns()
		assert.Zero(t, total)
		resp, _, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, 200, resp.StatusCode, "the script is empty")
		assert.Equal(t, 1, s.Count())
		assert.Equal(t, 1, s.Peak())
	})
}

// TestLeavingAfterTheLastEventIsNoDisconnect closes the stream as soon as its last event has arrived, as SDKs do.
func TestLeavingAfterTheLastEventIsNoDisconnect(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		for _, reply := range []aiguardtest.Reply{
			aiguardtest.Text("Hi"),
			aiguardtest.Events("x", "[DONE]"),
			aiguardtest.Slowly(time.Microsecond, aiguardtest.Text("Hi")),
			aiguardtest.HeadersThen(0, aiguardtest.Text("Hi")),
		} {
			s.SetDefault(reply)
			for range 25 {
				res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
				require.NoError(t, err)
				readUntil(t, res.Body, "[DONE]")
				require.NoError(t, res.Body.Close())
			}
		}
		eventually(t, func() bool { return s.Active() == 0 }, "done")
		assert.Zero(t, s.Disconnects())
	})
}

func TestResetForgetsDisconnectsOfOlderRequests(t *testing.T) {
	s := aiguardtest.NewServer(t)
	c := newHTTP(t, s)
	s.SetDefault(aiguardtest.HangAfter(aiguardtest.Events("x")))
	res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
	require.NoError(t, err)
	s.Reset()
	assert.Equal(t, 1, s.Peak(), "it is still in progress")
	require.NoError(t, res.Body.Close())
	eventually(t, func() bool { return s.Active() == 0 }, "done")
	assert.Zero(t, s.Disconnects())
}

func TestLeavingWhileSendingIsADisconnect(t *testing.T) {
	s := aiguardtest.NewServer(t)
	nc, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(s.URL, "http://"), "/v1"))
	require.NoError(t, err)
	_, err = io.WriteString(nc, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
	require.NoError(t, err)
	eventually(t, func() bool { return s.Active() == 1 }, "headers have arrived")
	require.NoError(t, nc.Close())
	eventually(t, func() bool { return s.Active() == 0 }, "done")
	assert.Equal(t, 1, s.Disconnects())
	require.Len(t, s.Requests(), 1)
	assert.Equal(t, "abc", string(s.Requests()[0].Body))
}

func TestCloseIsIdempotentAndLeavesNothing(t *testing.T) {
	for name, opts := range modes {
		t.Run(name, func(t *testing.T) {
			eventually(t, func() bool { // requests of the previous test, which must not count
				all := leaktest.Stacks()
				return !strings.Contains(all, "aiguardtest.(*") && !strings.Contains(all, "net/http.")
			}, "nothing left")
			before := runtime.NumGoroutine()
			s := aiguardtest.Start(opts...)
			tr := s.Transport()
			for range 3 {
				_, _, err := post(t.Context(), s, &http.Client{Transport: tr}, chatBody)
				require.NoError(t, err)
			}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(s.Close)
			}
			wg.Wait()
			s.Close()
			open, _ := s.Conns()
			assert.Zero(t, open)
			// No idle connection of the client was closed explicitly.
			eventually(t, func() bool { return runtime.NumGoroutine() <= before }, "goroutines left")

			tr.CloseIdleConnections() // the transport may not have noticed yet
			_, _, err := post(t.Context(), s, &http.Client{Transport: tr}, chatBody)
			assert.ErrorIs(t, err, syscall.ECONNREFUSED)
			assert.Equal(t, 3, s.Count(), "the journal outlives the server")
		})
	}
}

func TestACloseDuringTheTLSHandshakeDoesNotWait(t *testing.T) {
	s := aiguardtest.Start(aiguardtest.TLS())
	nc, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(s.URL, "https://"), "/v1"))
	require.NoError(t, err)
	defer nc.Close()
	eventually(t, func() bool { open, _ := s.Conns(); return open == 1 }, "accepted")
	start := time.Now()
	s.Close()
	assert.Less(t, time.Since(start), time.Second)
}
