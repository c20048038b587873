package aiguardtest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// listener hands out connections that it remembers, so that the server and its
// faults can reach below HTTP and TLS.
type listener struct {
	net.Listener

	mu    sync.Mutex
	conns map[*conn]struct{} // nil once shut
}

func newListener(ln net.Listener) *listener {
	return &listener{Listener: ln, conns: map[*conn]struct{}{}}
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		_ = nc.Close()
		return nil, net.ErrClosed
	}
	l.conns[c] = struct{}{}
	return c, nil
}

// shut stops listening and closes every connection.
func (l *listener) shut() {
	_ = l.Listener.Close()
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
}

// conn is a client's connection, below TLS.
type conn struct {
	net.Conn
	listener *listener
	ended    atomic.Bool // by a reply: its requests have not lost their client
}

func (c *conn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// reset closes the connection with a TCP RST where there is TCP.
func (c *conn) reset() {
	c.ended.Store(true)
	if t, ok := c.Conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}

type connKey struct{}

// withConn is http.Server.ConnContext: it lets requests find their connection.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// connOf returns the connection below TLS, nil if there is none to be found.
func connOf(ctx context.Context) *conn {
	nc, _ := ctx.Value(connKey{}).(net.Conn)
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

// pipeListener accepts what its own dial connects.
type pipeListener struct {
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{incoming: make(chan net.Conn), closed: make(chan struct{})}
}

// dial is http.Transport.DialContext; every address leads here.
func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	var err error
	select {
	case l.incoming <- server:
		return client, nil
	case <-l.closed:
		err = syscall.ECONNREFUSED // as a closed port would answer
	case <-ctx.Done():
		err = ctx.Err()
	}
	_, _ = client.Close(), server.Close()
	return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: l.Addr(), Err: err}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return pipeHost }
