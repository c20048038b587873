package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

// apiKey is the only key that the server accepts. Other keys get a 401.
const apiKey = "test-key-that-must-not-leak"

// aimock is a running server. Tests share it and use a separate model name for each fixture.
type aimock struct {
	url    string
	client *http.Client
	stdin  io.Closer
	done   chan struct{} // closed when the process has ended
	log    syncbuf.Buffer
	models atomic.Int64
}

// fixture is a rule of aimock: which requests it matches, and how it answers them.
type fixture struct {
	Match    match    `json:"match"`
	Response response `json:"response"`

	Chaos               *chaos   `json:"chaos,omitempty"`
	Profile             *profile `json:"streamingProfile,omitempty"`
	ChunkSize           int      `json:"chunkSize,omitempty"`           // characters in one stream event
	Latency             int      `json:"latency,omitempty"`             // milliseconds before each stream event
	TruncateAfterChunks int      `json:"truncateAfterChunks,omitempty"` // the connection is then destroyed
	DisconnectAfterMs   int      `json:"disconnectAfterMs,omitempty"`   // the connection is destroyed this long after the request
}

type match struct {
	Model         string `json:"model"`
	SequenceIndex *int   `json:"sequenceIndex,omitempty"`
}

type response struct {
	Content    string     `json:"content,omitempty"`
	Embedding  []float32  `json:"embedding,omitempty"`
	ToolCalls  []toolCall `json:"toolCalls,omitempty"`
	Error      *apiError  `json:"error,omitempty"`
	Status     int        `json:"status,omitempty"`
	RetryAfter int        `json:"retryAfter,omitempty"` // seconds; sent with 429 only, 1 if absent
}

type toolCall struct {
	Name      string         `json:"name"`
	Arguments map[string]any `json:"arguments"`
}

type apiError struct {
	Message string `json:"message"`
	Type    string `json:"type,omitempty"`
	Code    string `json:"code,omitempty"`
}

// chaos holds probabilities, always 1 here, and a delay before the answer.
type chaos struct {
	Disconnect float64 `json:"disconnectRate,omitempty"` // close the connection instead of answering
	Malformed  float64 `json:"malformedRate,omitempty"`  // 200 with bytes that are not JSON
	LatencyMs  int     `json:"latencyMs,omitempty"`
}

type profile struct {
	TTFT float64 `json:"ttft"` // milliseconds to the first event
	TPS  float64 `json:"tps"`  // events per second after it
}

// once limits f to the first request.
func (f fixture) once() fixture {
	first := 0
	f.Match.SequenceIndex = &first
	return f
}

func slug(t *testing.T) string { return strings.ReplaceAll(t.Name(), "/", "-") }

// serve adds fixtures and returns the model that they match. The first fixture that matches a request answers it.
func (s *aimock) serve(t *testing.T, fixtures ...fixture) (model string) {
	t.Helper()
	model = fmt.Sprintf("%s-%d", slug(t), s.models.Add(1))
	for i := range fixtures {
		fixtures[i].Match.Model = model
	}
	body, err := json.Marshal(map[string]any{"fixtures": fixtures})
	require.NoError(t, err)
	s.control(t, http.MethodPost, "/__aimock/fixtures", bytes.NewReader(body), nil)
	return model
}

// requests returns the number of requests for model that the server answered. It misses requests whose client left
// during a chaos latency.
func (s *aimock) requests(t *testing.T, model string) int {
	t.Helper()
	var entries []struct {
		Body struct{ Model string }
	}
	s.control(t, http.MethodGet, "/__aimock/journal?path="+url.QueryEscape("api-version="+slug(t)), nil, &entries)
	n := 0
	for _, e := range entries {
		if e.Body.Model == model {
			n++
		}
	}
	return n
}

func (s *aimock) control(t *testing.T, method, path string, body io.Reader, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, body)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+apiKey)
	resp, err := s.client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", answer)
	if into != nil {
		require.NoError(t, json.Unmarshal(answer, into))
	}
}

// guarded returns a client of the server with short retry delays. At the end of the test it checks that nothing is in
// flight or waiting, and closes the guard.
func (s *aimock) guarded(t *testing.T, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	oc := openai.DefaultConfig(apiKey)
	oc.BaseURL = s.url + "/v1"
	return guardedWith(t, oc, cfg)
}

func guardedWith(t *testing.T, oc openai.ClientConfig, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	// go-openai adds this to every URL, and the server's journal is searched for it. The whole journal grows large,
	// because it repeats the fixture with each request.
	oc.APIVersion = slug(t)
	if cfg.Retry.BaseDelay == 0 {
		cfg.Retry.BaseDelay, cfg.Retry.MaxDelay = 10*time.Millisecond, 100*time.Millisecond
	}
	client, err := aiguard.NewClient(oc, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		stats := client.Guard().Stats()
		if stats.InFlight != 0 || stats.Waiting != 0 {
			t.Errorf("left behind: %d in flight, %d waiting", stats.InFlight, stats.Waiting)
		}
		if err := client.Guard().Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return client
}

var errNotInstalled = errors.New("no aimock server")

// running is the shared server after its start. TestMain stops it.
var running *aimock

// shared starts the server at its first use.
var shared = sync.OnceValues(func() (*aimock, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, fmt.Errorf("%w: install Node.js 20.15 or newer, then run `npm ci` in integration/", errNotInstalled)
	}
	script := filepath.Join("node_modules", ".bin", "llmock")
	if _, err := os.Stat(script); err != nil {
		err = errors.New("aimock is not installed: run `npm ci` in integration/")
		if os.Getenv("CI") == "" {
			err = fmt.Errorf("%w: %w", errNotInstalled, err)
		}
		return nil, err
	}
	if err := checkNode(node); err != nil {
		return nil, err
	}
	running, err = startAimock(node, script)
	return running, err
})

// checkNode returns an error for a Node.js version on which the server does not start.
func checkNode(node string) error {
	out, err := exec.Command(node, "--version").Output()
	if err != nil {
		return fmt.Errorf("node --version: %w", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "v%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("node --version printed %q: %w", out, err)
	}
	if major < 20 || major == 20 && minor < 15 {
		return fmt.Errorf("%w: it needs Node.js 20.15 or newer, found %s", errNotInstalled, bytes.TrimSpace(out))
	}
	return nil
}

// endWithStdin is a module that ends the server when its standard input is closed. The kernel closes it even if the
// test binary is killed, so the server cannot outlive the tests.
const endWithStdin = `data:text/javascript,process.stdin.on("end",()=>process.exit()).resume()`

func startAimock(node, script string) (*aimock, error) {
	fixtures, err := os.MkdirTemp("", "aimock") // empty at the start: each test adds its own fixtures
	if err != nil {
		return nil, err
	}
	s := &aimock{client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{}}, done: make(chan struct{})}
	cmd := exec.Command(node, "--import", endWithStdin, script,
		"--host", "127.0.0.1", "--port", "0", "--fixtures", fixtures, "--journal-max", "0", "--log-level", "info")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "AIMOCK_API_KEYS=" + apiKey}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.stdin = stdin
	stdout, stdoutWriter := io.Pipe()
	cmd.Stdout, cmd.Stderr = stdoutWriter, &s.log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.done)
		_ = cmd.Wait()
		_ = stdoutWriter.Close()
		_ = os.RemoveAll(fixtures)
	}()

	// The server prints its address when it listens.
	address := make(chan string, 1)
	go func() {
		defer close(address)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			_, _ = fmt.Fprintln(&s.log, lines.Text())
			if _, after, ok := strings.Cut(lines.Text(), "listening on "); ok {
				select {
				case address <- strings.TrimSpace(after):
				default:
				}
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
	}()
	select {
	case s.url = <-address:
	case <-time.After(30 * time.Second):
	}
	if u, err := url.Parse(s.url); err != nil || u.Hostname() != "127.0.0.1" {
		s.stop()
		return nil, fmt.Errorf("aimock did not start:\n%s", s.log.String())
	}
	return s, nil
}

func (s *aimock) stop() {
	_ = s.stdin.Close()
	<-s.done
}

func server(t *testing.T) *aimock {
	t.Helper()
	s, err := shared()
	if errors.Is(err, errNotInstalled) {
		t.Skip(err)
	}
	require.NoError(t, err)
	return s
}

// within fails the test if fn takes longer than limit. It returns the duration.
func within(t *testing.T, limit time.Duration, fn func()) time.Duration {
	t.Helper()
	start := time.Now()
	fn()
	took := time.Since(start)
	require.Less(t, took, limit, "took too long")
	return took
}

func ask(ctx context.Context, client *aiguard.Client, model string) (openai.ChatCompletionResponse, error) {
	return client.CreateChatCompletion(ctx, chatRequest(model))
}

func chatRequest(model string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:    model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: prompt}},
	}
}
