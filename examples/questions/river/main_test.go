package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/examples/questions/internal/servicetest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/pgtest"
	"github.com/aiguard-go/aiguard/task"
)

// asProgram makes this test binary run as the program.
const asProgram = "QUESTIONS_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	_ = flag.Set("test.parallel", "8") // the tests wait much more than they compute
	leaktest.Main(withPostgres{m}, "github.com/riverqueue/river", "github.com/jackc/pgx")
}

// postgres is the PostgreSQL server of the tests.
var postgres pgtest.Server

type withPostgres struct{ *testing.M }

func (w withPostgres) Run() int {
	defer postgres.Stop()
	return w.M.Run()
}

var schemas atomic.Int64

// newDatabase returns the URL of a database with an empty schema, or skips the test if PostgreSQL is not installed.
func newDatabase(t *testing.T) string {
	t.Helper()
	dsn, err := postgres.DSN()
	if errors.Is(err, pgtest.ErrNotInstalled) {
		t.Skip(err)
	}
	require.NoError(t, err)
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	name := fmt.Sprintf("questions%d", schemas.Add(1))
	_, err = conn.Exec(t.Context(), "CREATE SCHEMA "+name)
	require.NoError(t, err)
	query := url.Values{"host": {conn.Config().Host}, "search_path": {name}}
	return (&url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/postgres", RawQuery: query.Encode()}).String()
}

// The checks are those of the engine memory.
func TestServiceWithTheEngineRiver(t *testing.T) {
	servicetest.Run(t, servicetest.Suite{Open: func(t *testing.T, g *aiguard.Guard) task.Engine {
		engine, closeEngine, err := river(t.Context(), g, newDatabase(t))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, closeEngine()) })
		return engine
	}})
}

// program is the program in its own process.
type program struct {
	*exec.Cmd
	t      *testing.T
	url    string
	stderr bytes.Buffer
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(os.Args[0], args...), t: t}
	p.Env = append(os.Environ(), asProgram+"=1", "OPENAI_API_KEY=", "GORACE=atexit_sleep_ms=0")
	p.Stderr = &p.stderr
	stdout, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err, &p.stderr)
	p.url = strings.TrimPrefix(strings.TrimSpace(line), "listening on ")
	return p
}

func (p *program) request(method, path, body string) (*http.Response, string) {
	p.t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, strings.NewReader(body))
	require.NoError(p.t, err)
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	require.NoError(p.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	return resp, string(text)
}

func TestProcessesShareTheirOperations(t *testing.T) {
	t.Parallel()
	flags := []string{"-engine", "river", "-database", newDatabase(t), "-drain-delay", "0s"}
	one, other := start(t, flags...), start(t, flags...)
	resp, answer := one.request("POST", "/questions", `{"topic":"tides"}`)
	require.Equal(t, http.StatusAccepted, resp.StatusCode, answer)
	location := resp.Header.Get("Location")
	_, events := other.request("GET", location+"/events", "")
	require.Contains(t, events, `"status":"succeeded"`, "the other process sees the end")

	resp, _ = one.request("POST", "/questions?fault=slow", `{"topic":"tides"}`)
	slow := resp.Header.Get("Location")
	resp, answer = other.request("DELETE", slow, "")
	require.Less(t, resp.StatusCode, 300, answer)
	_, events = one.request("GET", slow+"/events", "")
	require.Contains(t, events, `"status":"cancelled"`, "the other process cancelled it")

	for _, p := range []*program{one, other} {
		require.NoError(t, p.Process.Signal(syscall.SIGTERM))
		require.NoError(t, p.Wait(), &p.stderr)
	}
	again := start(t, flags...)
	_, answer = again.request("GET", location, "")
	require.Contains(t, answer, `"status":"succeeded"`, "operations survive a restart")
	require.NoError(t, again.Process.Signal(syscall.SIGTERM))
	require.NoError(t, again.Wait(), &again.stderr)
}

func TestProgramReportsWhatItsEngineNeeds(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"-database is missing":                 {"-engine", "river"},
		"the engine memory uses no database":   {"-database", "postgres://localhost/x"},
		`-engine is "x"; want memory or river`: {"-engine", "x"},
		"cannot parse":                         {"-engine", "river", "-database", "postgres://:x"},
	} {
		cmd := exec.Command(os.Args[0], args...)
		cmd.Env = append(os.Environ(), asProgram+"=1", "OPENAI_API_KEY=")
		text, err := cmd.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(text), want)
	}
}
