package aiguardtest_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// modes are the transports of a server.
var modes = map[string][]aiguardtest.Option{
	"http1":      nil,
	"http2":      {aiguardtest.TLS()},
	"pipe":       {aiguardtest.Pipe()},
	"pipe+http2": {aiguardtest.Pipe(), aiguardtest.TLS()},
}

func eachMode(t *testing.T, test func(t *testing.T, s *aiguardtest.Server, c *http.Client)) {
	for name, opts := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := aiguardtest.NewServer(t, opts...)
			test(t, s, newHTTP(t, s))
		})
	}
}

func newHTTP(t *testing.T, s *aiguardtest.Server) *http.Client {
	tr := s.Transport()
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func newClient(s *aiguardtest.Server, c *http.Client) *openai.Client {
	cfg := openai.DefaultConfig("key")
	cfg.BaseURL = s.URL
	cfg.HTTPClient = c
	return openai.NewClientWithConfig(cfg)
}

// post sends a chat request and reads the whole answer.
func post(ctx context.Context, s *aiguardtest.Server, c *http.Client, body string) (*http.Response, string, error) {
	return postTo(ctx, s, c, "/chat/completions", body)
}

func postTo(ctx context.Context, s *aiguardtest.Server, c *http.Client, path, body string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

const (
	chatBody   = `{"model":"m","messages":[{"role":"user","content":"Hi"}]}`
	streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]}`
)

func eventually(t *testing.T, ok func() bool, msg string) {
	t.Helper()
	// require.Eventually starts goroutines, which the tests would count.
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), msg)
	}
}

// readUntil reads from r until want has arrived.
func readUntil(t *testing.T, r io.Reader, want string) {
	t.Helper()
	var seen bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), want) {
		n, err := r.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			require.Contains(t, seen.String(), want, "before %v", err)
		}
	}
}
