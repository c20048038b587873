package service

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

var memory = map[string]Open{"memory": Memory}

// asProgram makes this test binary run as the program.
const asProgram = "QUESTIONS_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		Main(memory)
		return
	}
	leaktest.Main(m)
}

// program is the program in its own process.
type program struct {
	*exec.Cmd
	url    string
	stderr bytes.Buffer
}

func (p *program) prepare(env []string, args ...string) {
	p.Cmd = exec.Command(os.Args[0], args...)
	p.Cmd.Env = append(append(os.Environ(), asProgram+"=1", "OPENAI_API_KEY=", "GORACE=atexit_sleep_ms=0"), env...)
	p.Cmd.Stderr = &p.stderr
}

// start starts the program and waits until it listens.
func start(t *testing.T, env []string, args ...string) *program {
	t.Helper()
	var p program
	p.prepare(env, args...)
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err, &p.stderr)
	url, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "listening on ")
	require.True(t, ok, line)
	p.url = url
	return &p
}

// request sends a request, with a JSON body if body is not empty, and returns the complete response.
func request(t *testing.T, method, url, body string) (resp *http.Response, answer string) {
	t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err = (&http.Client{Transport: transport}).Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(b)
}

func TestProgramDrainsAndExitsCleanlyOnSIGTERM(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "-pace", "50ms", "-drain-delay", "3s", "-shutdown-timeout", "2s", "-call-timeout", "1m")
	var watching sync.WaitGroup
	t.Cleanup(watching.Wait)
	begun := func(path string) (events chan string) {
		resp, answer := request(t, "POST", p.url+path, topic)
		require.Equal(t, http.StatusAccepted, resp.StatusCode, answer)
		events = make(chan string, 1)
		watching.Go(func() {
			_, all := request(t, "GET", p.url+resp.Header.Get("Location")+"/events", "")
			events <- all
		})
		return events
	}
	resp, _ := request(t, "GET", p.url+"/readyz", "")
	require.Equal(t, http.StatusOK, resp.StatusCode)
	good, hanging := begun("/questions"), begun("/questions?fault=timeout")

	told := time.Now()
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	for resp.StatusCode == http.StatusOK && time.Since(told) < 2*time.Second {
		resp, _ = request(t, "GET", p.url+"/readyz", "")
	}
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode, "the service reports that it is not ready")
	late := begun("/questions") // as from a load balancer that has not noticed yet

	for _, operation := range []chan string{good, late} {
		require.Contains(t, <-operation, `"status":"succeeded"`, "running operations finish")
	}
	resp, answer := request(t, "POST", p.url+"/questions", topic)
	for !strings.Contains(answer, "The service is restarting.") { // until the drain delay is over
		time.Sleep(100 * time.Millisecond)
		resp, answer = request(t, "POST", p.url+"/questions", topic)
	}
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Contains(t, <-hanging, `"error_code":"interrupted"`, "unfinished operations are cancelled at the deadline and report it")
	require.NoError(t, p.Wait(), &p.stderr)
	require.Less(t, time.Since(told), 10*time.Second)
}

func TestIdleProgramExitsAtOnce(t *testing.T) {
	p := start(t, nil, "-drain-delay", "0s")
	told := time.Now()
	require.NoError(t, p.Process.Signal(os.Interrupt))
	require.NoError(t, p.Wait(), &p.stderr)
	require.Less(t, time.Since(told), 5*time.Second)
}

func TestProgramReportsAllInvalidSettings(t *testing.T) {
	var p program
	p.prepare([]string{"AIGUARD_CALL_TIMEOUT=soon", "AIGUARD_MAX_QUEUE=-3", "AIGUARD_TYPO=1"},
		"-engine", "steam", "-task-timeout", "-5s", "-drain-delay", "-1s", "-max-concurrent", "-7")
	var exit *exec.ExitError
	require.ErrorAs(t, p.Run(), &exit)
	require.Equal(t, 2, exit.ExitCode())
	for _, want := range []string{`AIGUARD_CALL_TIMEOUT is "soon"`, `AIGUARD_MAX_QUEUE is "-3"`, "AIGUARD_TYPO",
		"TaskTimeout is -5s", "-drain-delay is -1s", `-engine is "steam"; want memory.`, "MaxConcurrent is -7"} {
		require.Contains(t, p.stderr.String(), want)
	}
}

const topic = `{"topic":"tides"}`

func TestProgramThatCannotListenFails(t *testing.T) {
	var p program
	p.prepare(nil, "-addr", "256.0.0.1:0")
	var exit *exec.ExitError
	require.ErrorAs(t, p.Run(), &exit)
	require.Equal(t, 1, exit.ExitCode())
}

func TestFlagsOverrideEnvironmentAndDefaults(t *testing.T) {
	t.Setenv("OPENAI_API_KEY", "")
	parse := func(args ...string) settings {
		s, err := parseSettings(args, memory, slog.New(slog.DiscardHandler), io.Discard)
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.guard.Close() })
		return s
	}
	cfg := parse().guard.Config()
	require.Equal(t, fakeCallTimeout, cfg.CallTimeout)
	require.Equal(t, maxQueue, cfg.MaxQueue)
	require.Equal(t, MaxOutputTokens, cfg.MaxOutputTokens)

	t.Setenv("AIGUARD_CALL_TIMEOUT", "7s")
	t.Setenv("AIGUARD_MAX_QUEUE", "100")
	t.Setenv("AIGUARD_MAX_OUTPUT_TOKENS", "50")
	t.Setenv("AIGUARD_TASK_TIMEOUT", "9s")
	cfg = parse("-task-timeout", "3s").guard.Config()
	require.Equal(t, 7*time.Second, cfg.CallTimeout)
	require.Equal(t, 100, cfg.MaxQueue)
	require.Equal(t, 50, cfg.MaxOutputTokens)
	require.Equal(t, 3*time.Second, cfg.TaskTimeout)

	t.Setenv("AIGUARD_CALL_TIMEOUT", "")
	t.Setenv("OPENAI_API_KEY", "sk-key")
	s := parse()
	require.False(t, s.fake)
	require.Equal(t, 30*time.Second, s.guard.Config().CallTimeout, "a real model may take longer to start")
}

func TestZeroIsNotTheDefault(t *testing.T) {
	for flag, shown := range map[string]string{"call-timeout": "0s", "task-timeout": "0s", "max-concurrent": "0", "max-queue": "0"} {
		_, err := parseSettings([]string{"-" + flag, "0"}, memory, slog.New(slog.DiscardHandler), io.Discard)
		require.EqualError(t, err, "-"+flag+" is "+shown+"; want more than 0")
	}
	_, err := parseSettings([]string{"-call-timeout", "banana"}, memory, slog.New(slog.DiscardHandler), io.Discard)
	require.EqualError(t, err, `invalid value "banana" for flag -call-timeout: parse error`)
	t.Setenv("AIGUARD_NOPE", "1")
	_, err = parseSettings(nil, memory, slog.New(slog.DiscardHandler), io.Discard)
	require.EqualError(t, err, "aiguard: AIGUARD_NOPE is not a variable of aiguard; see FromEnv")
}

func TestHelpIsNotAnError(t *testing.T) {
	var usage bytes.Buffer
	_, err := parseSettings([]string{"-h"}, memory, slog.New(slog.DiscardHandler), &usage)
	require.True(t, errors.Is(err, flag.ErrHelp))
	require.Contains(t, usage.String(), "-shutdown-timeout")
	_, err = parseSettings([]string{"serve"}, memory, slog.New(slog.DiscardHandler), &usage)
	require.ErrorContains(t, err, `"serve"`)
}

func TestAPIKeySelectsTheRealProviderWithoutFaults(t *testing.T) {
	t.Parallel()
	real := aiguardtest.NewServer(t)
	real.SetDefault(aiguardtest.Text(`{"questions":["a","b","c","d","e"]}`))
	p := start(t, []string{"OPENAI_API_KEY=sk-key", "OPENAI_BASE_URL=" + real.URL, "OPENAI_MODEL=my-model"}, "-drain-delay", "0s")
	resp, answer := request(t, "POST", p.url+"/questions?fault=outage", topic)
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	require.Contains(t, answer, `"field":"fault"`)
	require.Zero(t, real.Count())
	resp, _ = request(t, "POST", p.url+"/questions", topic)
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.Wait(), "shutdown waits for the operation")
	require.Len(t, real.Requests(), 1)
	require.Equal(t, "my-model", real.Requests()[0].Model)
	require.Equal(t, "Bearer sk-key", real.Requests()[0].Header.Get("Authorization"))
	require.NotContains(t, p.stderr.String(), "sk-key")
}

func TestLogHasNoTextOfUsersOrModels(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "-pace", "0s", "-drain-delay", "0s", "-call-timeout", "50ms")
	for _, fault := range append(Faults(), "") {
		body, err := json.Marshal(map[string]string{"topic": "secret-topic"})
		require.NoError(t, err)
		resp, _ := request(t, "POST", p.url+"/questions?fault="+fault, string(body))
		require.Equal(t, http.StatusAccepted, resp.StatusCode)
		request(t, "POST", p.url+"/questions", `{"secret-topic":1}`)
	}
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.Wait())
	require.Contains(t, p.stderr.String(), "task: failed")
	require.NotContains(t, p.stderr.String(), "secret-topic")
	require.NotContains(t, p.stderr.String(), aiguardtest.ProviderText)
}
