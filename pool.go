package aiguard

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	connectTimeout = 10 * time.Second // dial, then proxy and TLS handshakes, if CallTimeout is not shorter
	streamWindow   = 256 << 10        // what an HTTP/2 peer may send ahead of a slow reader; net/http's 4 MiB add up
)

// pool is the transport a guard owns. It knows its connections, because net/http forgets two kinds of them. It goes on to
// connect for a request that is over, through a silent SOCKS5 proxy for ever. And CloseIdleConnections passes over an HTTP/2
// connection whose last request is just being cancelled.
type pool struct {
	*http.Transport
	dialer  net.Dialer
	connect time.Duration

	mu     sync.Mutex
	conns  map[*poolConn]struct{}
	closed bool
}

func newPool(cfg *Config) *pool {
	connect := connectLimit(cfg)
	idle := int(cfg.MaxConcurrent)
	if idle == Off {
		idle = 100
	}
	p := &pool{
		dialer:  net.Dialer{Timeout: connect, KeepAlive: 15 * time.Second},
		connect: connect,
		conns:   make(map[*poolConn]struct{}),
	}
	p.Transport = &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            p.dial,
		TLSHandshakeTimeout:    connect,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           max(100, idle),
		MaxIdleConnsPerHost:    idle,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: connect, PingTimeout: connect / 2,
			MaxReceiveBufferPerStream: streamWindow,
		},
	}
	return p
}

// connectLimit bounds the dial, and then the handshakes: no longer than the call itself.
func connectLimit(cfg *Config) time.Duration {
	if cfg.CallTimeout == Off {
		return connectTimeout
	}
	return min(connectTimeout, cfg.CallTimeout)
}

// attemptKey finds in a request's context the watch of its attempt, whose end net/http hides from a dial.
type attemptKey struct{}

// Value implements context.Context.
func (w *watch) Value(key any) any {
	if key == (attemptKey{}) {
		return w
	}
	return w.Context.Value(key)
}

// dial connects for an attempt. The end of the attempt ends the dial.
func (p *pool) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	attempt, ok := ctx.Value(attemptKey{}).(context.Context)
	if !ok {
		attempt = ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(attempt, cancel)()
	conn, err := p.dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return p.add(attempt, conn)
}

// add takes in a connection, over which net/http may have handshakes to do before a request can use it. Until then it ends
// with its attempt, and at the connect limit.
func (p *pool) add(attempt context.Context, conn net.Conn) (net.Conn, error) {
	c := &poolConn{Conn: conn, pool: p}
	if !p.keep(c) {
		conn.Close()
		return nil, net.ErrClosed
	}
	_ = conn.SetDeadline(time.Now().Add(p.connect)) // it fails if the connection is lost, which its user will see
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

// close ends all connections, for good: whatever used them has ended or been cancelled.
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
	stay  func() bool // keeps the end of the attempt that dialed from closing it
	taken atomic.Bool // by a request, or by closeUnused
	ended atomic.Bool // a Read has failed: net/http calls headers that were cut "malformed", without their cause
}

// used notes that a request has got conn, and returns it if it is of a pool, below TLS to the provider and to a proxy.
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

// closeUnused ends a connection whose attempt ended before any request got it. An attempt that went over another one that
// became idle leaves such a connection too; a request that gets it at this very moment is sent again by net/http.
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
