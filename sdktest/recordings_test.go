package sdktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/dialect"
)

type played struct{ resp *http.Response }

func (p played) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	return p.resp, nil
}

// meaning returns a body without the parts that the guard may drop: the comments and blank lines of an event stream.
func meaning(media string, body []byte) string {
	if !strings.HasPrefix(media, "text/event-stream") {
		return string(body)
	}
	var lines []string
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" && !strings.HasPrefix(line, ":") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// endpoint returns the name of the operation of a request.
func endpoint(req *http.Request) string {
	e := dialect.Of(req.Method, req.URL.Path, req.URL.RawQuery)
	if !e.Known() {
		return "(unknown) " + dialect.NameOf(req.URL.Path)
	}
	return e.Op()
}

func TestRecordedAnswersArriveUnchanged(t *testing.T) {
	type row struct{ answers, streams, failures int }
	table := map[string]*row{}
	for i, r := range recordings(t) {
		sent, recorded := r.exchange(t)
		if recorded.StatusCode >= 300 && recorded.StatusCode < 400 {
			continue
		}
		want, err := io.ReadAll(recorded.Body)
		require.NoError(t, err, r.name)
		_, again := r.exchange(t)

		var usage aiguard.Usage
		g := newGuard(t, aiguard.Config{MaxPromptChars: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1},
			OnEvent: func(_ context.Context, e aiguard.Event) {
				if e.Type == aiguard.EventDone {
					usage = e.Usage
				}
			}})
		resp, err := g.Transport(played{again}).RoundTrip(sent)
		name := fmt.Sprintf("%s, exchange %d: %s %s, %d", r.name, i, sent.Method, sent.URL.Path, recorded.StatusCode)
		if !assert.NoError(t, err, name) {
			continue
		}
		media := recorded.Header.Get("Content-Type")
		got, err := io.ReadAll(resp.Body)
		assert.NoError(t, err, name)
		assert.NoError(t, resp.Body.Close())
		assert.Equal(t, recorded.StatusCode, resp.StatusCode, name)
		assert.Equal(t, meaning(media, want), meaning(media, got), name)
		if dialect.Of(sent.Method, sent.URL.Path, "").Known() && reportsUsage(want) {
			assert.Positive(t, usage.Input, "%s: tokens in", name)
		}

		key := fmt.Sprintf("%-45s %-25s", sent.URL.Host, endpoint(sent))
		of := table[key]
		if of == nil {
			of = &row{}
			table[key] = of
		}
		switch {
		case resp.StatusCode >= 400:
			of.failures++
			assert.Equal(t, kinds[resp.StatusCode], aiguard.KindOf(&sdkError{resp}), "%s: %s", name, want)
		case firstEvent(sent.URL.Path, media, want) != nil:
			of.streams++
		default:
			of.answers++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(table)) {
		t.Logf("%s %4d answers %4d streams %4d failures", key, table[key].answers, table[key].streams, table[key].failures)
	}
}

// reportsUsage reports whether an answer contains its token usage.
func reportsUsage(body []byte) bool {
	return bytes.Contains(body, []byte(`"prompt_tokens"`)) || bytes.Contains(body, []byte(`"input_tokens"`)) ||
		bytes.Contains(body, []byte(`"promptTokenCount"`)) || bytes.Contains(body, []byte(`"prompt_eval_count"`))
}

// kinds maps the status of the recorded failures to their kind: missing keys, models without access, and rate limits.
// The 404 comes from an endpoint without a dialect, where it may mean an unknown id of the caller.
var kinds = map[int]aiguard.Kind{
	401: aiguard.ErrUnauthorized, 403: aiguard.ErrUnauthorized, 404: aiguard.ErrRejected, 429: aiguard.ErrRateLimited,
}

// sdkError is an error that an SDK makes from a response.
type sdkError struct{ Response *http.Response }

func (e *sdkError) Error() string { return e.Response.Status }

// firstEvent returns the first event of a recorded stream, or nil if the answer is not a stream of several events.
func firstEvent(path, media string, body []byte) []byte {
	switch {
	case strings.HasPrefix(media, "text/event-stream"):
		for end := 0; ; {
			_, rest, ok := bytes.Cut(body[end:], []byte("\n\n"))
			if crlf, after, found := bytes.Cut(body[end:], []byte("\r\n\r\n")); found && (!ok || len(after) > len(rest)) {
				_, rest, ok = crlf, after, found
			}
			if !ok {
				return nil
			}
			event := body[end : len(body)-len(rest)]
			end = len(body) - len(rest)
			switch {
			case !bytes.Contains(event, []byte("data:")): // a comment
			case bytes.Contains(rest, []byte("data:")):
				return body[:end]
			default:
				return nil
			}
		}
	case media == "application/vnd.amazon.eventstream":
		if len(body) >= 4 {
			if n := int(binary.BigEndian.Uint32(body)); n < len(body) {
				return body[:n]
			}
		}
	case media == "application/x-ndjson":
		first, rest, _ := bytes.Cut(body, []byte("\n"))
		if len(rest) > 0 {
			return append(bytes.Clone(first), '\n')
		}
	case strings.HasSuffix(path, ":streamGenerateContent"):
		d := json.NewDecoder(bytes.NewReader(body))
		_, _ = d.Token() // reads the opening [
		var first json.RawMessage
		if d.Decode(&first) == nil && d.More() {
			return body[:d.InputOffset()]
		}
	}
	return nil
}

func TestRecordedStreamCutAfterItsFirstEventIsTruncated(t *testing.T) {
	cut := map[string]int{}
	for i, r := range recordings(t) {
		sent, resp := r.exchange(t)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		first := firstEvent(sent.URL.Path, resp.Header.Get("Content-Type"), body)
		if first == nil || resp.StatusCode != http.StatusOK || strings.HasSuffix(sent.URL.Path, "/api/pull") { // its streams have no end mark
			continue
		}
		cut[endpoint(sent)]++
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(first)), -1
		resp.Header.Del("Content-Length")
		g := newGuard(t, aiguard.Config{MaxPromptChars: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1}})
		answer, err := g.Transport(played{resp}).RoundTrip(sent)
		if err == nil {
			_, err = io.ReadAll(answer.Body)
			answer.Body.Close()
		}
		assert.ErrorIs(t, err, aiguard.ErrTruncated, "%s, exchange %d: %s", r.name, i, sent.URL.Path)
	}
	t.Log("streams cut, by endpoint:", cut)
	for _, op := range []string{"chat.completions", "responses", "messages", "generateContent", "invoke", "chat"} {
		require.Positive(t, cut[op], op)
	}
}
