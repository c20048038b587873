package aiguardtest_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// works asserts that a new client gets a good answer.
func works(t *testing.T, s *aiguardtest.Server) {
	t.Helper()
	resp, body, err := post(t.Context(), s, newHTTP(t, s), chatBody)
	require.NoError(t, err)
	assert.Equal(t, 200, resp.StatusCode)
	assert.Contains(t, body, "Hello!")
}

// impatient sends a request and gives up.
func impatient(t *testing.T, s *aiguardtest.Server, c *http.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, _, err := post(ctx, s, c, chatBody)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestRefusedIsAClosedPortThatOpensAgain(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, idle *http.Client) {
		for range 3 {
			_, _, err := post(t.Context(), s, idle, chatBody)
			require.NoError(t, err)
			s.Reset()
			s.Play(aiguardtest.FaultRefused)
			eventually(t, func() bool { open, _ := s.Conns(); return open == 0 }, "the idle connection is closed")
			for range 2 {
				_, _, err = post(t.Context(), s, newHTTP(t, s), chatBody)
				require.ErrorIs(t, err, syscall.ECONNREFUSED)
			}
			_, _, err = post(t.Context(), s, idle, chatBody)
			require.Error(t, err)
			assert.Zero(t, s.Count())
			s.Play("")
			works(t, s)
			_, _, err = post(t.Context(), s, idle, chatBody)
			require.NoError(t, err, "the port is open again")
		}
	})
}

func TestRefusedIsMetByConnectionsThatWereBusy(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		gate := make(chan struct{})
		s.Enqueue(func(w http.ResponseWriter, r *aiguardtest.Request) {
			aiguardtest.Events("first")(w, r)
			<-gate
		})
		res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
		require.NoError(t, err)
		defer res.Body.Close()
		readUntil(t, res.Body, "first")
		s.Play(aiguardtest.FaultRefused)
		close(gate)
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(t, err, "a request in progress continues")
		eventually(t, func() bool { open, _ := s.Conns(); return open == 0 }, "the connection is closed once it is idle")
		assert.Zero(t, s.Disconnects())
	})
}

func TestCloseWhileRefusing(t *testing.T) {
	for name, opts := range modes {
		t.Run(name, func(t *testing.T) {
			s := aiguardtest.Start(opts...)
			s.Play(aiguardtest.FaultRefused)
			s.Close()
			s.Play("") // the port is already open
			_, _, err := post(t.Context(), s, newHTTP(t, s), chatBody)
			assert.ErrorIs(t, err, syscall.ECONNREFUSED)
		})
	}
}

func TestTLSStallAcceptsAndNeverSpeaks(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, _ *http.Client) {
		s.Play(aiguardtest.FaultTLSStall)
		c := newHTTP(t, s)
		var connected atomic.Bool
		var handshakes atomic.Int32
		ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			ConnectDone:          func(_, _ string, err error) { connected.Store(err == nil) },
			TLSHandshakeStart:    func() { handshakes.Add(1) },
			GotFirstResponseByte: func() { t.Error("it speaks") },
		}), patience)
		defer cancel()
		_, _, err := post(ctx, s, c, chatBody)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		if strings.HasPrefix(s.URL, "https") {
			assert.EqualValues(t, 1, handshakes.Load())
		}
		assert.Zero(t, s.Count())

		// Requests that still wait at the end of the fault are reset.
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _, err := post(t.Context(), s, newHTTP(t, s), chatBody)
			assert.Error(t, err)
		})
		eventually(t, func() bool { _, total := s.Conns(); return total == 2 }, "accepted")
		s.Play("")
		wg.Wait()
		works(t, s)
	})
}

// counted counts the bytes that are read of a body.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func TestNeverReadBlocksALargePrompt(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, old *http.Client) {
		_, _, err := post(t.Context(), s, old, chatBody)
		require.NoError(t, err)
		s.Reset()
		s.Play(aiguardtest.FaultNeverRead)
		for _, c := range []*http.Client{old, newHTTP(t, s)} {
			const size = 32 << 20
			prompt := &counted{Reader: io.LimitReader(endlessA{}, size)}
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/chat/completions", prompt)
			require.NoError(t, err)
			_, err = c.Do(req)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
			assert.Less(t, prompt.n.Load(), int64(size/2), "sending is blocked")
			impatient(t, s, c)
		}
		assert.Zero(t, s.Count())
		s.Play("")
		eventually(t, func() bool { return s.Active() == 0 }, "no request stays in progress")
		works(t, s)
	})
}

type endlessA struct{}

func (endlessA) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestStaleKeepAliveFailsTheSecondRequestOfAConnection(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Play(aiguardtest.FaultStaleKeepAlive)
		for i := range 3 {
			_, body, err := post(t.Context(), s, c, chatBody)
			require.NoError(t, err)
			assert.Contains(t, body, "Hello!")
			_, _, err = post(t.Context(), s, c, chatBody)
			require.Error(t, err)
			assert.NotErrorIs(t, err, context.DeadlineExceeded)
			_, total := s.Conns()
			assert.Equal(t, i+1, total)
		}
		assert.Equal(t, 6, s.Count(), "net/http does not send a POST again")
		assert.Zero(t, s.Disconnects())
	})
}

func TestGoesDarkIsMetByTheConnectionsOfThatMoment(t *testing.T) {
	const pingTimeout = 300 * time.Millisecond
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		_, _, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		var wg sync.WaitGroup
		pinging := s.Transport()
		pinging.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingTimeout, PingTimeout: pingTimeout}
		t.Cleanup(pinging.CloseIdleConnections)
		eventually(t, func() bool { // on a busy machine the answer to a ping may be late
			_, _, err := post(t.Context(), s, &http.Client{Transport: pinging}, chatBody)
			return err == nil
		}, "connected")

		s.Play(aiguardtest.FaultGoesDark)
		s.Reset()
		impatient(t, s, c)
		assert.Zero(t, s.Count())
		works(t, s)
		if strings.HasPrefix(s.URL, "https") {
			impatient(t, s, c) // HTTP/2 does not close the connection by itself
			assert.Equal(t, 1, s.Count())
			// Pings close it within twice pingTimeout.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for {
				_, _, err = post(ctx, s, &http.Client{Transport: pinging}, chatBody)
				require.NoError(t, ctx.Err())
				if err == nil {
					break
				}
			}
		}

		// Requests that wait on a dark connection at the end of the fault are reset.
		before := newHTTP(t, s)
		_, _, err = post(t.Context(), s, before, chatBody)
		require.NoError(t, err)
		s.Play(aiguardtest.FaultGoesDark)
		sent := make(chan struct{})
		var once sync.Once // net/http may resend it after a reset
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			WroteRequest: func(httptrace.WroteRequestInfo) { once.Do(func() { close(sent) }) },
		})
		wg.Go(func() {
			_, _, _ = post(ctx, s, before, chatBody) // the result does not matter
		})
		<-sent
		s.Play("")
		wg.Wait()
		works(t, s)
	})
}

func TestGoesDarkCutsStreamsOffWithoutEndingThem(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(aiguardtest.FaultStreamNeverEnds.Reply())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/chat/completions", strings.NewReader(streamBody))
		require.NoError(t, err)
		res, err := c.Do(req)
		require.NoError(t, err)
		defer res.Body.Close()
		readUntil(t, res.Body, "data: ")
		s.Play(aiguardtest.FaultGoesDark)
		time.AfterFunc(patience, cancel)
		_, err = io.Copy(io.Discard, res.Body)
		require.ErrorIs(t, err, context.Canceled)
		c.CloseIdleConnections()
		s.Play("")
		eventually(t, func() bool { return s.Active() == 0 }, "the reply ends")
	})
}

func TestEarlyHintsRepeat(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Play(aiguardtest.FaultEndlessEarlyHints)
		hints := 0
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
				assert.Equal(t, 103, code)
				if hints++; hints == 10 {
					cancel()
				}
				return nil
			},
		})
		_, _, err := post(ctx, s, c, chatBody)
		require.ErrorIs(t, err, context.Canceled)
	})
}

func TestResetIsAResetOnTCP(t *testing.T) {
	s := aiguardtest.NewServer(t)
	for _, f := range []aiguardtest.Fault{aiguardtest.FaultReset, aiguardtest.FaultResetAnswer, aiguardtest.FaultStreamReset} {
		s.Play(f)
		_, _, err := post(t.Context(), s, newHTTP(t, s), chatBody)
		require.ErrorIs(t, err, syscall.ECONNRESET, f)
	}
	for _, f := range []aiguardtest.Fault{aiguardtest.FaultEOF, aiguardtest.FaultCutAnswer, aiguardtest.FaultStreamCut} {
		s.Play(f)
		_, _, err := post(t.Context(), s, newHTTP(t, s), chatBody)
		require.Error(t, err)
		assert.Contains(t, err.Error(), "EOF", f)
	}
}

func TestCloseEndsEveryFault(t *testing.T) {
	for _, f := range aiguardtest.Faults() {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			s := aiguardtest.Start(aiguardtest.Pipe())
			tr := s.Transport()
			defer tr.CloseIdleConnections()
			var dialed atomic.Bool
			dial := tr.DialContext
			tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				defer dialed.Store(true)
				return dial(ctx, network, addr)
			}
			s.Play(f)
			var wg sync.WaitGroup
			wg.Go(func() {
				c := &http.Client{Transport: tr}
				resp, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
				if err == nil {
					_, _ = io.CopyN(io.Discard, resp.Body, 1<<20)
					_ = resp.Body.Close()
				}
			})
			eventually(t, dialed.Load, "dialed")
			s.Close()
			wg.Wait()
		})
	}
}

func TestVirtualFaultsOfTheConnection(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		ask := func(c *http.Client) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			start := time.Now()
			_, _, err := post(ctx, s, c, chatBody)
			return time.Since(start), err
		}
		_, err := ask(c)
		require.NoError(t, err)
		for _, tt := range []struct {
			fault aiguardtest.Fault
			took  time.Duration
			err   error
		}{
			{aiguardtest.FaultGoesDark, time.Minute, context.DeadlineExceeded},
			{aiguardtest.FaultTLSStall, time.Minute, context.DeadlineExceeded},
			{aiguardtest.FaultNeverRead, time.Minute, context.DeadlineExceeded},
			{aiguardtest.FaultRefused, 0, syscall.ECONNREFUSED},
		} {
			s.Play(tt.fault)
			client := newHTTP(t, s)
			if tt.fault == aiguardtest.FaultGoesDark {
				client = c
			}
			took, err := ask(client)
			require.ErrorIs(t, err, tt.err, tt.fault)
			assert.Equal(t, tt.took, took, tt.fault)
		}
		s.Play("")
		_, err = ask(newHTTP(t, s))
		require.NoError(t, err)

		s.Play(aiguardtest.FaultByteASecond)
		start := time.Now()
		_, body, err := post(t.Context(), s, newHTTP(t, s), chatBody)
		require.NoError(t, err)
		assert.Equal(t, time.Duration(len(body))*time.Second, time.Since(start))
		synctest.Wait()
	})
}
