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
	"github.com/aiguard-go/aiguard/internal/sse"
)

// isWhole reports whether an answer is read whole before it is returned. A media type that names a stream decides,
// else the request does. Both are hints, and the first bytes decide in the end.
func (x *exchange) isWhole(resp *http.Response) bool {
	media := mediaType(resp.Header)
	switch {
	case isStream(media) && (x.eventLines || !x.json):
		return false
	case !x.judged:
		return x.json && isJSON(media) // so that a truncated answer fails this attempt
	case isBytes(media) && x.endpoint.Plain():
		return false
	}
	return x.json
}

// whole reads the whole answer, so that any error in it fails this attempt.
func (x *exchange) whole(w *watch, resp *http.Response) (*http.Response, error) {
	b := &wholeBody{hold: hold{room: &x.guard.memory.room}, call: x.call, ctx: w.caller}
	handedOver := false
	defer func() {
		if !handedOver {
			b.hold.release()
		}
	}()
	body, err := x.read(w, resp, &b.hold)
	if err != nil {
		return nil, err
	}
	end, usage, err := x.judge(resp, body)
	if err != nil {
		return nil, err
	}
	b.rest = body[:end]
	resp.Body = b
	if resp.ContentLength != int64(end) {
		resp.ContentLength = int64(end)
		resp.TransferEncoding = nil
		resp.Header.Del("Content-Length") // it counts bytes before trimming
	}
	x.wire.answered(usage, int64(end), true) // although another attempt may be first
	if err := x.call.claim(); err != nil {
		return nil, err
	}
	if x.known != nil {
		x.known.answered = true
	}
	x.call.judge(w.caller, nil)
	x.call.succeed(w.caller, usage)
	handedOver = true
	return resp, nil
}

// judge checks that body is the requested answer, and returns where the answer ends in it.
func (x *exchange) judge(resp *http.Response, body []byte) (end int, u Usage, err error) {
	if !x.judged {
		return len(body), u, nil
	}
	media := mediaType(resp.Header)
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		if x.endpoint.Plain() && strings.HasPrefix(media, "text/") && len(body) > 0 {
			return len(body), u, nil // transcript of silence
		}
		return 0, u, x.invalid(resp)
	case !couldBeText(media):
		return 0, u, x.invalid(resp)
	}
	end, err = jsonscan.Check(body, dialect.MaxShape)
	if x.endpoint.Plain() && !isJSON(media) && media != "text/html" && (err != nil || !jsonObject(body)) {
		return len(body), u, nil // transcript as plain text
	}
	if errors.Is(err, jsonscan.ErrSyntax) && x.eventLines && eventsIn(body) {
		return x.judgeEvents(resp, body)
	}
	switch {
	case errors.Is(err, jsonscan.ErrTooBig):
		return 0, u, x.tooLarge(resp, PhaseJSONShape, int64(dialect.MaxShape.Containers))
	case errors.Is(err, jsonscan.ErrIncomplete):
		return 0, u, x.broken(resp, io.ErrUnexpectedEOF)
	case err != nil:
		return 0, u, x.invalid(resp)
	}
	a := x.endpoint.JudgeWith(&x.verdict, body[:end])
	switch {
	case a.Failed:
		nameless := ErrInvalidResponse
		if a.Own {
			nameless = ErrUnavailable
		}
		return 0, u, x.failed(resp, a.Failure, nameless)
	case !a.OK, x.stream && !x.eventLines: // go-openai would find no event and report the end of the stream
		return 0, u, x.invalid(resp)
	}
	if len(bytes.TrimSpace(body[end:])) == 0 {
		end = len(body)
	}
	return end, usageOf(a.Usage), nil
}

// judgeEvents checks an event stream with the media type of another format.
func (x *exchange) judgeEvents(resp *http.Response, body []byte) (end int, u Usage, err error) {
	follow := x.endpoint.Follow()
	events := sse.NewReader(bytes.NewReader(body), len(body), dialect.MaxShape)
	for {
		ev, err := events.Next()
		switch {
		case err != nil && follow.Complete(err == io.EOF, x.endsWithoutFinish()):
			return len(body), usageOf(follow.Usage()), nil
		case err != nil && !follow.Any():
			return 0, u, x.invalid(resp)
		case err != nil:
			return 0, u, x.broken(resp, io.ErrUnexpectedEOF)
		case ev.Done:
			follow.Done()
			continue
		case len(ev.Data) == 0:
			continue
		case ev.Err != nil && string(ev.Name) != "error":
			return 0, u, x.invalid(resp)
		}
		if f, failed := follow.Event(ev.Name, ev.Data); failed {
			return 0, u, x.failed(resp, f, ErrUnavailable)
		}
		if f, failed := follow.Failed(); failed {
			return 0, u, x.failed(resp, f, ErrUnavailable)
		}
	}
}

// endsWithoutFinish reports whether streams of this call's model may end without a finish reason.
func (x *exchange) endsWithoutFinish() bool { return x.settings.EndsWithoutFinish }

func usageOf(u dialect.Usage) Usage {
	return Usage{Input: u.Input, Output: u.Output, CacheRead: u.CacheRead, CacheWrite: u.CacheWrite, Reasoning: u.Reasoning}
}

// failed returns the error for a failure that a provider reports inside a success status.
func (x *exchange) failed(resp *http.Response, f dialect.Failure, nameless Kind) *Error {
	e := x.errorOf(resp, kindOfProvider(0, f, nameless))
	e.Err = providerCause(resp.StatusCode, f, true, nil)
	e.RetryAfter = f.RetryAfter
	return x.repeatable(e, true)
}

func mediaType(h http.Header) string {
	value := h.Get("Content-Type")
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
