package aiguardtest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard/internal/pipe"
)

const (
	smallBuffer = 4 << 10 // systems round it to a size that they allow
	mutePause   = 10 * time.Millisecond
)

// listener accepts connections and keeps track of them, so that the server and its faults can act below HTTP and TLS.
type listener struct {
	addr net.Addr
	pipe *pipe.Listener // nil if the server uses a port

	mu      sync.Mutex
	changed sync.Cond          // signals a new ln, or that conns is nil
	ln      net.Listener       // nil while the port is closed
	conns   map[*conn]struct{} // nil after shut
	fault   Fault              // applied to new connections
}

func newListener(ln net.Listener) *listener {
	l := &listener{addr: ln.Addr(), ln: ln, conns: map[*conn]struct{}{}}
	l.pipe, _ = ln.(*pipe.Listener)
	l.changed.L = &l.mu
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		ln := l.current()
		if ln == nil {
			return nil, net.ErrClosed
		}
		nc, err := ln.Accept()
		if c := l.admit(nc, err); c != nil {
			return c, nil
		}
		if err != nil && l.current() == ln {
			return nil, err // the error of the real listener
		}
	}
}

// current waits until the port is open and returns its listener. It returns nil after shut.
func (l *listener) current() net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.conns != nil && l.ln == nil {
		l.changed.Wait()
	}
	if l.conns == nil {
		return nil
	}
	return l.ln
}

// admit registers a new connection. It returns nil if err is set, the listener is shut, or FaultRefused is played.
func (l *listener) admit(nc net.Conn, err error) *conn {
	if err != nil {
		return nil
	}
	c := &conn{Conn: nc, listener: l}
	c.idle.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil || l.fault == FaultRefused {
		c.sever()
		return nil
	}
	switch l.fault {
	case FaultTLSStall:
		c.mute.Store(true)
	case FaultNeverRead:
		c.shrink()
	}
	l.conns[c] = struct{}{}
	return c
}

// Close calls shut. http.Server calls it.
func (l *listener) Close() error {
	l.shut()
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// shut stops listening and closes every connection.
func (l *listener) shut() {
	l.mu.Lock()
	conns, ln := l.conns, l.ln
	l.conns, l.ln = nil, nil
	l.changed.Broadcast()
	l.mu.Unlock()
	if l.pipe != nil {
		_ = l.pipe.Close()
	} else if ln != nil {
		_ = ln.Close()
	}
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// conn is a client's connection below TLS.
type conn struct {
	net.Conn
	listener *listener
	requests atomic.Int64 // number so far
	idle     atomic.Bool  // no request is in progress
	mute     atomic.Bool  // drops everything in both directions
	ended    atomic.Bool  // ended by a reply or a fault: its requests do not count as disconnects
}

func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// Read drops what a mute connection receives, but still returns when the connection ends.
func (c *conn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if !c.mute.Load() {
			return n, err
		}
		if err != nil {
			return 0, err
		}
	}
}

// Write drops what a mute connection sends. It sleeps first, so that endless replies do not use all CPU time.
func (c *conn) Write(p []byte) (int, error) {
	if c.mute.Load() {
		time.Sleep(mutePause)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// reset closes the connection, with a TCP RST on TCP.
func (c *conn) reset() {
	c.ended.Store(true)
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	c.sever()
}

// sever is reset for a connection that is not in the listener's list.
func (c *conn) sever() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Conn.Close()
}

// shrink makes the receive buffer small, so that a client cannot send much unread data.
func (c *conn) shrink() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetReadBuffer(smallBuffer)
	}
}

type connKey struct{}

// withConn is the http.Server.ConnContext that stores the connection for its requests.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// connOf returns the connection below TLS, or nil if ctx has none.
func connOf(ctx context.Context) *conn {
	nc, _ := ctx.Value(connKey{}).(net.Conn)
	return below(nc)
}

// below returns the connection below TLS.
func below(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	c, _ := nc.(*conn)
	return c
}

// closeConn closes the request's connection properly. With TLS it sends a close_notify alert.
func closeConn(ctx context.Context) {
	if c := connOf(ctx); c != nil {
		c.ended.Store(true)
	}
	if nc, _ := ctx.Value(connKey{}).(net.Conn); nc != nil {
		_ = nc.Close()
	}
}
