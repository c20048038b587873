package aiguardtest

import (
	"net"
	"net/http"
	"time"
)

// idleGrace is how long an idle connection lives on while it is in a fault's way.
const idleGrace = 50 * time.Millisecond

// Play makes every request from now on meet the fault, before the script,
// Handle and the default, none of which is used. Play("") ends it; Reset does
// not. Only the last fault is played. It panics if there is no such fault.
//
// Of the faults that happen below HTTP (see Fault.Connection), FaultRefused and
// FaultTLSStall are met by every new connection; those that are idle are reset,
// now or when they become it. FaultGoesDark is met by all connections that exist
// now, and by none that comes later: call Play again for those. Connections and
// requests that have met one of these faults, or FaultNeverRead, are reset when
// the fault is over, because nothing good can become of them. Until then, who
// does not read does not notice either: with FaultNeverRead on HTTP/1.1 a
// request stays in progress though its client has left.
//
// While FaultRefused is played the port is closed and could be taken by somebody
// else. Play panics if the port cannot be had back.
func (s *Server) Play(f Fault) {
	if _, ok := f.row(); f != "" && !ok {
		panic("aiguardtest: no fault is called " + string(f))
	}
	s.playing.Lock() // the port is opened and closed in the order of calls
	defer s.playing.Unlock()
	s.mu.Lock()
	s.fault = f
	close(s.faultOver)
	s.faultOver = make(chan struct{})
	s.mu.Unlock()
	s.listener.play(f)
}

// meet lets a request meet the fault that is played, if that is one that
// begins before its body is read. It returns the fault's reply for after that,
// nil if the request is to be answered as always.
func (s *Server) meet(r *Request) Reply {
	s.mu.Lock()
	fault, over := s.fault, s.faultOver
	s.mu.Unlock()
	switch fault {
	case "", FaultGoesDark:
		return nil
	case FaultRefused, FaultTLSStall:
		// On a connection that was busy when the fault began.
		return ResetConn()
	case FaultNeverRead:
		if r.ex.conn != nil {
			r.ex.conn.shrink() // it may be older than the fault
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

// play makes connections meet the fault, and ends what is left of the last one.
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

// resetsIdle reports whether idle connections stand in the fault's way.
func (f Fault) resetsIdle() bool { return f == FaultRefused || f == FaultTLSStall }

// idled notes that a connection has no request in progress any more.
func (l *listener) idled(c *conn) {
	c.idle.Store(true)
	if !l.inTheWay(c) {
		return
	}
	// HTTP/2's last frames may not be sent yet, and a reset would overtake them.
	time.AfterFunc(idleGrace, func() {
		if l.inTheWay(c) {
			c.reset()
		}
	})
}

// inTheWay reports whether the connection is idle and keeps clients from
// meeting the fault.
func (l *listener) inTheWay(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault.resetsIdle() && c.idle.Load() && !c.mute.Load()
}

// port opens or closes the port.
func (l *listener) port(open bool) {
	const patience = 5 * time.Second // for whoever has taken the port meanwhile
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
