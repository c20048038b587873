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
	smallBuffer = 4 << 10 // systems round it to what they deem sane
	mutePause   = 10 * time.Millisecond
)

// listener hands out connections that it remembers, so that the server and its
// faults can reach below HTTP and TLS.
type listener struct {
	addr net.Addr
	pipe *pipe.Listener // nil with a port

	mu      sync.Mutex
	changed sync.Cond          // ln, or conns to nil
	ln      net.Listener       // nil while the port is closed
	conns   map[*conn]struct{} // nil once shut
	fault   Fault              // that new connections meet
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
			return nil, err // not our doing
		}
	}
}

// current waits until the port is open and returns its listener, nil once the
// listener is shut.
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

// admit returns nil if the connection is to be refused, or is none.
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

// Close closes the port, for http.Server. shut does more.
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

// conn is a client's connection, below TLS.
type conn struct {
	net.Conn
	listener *listener
	requests atomic.Int64 // so far
	idle     atomic.Bool  // no request in progress
	mute     atomic.Bool  // nothing gets through any more, in either direction
	ended    atomic.Bool  // by a reply or a fault: its requests have not lost their client
}

func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// Read drops what a mute connection receives, and still notices its end.
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

// Write drops what a mute connection sends. It takes its time, so that replies
// without end do not get busy.
func (c *conn) Write(p []byte) (int, error) {
	if c.mute.Load() {
		time.Sleep(mutePause)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// reset closes the connection with a TCP RST where there is TCP.
func (c *conn) reset() {
	c.ended.Store(true)
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	c.sever()
}

// sever is reset for a connection that the listener does not know.
func (c *conn) sever() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Conn.Close()
}

// shrink lets the connection receive only little that nobody reads.
func (c *conn) shrink() {
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetReadBuffer(smallBuffer)
	}
}

type connKey struct{}

// withConn is http.Server.ConnContext: it lets requests find their connection.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// connOf returns the connection below TLS, nil if there is none to be found.
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

// closeConn closes the request's connection the polite way, with TLS's goodbye
// if there is TLS.
func closeConn(ctx context.Context) {
	if c := connOf(ctx); c != nil {
		c.ended.Store(true)
	}
	if nc, _ := ctx.Value(connKey{}).(net.Conn); nc != nil {
		_ = nc.Close()
	}
}
