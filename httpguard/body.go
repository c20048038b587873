package httpguard

import (
	"io"
	"net/http"
	"time"
)

// answerTime limits the rest of the exchange after a response.
const answerTime = 5 * time.Second

// requestBody is the body of a request whose handler may run longer than the request. When ServeHTTP returns during a
// Read of the body, net/http clears the read deadline of an HTTP/1 connection. It then waits without limit for the
// rest of the body. Therefore no Read may be in progress at that time.
type requestBody struct {
	io.ReadCloser
	reading chan struct{} // holds an element during a Read
	over    chan struct{} // closed when no further Read may start
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

// end makes the current Read and all later ones fail. A middleware may have replaced the body, so that the deadline
// of the connection does not end the Read. end waits for such a Read for at most LastWord.
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

// limitRest limits the time in which net/http reads the rest of the body before it reuses or closes the connection.
func (x *exchange) limitRest(w http.ResponseWriter) {
	if x.http1 { // in HTTP/2 the server resets the stream
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(answerTime))
	}
}
