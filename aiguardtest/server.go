package aiguardtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/aiguard-go/aiguard/internal/pipe"
)

const (
	journalSize  = 10_000   // requests kept for Requests
	maxBodyBytes = 64 << 20 // limit of a request; larger requests get a 413
	pipeHost     = "fake.openai"
)

// Server is a fake model provider. By default it answers every request correctly. Enqueue, Handle, SetDefault and Play
// change that. It keeps a journal of the requests that it received.
//
// It listens on a free port of 127.0.0.1, or has no port at all (see Pipe). All methods are safe for concurrent use.
type Server struct {
	// URL is the base URL for OpenAI clients, with /v1 and without a final slash: http://127.0.0.1:1234/v1. Clients of
	// the other APIs, which add their own version to the path, can use it too.
	URL string

	config    config
	listener  *listener
	http      *http.Server
	roots     *x509.CertPool // nil without TLS
	served    chan struct{}  // closed when http.Serve returns
	closeOnce sync.Once
	cancel    context.CancelFunc // ends every request's context

	mu      sync.Mutex
	idle    sync.Cond // signals that no connection is open and no request is in progress
	closing bool
	script  []Reply
	handle  func(*Request) Reply
	deflt   Reply

	playing   sync.Mutex    // held by Play; lock it before mu
	fault     Fault         // the fault played; "": none
	faultOver chan struct{} // closed when the fault ends

	journal     []*Request // a ring buffer once it is full
	oldest      int        // index of the oldest entry in a full journal
	number      int        // number of the last request since Start
	count       int
	active      int
	peak        int
	disconnects int
	connsOpen   int
	connsTotal  int
	generation  int // number of Resets; earlier requests are not counted
}

// TB is the part of testing.TB that NewServer uses. It lets programs use this package without linking package testing.
type TB interface {
	Helper()
	Cleanup(func())
}

// Option configures a Server.
type Option func(*config)

type config struct {
	tls  bool
	pipe bool
}

// TLS makes the server use HTTPS, with HTTP/2 for clients that offer it. The certificate is self-signed.
// Server.Transport trusts it.
func TLS() Option { return func(c *config) { c.tls = true } }

// Pipe makes the server use net.Pipe connections instead of a port. Only Server.Transport can connect to it. Use it in
// a testing/synctest bubble, where waiting on a socket would stop virtual time. Start the server inside the bubble.
// Pipe may be combined with TLS.
func Pipe() Option { return func(c *config) { c.pipe = true } }

// Start starts a server for a program. Tests should use NewServer. The caller must call Close. Start panics if it
// cannot listen on 127.0.0.1.
func Start(opts ...Option) *Server {
	s := &Server{served: make(chan struct{}), faultOver: make(chan struct{})}
	s.idle.L = &s.mu
	for _, opt := range opts {
		opt(&s.config)
	}

	scheme, host := "http", pipeHost
	if s.config.pipe {
		s.listener = newListener(pipe.Listen(pipeHost))
	} else {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic("aiguardtest: cannot listen on 127.0.0.1: " + err.Error())
		}
		s.listener = newListener(ln)
		host = ln.Addr().String()
	}

	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.http = &http.Server{
		Handler:     http.HandlerFunc(s.serveHTTP),
		ErrorLog:    log.New(io.Discard, "", 0), // clients that leave are expected
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: withConn,
		ConnState:   s.connState,
	}
	serve := s.http.Serve
	if s.config.tls {
		scheme = "https"
		cert, roots := selfSigned()
		s.roots = roots
		s.http.TLSConfig = &tls.Config{
			Certificates: []tls.Certificate{cert},
			// Tickets are written after the handshake, when a client may be writing too. On a pipe without a buffer
			// both would wait.
			SessionTicketsDisabled: true,
		}
		serve = func(ln net.Listener) error { return s.http.ServeTLS(ln, "", "") }
	}
	s.URL = scheme + "://" + host + "/v1"

	go func() {
		defer close(s.served)
		_ = serve(s.listener) // ends with Close
	}()
	return s
}

// NewServer starts a server for a test and closes it at the end of the test.
func NewServer(tb TB, opts ...Option) *Server {
	tb.Helper()
	s := Start(opts...)
	tb.Cleanup(s.Close)
	return s
}

// Transport returns a new transport that reaches this server. With TLS it trusts the server's certificate and uses
// HTTP/2. It ignores proxies in the environment and has none of the limits of http.DefaultTransport. The caller owns it
// and calls CloseIdleConnections. Closing the server ends its connections too.
func (s *Server) Transport() *http.Transport {
	t := &http.Transport{}
	if p := s.listener.pipe; p != nil {
		t.DialContext = p.Dial
	}
	if s.roots != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: s.roots}
		t.ForceAttemptHTTP2 = true
	}
	return t
}

// Close stops listening, closes every connection, cancels the context of every request and waits for their replies to
// return. An answer that Close cuts short does not look complete to its client. Close is idempotent. Do not call it
// from a Reply, because it waits for the Reply.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closing = true
		s.mu.Unlock()

		// Close the connections before the contexts end, so that a reply cannot complete its answer. Close the raw
		// connections before those of http.Server, because closing TLS may wait for a stuck client.
		s.listener.shut()
		s.cancel()
		_ = s.http.Close()
		<-s.served

		s.mu.Lock()
		defer s.mu.Unlock()
		for s.active > 0 || s.connsOpen > 0 {
			s.idle.Wait()
		}
	})
}

// Enqueue adds replies to the script. Each request takes the next one. After the end of the script, Handle's function
// decides, then the default. A nil Reply stands for the default.
func (s *Server) Enqueue(replies ...Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, replies...)
}

// Handle sets a function that chooses the reply for each request after the end of the script, for example by model or
// body. If it returns nil, the default answers. It is called concurrently, with no lock held. Handle(nil) removes the
// function.
func (s *Server) Handle(choose func(*Request) Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = choose
}

// SetDefault sets the reply for requests without a reply from the script or Handle. Nil restores the built-in reply,
// Text("Hello!").
func (s *Server) SetDefault(reply Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deflt = reply
}

// Requests returns the requests since Start or Reset in the order in which their last byte arrived. It returns at most
// the latest 10,000. The requests are shared. Do not change them.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Request, 0, len(s.journal))
	all = append(all, s.journal[s.oldest:]...)
	return append(all, s.journal[:s.oldest]...)
}

// Count returns the number of requests received since Start or Reset.
func (s *Server) Count() int { return s.read(&s.count) }

// Active returns the number of requests in progress. A request is in progress from the arrival of its headers until its
// reply returns.
func (s *Server) Active() int { return s.read(&s.active) }

// Peak returns the highest number of requests in progress at once since Start or Reset.
func (s *Server) Peak() int { return s.read(&s.peak) }

// Disconnects returns the number of requests since Start or Reset whose client left before the answer was complete. A
// request counts if its context had ended or a write had failed when its reply returned. Connections that a reply or
// Close ended are not counted.
func (s *Server) Disconnects() int { return s.read(&s.disconnects) }

// Conns returns the number of open connections and the number of connections made since Start or Reset.
func (s *Server) Conns() (open, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connsOpen, s.connsTotal
}

// Reset clears the script, the journal, the counts and the peak, for example between two tests that share a server. It
// keeps the default, Handle's function, the fault, connections and requests in progress. Active and Peak still count
// those requests. Disconnects does not.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = nil
	s.journal, s.oldest = nil, 0
	s.count, s.disconnects, s.connsTotal = 0, 0, 0
	s.peak = s.active
	s.generation++
}

func (s *Server) read(n *int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *n
}

// serveHTTP receives, records and answers one request and updates the counts.
func (s *Server) serveHTTP(w http.ResponseWriter, hr *http.Request) {
	r := newRequest(hr)
	r.ex = &exchange{conn: connOf(hr.Context())}
	generation := s.enter()
	defer func() { s.leave(r, generation) }()
	if c := r.ex.conn; c != nil {
		r.ex.onConn = c.requests.Add(1)
	}
	fault := s.meet(r)

	body, err := io.ReadAll(io.LimitReader(hr.Body, maxBodyBytes+1))
	r.ex.failed.Store(err != nil)
	r.Body = body[:min(len(body), maxBodyBytes)]
	r.parse()

	reply := s.record(r, fault)
	if err != nil {
		panic(http.ErrAbortHandler) // the client left while sending
	}
	if choose := s.chooser(); reply == nil && choose != nil {
		reply = choose(r)
	}
	if reply == nil {
		reply = s.fallback()
	}
	if len(body) > maxBodyBytes {
		reply = Error(http.StatusRequestEntityTooLarge, "request_too_large")
	}

	w.Header().Set(dialectOf(r).requestID, "req_fake_"+strconv.Itoa(r.Number))
	reply(&recorder{w, r.ex}, r)
	if r.ctx.Err() != nil && !r.ex.complete.Load() {
		// The request was cancelled, so the answer is not whole and must not end properly.
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) enter() (generation int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
	s.peak = max(s.peak, s.active)
	return s.generation
}

func (s *Server) leave(r *Request, generation int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	if r.left() && !s.closing && generation == s.generation {
		s.disconnects++
	}
	s.idle.Broadcast()
}

// record adds r to the journal and takes its reply from the script. Both happen in one step, so that both have the same
// order. A fault takes no reply from the script.
func (s *Server) record(r *Request, fault Reply) Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	r.Number = s.number
	s.count++
	if len(s.journal) < journalSize {
		s.journal = append(s.journal, r)
	} else {
		s.journal[s.oldest] = r
		s.oldest = (s.oldest + 1) % journalSize
	}
	if fault != nil {
		return fault
	}
	if len(s.script) == 0 {
		return nil
	}
	reply := s.script[0]
	s.script = s.script[1:]
	if reply == nil {
		reply = s.fallbackLocked()
	}
	return reply
}

func (s *Server) chooser() func(*Request) Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handle
}

func (s *Server) fallback() Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fallbackLocked()
}

func (s *Server) fallbackLocked() Reply {
	if s.deflt == nil {
		return Text("Hello!")
	}
	return s.deflt
}

func (s *Server) connState(nc net.Conn, state http.ConnState) {
	if c := below(nc); c != nil {
		switch state {
		case http.StateActive:
			c.idle.Store(false)
		case http.StateIdle:
			s.listener.idled(c)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.connsOpen++
		s.connsTotal++
	case http.StateClosed, http.StateHijacked:
		s.connsOpen--
		s.idle.Broadcast()
	}
}
