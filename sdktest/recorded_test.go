package sdktest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// recording is one exchange with a real provider, from the test data of a published module.
type recording struct {
	name              string
	request, response []byte // as on the wire
}

// source is a module that contains recordings. Only its zip file is used, and its packages are not built.
type source struct {
	module string
	sum    string // for a version that go.mod does not require
	suffix string
	read   func(name string, data []byte) ([]recording, error)
	least  int // minimum number of recordings
}

var sources = []source{
	{"github.com/tmc/langchaingo", "", ".httprr", readTrace, 150},
	{"google.golang.org/adk@v1.2.0", "h1:MfQD1/GqPfIsFNBcozNykkjdqNIdCrPH/SNqKPZF/yM=", ".httprr", readTrace, 37},
	{"charm.land/fantasy@v0.41.2", "h1:ML6LCJwFHLaKb521rVY6jXOJNsf9koIJtcnY0O1GKsU=", ".yaml", readCassette, 500},
}

// recordings returns the recordings of all sources.
func recordings(t *testing.T) (all []recording) {
	t.Helper()
	for _, s := range sources {
		of := s.recordings(t)
		require.GreaterOrEqual(t, len(of), s.least, s.module)
		all = append(all, of...)
	}
	return all
}

func (s source) recordings(t *testing.T) (all []recording) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", s.module).Output()
	require.NoError(t, err, "%s: %s", s.module, out)
	var module struct{ Path, Dir, Sum string }
	require.NoError(t, json.Unmarshal(out, &module))
	if s.sum != "" {
		require.Equal(t, s.sum, module.Sum, s.module)
	}
	err = filepath.WalkDir(module.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(strings.TrimSuffix(path, ".gz"), s.suffix) || !strings.Contains(path, "testdata") {
			return err
		}
		data, err := readFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(module.Dir, path)
		if err != nil {
			return err
		}
		of, err := s.read(module.Path+"/"+name, data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, of...)
		return nil
	})
	require.NoError(t, err)
	return all
}

// readFile returns the decompressed content of a file.
func readFile(path string) ([]byte, error) {
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

// readTrace reads httprr's format: a line with two lengths, then a request and a response of these lengths.
func readTrace(name string, data []byte) (all []recording, err error) {
	_, data, _ = bytes.Cut(data, []byte("\n"))
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		var request, response int
		if _, err := fmt.Sscan(string(line), &request, &response); err != nil || request+response > len(rest) {
			return nil, fmt.Errorf("%q: %w", line, io.ErrUnexpectedEOF)
		}
		all = append(all, recording{name, rest[:request], rest[request : request+response]})
		data = rest[request+response:]
	}
	return all, nil
}

// readCassette reads go-vcr's format.
func readCassette(name string, data []byte) (all []recording, err error) {
	var cassette struct {
		Interactions []struct {
			Request struct {
				Method, URL, Body string
				Headers           http.Header
			}
			Response struct {
				Code    int
				Body    string
				Headers http.Header
			}
		}
	}
	if err := yaml.Unmarshal(data, &cassette); err != nil {
		return nil, err
	}
	for _, i := range cassette.Interactions {
		var request, response bytes.Buffer
		fmt.Fprintf(&request, "%s %s HTTP/1.1\r\n", i.Request.Method, i.Request.URL)
		writeMessage(&request, i.Request.Headers, i.Request.Body)
		fmt.Fprintf(&response, "HTTP/1.1 %d %s\r\n", i.Response.Code, http.StatusText(i.Response.Code))
		writeMessage(&response, i.Response.Headers, i.Response.Body)
		all = append(all, recording{name, request.Bytes(), response.Bytes()})
	}
	return all, nil
}

func writeMessage(w *bytes.Buffer, h http.Header, body string) {
	h.Del("Content-Length")
	_ = h.Write(w) // writes to memory cannot fail
	fmt.Fprintf(w, "Content-Length: %d\r\n\r\n%s", len(body), body)
}

// exchange returns a request that can be sent, and the recorded response.
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
