package aiguardtest

import "net/http"

// Hang sends nothing, not even headers, until the client leaves.
func Hang() Reply {
	return func(_ http.ResponseWriter, r *Request) {
		<-r.Context().Done()
	}
}

// HangAfter sends the answer of next, then keeps the body open until the client leaves.
func HangAfter(next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		next(w, r)
		r.unfinished()
		if flush(w) == nil {
			<-r.Context().Done()
		}
	}
}

// Cut sends n bytes of next's body and cuts the connection (HTTP/2: resets the stream). If next writes less, the cut
// comes at its end. If n is 0, the client gets the headers and no body.
func Cut(n int, next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		c := &cutWriter{ResponseWriter: w, r: r, left: n}
		next(c, r)
		c.cut()
	}
}

// ResetConn resets the connection before any header. On HTTP/1.1 that is a TCP RST, on HTTP/2 a stream reset, and on a
// Pipe, which has no reset, a close.
func ResetConn() Reply {
	return func(_ http.ResponseWriter, r *Request) {
		r.aborting()
		// On HTTP/2 other requests share the connection.
		if c := connOf(r.Context()); c != nil && r.Proto != "HTTP/2.0" {
			c.reset()
		}
		panic(http.ErrAbortHandler)
	}
}

// Drop closes the connection properly before any header, so the client gets EOF. On HTTP/2 this also ends the other
// requests of the connection.
func Drop() Reply {
	return func(_ http.ResponseWriter, r *Request) {
		r.aborting()
		closeConn(r.Context())
		panic(http.ErrAbortHandler)
	}
}

// cutWriter cuts the connection after a number of bytes.
type cutWriter struct {
	http.ResponseWriter
	r    *Request
	left int
}

func (w *cutWriter) WriteHeader(status int) {
	// A body with a Content-Length would look whole if it is cut at its end.
	w.Header().Del("Content-Length")
	w.ResponseWriter.WriteHeader(status)
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) < w.left {
		n, err := w.ResponseWriter.Write(p)
		w.left -= n
		return n, err
	}
	if w.left > 0 {
		_, _ = w.ResponseWriter.Write(p[:w.left])
	}
	w.cut()
	return 0, http.ErrAbortHandler // not reached
}

func (w *cutWriter) cut() {
	w.r.aborting()
	w.Header().Del("Content-Length")
	_ = flush(w.ResponseWriter)
	panic(http.ErrAbortHandler)
}

func (w *cutWriter) Flush()                      { _ = flush(w.ResponseWriter) }
func (w *cutWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
