package aiguard

import (
	"context"
	"crypto/tls"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	connectTimeout = 10 * time.Second // dial, then proxy and TLS handshakes, unless CallTimeout is shorter
	streamWindow   = 256 << 10        // bytes an HTTP/2 peer may send ahead of a slow reader; net/http's 4 MiB add up
)

// pool is the transport that a guard owns. It tracks its connections, because net/http does not stop two kinds of
// them. net/http keeps connecting for a request that has ended, even forever through a silent SOCKS5 proxy. And
// CloseIdleConnections skips an HTTP/2 connection whose last request is being canceled.
type pool struct {
	*http.Transport
	connect atomic.Int64 // the limit of a dial, and of what follows until a request uses the connection

	mu     sync.Mutex
	conns  map[*poolConn]struct{}
	closed bool
}

func newPool(cfg *Config) *pool {
	connect := connectLimit(cfg)
	p := &pool{conns: make(map[*poolConn]struct{})}
	p.configure(cfg)
	p.Transport = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            p.dial,
		ExpectContinueTimeout:  time.Second, // as in http.DefaultTransport
		TLSHandshakeTimeout:    connectTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    math.MaxInt, // there are no more than there were calls in flight
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: connect, PingTimeout: connect / 2,
			MaxReceiveBufferPerStream: streamWindow,
		},
	}
	return p
}

func (p *pool) configure(cfg *Config) { p.connect.Store(int64(connectLimit(cfg))) }

// connectLimit limits the dial, and then the handshakes. It is at most the call's timeout.
func connectLimit(cfg *Config) time.Duration {
	if cfg.CallTimeout == Off {
		return connectTimeout
	}
	return min(connectTimeout, cfg.CallTimeout)
}

// attemptKey is the context key of an attempt's watch. net/http hides the end of a request's context from a dial.
type attemptKey struct{}

// Value implements context.Context.
func (w *watch) Value(key any) any {
	switch key {
	case attemptKey{}:
		return w
	case traceKey:
		return w.clientTrace()
	}
	return w.Context.Value(key)
}

// dial connects for an attempt and stops when the attempt ends.
func (p *pool) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	attempt, ok := ctx.Value(attemptKey{}).(context.Context)
	if !ok {
		attempt = ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(attempt, cancel)()
	dialer := net.Dialer{Timeout: time.Duration(p.connect.Load()), KeepAlive: 15 * time.Second}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return p.add(attempt, conn)
}

// add registers a connection. net/http may still have to do handshakes before a request can use it. Until then the
// connection ends with its attempt, or at the connect limit.
func (p *pool) add(attempt context.Context, conn net.Conn) (net.Conn, error) {
	c := &poolConn{Conn: conn, pool: p}
	if !p.keep(c) {
		conn.Close()
		return nil, net.ErrClosed
	}
	_ = conn.SetDeadline(time.Now().Add(time.Duration(p.connect.Load()))) // fails only if the connection is lost, which its user will see
	c.stay = context.AfterFunc(attempt, c.closeUnused)
	return c, nil
}

func (p *pool) keep(c *poolConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

// close closes all connections. Their requests have ended or been canceled.
func (p *pool) close() {
	p.mu.Lock()
	p.closed = true
	conns := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	p.CloseIdleConnections()
	for _, c := range conns {
		c.Close()
	}
}

type poolConn struct {
	net.Conn
	pool  *pool
	stay  func() bool // prevents the end of the attempt that dialed from closing it
	taken atomic.Bool // by a request or by closeUnused
	ended atomic.Bool // a Read failed; net/http reports truncated headers as malformed, without the cause
}

// used marks conn as used by a request. It returns the poolConn below the TLS layers of provider and proxy, or nil if
// conn is not from a pool.
func used(conn net.Conn) *poolConn {
	for {
		switch c := conn.(type) {
		case *tls.Conn:
			conn = c.NetConn()
		case *poolConn:
			if c.taken.CompareAndSwap(false, true) {
				c.stay()
				_ = c.SetDeadline(time.Time{})
			}
			return c
		default:
			return nil
		}
	}
}

// closeUnused closes a connection that no request used before its attempt ended. This also happens when the attempt
// used another connection that became idle. If a request takes the connection at the same moment, net/http resends
// the request.
func (c *poolConn) closeUnused() {
	if c.taken.CompareAndSwap(false, true) {
		c.Close()
	}
}

func (c *poolConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.ended.Store(true)
	}
	return n, err
}

func (c *poolConn) Close() error {
	c.pool.mu.Lock()
	delete(c.pool.conns, c)
	c.pool.mu.Unlock()
	return c.Conn.Close()
}
