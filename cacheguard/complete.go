package cacheguard

import (
	"bytes"
	"io"
	"net/http"
	"strings"

	"github.com/aiguard-go/aiguard/internal/answer"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// complete reports whether body is a whole and successful answer to q, by the guard's own measure: the one behind may be
// no guard. clean says that it ended as bodies should; a stream may also end once it has said that nothing more comes.
func complete(q *request, resp *http.Response, body []byte, clean bool) bool {
	encoding := resp.Header.Get("Content-Encoding")
	if resp.StatusCode != http.StatusOK || encoding != "" && !strings.EqualFold(encoding, "identity") {
		return false
	}
	if q.stream {
		return completeStream(q.endpoint, body, clean)
	}
	end, err := jsonscan.Check(body, answer.MaxShape)
	if err != nil || !clean || len(bytes.TrimSpace(body[end:])) > 0 {
		return false
	}
	_, _, ok := answer.Judge(q.endpoint, body[:end])
	return ok
}

func completeStream(e answer.Endpoint, body []byte, clean bool) bool {
	if e == answer.Embeddings || e == answer.Moderations {
		return false // these have no streams: what is it?
	}
	progress := answer.Progress{Endpoint: e}
	events := sse.NewReader(bytes.NewReader(body), len(body), answer.MaxShape)
	some := false
	for {
		ev, err := events.Next()
		switch {
		case err == io.EOF:
			return some && progress.Failed() == nil && (progress.Terminal() || clean && progress.Complete())
		case err != nil:
			return false
		case ev.Done:
			progress.Done()
			continue
		case len(ev.Data) == 0 && string(ev.Name) != "error":
			continue
		case ev.Err != nil || ev.Data[0] != '{' || ev.End != len(ev.Data):
			return false
		}
		if _, failed := progress.Event(ev.Name, ev.Data); failed {
			return false
		}
		some = true
	}
}
