package aiguard_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/dialect"
	"github.com/aiguard-go/aiguard/internal/sse"
)

// chunks is a body that comes in pieces of the sizes given, again and again.
type chunks struct {
	io.Reader
	sizes []byte
	n     int
}

func (c *chunks) Read(p []byte) (int, error) {
	size := 1
	if len(c.sizes) > 0 {
		size += int(c.sizes[c.n%len(c.sizes)])
		c.n++
	}
	return c.Reader.Read(p[:min(size, len(p))])
}

func (c *chunks) Close() error { return nil }

// ask sends a request through g to a base that gives the response described.
func ask(t testing.TB, g *aiguard.Guard, path, request string, status int, contentType string, body io.ReadCloser) (*http.Response, error) {
	t.Helper()
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {contentType}}, Body: body, ContentLength: -1, Request: req}, nil
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example/v1"+path, strings.NewReader(request))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	return g.Transport(base).RoundTrip(req)
}

func fuzzGuard(t testing.TB) *aiguard.Guard {
	t.Helper()
	g, err := aiguard.New(aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	require.NoError(t, err)
	return g
}

// checkError asserts what holds for every error: it has a kind, is short, and repeats nothing that came from outside.
func checkError(t testing.TB, err error) {
	t.Helper()
	require.NotEmpty(t, aiguard.KindOf(err), "%v", err)
	require.Less(t, len(err.Error()), 1000)
	require.NotContains(t, err.Error(), "s3cret")
	require.NotContains(t, aiguard.UserMessage(err), "s3cret")
	require.GreaterOrEqual(t, aiguard.HTTPStatus(err), 400)
}

// A stream gives the same events and the same end however the network slices it, and never looks complete unless the
// provider said so or sent a whole answer instead of a stream.
func FuzzStream(f *testing.F) {
	for _, s := range []string{
		"data: " + hello + "\n\ndata: " + finished + "\n\ndata: [DONE]\n\n",
		"data: " + hello + "\r\n\r\n: ping\r\n\r\ndata: {\"error\":{\"message\":\"s3cret\"}}\r\n",
		"data: {\"choices\":\ndata: []}\n\n\n\ndata: {",
		"event: error\ndata: s3cret\n\n",
		"{\n\"error\":\n\"s3cret\"}\n",
		"data: s3cret\n\n",
		"\xef\xbb\xbfdata:" + hello,
		"\ndata: " + finished + "\n\ndata: [DONE]\n\n", // the last blank line comes late
		`{"choices":[{}]}`,
		"\xef\xbb\xbf[",
	} {
		f.Add([]byte(s), []byte{0, 3, 40})
		f.Add([]byte(s), []byte{0, 3, 3})
	}
	f.Fuzz(func(t *testing.T, stream, sizes []byte) {
		g := fuzzGuard(t)
		defer g.Close()
		read := func(body io.ReadCloser) (string, error) {
			resp, err := ask(t, g, "/chat/completions", `{"stream":true}`, 200, "text/event-stream", body)
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			out, err := io.ReadAll(resp.Body)
			return string(out), err
		}
		whole, werr := read(io.NopCloser(bytes.NewReader(stream)))
		sliced, serr := read(&chunks{Reader: bytes.NewReader(stream), sizes: sizes})
		require.Equal(t, eventData(whole), eventData(sliced))
		require.Equal(t, aiguard.KindOf(werr), aiguard.KindOf(serr))
		if werr != nil {
			checkError(t, werr)
			return
		}
		require.Zero(t, g.Stats().InFlight)
		require.True(t, bytes.Contains(stream, []byte("[DONE]")) || bytes.Contains(stream, []byte(`finish_reason`)) || hasAnswer(whole), "%q", stream)
		rest := linesOf(string(stream))
		for _, line := range linesOf(whole) { // unchanged and in order, perhaps without pings
			at := slices.Index(rest, line)
			require.GreaterOrEqual(t, at, 0, "%q", line)
			rest = rest[at+1:]
		}
	})
}

// eventData returns the data of each event in s. Other fields that arrive after the data may be lost.
func eventData(s string) (data []string) {
	for events := sse.NewReader(strings.NewReader(s), len(s)+1, dialect.MaxShape); ; {
		ev, err := events.Next()
		if err != nil {
			return data
		}
		data = append(data, string(ev.Data))
	}
}

// hasAnswer reports whether a line of s begins with a whole answer instead of a field of an event.
func hasAnswer(s string) bool {
	return slices.ContainsFunc(linesOf(strings.TrimPrefix(s, "\ufeff")), func(line string) bool {
		var answer struct{ Choices []json.RawMessage }
		return json.NewDecoder(strings.NewReader(line)).Decode(&answer) == nil && len(answer.Choices) > 0
	})
}

// linesOf returns the lines of s that are not blank.
func linesOf(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '\r' || r == '\n' })
}

// Whatever a 200 brings, the caller gets an answer that decodes and has a choice, or a typed error.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		`{"choices":[{"index":0,"message":{"content":"hi"}}]}`, `{"error":{"message":"s3cret","code":"x"}}`, `{"error":"s3cret"}`,
		`[{"error":{"message":"s3cret"}}]`, `null`, `{}`, `{"choices":[]}`, `{"choices":[`, `<html>s3cret`, ``, ` {"choices":[1]} x`,
	} {
		f.Add([]byte(s), []byte{7}, "application/json")
	}
	f.Fuzz(func(t *testing.T, body, sizes []byte, contentType string) {
		g := fuzzGuard(t)
		defer g.Close()
		resp, err := ask(t, g, "/chat/completions", "{}", 200, contentType, &chunks{Reader: bytes.NewReader(body), sizes: sizes})
		if err != nil {
			checkError(t, err)
			return
		}
		out, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.True(t, json.Valid(out), "%q", out)
		require.True(t, bytes.HasPrefix(body, out))
		var answer struct{ Choices []json.RawMessage }
		if json.Unmarshal(out, &answer) == nil {
			require.NotEmpty(t, answer.Choices)
		}
		require.Zero(t, g.Stats().InFlight)
	})
}

// Whatever a failure brings, the error is typed and safe.
func FuzzErrorBody(f *testing.F) {
	for _, s := range []string{
		`{"error":{"message":"s3cret","type":"server_error","code":null,"param":null}}`, `{"error":{"code":429,"message":["a","s3cret"]}}`,
		`{"error":"s3cret"}`, `<h1>s3cret</h1>`, ``, `{"object":"error","message":"s3cret","code":"s3cret!"}`,
		`{"error":{"innererror":{"code":"ResponsibleAIPolicyViolation"},"code":"content_filter"}}`,
	} {
		f.Add(s, 500, "2", "req_1")
	}
	f.Fuzz(func(t *testing.T, body string, status int, retryAfter, id string) {
		if status = 400 + (status%200+200)%200; strings.Contains(id, "s3cret") || identifierLike(body) {
			t.Skip()
		}
		g := fuzzGuard(t)
		defer g.Close()
		base := roundTripper(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Request: req,
				Header: http.Header{"Retry-After": {retryAfter}, "X-Request-Id": {id}}}, nil
		})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example/v1/chat/completions", strings.NewReader("{}"))
		require.NoError(t, err)
		err = failureOf(g.Transport(base).RoundTrip(req))
		checkError(t, err)
		var e *aiguard.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, status, e.StatusCode)
		require.GreaterOrEqual(t, e.RetryAfter, time.Duration(0))
	})
}

// identifierLike reports whether the marker stands where a code may be shown: as a whole word of its own.
func identifierLike(body string) bool {
	for _, field := range []string{"code", "type"} {
		if i := strings.Index(body, field); i >= 0 && strings.Contains(body[i:], "s3cret") {
			return true
		}
	}
	return false
}
