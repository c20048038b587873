package cacheguard

import (
	"bytes"
	"io"
	"net/http"
	"strings"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// complete reports whether body is a complete, successful answer to q. It applies the guard's rules itself, because
// next may not be a guard. clean means that the body ended with io.EOF. A stream may also end without it after its
// final event.
func complete(q *request, resp *http.Response, body []byte, clean bool) bool {
	encoding := resp.Header.Get("Content-Encoding")
	if resp.StatusCode != http.StatusOK || encoding != "" && !strings.EqualFold(encoding, "identity") {
		return false
	}
	if q.stream { // an answer that is not a stream may be valid once, but other callers expect a stream
		return completeStream(q.endpoint, body, clean)
	}
	end, err := jsonscan.Check(body, dialect.MaxShape)
	if err != nil || !clean || len(bytes.TrimSpace(body[end:])) > 0 {
		return false
	}
	return q.endpoint.Judge(body[:end]).Whole
}

func completeStream(e dialect.Endpoint, body []byte, clean bool) bool {
	if op := e.Op(); op == "embeddings" || op == "moderations" {
		return false // these endpoints have no streams
	}
	progress := e.Follow()
	events := sse.NewReader(bytes.NewReader(body), len(body), dialect.MaxShape)
	for {
		ev, err := events.Next()
		switch {
		case err == io.EOF:
			return progress.Whole() && (progress.Terminal() || clean)
		case err != nil:
			return false
		case ev.Done:
			progress.Done()
			continue
		case len(ev.Data) == 0 && string(ev.Name) != "error":
			continue
		case ev.Err != nil || ev.Bare || ev.Data[0] != '{' || ev.End != len(ev.Data):
			return false
		}
		if _, failed := progress.Event(ev.Name, ev.Data); failed {
			return false
		}
	}
}
