package aiguardtest

import (
	"net"
	"net/http"
	"time"
)

// idleGrace is how long an idle connection lives that would keep clients from meeting the fault.
const idleGrace = 50 * time.Millisecond

// Play makes every request from now on meet the fault. It takes precedence over the script, Handle and the default.
// Play("") ends the fault; Reset does not. Only the last fault is active. Play panics if the fault does not exist.
//
// Some faults happen below HTTP (see Fault.Connection). FaultRefused and FaultTLSStall affect every new connection.
// They also reset idle connections, now or when a connection becomes idle. FaultGoesDark affects all connections that
// exist now and no later ones. Call Play again for those.
//
// When one of these faults or FaultNeverRead ends, the affected connections and requests are reset. Until then a
// client's departure may go unnoticed. With FaultNeverRead on HTTP/1.1 a request stays in progress even after its
// client has left.
//
// During FaultRefused the port is closed, and another process could take it. Play panics if it cannot reopen the port.
func (s *Server) Play(f Fault) {
	if _, ok := f.row(); f != "" && !ok {
		panic("aiguardtest: unknown fault " + string(f))
	}
	s.playing.Lock() // keeps the order of calls for opening and closing the port
	defer s.playing.Unlock()
	s.mu.Lock()
	s.fault = f
	close(s.faultOver)
	s.faultOver = make(chan struct{})
	s.mu.Unlock()
	s.listener.play(f)
}

// meet applies a fault that begins before the body is read. It returns the reply to use afterwards, or nil if the
// request is answered as usual.
func (s *Server) meet(r *Request) Reply {
	s.mu.Lock()
	fault, over := s.fault, s.faultOver
	s.mu.Unlock()
	switch fault {
	case "", FaultGoesDark:
		return nil
	case FaultRefused, FaultTLSStall:
		// The connection was busy when the fault began.
		return ResetConn()
	case FaultNeverRead:
		if r.ex.conn != nil {
			r.ex.conn.shrink() // the connection may be older than the fault
		}
		select {
		case <-r.ctx.Done():
		case <-over:
			r.aborting()
		}
		panic(http.ErrAbortHandler)
	}
	return fault.Reply()
}

// play makes connections meet the fault, and cleans up after the previous one.
func (l *listener) play(f Fault) {
	l.mu.Lock()
	l.fault = f
	var end []*conn
	for c := range l.conns {
		switch {
		case c.mute.Load(), f.resetsIdle() && c.idle.Load():
			end = append(end, c)
		case f == FaultGoesDark:
			c.mute.Store(true)
		}
	}
	l.mu.Unlock()
	for _, c := range end {
		c.reset()
	}
	if l.pipe != nil {
		l.pipe.Refuse(f == FaultRefused)
	} else {
		l.port(f != FaultRefused)
	}
}

// resetsIdle reports whether the fault requires that idle connections are reset.
func (f Fault) resetsIdle() bool { return f == FaultRefused || f == FaultTLSStall }

// idled records that a connection has no request in progress.
func (l *listener) idled(c *conn) {
	c.idle.Store(true)
	if !l.inTheWay(c) {
		return
	}
	// HTTP/2's last frames may be unsent, and a reset would overtake them.
	time.AfterFunc(idleGrace, func() {
		if l.inTheWay(c) {
			c.reset()
		}
	})
}

// inTheWay reports whether the connection is idle and would keep clients from meeting the fault.
func (l *listener) inTheWay(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault.resetsIdle() && c.idle.Load() && !c.mute.Load()
}

// port opens or closes the port.
func (l *listener) port(open bool) {
	const patience = 5 * time.Second // for another process to release the port
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := l.tryPort(open)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			panic("aiguardtest: cannot open the port again: " + err.Error())
		}
	}
}

func (l *listener) tryPort(open bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.conns == nil || open == (l.ln != nil):
		return nil
	case !open:
		_ = l.ln.Close()
		l.ln = nil
		return nil
	}
	ln, err := net.Listen(l.addr.Network(), l.addr.String())
	if err == nil {
		l.ln = ln
		l.changed.Broadcast()
	}
	return err
}
