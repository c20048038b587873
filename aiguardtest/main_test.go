package aiguardtest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if left := leftovers(); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "goroutines left behind:\n"+left)
		code = 1
	}
	os.Exit(code)
}

// leftovers returns the stacks of goroutines of this package or net/http that
// are still there after a moment's grace.
func leftovers() string {
	var left []string
	for range 100 {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		left = nil
		for i, stack := range strings.Split(string(buf), "\n\n") {
			if i > 0 && (strings.Contains(stack, "net/http.") || strings.Contains(stack, "aiguardtest.(*")) {
				left = append(left, stack)
			}
		}
		if left == nil {
			return ""
		}
		time.Sleep(20 * time.Millisecond)
	}
	return strings.Join(left, "\n\n")
}

// modes are the ways to reach a server.
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
	// Not require.Eventually: its goroutines would be counted.
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), msg)
	}
}

// readUntil reads from r until it has seen want.
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
