package aiguardtest

import "net/http"

// Hang sends nothing, not even headers, until the client leaves.
func Hang() Reply {
	return func(_ http.ResponseWriter, r *Request) {
		<-r.Context().Done()
	}
}

// HangAfter lets next answer, sends what it wrote, and then keeps the body
// open until the client leaves: it never ends.
func HangAfter(next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		next(w, r)
		r.unfinished()
		if flush(w) == nil {
			<-r.Context().Done()
		}
	}
}

// Cut lets n bytes of next's body through, sends them, and cuts the connection
// (HTTP/2: resets the stream). If next writes less, the cut comes where the
// end would be. With n 0 the client sees the headers and no body.
func Cut(n int, next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		c := &cutWriter{ResponseWriter: w, r: r, left: n}
		next(c, r)
		c.cut()
	}
}

// ResetConn resets the connection before any header: a TCP RST on HTTP/1.1, a
// stream reset on HTTP/2, and on a Pipe, which knows no reset, a close.
func ResetConn() Reply {
	return func(_ http.ResponseWriter, r *Request) {
		r.aborting()
		// On HTTP/2 the connection belongs to other requests too.
		if c := connOf(r.Context()); c != nil && r.Proto != "HTTP/2.0" {
			c.reset()
		}
		panic(http.ErrAbortHandler)
	}
}

// Drop closes the connection properly before any header: the client sees EOF.
// On HTTP/2 this ends the connection's other requests as well.
func Drop() Reply {
	return func(_ http.ResponseWriter, r *Request) {
		r.aborting()
		closeConn(r.Context())
		panic(http.ErrAbortHandler)
	}
}

// cutWriter cuts the connection when its allowance is used up.
type cutWriter struct {
	http.ResponseWriter
	r    *Request
	left int
}

func (w *cutWriter) WriteHeader(status int) {
	// A body whose length is announced would look whole if it is cut at its end.
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
