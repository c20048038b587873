package redisstore_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/cacheguard/redisstore"
	"github.com/aiguard-go/aiguard/internal/leaktest"
	"github.com/aiguard-go/aiguard/internal/redistest"
)

func TestMain(m *testing.M) {
	logging.Disable() // go-redis logs every connection that these tests break
	leaktest.Main(m, "otter", "go-redis")
}

var _ cacheguard.Store = (*redisstore.Store)(nil)

// server is a redis-server started by the test.
type server struct{ *redistest.Server }

func startServer(t *testing.T) *server {
	t.Helper()
	return &server{redistest.Start(t, "redis-server")}
}

func (s *server) client(t *testing.T) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// process simulates one process of a service, with its own guard and cache. All processes share provider.
type process struct {
	guard *aiguard.Guard
	cache *cacheguard.Transport
	url   string
}

// lookup is longer than a lookup takes on a busy machine, where the default is not.
const lookup = 2 * time.Second

func newProcess(t *testing.T, provider *aiguardtest.Server, client *redis.Client) *process {
	t.Helper()
	g, err := aiguard.New(aiguard.Config{})
	require.NoError(t, err)
	cache, err := cacheguard.New(g.Transport(nil), cacheguard.Config{Store: redisstore.New(client, "test:"), TTL: time.Minute, LookupTimeout: lookup})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, cache.Close())
		require.NoError(t, g.Close())
	})
	return &process{g, cache, provider.URL}
}

// ask returns the source of the answer to the i-th question after all writes are done.
func (p *process) ask(t *testing.T, i int) string {
	t.Helper()
	body := fmt.Sprintf(`{"model":"m","temperature":0,"stream":true,"messages":[{"role":"user","content":"question %d"}]}`, i)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/chat/completions", strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer sk-secret")
	resp, err := p.cache.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.True(t, strings.HasSuffix(string(text), "data: [DONE]\n\n"))
	return resp.Header.Get(cacheguard.Header)
}

func (p *process) settle(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return p.cache.Stats().InFlight == 0 }, 10*time.Second, time.Millisecond)
}

func TestStoreExpiresEntries(t *testing.T) {
	client := startServer(t).client(t)
	s := redisstore.New(client, "p:")
	entry, err := s.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Nil(t, entry)

	binary := []byte("\x00\xff\r\n")
	require.NoError(t, s.Set(t.Context(), "a", binary, time.Minute))
	entry, err = s.Get(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, binary, entry)
	left, err := client.PTTL(t.Context(), "p:a").Result()
	require.NoError(t, err)
	require.InDelta(t, time.Minute, left, float64(10*time.Second))
	entry, err = redisstore.New(client, "q:").Get(t.Context(), "a")
	require.NoError(t, err)
	require.Nil(t, entry, "another prefix")

	require.NoError(t, s.Set(t.Context(), "a", []byte("new"), 20*time.Millisecond))
	require.Eventually(t, func() bool {
		entry, err := s.Get(t.Context(), "a")
		return err == nil && entry == nil
	}, 5*time.Second, 5*time.Millisecond)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Get(ended, "a")
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, s.Set(ended, "a", binary, time.Minute), context.Canceled)
}

func TestProcessesShareAnswers(t *testing.T) {
	redisServer, provider := startServer(t), aiguardtest.NewServer(t)
	client := redisServer.client(t)
	one, two := newProcess(t, provider, client), newProcess(t, provider, redisServer.client(t))
	require.Equal(t, "miss", one.ask(t, 1))
	one.settle(t)
	require.Equal(t, "hit", two.ask(t, 1))
	assert.Zero(t, two.guard.Stats().Calls)
	assert.Equal(t, 1, provider.Count())

	keys, err := client.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Len(t, keys, 1)
	assert.Regexp(t, "^test:[0-9a-f]{64}$", keys[0])
	value, err := client.Get(t.Context(), keys[0]).Result()
	require.NoError(t, err)
	assert.NotContains(t, value, "sk-secret")
	assert.NotContains(t, value, "question")
	left, err := client.PTTL(t.Context(), keys[0]).Result()
	require.NoError(t, err)
	assert.InDelta(t, time.Minute, left, float64(10*time.Second))

	// A corrupt value is a miss and is replaced.
	require.NoError(t, client.SetRange(t.Context(), keys[0], 60, "x").Err())
	require.Equal(t, "miss", two.ask(t, 1))
	two.settle(t)
	assert.EqualValues(t, 1, two.cache.Stats().Corrupt)
	require.Equal(t, "hit", one.ask(t, 1))
}

func TestFrozenServerDelaysACallASecondByTheLookupTimeout(t *testing.T) {
	const readTimeout = time.Minute
	for name, heedsContext := range map[string]bool{"stops with its context": true, "stops with its own timeout": false} {
		t.Run(name, func(t *testing.T) {
			redisServer, provider := startServer(t), aiguardtest.NewServer(t)
			client := redis.NewClient(&redis.Options{Addr: redisServer.Addr, ContextTimeoutEnabled: heedsContext, ReadTimeout: readTimeout})
			defer client.Close()
			p := newProcess(t, provider, client)
			require.Equal(t, "miss", p.ask(t, 0))
			p.settle(t)
			require.Equal(t, "hit", p.ask(t, 0))
			redisServer.Freeze(t)
			start := time.Now()
			for i := range 10 {
				require.Equal(t, "miss", p.ask(t, i))
			}
			took, failures := time.Since(start), p.cache.Stats().StoreFailures
			require.GreaterOrEqual(t, took, lookup)
			require.Less(t, took, readTimeout/2, "10 calls; go-redis would wait a minute for each")
			require.Positive(t, failures)
			require.LessOrEqual(t, failures, 1+int64((took-lookup)/time.Second), "the pause after a failure is a second")
		})
	}
}

func TestServerThatDiesAndComesBack(t *testing.T) {
	redisServer, provider := startServer(t), aiguardtest.NewServer(t)
	p := newProcess(t, provider, redisServer.client(t))
	require.Equal(t, "miss", p.ask(t, 0))
	p.settle(t)
	require.Equal(t, "hit", p.ask(t, 0))
	redisServer.Kill()
	for i := range 20 {
		require.Equal(t, "miss", p.ask(t, i))
	}
	require.Positive(t, p.cache.Stats().StoreFailures)
	redisServer.Restart(t)
	require.Eventually(t, func() bool { return p.ask(t, 0) == "hit" }, 10*time.Second, 50*time.Millisecond)
}
