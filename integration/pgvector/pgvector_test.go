package pgvector

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/cacheguard/indextest"
	"github.com/aiguard-go/aiguard/cacheguard/pgindex"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

func TestMain(m *testing.M) { leaktest.Main(stopping{m}, "database/sql") }

// stopping stops the server after the tests.
type stopping struct{ m *testing.M }

func (s stopping) Run() int {
	defer stopServer()
	return s.m.Run()
}

var errNotInstalled = errors.New("no PGlite")

// endWithStdin is a module that ends the server when its standard input is closed. The kernel closes it even if the
// test binary is killed, so the server cannot outlive the tests.
const endWithStdin = `data:text/javascript,process.stdin.on("end",()=>process.exit()).resume()`

var server struct {
	stdin io.Closer
	done  chan struct{}
	dir   string
}

func stopServer() {
	if server.stdin != nil {
		_ = server.stdin.Close()
		<-server.done
		_ = os.RemoveAll(server.dir)
	}
}

// startServer starts the server once and returns its DSN.
var startServer = sync.OnceValues(func() (dsn string, err error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return "", fmt.Errorf("%w: install Node.js 20.15 or newer, then run `npm ci` in integration/", errNotInstalled)
	}
	script := filepath.Join("..", "node_modules", ".bin", "pglite-server")
	if _, err := os.Stat(script); err != nil {
		err = errors.New("PGlite is not installed: run `npm ci` in integration/")
		if os.Getenv("CI") == "" {
			err = fmt.Errorf("%w: %w", errNotInstalled, err)
		}
		return "", err
	}
	if server.dir, err = os.MkdirTemp("", "pgvector"); err != nil {
		return "", err
	}
	var log syncbuf.Buffer
	cmd := exec.Command(node, "--import", endWithStdin, script, "--path", filepath.Join(server.dir, ".s.PGSQL.5432"),
		"--extensions", "@electric-sql/pglite-pgvector:vector", "--max-connections", "10")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = &log, &log
	if server.stdin, err = cmd.StdinPipe(); err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	server.done = make(chan struct{})
	go func() {
		defer close(server.done)
		_ = cmd.Wait()
	}()
	// All connections share one session, so statements must have no names.
	dsn = "host=" + server.dir + " user=postgres dbname=postgres sslmode=disable default_query_exec_mode=exec"
	if err := answers(dsn); err != nil {
		return "", fmt.Errorf("PGlite does not start: %w\n%s", err, log.String())
	}
	return dsn, nil
})

// answers waits until the server responds.
func answers(dsn string) error {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-server.done:
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// database returns a connection to the server.
func database(t *testing.T) *sql.DB {
	t.Helper()
	dsn, err := startServer()
	if errors.Is(err, errNotInstalled) {
		t.Skip(err)
	}
	require.NoError(t, err)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	db.SetMaxOpenConns(1) // PGlite has one session, which all connections share
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// open returns an empty index.
func open(t *testing.T, dimensions int) (*pgindex.Index, *sql.DB, string) {
	t.Helper()
	db := database(t)
	table := fmt.Sprintf("t%d", rand.Uint64())
	x, err := pgindex.New(t.Context(), db, pgindex.Config{Table: table, Dimensions: dimensions})
	require.NoError(t, err)
	return x, db, table
}

func TestIndexKeepsItsPromises(t *testing.T) {
	for _, c := range indextest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			x, _, _ := open(t, indextest.Dimension)
			require.NoError(t, c.Run(t.Context(), x))
		})
	}
}

func TestTableIsPreparedOnceAndItsDimensionsAreChecked(t *testing.T) {
	x, db, table := open(t, 2)
	item := cacheguard.Item{ID: "a", Partition: "p", Vector: []float32{1, 0}, TTL: time.Hour}
	require.NoError(t, x.Update(t.Context(), []cacheguard.Item{item, item}, nil), "an ID twice")

	errs := make([]error, 4)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { _, errs[i] = pgindex.New(t.Context(), db, pgindex.Config{Table: table, Dimensions: 2}) })
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	again, err := pgindex.New(t.Context(), db, pgindex.Config{Table: table, Dimensions: 2})
	require.NoError(t, err)
	m, err := again.Nearest(t.Context(), "p", []float32{1, 0}, 0.9)
	require.NoError(t, err)
	assert.Equal(t, cacheguard.Match{ID: "a", Similarity: 1}, m)

	_, err = pgindex.New(t.Context(), db, pgindex.Config{Table: table, Dimensions: 3})
	require.EqualError(t, err, "pgindex: prepare the table "+table+": it has vectors of 2 dimensions, and Config.Dimensions is 3; want the same number, or another Config.Table")
}

func TestExpiredItemsAreRemovedByUpdates(t *testing.T) {
	x, db, table := open(t, 2)
	var items []cacheguard.Item
	for i := range 25 {
		items = append(items, cacheguard.Item{ID: fmt.Sprint(i), Partition: "p", Vector: []float32{1, 0}, TTL: time.Microsecond})
	}
	require.NoError(t, x.Update(t.Context(), items, nil))
	for _, want := range []int{16, 7, 1, 1} { // ten go and one comes
		fresh := cacheguard.Item{ID: "fresh", Partition: "p", Vector: []float32{0, 1}, TTL: time.Hour}
		require.NoError(t, x.Update(t.Context(), []cacheguard.Item{fresh}, nil))
		var n int
		require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&n))
		assert.LessOrEqual(t, n, want)
	}
	m, err := x.Nearest(t.Context(), "p", []float32{0, 1}, 0.9)
	require.NoError(t, err)
	assert.Equal(t, "fresh", m.ID)
}

// answersOf keeps the answers of several caches in this process, as Redis does for several processes.
type answersOf struct {
	mu      sync.Mutex
	entries map[string][]byte
}

func (s *answersOf) Get(_ context.Context, name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[name], nil
}

func (s *answersOf) Set(_ context.Context, name string, entry []byte, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[name] = entry
	return nil
}

type provider func(*http.Request) (*http.Response, error)

func (f provider) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestProcessesShareQuestions(t *testing.T) {
	_, db, table := open(t, 2)
	store := &answersOf{entries: map[string][]byte{}}
	newProcess := func() *cacheguard.Transport {
		x, err := pgindex.New(t.Context(), db, pgindex.Config{Table: table, Dimensions: 2})
		require.NoError(t, err)
		cache, err := cacheguard.New(provider(func(req *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Request: req, ContentLength: -1,
				Body: io.NopCloser(strings.NewReader(`{"choices":[{"finish_reason":"stop","message":{"content":"Hello"}}]}`))}, nil
		}), cacheguard.Config{Store: store, LookupTimeout: 5 * time.Second, Similar: cacheguard.Similar{Index: x, Threshold: 0.9,
			Embed: func(context.Context, []string) ([][]float32, error) { return [][]float32{{1, 0}}, nil }}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, cache.Close()) })
		return cache
	}
	ask := func(cache *cacheguard.Transport, question string) *http.Response {
		body := `{"temperature":0,"messages":[{"role":"user","content":"` + question + `"}]}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example/v1/chat/completions", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer key")
		resp, err := cache.RoundTrip(req)
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Eventually(t, func() bool { return cache.Stats().InFlight == 0 }, 10*time.Second, time.Millisecond)
		return resp
	}
	one, two := newProcess(), newProcess()
	assert.Equal(t, "miss", ask(one, "How do I reset my password?").Header.Get(cacheguard.Header))
	resp := ask(two, "How can I reset the password?")
	assert.Equal(t, "similar", resp.Header.Get(cacheguard.Header))
	require.NoError(t, cacheguard.Reject(resp))
	assert.Equal(t, "miss", ask(one, "How should I reset my password?").Header.Get(cacheguard.Header))
	var text string
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT string_agg("+table+"::text, ' ') FROM "+table).Scan(&text))
	assert.NotContains(t, strings.ToLower(text), "password")
	assert.Zero(t, one.Stats().SimilarFailures+two.Stats().SimilarFailures)
}
