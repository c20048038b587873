package httpguard

import (
	"io"
	"net/http"
	"time"
)

// answerTime bounds the exchange that is left after an answer.
const answerTime = 5 * time.Second

// requestBody is the body of a request whose handler may outlive it. When ServeHTTP returns, net/http clears the read
// deadline of an HTTP/1 connection if the body is being read at that moment, and then waits without limit for the rest of
// the body. So no Read may be under way then.
type requestBody struct {
	io.ReadCloser
	reading chan struct{} // holds an element while a Read is under way
	over    chan struct{} // closed when there must be no further Read
}

func newRequestBody(body io.ReadCloser) *requestBody {
	return &requestBody{body, make(chan struct{}, 1), make(chan struct{})}
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.reading <- struct{}{}
	defer func() { <-b.reading }()
	select {
	case <-b.over:
		return 0, http.ErrBodyReadAfterClose
	default:
		return b.ReadCloser.Read(p)
	}
}

// end makes the Read under way, and each later one, fail. A body that the connection's deadline cannot reach, because a
// middleware has replaced it, is waited for no longer than LastWord.
func (b *requestBody) end(ctl *http.ResponseController) {
	close(b.over)
	if ctl.SetReadDeadline(time.Unix(1, 0)) != nil {
		return
	}
	timer := time.NewTimer(LastWord)
	defer timer.Stop()
	select {
	case b.reading <- struct{}{}:
		<-b.reading
	case <-timer.C:
	}
}

// limitRest bounds the time in which net/http reads what is left of the body, before it uses or closes the connection.
func (x *exchange) limitRest(w http.ResponseWriter) {
	if x.http1 { // in HTTP/2 the server resets the stream
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(answerTime))
	}
}
