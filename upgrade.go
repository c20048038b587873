package aiguard

import (
	"io"
	"net/http"
)

// upgraded is the connection after a 101 Switching Protocols, such as a WebSocket. The caller gets it as from
// net/http: unread, writable and without size limits. It holds its slot until it is closed or ends, at StreamTimeout
// at the latest.
type upgraded struct {
	*stream
	conn io.ReadWriteCloser
}

// upgrade makes the connection of a 101 the body of its response.
func (r reply) upgrade() error {
	conn, ok := r.resp.Body.(io.ReadWriteCloser)
	if !ok {
		return r.invalid()
	}
	s := newStream(r)
	s.events = nil
	if err := s.open(); err != nil {
		s.held.release()
		return err
	}
	r.resp.Body = &upgraded{stream: s, conn: conn}
	return nil
}

func (u *upgraded) Read(p []byte) (int, error) {
	if u.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := u.conn.Read(p)
	if err != nil && err != io.EOF {
		err = u.stopped(err)
	}
	if err != nil {
		err = u.finish(err)
	}
	return n, err
}

func (u *upgraded) Write(p []byte) (int, error) {
	n, err := u.conn.Write(p)
	if err == nil {
		return n, nil
	}
	select {
	case <-u.ended:
		if u.final != io.EOF {
			err = u.final
		}
	default:
	}
	return n, err
}

// Close ends the connection. For an upgraded connection this is a success.
func (u *upgraded) Close() error {
	u.closed.Store(true)
	u.finish(io.EOF)
	return nil
}
