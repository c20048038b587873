// Package pipe serves HTTP without sockets, so that client and server can share a testing/synctest bubble.
package pipe

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
)

// Listener accepts the connections made by its Dial.
type Listener struct {
	host     string
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
	refusing atomic.Bool
}

// Listen returns a Listener with the address host.
func Listen(host string) *Listener {
	return &Listener{host: host, incoming: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial connects to the listener, whatever the address. It has the type of http.Transport.DialContext.
func (l *Listener) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	failed := func(err error) error {
		return &net.OpError{Op: "dial", Net: "pipe", Addr: l.Addr(), Err: err}
	}
	if l.refusing.Load() {
		return nil, failed(syscall.ECONNREFUSED)
	}
	client, server := net.Pipe()
	var err error
	select {
	case l.incoming <- server:
		return client, nil
	case <-l.closed:
		err = syscall.ECONNREFUSED // as for a closed port
	case <-ctx.Done():
		err = ctx.Err()
	}
	_, _ = client.Close(), server.Close()
	return nil, failed(err)
}

// Refuse makes Dial fail, or succeed again.
func (l *Listener) Refuse(yes bool) { l.refusing.Store(yes) }

// Accept waits for the next Dial.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close stops Accept and Dial.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the host given to Listen.
func (l *Listener) Addr() net.Addr { return addr(l.host) }

type addr string

func (addr) Network() string  { return "pipe" }
func (a addr) String() string { return string(a) }

// Serve runs srv over HTTP/1.1, or over HTTP/2 without TLS. It returns a transport that connects to srv, and a
// function that stops both.
func Serve(srv *http.Server, http2 bool) (tr *http.Transport, stop func()) {
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(!http2)
	srv.Protocols.SetUnencryptedHTTP2(http2)
	ln := Listen("site")
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	tr = &http.Transport{DialContext: ln.Dial, Protocols: srv.Protocols}
	return tr, func() {
		tr.CloseIdleConnections()
		_ = srv.Close()
		<-served
	}
}
