package aiguard

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/jsonscan"
	"github.com/aiguard-go/aiguard/internal/jsonseq"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// isWhole reports whether an answer is read whole before it is returned. A media type that names a stream decides,
// else the request does. Both are hints, and the first bytes decide in the end.
func (r reply) isWhole() bool {
	media := mediaType(r.resp.Header)
	switch {
	case isStream(media) && (r.x.eventLines || !r.x.json):
		return false
	case !r.x.judged:
		return r.x.json && isJSON(media) // so that a truncated answer fails this attempt
	case isBytes(media) && r.x.endpoint.Plain():
		return false
	}
	return r.x.json
}

// whole reads the whole answer, so that any error in it fails this attempt.
func (r reply) whole() (*http.Response, error) {
	b := &r.x.whole
	*b = wholeBody{hold: hold{room: &r.x.guard.memory.room}, call: &r.x.call, ctx: r.w.caller}
	handedOver := false
	defer func() {
		if !handedOver {
			b.hold.release()
		}
	}()
	body, err := r.read(&b.hold)
	if err != nil {
		return nil, err
	}
	end, usage, err := r.judge(body)
	if err != nil {
		return nil, err
	}
	b.rest = body[:end]
	r.resp.Body = b
	if r.resp.ContentLength != int64(end) {
		r.resp.ContentLength = int64(end)
		r.resp.TransferEncoding = nil
		r.resp.Header.Del("Content-Length") // it counts bytes before trimming
	}
	r.x.wire.answered(usage, int64(end), true) // although another attempt may be first
	if err := r.x.claim(); err != nil {
		return nil, err
	}
	if r.x.known != nil {
		r.x.known.answered = true
	}
	r.x.call.judge(r.w.caller, nil)
	r.x.call.succeed(r.w.caller)
	handedOver = true
	return r.resp, nil
}

// judge checks that body is the requested answer, and returns where the answer ends in it.
func (r reply) judge(body []byte) (end int, u Usage, err error) {
	if !r.x.judged {
		return len(body), u, nil
	}
	media := mediaType(r.resp.Header)
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		if r.x.endpoint.Plain() && strings.HasPrefix(media, "text/") && len(body) > 0 {
			return len(body), u, nil // transcript of silence
		}
		return 0, u, r.invalid()
	case !couldBeText(media):
		return 0, u, r.invalid()
	}
	j := r.x.guard.newJudge()
	defer r.x.guard.judges.Put(j)
	j.scan.Reset(dialect.MaxShape)
	end, err = j.scan.Line(body)
	if r.x.endpoint.Plain() && !isJSON(media) && media != "text/html" && (err != nil || !jsonObject(body)) {
		return len(body), u, nil // transcript as plain text
	}
	if errors.Is(err, jsonscan.ErrSyntax) && r.x.eventLines && eventsIn(body) {
		return r.judgeEvents(body, sse.NewReader(bytes.NewReader(body), len(body), dialect.MaxShape))
	}
	switch {
	case errors.Is(err, jsonscan.ErrTooBig):
		return 0, u, r.tooLarge(PhaseJSONShape, int64(dialect.MaxShape.Containers))
	case errors.Is(err, jsonscan.ErrIncomplete):
		return 0, u, r.broken(io.ErrUnexpectedEOF)
	case err != nil:
		return 0, u, r.invalid()
	}
	a := r.x.endpoint.JudgeWith(&j.verdict, j.scan.Read(body[:end]))
	switch {
	case a.Failed:
		nameless := ErrInvalidResponse
		if a.Own {
			nameless = ErrUnavailable
		}
		return 0, u, r.failed(a.Failure, nameless)
	case !a.OK && r.x.eventLines && r.x.endpoint.Framing() == dialect.JSON:
		return r.judgeEvents(body, jsonseq.NewReader(bytes.NewReader(body), len(body), dialect.MaxShape))
	case !a.OK, a.Foreign && !r.x.eventLines, r.x.stream && !r.x.eventLines: // go-openai would find no event and report the end of the stream
		return 0, u, r.invalid()
	}
	if len(bytes.TrimSpace(body[end:])) == 0 {
		end = len(body)
	}
	return end, usageOf(a.Usage), nil
}

// judge is the memory for judging a JSON answer. Answers share it one after another.
type judge struct {
	scan    jsonscan.Scanner // checks the answer, and notes what is where in it for the verdict
	verdict dialect.Stream
}

func (c *core) newJudge() *judge {
	if j, _ := c.judges.Get().(*judge); j != nil {
		return j
	}
	return new(judge)
}

// judgeEvents checks a stream that came in place of a whole answer, with the media type of another format.
func (r reply) judgeEvents(body []byte, events interface{ Next() (sse.Event, error) }) (end int, u Usage, err error) {
	follow := r.x.endpoint.Follow()
	for {
		ev, err := events.Next()
		switch {
		case err != nil && follow.Complete(err == io.EOF, r.x.settings.EndsWithoutFinish):
			return len(body), usageOf(follow.Usage()), nil
		case err != nil && !follow.Any():
			return 0, u, r.invalid()
		case err != nil:
			return 0, u, r.broken(io.ErrUnexpectedEOF)
		case ev.Done:
			follow.Done()
			continue
		case len(ev.Data) == 0:
			continue
		case errors.Is(ev.Err, jsonscan.ErrIncomplete) && string(ev.Name) != "error":
			return 0, u, r.broken(io.ErrUnexpectedEOF)
		case ev.Err != nil && string(ev.Name) != "error":
			return 0, u, r.invalid()
		}
		if f, failed := follow.Event(ev.Name, ev.Data); failed {
			return 0, u, r.failed(f, ErrUnavailable)
		}
		if f, failed := follow.Failed(); failed {
			return 0, u, r.failed(f, ErrUnavailable)
		}
	}
}

// usageOf returns the usage that an answer reports. An answer may report anything, so each number is limited to a range
// in which sums do not overflow.
func usageOf(u dialect.Usage) Usage {
	const most = 1e12
	limit := func(n int64) int64 { return min(max(n, 0), most) }
	return Usage{Input: limit(u.Input), Output: limit(u.Output), CacheRead: limit(u.CacheRead), CacheWrite: limit(u.CacheWrite),
		Reasoning: limit(u.Reasoning)}
}

func mediaType(h http.Header) string {
	value := field(h, "Content-Type")
	if value == "application/json" { // most common; saves parsing
		return value
	}
	media, _, err := mime.ParseMediaType(value)
	if err != nil {
		return ""
	}
	return media
}

func isJSON(media string) bool {
	return media == "application/json" || strings.HasSuffix(media, "+json")
}

// isStream reports whether media is the type of an event stream.
func isStream(media string) bool {
	switch media {
	case "text/event-stream", "application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines",
		"application/stream+json", "application/vnd.amazon.eventstream":
		return true
	}
	return false
}

// isBytes reports whether media is the type of audio, an image or a file.
func isBytes(media string) bool {
	return media == "application/octet-stream" || !couldBeText(media)
}

// couldBeText reports whether an answer in JSON or events may have this media type. Servers are not reliable here.
func couldBeText(media string) bool {
	return media == "" || strings.HasPrefix(media, "text/") || strings.HasPrefix(media, "application/")
}

// eventsIn reports whether b looks like an event stream.
func eventsIn(b []byte) bool {
	b = bytes.TrimLeft(b, "\uFEFF \t\r\n")
	for _, field := range [...]string{"data:", "event:", "id:", "retry:", ":"} {
		if bytes.HasPrefix(b, []byte(field)) {
			return true
		}
	}
	return false
}
