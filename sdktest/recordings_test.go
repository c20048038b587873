package sdktest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

// recording is one exchange with a real provider, from the test data that langchaingo ships.
type recording struct {
	name              string
	request, response []byte
}

// recordings reads the traces of a module: a line of two lengths, then a request and a response of those many bytes.
func recordings(t *testing.T, module string) (all []recording) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	require.NoError(t, err)
	root := strings.TrimSpace(string(out))
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(strings.TrimSuffix(path, ".gz"), ".httprr") {
			return err
		}
		data, err := read(path)
		if err != nil {
			return err
		}
		_, data, _ = bytes.Cut(data, []byte("\n"))
		for len(data) > 0 {
			line, rest, _ := bytes.Cut(data, []byte("\n"))
			var request, response int
			if _, err := fmt.Sscan(string(line), &request, &response); err != nil || request+response > len(rest) {
				return fmt.Errorf("%s: %q: %w", path, line, io.ErrUnexpectedEOF)
			}
			name, _ := filepath.Rel(root, path)
			all = append(all, recording{name, rest[:request], rest[request : request+response]})
			data = rest[request+response:]
		}
		return nil
	})
	require.NoError(t, err)
	return all
}

// read returns what is in a file, uncompressed.
func read(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil || filepath.Ext(path) != ".gz" {
		return data, err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// exchange returns the request, ready to be sent, and the response as it was recorded.
func (r recording) exchange(t *testing.T) (*http.Request, *http.Response) {
	t.Helper()
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(r.request)))
	require.NoError(t, err, r.name)
	body, err := io.ReadAll(req.Body)
	require.NoError(t, err, r.name)
	sent, err := http.NewRequestWithContext(t.Context(), req.Method, req.RequestURI, bytes.NewReader(body))
	require.NoError(t, err, r.name)
	if sent.URL.Host == "" {
		sent.URL.Scheme, sent.URL.Host = "https", req.Host
	}
	sent.Header = req.Header
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(r.response)), sent)
	require.NoError(t, err, r.name)
	return sent, resp
}

type played struct{ resp *http.Response }

func (p played) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	return p.resp, nil
}

// meaning is a body without what the guard may leave out: of an event stream its comments and the space between events, of
// JSON the white space around it.
func meaning(media string, body []byte) string {
	if !strings.HasPrefix(media, "text/event-stream") {
		return string(bytes.TrimSpace(body))
	}
	var lines []string
	for line := range strings.Lines(string(body)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" && !strings.HasPrefix(line, ":") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func TestRecordedAnswersArriveAsTheyWere(t *testing.T) {
	all := recordings(t, "github.com/tmc/langchaingo")
	require.Greater(t, len(all), 150)
	type row struct{ answers, streams, failures int }
	table := map[string]*row{}
	for i, r := range all {
		sent, recorded := r.exchange(t)
		if recorded.StatusCode >= 300 && recorded.StatusCode < 400 {
			continue
		}
		want, err := io.ReadAll(recorded.Body)
		require.NoError(t, err, r.name)
		_, again := r.exchange(t)

		g := newGuard(t, aiguard.Config{MaxPromptChars: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1}})
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

		of := table[sent.URL.Host]
		if of == nil {
			of = &row{}
			table[sent.URL.Host] = of
		}
		switch {
		case resp.StatusCode >= 400:
			of.failures++
			kinds := map[int]aiguard.Kind{403: aiguard.ErrUnauthorized, 404: aiguard.ErrRejected, 429: aiguard.ErrRateLimited}
			assert.Equal(t, kinds[resp.StatusCode], aiguard.KindOf(&sdkError{resp}), name)
		case strings.HasPrefix(media, "text/event-stream"):
			of.streams++
		default:
			of.answers++
		}
	}
	for _, host := range slices.Sorted(maps.Keys(table)) {
		t.Logf("%-45s %4d answers %4d streams %4d failures", host, table[host].answers, table[host].streams, table[host].failures)
	}
}

// sdkError is the error that an SDK makes of a response.
type sdkError struct{ Response *http.Response }

func (e *sdkError) Error() string { return e.Response.Status }

// beginning returns the first event of a recorded stream, or nil if the answer is no stream of more than one event.
func beginning(path, media string, body []byte) []byte {
	switch {
	case strings.HasPrefix(media, "text/event-stream"):
		first, rest, _ := strings.Cut(strings.ReplaceAll(string(body), "\r\n", "\n"), "\n\n")
		if strings.Contains(rest, "data:") {
			return []byte(first + "\n\n")
		}
	case media == "application/x-ndjson":
		first, rest, _ := bytes.Cut(body, []byte("\n"))
		if len(rest) > 0 {
			return append(first, '\n')
		}
	case strings.HasSuffix(path, ":streamGenerateContent"):
		d := json.NewDecoder(bytes.NewReader(body))
		_, _ = d.Token() // [
		var first json.RawMessage
		if d.Decode(&first) == nil && d.More() {
			return body[:d.InputOffset()]
		}
	}
	return nil
}

func TestRecordedStreamCutAfterItsFirstEventIsTruncated(t *testing.T) {
	cut := 0
	for i, r := range recordings(t, "github.com/tmc/langchaingo") {
		sent, resp := r.exchange(t)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		first := beginning(sent.URL.Path, resp.Header.Get("Content-Type"), body)
		if first == nil || resp.StatusCode != http.StatusOK || strings.HasSuffix(sent.URL.Path, "/api/pull") { // which has no end of its own
			continue
		}
		cut++
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(first)), -1
		resp.Header.Del("Content-Length")
		g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
		answer, err := g.Transport(played{resp}).RoundTrip(sent)
		if err == nil {
			_, err = io.ReadAll(answer.Body)
			answer.Body.Close()
		}
		assert.ErrorIs(t, err, aiguard.ErrTruncated, "%s, exchange %d: %s", r.name, i, sent.URL.Path)
	}
	require.Greater(t, cut, 8)
}
