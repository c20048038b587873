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

// apiKey is the only key the server accepts: any other is answered with 401.
const apiKey = "test-key-that-must-not-leak"

// aimock is one running server. Tests share it, and tell their fixtures apart by model name.
type aimock struct {
	url    string
	client *http.Client
	stdin  io.Closer
	done   chan struct{} // closed once the process has ended
	log    syncbuf.Buffer
	models atomic.Int64
}

// fixture is aimock's: what to answer a request that matches, and how badly.
type fixture struct {
	Match    match    `json:"match"`
	Response response `json:"response"`

	Chaos               *chaos   `json:"chaos,omitempty"`
	Profile             *profile `json:"streamingProfile,omitempty"`
	ChunkSize           int      `json:"chunkSize,omitempty"`           // characters in one stream event
	Latency             int      `json:"latency,omitempty"`             // milliseconds before each stream event
	TruncateAfterChunks int      `json:"truncateAfterChunks,omitempty"` // then the connection is destroyed
	DisconnectAfterMs   int      `json:"disconnectAfterMs,omitempty"`   // likewise, counted from the request
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
	Malformed  float64 `json:"malformedRate,omitempty"`  // 200 with bytes that are no JSON
	LatencyMs  int     `json:"latencyMs,omitempty"`
}

type profile struct {
	TTFT float64 `json:"ttft"` // milliseconds to the first event
	TPS  float64 `json:"tps"`  // events per second after it
}

// once makes f answer the first request only.
func (f fixture) once() fixture {
	first := 0
	f.Match.SequenceIndex = &first
	return f
}

func slug(t *testing.T) string { return strings.ReplaceAll(t.Name(), "/", "-") }

// serve adds fixtures, the first that matches wins, and returns the model that reaches them.
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

// requests counts what the server answered for model. It forgets requests that the client left while
// a chaos latency ran.
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

// guarded returns a client of the server with short, test-sized retries. When the test ends, nothing may
// be in flight or waiting, and the guard is closed.
func (s *aimock) guarded(t *testing.T, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	oc := openai.DefaultConfig(apiKey)
	oc.BaseURL = s.url + "/v1"
	return guardedWith(t, oc, cfg)
}

func guardedWith(t *testing.T, oc openai.ClientConfig, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	// go-openai adds this to every URL, by which the server's journal can be searched. The journal as a
	// whole grows large: it repeats the fixture with each request.
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

var errNotInstalled = errors.New("no server to test against")

// running is the shared server once it has been started, for TestMain to end.
var running *aimock

// shared starts the server when the first test asks for it.
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

// checkNode tells an old Node.js, on which the server does not start, from a broken server.
func checkNode(node string) error {
	out, err := exec.Command(node, "--version").Output()
	if err != nil {
		return fmt.Errorf("node --version: %w", err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "v%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("node --version said %q: %w", out, err)
	}
	if major < 20 || major == 20 && minor < 15 {
		return fmt.Errorf("%w: it needs Node.js 20.15 or newer, found %s", errNotInstalled, bytes.TrimSpace(out))
	}
	return nil
}

// endWithStdin ends the server when its standard input does. The kernel closes our end even if
// the test binary is killed, so the server cannot outlive it.
const endWithStdin = `data:text/javascript,process.stdin.on("end",()=>process.exit()).resume()`

func startAimock(node, script string) (*aimock, error) {
	fixtures, err := os.MkdirTemp("", "aimock") // no fixtures at the start: each test adds its own
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

	// The line that names the address comes once the server listens.
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

// within fails the test if fn takes longer than limit, and returns how long it took.
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
