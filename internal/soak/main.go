// Command soak runs a whole service in one process under a mix of all faults. Fake providers of every dialect answer
// well half of the time and otherwise play every fault of package aiguardtest. Some calls go through a proxy that falls
// silent. Fifty callers of several tenants and priorities leave, forget their streams, or read them slowly. Some of
// them call through a cache. Twenty visitors use a web service over httpguard, with tasks in SQLite. Many visitors are
// hostile.
//
//	cd internal/soak && go run . -for 30s
//
// It prints a line every five seconds. At the end it prints PASS, or FAIL with the first failure and exit code 1. The
// run fails in these cases:
//
//   - a call takes longer than its limits allow
//   - a truncated or malformed answer looks complete
//   - an error has no kind
//   - the number of goroutines, the number of files and sockets, or the memory grows
//   - a slot, a goroutine, a connection or memory is left at the end
//
// Servers and guard share one process, so the numbers include both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

const (
	lineEvery    = 5 * time.Second
	sampleEvery  = 100 * time.Millisecond
	playEvery    = 4 * time.Second // average; the actual time is random
	playFor      = time.Second
	patience     = 15 * time.Second // for waits that should end soon
	slack        = time.Second      // allowed above a limit, in addition to twice the worst timer lag
	mostHeap     = 16 << 20         // allowed growth of the live heap from start to end
	modelsAFault = 16
	buffered     = 30 // events that go-openai may have buffered, which a slow reader gets after the stream's end
)

// config is the guard's default configuration with shorter times.
var config = aiguard.Config{
	CallTimeout: time.Second, StreamIdleTimeout: 500 * time.Millisecond, StreamTimeout: 3 * time.Second,
	QueueTimeout: 2 * time.Second, TotalTimeout: 4 * time.Second, TaskTimeout: 4 * time.Second,
	MaxConcurrent: 20, MaxQueue: 1000, MaxResponseBytes: 1 << 20,
	Retry: aiguard.Retry{BaseDelay: 20 * time.Millisecond, MaxDelay: 250 * time.Millisecond},
}

func main() {
	d := flag.Duration("for", 30*time.Second, "duration of the run")
	callers := flag.Int("callers", 50, "number of concurrent callers")
	visitors := flag.Int("visitors", 20, "number of concurrent visitors of the web service")
	seed := flag.Uint64("seed", rand.Uint64(), "seed for the decisions of callers and providers")
	flag.Parse()
	if *d <= 0 || *callers <= 0 || *visitors <= 0 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if !run(ctx, *d, *callers, *visitors, *seed) {
		os.Exit(1)
	}
}

// soak is one run.
type soak struct {
	seed   uint64
	began  time.Time
	meter  meter
	guard  *aiguard.Guard
	main   *provider // plays the fault that a request names
	second *provider // has connection faults
	replay atomic.Uint64

	proxied []*proxied // each behind a proxy with another fault

	cache   *cacheguard.Transport
	service *service

	calls, ids atomic.Int64

	mu       sync.Mutex
	outcomes map[string]int
	failures int
	first    string // first failure
}

func run(ctx context.Context, d time.Duration, callers, visitors int, seed uint64) (passed bool) {
	goroutines, heap := runtime.NumGoroutine(), liveHeap()
	s := &soak{seed: seed, began: time.Now(), outcomes: map[string]int{}}
	s.meter.gauges = gauges(func() uint64 { return uint64(s.guard.Stats().InFlight) })
	fmt.Printf("soak for %v, %d callers, %d visitors, -seed %d, %d faults, %d faults of proxies, %d dialects\n",
		d, callers, visitors, seed, len(aiguardtest.Faults()), len(aiguardtest.ProxyFaults()), len(dialects))

	guard, err := aiguard.New(config)
	if err != nil {
		fmt.Println("FAIL", err)
		return false
	}
	s.guard = guard
	s.main = &provider{Server: aiguardtest.Start()}
	s.second = &provider{Server: aiguardtest.Start(aiguardtest.TLS())}
	s.main.Handle(s.answer)
	s.second.Handle(func(r *aiguardtest.Request) aiguardtest.Reply { return healthy(r.Body) })
	s.main.client = guard.Client(clientConfig(s.main.URL, nil)) // uses the guard's own connection pool
	base := transport(s.second.Server)
	s.second.client = guard.Client(clientConfig(s.second.URL, base))
	var atEnd cleanups
	defer atEnd.run()
	s.proxied = startProxies(&atEnd, guard)
	if s.cache, err = cacheguard.New(guard.Transport(nil), cacheguard.Config{TTL: 5 * time.Second, MaxBytes: 4 << 20}); err == nil {
		s.service, err = startService(s)
	}
	if err != nil {
		fmt.Println("FAIL", err)
		return false
	}

	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var watchers, callersDone sync.WaitGroup
	watchers.Go(func() { s.meter.watch(ctx, d) })
	watchers.Go(func() { s.playFaults(ctx) })
	watchers.Go(func() { s.report(ctx) })
	for i := range callers {
		callersDone.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for ctx.Err() == nil {
				s.act(rng)
				time.Sleep(ms(rng.IntN(40)))
			}
		})
	}
	visit := &http.Transport{MaxIdleConnsPerHost: visitors}
	for i := range visitors {
		callersDone.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1<<34+uint64(i)))
			v := &visitor{service: s.service, rng: rng, client: &http.Client{Transport: visit}}
			for ctx.Err() == nil {
				s.calls.Add(1)
				v.visit()
				time.Sleep(ms(rng.IntN(40)))
			}
		})
	}
	watchers.Wait()
	if !within(2*patience, callersDone.Wait) {
		s.failf("%v after the end some callers are still in a call", 2*patience)
		s.verdict()
		fmt.Fprintln(os.Stderr, leaktest.Stacks())
		return false
	}
	s.line("end")
	visit.CloseIdleConnections()
	s.service.shutdown()
	if err := s.cache.Close(); err != nil {
		s.failf("the cache's Close: %v", err)
	}
	fmt.Printf("cache: %+v\n", s.cache.Stats())
	s.shutdown(base)
	s.main.Close()
	s.second.Close()
	atEnd.run()
	s.leftovers(goroutines, heap)
	return s.verdict()
}

// shutdown shuts the guard down and checks that no slot, call or connection is left.
func (s *soak) shutdown(base *http.Transport) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := s.guard.Shutdown(ctx)
	s.took("Shutdown with unclosed streams", began, config.StreamTimeout)
	if err != nil {
		s.failf("Shutdown: %v", err)
	}
	if st := s.guard.Stats(); st.InFlight != 0 || st.Waiting != 0 {
		s.failf("after Shutdown %d slots are in use and %d calls wait", st.InFlight, st.Waiting)
	}
	if _, err := s.main.client.CreateChatCompletion(context.Background(), request("healthy", "")); !errors.Is(err, aiguard.ErrClosed) {
		s.failf("a call after Shutdown: %v", err)
	}
	base.CloseIdleConnections()
	for _, p := range s.proxied {
		p.base.CloseIdleConnections()
	}
	if !soon(func() bool { return s.connections() == 0 }) {
		s.failf("%d connections left after Shutdown", s.connections())
	}
	fmt.Printf("shut down in %v: %+v\n", time.Since(began).Round(time.Millisecond), s.guard.Stats())
}

// leftovers checks goroutines, memory and time limits after guard and servers have ended.
func (s *soak) leftovers(goroutines int, heap uint64) {
	if !soon(func() bool { return runtime.NumGoroutine() <= goroutines }) {
		s.failf("%d goroutines, %d at the start", runtime.NumGoroutine(), goroutines)
		fmt.Fprintln(os.Stderr, leaktest.Stacks())
	}
	if !soon(func() bool { return liveHeap() <= heap+mostHeap }) {
		s.failf("live heap %s MB, %s at the start; want at most %s more", mb(liveHeap()), mb(heap), mb(mostHeap))
	}
	if over := s.meter.over; over > slack+2*s.meter.lag {
		s.failf("%s took too long (worst timer lag %v)", s.meter.what, s.meter.lag)
	}
	for _, g := range s.meter.gauges {
		if g.early > 0 && g.late > g.early+g.most {
			s.failf("%s", g)
		}
	}
	tunnels := 0
	for _, p := range s.proxied {
		_, total := p.proxy.Conns()
		tunnels += total
	}
	if s.calls.Load() > 2000 && tunnels == 0 {
		s.failf("the run is too weak: no call went through a proxy")
	}
	if s.calls.Load() > 200 {
		for _, must := range []string{"ok", "ok in a dialect", "ok through the cache", "visitor ok", "task ok", "hostile input rejected",
			"timeout", "truncated", "left by caller", "stream forgotten"} {
			if s.outcomes[must] == 0 {
				s.failf("the run is too weak: no call ended with %q", must)
			}
		}
	}
}

func (s *soak) verdict() bool {
	m := &s.meter
	m.mu.Lock() // some callers may still be in a call
	defer m.mu.Unlock()
	facts := fmt.Sprintf("%d calls; worst excess over a limit %v (%s; worst timer lag %v)", s.calls.Load(),
		m.over.Round(time.Millisecond), m.what, m.lag.Round(time.Millisecond))
	for _, g := range m.gauges {
		facts += "\n     " + g.String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures > 0 {
		fmt.Printf("FAIL %s (failures: %d, -seed %d)\n     %s\n", s.first, s.failures, s.seed, facts)
		return false
	}
	fmt.Println("PASS", facts)
	return true
}

func (s *soak) failf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures++; s.failures == 1 {
		s.first = text
	}
	if s.failures <= 20 {
		fmt.Fprintln(os.Stderr, "failure:", text)
	}
}

func (s *soak) count(outcome string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[outcome]++
}

func (s *soak) took(what string, began time.Time, bound time.Duration) {
	s.meter.exceeded(what, time.Since(began), bound)
}

func (s *soak) connections() int {
	a, _ := s.main.Conns()
	b, _ := s.second.Conns()
	sum := a + b
	for _, p := range s.proxied {
		open, _ := p.proxy.Conns()
		sum += open
	}
	return sum
}

// report prints the lines. It also resets the servers, because their journals would look like a leak.
func (s *soak) report(ctx context.Context) {
	tick := time.NewTicker(lineEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.line("")
			s.service.forget()
			s.main.Reset()
			s.second.Reset()
		case <-ctx.Done():
			return
		}
	}
}

func (s *soak) line(what string) {
	if what == "" {
		what = time.Since(s.began).Round(time.Second).String()
	}
	st := s.guard.Stats()
	s.mu.Lock()
	var outcomes []string
	for _, k := range slices.Sorted(maps.Keys(s.outcomes)) {
		outcomes = append(outcomes, fmt.Sprintf("%s %d", k, s.outcomes[k]))
	}
	s.mu.Unlock()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	rss := "-"
	if n := readRSS(); n > 0 {
		rss = mb(n)
	}
	fmt.Printf("%5s  calls %d: %s | slots %d/%d, waiting %d | goroutines %d | connections %d | heap %s MB | RSS %s MB\n",
		what, s.calls.Load(), strings.Join(outcomes, ", "), st.InFlight, st.MaxConcurrent, st.Waiting,
		runtime.NumGoroutine(), s.connections(), mb(m.HeapAlloc), rss)
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// sleep reports false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// soon polls ok until it returns true, and reports false after patience.
func soon(ok func() bool) bool {
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// within reports whether f returns within d.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
