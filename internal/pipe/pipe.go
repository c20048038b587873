// Package pipe serves HTTP without sockets, so that client and server can be in a bubble of testing/synctest.
package pipe

import (
	"context"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
)

// Listener accepts what its own Dial connects.
type Listener struct {
	host     string
	incoming chan net.Conn
	once     sync.Once
	closed   chan struct{}
	refusing atomic.Bool
}

// Listen returns a Listener whose address is host.
func Listen(host string) *Listener {
	return &Listener{host: host, incoming: make(chan net.Conn), closed: make(chan struct{})}
}

// Dial is http.Transport.DialContext; every address leads here.
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
		err = syscall.ECONNREFUSED // as a closed port would answer
	case <-ctx.Done():
		err = ctx.Err()
	}
	_, _ = client.Close(), server.Close()
	return nil, failed(err)
}

// Refuse makes Dial fail from now on, or no longer.
func (l *Listener) Refuse(yes bool) { l.refusing.Store(yes) }

// Accept waits for Dial.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and Dial.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is the host that Listen was given.
func (l *Listener) Addr() net.Addr { return addr(l.host) }

type addr string

func (addr) Network() string  { return "pipe" }
func (a addr) String() string { return string(a) }

// Serve runs srv over HTTP/1.1, or HTTP/2 in clear text, and returns the transport that leads there, and what ends both.
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
