package aiguard_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// stalled makes 20 calls at once through the pool of a guard and expects of each a timeout, and that a second later neither
// a goroutine nor a connection is left of them. The guard stays open: its Close must not be what cleans up.
func stalled(t *testing.T, url string, tune func(*http.Transport), conns func() (open, total int)) {
	t.Helper()
	const calls = 20
	left := leavesNoGoroutine()
	c := clientOf(t, aiguard.Config{MaxConcurrent: calls, CallTimeout: shortCall, Retry: aiguard.Retry{MaxAttempts: 1}}, url, nil)
	tune(aiguard.Pool(c.Guard()))
	start := time.Now()
	var all sync.WaitGroup
	for i := range calls {
		request := chatRequest
		request.Model = fmt.Sprint("model ", i) // the timeouts of others must not be an outage for a call that comes late
		all.Go(func() {
			_, err := c.CreateChatCompletion(t.Context(), request)
			assert.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(err), "%v", err)
		})
	}
	all.Wait()
	require.Less(t, time.Since(start), shortCall+slack)
	_, total := conns()
	require.Positive(t, total, "the calls connect at all")
	gone := time.Now()
	settles(t, "no connection is left", func() bool { open, _ := conns(); return open == 0 })
	var stacks string
	for stacks = left(); stacks != "" && time.Since(gone) < time.Second; stacks = left() {
		time.Sleep(2 * time.Millisecond)
	}
	require.Empty(t, stacks, "goroutines are left")
	require.Less(t, time.Since(gone), time.Second)
}

func TestNothingIsLeftOfACallThatStallsInAProxy(t *testing.T) {
	for _, fault := range aiguardtest.ProxyFaults() {
		for _, scheme := range []string{"http", "https"} {
			t.Run(string(fault)+"/"+scheme, func(t *testing.T) {
				proxy := aiguardtest.NewProxy(t, fault)
				stalled(t, scheme+"://provider.invalid/v1", func(pool *http.Transport) {
					pool.Proxy = http.ProxyURL(proxy.URL)
				}, proxy.Conns)
			})
		}
	}
}

// counting counts what it accepts.
type counting struct {
	net.Listener
	open, total atomic.Int64
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	l.total.Add(1)
	return &counted{Conn: c, close: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
}

func (l *counting) conns() (open, total int) { return int(l.open.Load()), int(l.total.Load()) }

type counted struct {
	net.Conn
	close func()
}

func (c *counted) Close() error {
	c.close()
	return c.Conn.Close()
}

// silent serves connections that are read and never written to, after TLS with the protocols given.
func silent(t *testing.T, protocols ...string) (address string, roots *tls.Config, conns func() (open, total int)) {
	t.Helper()
	trusted := httptest.NewUnstartedServer(nil)
	trusted.StartTLS()
	t.Cleanup(trusted.Close)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ln := &counting{Listener: plain}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				if protocols == nil {
					_, _ = io.Copy(io.Discard, conn)
					return
				}
				config := trusted.TLS.Clone()
				config.NextProtos = protocols
				_, _ = io.Copy(io.Discard, tls.Server(conn, config))
			})
		}
	})
	t.Cleanup(func() { plain.Close(); serving.Wait() })
	return plain.Addr().String(), trusted.Client().Transport.(*http.Transport).TLSClientConfig, ln.conns
}

func TestNothingIsLeftOfACallThatStallsAtTheProvider(t *testing.T) {
	for name, protocols := range map[string][]string{"TLS": nil, "HTTP1": {"http/1.1"}, "HTTP2": {"h2"}} {
		t.Run(name, func(t *testing.T) {
			address, trust, conns := silent(t, protocols...)
			stalled(t, "https://"+address+"/v1", func(pool *http.Transport) {
				trust := trust.Clone()
				trust.NextProtos = nil
				pool.TLSClientConfig = trust
			}, conns)
		})
	}
	t.Run("without TLS", func(t *testing.T) {
		address, _, conns := silent(t)
		stalled(t, "http://"+address+"/v1", func(*http.Transport) {}, conns)
	})
}

// A caller that leaves while its call connects takes the connection with it, however long the connect limit is.
func TestCallerThatLeavesEndsTheHandshake(t *testing.T) {
	for _, fault := range aiguardtest.ProxyFaults() {
		t.Run(string(fault), func(t *testing.T) {
			proxy := aiguardtest.NewProxy(t, fault)
			c := clientOf(t, aiguard.Config{}, "https://provider.invalid/v1", nil)
			aiguard.Pool(c.Guard()).Proxy = http.ProxyURL(proxy.URL)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { _, err := chat(ctx, c); ended <- err }()
			settles(t, "connected", func() bool { _, total := proxy.Conns(); return total == 1 })
			cancel()
			require.Equal(t, context.Canceled, <-ended)
			start := time.Now()
			settles(t, "no connection is left", func() bool { open, _ := proxy.Conns(); return open == 0 })
			require.Less(t, time.Since(start), time.Second)
		})
	}
}

// The bounds of connecting end with it: a stream through proxies may last longer than they do.
func TestConnectLimitDoesNotCutAStreamThroughProxies(t *testing.T) {
	const limit = time.Second // on a busy machine two TLS handshakes take a while
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			srv := aiguardtest.NewServer(t, aiguardtest.TLS())
			srv.SetDefault(aiguardtest.Slowly(limit/4, aiguardtest.TextN("one two three four five six seven eight", 8)))
			target := strings.TrimSuffix(strings.TrimPrefix(srv.URL, "https://"), "/v1")
			tunnel := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				pass(w, target)
			}))
			if scheme == "https" {
				tunnel.StartTLS()
			} else {
				tunnel.Start()
			}
			t.Cleanup(tunnel.Close)
			c := clientOf(t, aiguard.Config{CallTimeout: limit}, srv.URL, nil)
			pool := aiguard.Pool(c.Guard())
			pool.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // two test certificates
			proxy, err := url.Parse(tunnel.URL)
			require.NoError(t, err)
			pool.Proxy = http.ProxyURL(proxy)
			start := time.Now()
			text, err := streamChat(t.Context(), c)
			require.NoError(t, err)
			require.Equal(t, "one two three four five six seven eight", text)
			require.Greater(t, time.Since(start), limit)
		})
	}
}

// pass joins the client to the target, as a proxy does.
func pass(w http.ResponseWriter, target string) {
	up, err := net.Dial("tcp", target)
	if err != nil {
		http.Error(w, "no target", http.StatusBadGateway)
		return
	}
	defer up.Close()
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer down.Close()
	_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(up, down); up.Close() }()
	_, _ = io.Copy(down, up)
	down.Close()
	<-done
}

// The connect limit is shorter than a call may be: a silent proxy costs it, and not the whole attempt.
func TestSilentProxyEndsAtTheConnectLimit(t *testing.T) {
	for _, fault := range aiguardtest.ProxyFaults() {
		t.Run(string(fault), func(t *testing.T) {
			proxy := aiguardtest.NewProxy(t, fault)
			g := newGuard(t, aiguard.Config{CallTimeout: shortCall, Retry: aiguard.Retry{MaxAttempts: 1}}).With(aiguard.Call{Timeout: 2 * patience})
			aiguard.Pool(g).Proxy = http.ProxyURL(proxy.URL)
			oc := openai.DefaultConfig("sk-secret-key")
			oc.BaseURL = "https://provider.invalid/v1"
			_, err := bounded(t, shortCall/2, shortCall+slack, plain(g.Client(oc).CreateChatCompletion, false))
			require.Equal(t, "connect", facts(t, err, aiguard.ErrTimeout).Phase)
		})
	}
}
