package redisguard_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/redisguard"
)

var write = flag.Bool("write", false, "write the tables of SIMULATION.md")

const (
	simulatedLimit = 20
	simulatedTime  = 20 * time.Second
	roundTrip      = time.Millisecond
)

// slowPipe returns the ends of a connection whose bytes take half a round trip. No write waits for a reader, because
// virtual time stands still while a goroutine waits for a lock of one that sleeps.
func slowPipe(half time.Duration) (client, server net.Conn) {
	client, a := net.Pipe()
	b, server := net.Pipe()
	forward := func(to, from net.Conn) {
		type chunk struct {
			bytes []byte
			at    time.Time
		}
		chunks := make(chan chunk, 10_000)
		go func() {
			defer close(chunks)
			for {
				buf := make([]byte, 4096)
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				chunks <- chunk{buf[:n], time.Now().Add(half)}
			}
		}()
		defer to.Close()
		for c := range chunks {
			time.Sleep(time.Until(c.at))
			if _, err := to.Write(c.bytes); err != nil {
				_ = from.Close() // ends the reader above
			}
		}
	}
	go forward(b, a)
	go forward(a, b)
	return client, server
}

// outcome is what a fleet of processes has achieved.
type outcome struct {
	asked, peak int64
	busy        time.Duration // of all slots
	took        time.Duration
	sent        int64 // commands and messages
}

// row returns a row of the table.
func (o *outcome) row(processes int, load float64) string {
	return fmt.Sprintf("| %d | %g | %.0f%% | %d | %.2f |\n", processes, load, 100*o.busy.Seconds()/(o.took.Seconds()*simulatedLimit),
		max(o.peak-simulatedLimit, 0), float64(o.sent)/float64(o.asked))
}

// traffic makes calls at random times and at random processes, load times as many as the limit can serve. A call holds
// its slot for work, and gives up after waiting for patience.
func traffic(t testing.TB, clients []redis.UniversalClient, load float64, work, patience, length time.Duration) (o outcome) {
	limiters := make([]*redisguard.Limiter, len(clients))
	for i, c := range clients {
		limiters[i] = newLimiter(t, c, redisguard.Config{Limit: simulatedLimit, MaxBackground: aiguard.Off})
	}
	sent := func() (sum int64) {
		for _, l := range limiters {
			st := l.Stats()
			sum += st.Commands + st.Messages
		}
		return sum
	}
	eventually(t, func() bool { return limiters[0].Stats().Commands > 0 }, "the processes have begun")
	before := sent()
	var inFlight, peak, busy atomic.Int64
	every := time.Duration(float64(work) / (load * simulatedLimit))
	random := rand.New(rand.NewPCG(1, uint64(len(clients))))
	var all sync.WaitGroup
	start := time.Now()
	for next := start; time.Since(start) < length; {
		next = next.Add(time.Duration(random.ExpFloat64() * float64(every)))
		time.Sleep(time.Until(next))
		l := limiters[random.IntN(len(limiters))]
		o.asked++
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			release, err := l.Acquire(ctx, aiguard.Call{})
			if err != nil {
				return
			}
			n := inFlight.Add(1)
			for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
			}
			busy.Add(int64(max(min(work, length-time.Since(start)), 0)))
			time.Sleep(work)
			inFlight.Add(-1)
			release()
		})
	}
	o.took = time.Since(start)
	all.Wait()
	o.sent, o.peak, o.busy = sent()-before, peak.Load(), time.Duration(busy.Load())
	for _, l := range limiters {
		require.NoError(t, l.Close())
	}
	return o
}

func TestSimulation(t *testing.T) {
	fleets, loads := []int{1, 10, 100}, []float64{0.5, 2, 5}
	if testing.Short() {
		fleets = fleets[:2]
	}
	if !*write {
		loads = []float64{2}
	}
	var rows strings.Builder
	for _, processes := range fleets {
		for _, load := range loads {
			rows.WriteString(simulate(t, processes, load))
		}
	}
	t.Log("\n" + rows.String())
	if *write {
		writeTable(t, "simulated", rows.String())
	}
}

// inVirtualTime runs f in a bubble. connect returns clients of an in-memory Redis.
func inVirtualTime(t *testing.T, f func(t *testing.T, connect func() *redis.Client)) {
	m := miniredis.NewMiniRedis()
	require.NoError(t, m.Start())
	m.Server().Close() // its listener would wait in the kernel, where virtual time stands still
	synctest.Test(t, func(t *testing.T) {
		f(t, func() *redis.Client {
			c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", ContextTimeoutEnabled: true,
				Dialer: func(context.Context, string, string) (net.Conn, error) {
					client, server := slowPipe(roundTrip / 2)
					m.Server().ServeConn(server)
					return client, nil
				}})
			t.Cleanup(func() { _ = c.Close() })
			return c
		})
	})
}

// simulate runs a fleet in virtual time.
func simulate(t *testing.T, processes int, load float64) (row string) {
	inVirtualTime(t, func(t *testing.T, connect func() *redis.Client) {
		clients := make([]redis.UniversalClient, processes)
		for i := range clients {
			clients[i] = connect()
		}
		o := traffic(t, clients, load, time.Second, 5*time.Second, simulatedTime)
		assert.LessOrEqual(t, o.peak, int64(simulatedLimit))
		// Each process also polls, once a second while its calls wait.
		assert.Less(t, float64(o.sent), 3*float64(o.asked)+1.5*float64(processes)*o.took.Seconds(), "commands and messages")
		if load > 1 {
			assert.Greater(t, o.busy.Seconds(), 0.9*simulatedLimit*o.took.Seconds(), "the limit is used")
		}
		row = o.row(processes, load)
	})
	return row
}

// The same with a real server, with less work per call to fit a small machine.
func TestRealServerConfirmsTheSimulation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	s := startRedis(t)
	var rows strings.Builder
	loads := []float64{0.5, 2}
	if !*write {
		loads = loads[1:]
	}
	for _, processes := range []int{1, 10} {
		for _, load := range loads {
			clients := make([]redis.UniversalClient, processes)
			for i := range clients {
				clients[i] = s.client(t)
			}
			o := traffic(t, clients, load, 200*time.Millisecond, time.Second, simulatedTime/4)
			assert.LessOrEqual(t, o.peak, int64(simulatedLimit))
			rows.WriteString(o.row(processes, load))
		}
	}
	t.Log("\n" + rows.String())
	if *write {
		writeTable(t, "measured", rows.String())
	}
}

// writeTable replaces the rows of a table of SIMULATION.md.
func writeTable(t *testing.T, name, rows string) {
	t.Helper()
	text, err := os.ReadFile("SIMULATION.md")
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), "<!-- "+name+" -->\n")
	_, after, ok2 := strings.Cut(rest, "<!-- end -->\n")
	require.True(t, ok && ok2, "SIMULATION.md has a table %q", name)
	head := "| processes | load | goodput | overshoot | commands and messages per call |\n|---|---|---|---|---|\n"
	require.NoError(t, os.WriteFile("SIMULATION.md", []byte(before+"<!-- "+name+" -->\n"+head+rows+"<!-- end -->\n"+after), 0o644))
}
