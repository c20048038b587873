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
	maxBodyBytes = 64 << 20 // of a request; more is answered with 413
	pipeHost     = "fake.openai"
)

// Server is a fake model provider. It answers every request correctly until it
// is told otherwise with Enqueue, Handle, SetDefault or Play, and keeps a journal of
// what it received.
//
// It listens on a free port of 127.0.0.1, or on nothing at all (see Pipe).
// All its methods are safe for concurrent use.
type Server struct {
	// URL is the base URL that OpenAI clients want, with /v1 and without a
	// final slash: http://127.0.0.1:1234/v1. Clients of the other APIs, which
	// add a version of their own, may use it too.
	URL string

	config    config
	listener  *listener
	http      *http.Server
	roots     *x509.CertPool // nil without TLS
	served    chan struct{}  // closed when http.Serve has returned
	closeOnce sync.Once
	cancel    context.CancelFunc // of every request's context

	mu      sync.Mutex
	idle    sync.Cond // no connection open and no request in progress
	closing bool
	script  []Reply
	handle  func(*Request) Reply
	deflt   Reply

	playing   sync.Mutex    // held by Play, taken before mu
	fault     Fault         // played, "" if none
	faultOver chan struct{} // closed when it is no longer played

	journal     []*Request // a ring once it is full
	oldest      int        // its first entry, then
	number      int        // of the last request, since Start
	count       int
	active      int
	peak        int
	disconnects int
	connsOpen   int
	connsTotal  int
	generation  int // counts Resets: what began before one is not counted after it
}

// TB is the part of testing.TB that NewServer needs, so that programs can use
// this package without linking package testing.
type TB interface {
	Helper()
	Cleanup(func())
}

// Option changes how a Server is reached.
type Option func(*config)

type config struct {
	tls  bool
	pipe bool
}

// TLS makes the server speak HTTPS, with HTTP/2 for clients that offer it. Its
// certificate is its own; Server.Transport trusts it.
func TLS() Option { return func(c *config) { c.tls = true } }

// Pipe makes the server listen on nothing: connections are net.Pipe ends made
// by Server.Transport, the only way in. Use it in a testing/synctest bubble,
// where waiting on a socket would stop virtual time from advancing. Start the
// server inside the bubble. It may be combined with TLS.
func Pipe() Option { return func(c *config) { c.pipe = true } }

// Start starts a server, for programs; tests want NewServer. The caller must
// Close it. It panics if 127.0.0.1 cannot be listened on.
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
		ErrorLog:    log.New(io.Discard, "", 0), // clients that leave are the point here, not news
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
			// Tickets are written after the handshake, when a client may be
			// writing too: on a pipe, which buffers nothing, both would wait.
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

// NewServer is Start for tests: it closes the server when the test ends.
func NewServer(tb TB, opts ...Option) *Server {
	tb.Helper()
	s := Start(opts...)
	tb.Cleanup(s.Close)
	return s
}

// Transport returns a new transport that reaches this server and, with TLS,
// trusts it and speaks HTTP/2. It ignores proxies in the environment, and has
// none of the limits of http.DefaultTransport. The caller owns it and calls
// CloseIdleConnections; once the server is closed its connections end anyway.
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

// Close ends everything at once: it stops listening, closes every connection,
// cancels the context of every request and waits for their replies to return.
// No answer that was cut short by Close looks complete to its client. Close is
// idempotent, and must not be called from a Reply, for which it would wait.
func (s *Server) Close() {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closing = true
		s.mu.Unlock()

		// Connections before contexts: a reply that is told to stop must not
		// get the chance to end its answer properly. And raw connections
		// before http.Server's, whose TLS goodbye may wait for a stuck client.
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

// Enqueue adds replies to the script: each request takes the next one. When
// the script is used up, Handle's function and then the default decide. A nil
// Reply stands for the default.
func (s *Server) Enqueue(replies ...Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = append(s.script, replies...)
}

// Handle sets a function that chooses the reply for each request that finds
// the script used up, by its model, its body, or anything else. If it returns
// nil the default answers. It is called concurrently, with no lock held. A nil
// function undoes Handle.
func (s *Server) Handle(choose func(*Request) Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handle = choose
}

// SetDefault sets the reply for requests that neither the script nor Handle
// decides on. Nil restores the built-in one, Text("Hello!").
func (s *Server) SetDefault(reply Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deflt = reply
}

// Requests returns the requests received since Start or Reset, in order of
// arrival (of their last byte), at most the latest 10,000. The requests are
// shared: do not change them.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Request, 0, len(s.journal))
	all = append(all, s.journal[s.oldest:]...)
	return append(all, s.journal[:s.oldest]...)
}

// Count returns how many requests were received since Start or Reset.
func (s *Server) Count() int { return s.read(&s.count) }

// Active returns how many requests are in progress now: their headers have
// arrived and their reply has not returned.
func (s *Server) Active() int { return s.read(&s.active) }

// Peak returns the most requests that were in progress at once since Start or
// Reset.
func (s *Server) Peak() int { return s.read(&s.peak) }

// Disconnects returns how many requests since Start or Reset lost their client
// before the answer was complete: when their reply returned, the request's
// context was done or a write had failed. Connections that a reply or Close
// ended are not counted.
func (s *Server) Disconnects() int { return s.read(&s.disconnects) }

// Conns returns how many connections are open now and how many were made since
// Start or Reset.
func (s *Server) Conns() (open, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connsOpen, s.connsTotal
}

// Reset forgets the script, the journal, the counts and the peak, as between
// two tests that share a server. The default, Handle's function, the fault that
// is played, connections and requests in progress stay; the latter are counted by Active and Peak but
// no longer by Disconnects.
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

// serveHTTP is one request: received, recorded, answered, accounted for.
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
		panic(http.ErrAbortHandler) // the client left while it was sending
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
		// Whoever cancelled it, the answer is not whole: it must not end as
		// if it were.
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

// record enters r in the journal and takes its reply from the script, in one
// step so that both are in the same order. A fault leaves the script alone.
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
