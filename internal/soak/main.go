// Command soak runs a guard for as long as it is told, with everything going wrong that can: fifty callers, who leave,
// forget their streams or read them slowly, call two fake providers that answer well half of the time and else play every
// fault of package aiguardtest.
//
//	go run ./internal/soak -for 30s
//
// It prints a line every five seconds, and at the end PASS, or FAIL and why, with exit code 1. It fails if a call takes
// longer than its bounds allow, if an answer that was cut or broken looks complete, if an error says nothing, or if
// anything is left in the end: a slot, a goroutine, a connection, memory. Servers and guard share this process, so its
// numbers are those of both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	openai "github.com/sashabaranov/go-openai"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

const (
	lineEvery    = 5 * time.Second
	sampleEvery  = 100 * time.Millisecond
	playEvery    = 4 * time.Second // and a little more
	playFor      = time.Second
	patience     = 15 * time.Second // for what must end by itself
	slack        = time.Second      // above a bound, besides twice the worst delay that the machine had for a timer
	mostRSS      = 32 << 20         // by which the highest of the last quarter may exceed that of the first
	mostHeap     = 16 << 20         // live in the end, above the start
	modelsAFault = 16
	buffered     = 30 // events that go-openai may have read ahead, which a slow reader gets after the stream's end
)

// config is the guard's defaults, scaled down.
var config = aiguard.Config{
	CallTimeout: time.Second, StreamIdleTimeout: 500 * time.Millisecond, StreamTimeout: 3 * time.Second,
	QueueTimeout: 2 * time.Second, TotalTimeout: 4 * time.Second, TaskTimeout: 4 * time.Second,
	MaxConcurrent: 20, MaxQueue: 1000, MaxResponseBytes: 1 << 20,
	Retry: aiguard.Retry{BaseDelay: 20 * time.Millisecond, MaxDelay: 250 * time.Millisecond},
}

func main() {
	d := flag.Duration("for", 30*time.Second, "how long")
	callers := flag.Int("callers", 50, "how many at once")
	seed := flag.Uint64("seed", rand.Uint64(), "of the callers' and the providers' decisions")
	flag.Parse()
	if *d <= 0 || *callers <= 0 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if !run(ctx, *d, *callers, *seed) {
		os.Exit(1)
	}
}

// soak is one run.
type soak struct {
	seed   uint64
	began  time.Time
	meter  meter
	guard  *aiguard.Guard
	main   *provider // plays faults by request
	second *provider // has its connections fail
	replay atomic.Uint64

	calls, ids atomic.Int64

	mu       sync.Mutex
	outcomes map[string]int
	failures int
	first    string // failure
}

// provider is a fake one, with a guarded client of it.
type provider struct {
	*aiguardtest.Server
	client *aiguard.Client
}

func run(ctx context.Context, d time.Duration, callers int, seed uint64) (passed bool) {
	goroutines, heap := runtime.NumGoroutine(), liveHeap()
	s := &soak{seed: seed, began: time.Now(), outcomes: map[string]int{}}
	fmt.Printf("soak for %v, %d callers, -seed %d, %d faults\n", d, callers, seed, len(aiguardtest.Faults()))

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
	s.main.client = guard.Client(clientConfig(s.main.URL, nil)) // over the guard's own pool
	base := transport(s.second.Server)
	s.second.client = guard.Client(clientConfig(s.second.URL, base))

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
	watchers.Wait()
	if !within(patience, func() { callersDone.Wait() }) {
		s.failf("%v after the end callers are still in their calls", patience)
		s.verdict()
		fmt.Fprintln(os.Stderr, leaktest.Stacks())
		return false
	}
	s.line("end")
	s.shutdown(base)
	s.main.Close()
	s.second.Close()
	s.leftovers(goroutines, heap)
	return s.verdict()
}

// shutdown ends the guard as a service would, and checks that this leaves nothing of it.
func (s *soak) shutdown(base *http.Transport) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := s.guard.Shutdown(ctx)
	s.took("Shutdown, with streams that nobody closes", began, config.StreamTimeout)
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
	if !soon(func() bool { return s.connections() == 0 }) {
		s.failf("%d connections left after Shutdown", s.connections())
	}
	fmt.Printf("shut down in %v: %+v\n", time.Since(began).Round(time.Millisecond), s.guard.Stats())
}

// leftovers checks what the process still has once guard and servers are gone.
func (s *soak) leftovers(goroutines int, heap uint64) {
	if !soon(func() bool { return runtime.NumGoroutine() <= goroutines }) {
		s.failf("%d goroutines, %d at the start", runtime.NumGoroutine(), goroutines)
		fmt.Fprintln(os.Stderr, leaktest.Stacks())
	}
	if !soon(func() bool { return liveHeap() <= heap+mostHeap }) {
		s.failf("live heap %s MB, %s at the start; want at most %s more", mb(liveHeap()), mb(heap), mb(mostHeap))
	}
	if over := s.meter.over; over > slack+2*s.meter.lag {
		s.failf("%s took too long (worst lag of the machine: %v)", s.meter.what, s.meter.lag)
	}
	if early, late := s.meter.early, s.meter.late; early > 0 && late > early+mostRSS {
		s.failf("RSS up to %s MB in the first quarter, %s in the last; want at most %s more", mb(early), mb(late), mb(mostRSS))
	}
	if s.calls.Load() > 200 {
		for _, must := range []string{"ok", "timeout", "truncated", "left by caller", "stream forgotten"} {
			if s.outcomes[must] == 0 {
				s.failf("the run proves little: no call ended with %q", must)
			}
		}
	}
}

func (s *soak) verdict() bool {
	m := &s.meter
	m.mu.Lock() // callers may still be in their calls
	defer m.mu.Unlock()
	facts := fmt.Sprintf("%d calls; worst overtime %v (%s; the machine's worst lag %v)", s.calls.Load(),
		m.over.Round(time.Millisecond), m.what, m.lag.Round(time.Millisecond))
	if m.early > 0 {
		facts += fmt.Sprintf("; RSS up to %s MB in the first quarter, %s in the last, bound %s more", mb(m.early), mb(m.late), mb(mostRSS))
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
	return a + b
}

// report prints the lines, and has the servers forget: their journals would be taken for a leak.
func (s *soak) report(ctx context.Context) {
	tick := time.NewTicker(lineEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.line("")
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

// playFaults lets the second server's connections fail now and then.
func (s *soak) playFaults(ctx context.Context) {
	var faults []aiguardtest.Fault
	for _, f := range aiguardtest.Faults() {
		if f.Connection() {
			faults = append(faults, f)
		}
	}
	rng := rand.New(rand.NewPCG(s.seed, 1<<32))
	for n := rng.IntN(len(faults)); sleep(ctx, playEvery/2+time.Duration(rng.Int64N(int64(playEvery)))); n++ {
		s.play(faults[n%len(faults)])
		sleep(ctx, playFor)
		s.play("")
	}
}

// play plays f. The port of a server that refused may be taken by a connection of this very process, for a while.
func (s *soak) play(f aiguardtest.Fault) {
	try := func() (why any) {
		defer func() { why = recover() }()
		s.second.Play(f)
		return nil
	}
	for n := 0; ; n++ {
		switch why := try(); {
		case why == nil:
			return
		case n == 10:
			s.failf("the second server: %v", why)
			return
		}
	}
}

// A request says in its model which fault is ordered, and a number: a 429 closes a route, of host and model, and the
// others shall stay open.
var requestFaults = func() map[string]aiguardtest.Fault {
	faults := map[string]aiguardtest.Fault{}
	for _, f := range aiguardtest.Faults() {
		if !f.Connection() {
			faults[string(f)] = f
		}
	}
	return faults
}()

var requestFaultNames = slices.Sorted(maps.Keys(requestFaults))

// answer is what the main server does with a request. Some that order a fault are lucky, so that retries succeed too.
func (s *soak) answer(r *aiguardtest.Request) aiguardtest.Reply {
	name, _, _ := strings.Cut(r.Model, "#")
	rng := rand.New(rand.NewPCG(s.seed, 1<<33+s.replay.Add(1)))
	if f, ok := requestFaults[name]; ok && rng.IntN(10) > 0 {
		return f.Reply()
	}
	return healthy(r.Body)
}

// healthy is a good answer, with a text that only this request gets.
func healthy(body []byte) aiguardtest.Reply {
	_, rest, _ := strings.Cut(string(body), "soak:")
	number, _, _ := strings.Cut(rest, ";")
	id, _ := strconv.ParseInt(number, 10, 64)
	text, chunks := textOf(id)
	reply := aiguardtest.TextN(text, chunks)
	switch id % 8 {
	case 0, 1:
		reply = aiguardtest.Slowly(ms(int(id%20)), reply)
	case 2:
		reply = aiguardtest.After(ms(int(id%300)), reply)
	}
	return reply
}

func textOf(id int64) (text string, chunks int) {
	rng := rand.New(rand.NewPCG(uint64(id), 0))
	sentence := fmt.Sprintf("Call %d: the quick brown fox jumps over the lazy dog. ", id)
	return strings.Repeat(sentence, 1+rng.IntN(100)), 1 + rng.IntN(30)
}

// goodEnds are the faults with which an answer is complete all the same, or may be taken for that, and its text.
var goodEnds = map[aiguardtest.Fault]string{
	aiguardtest.FaultStaleKeepAlive:       "Hello!",
	aiguardtest.FaultWrongType:            "Hello!",
	aiguardtest.FaultTrailingBytes:        "Hello!",
	aiguardtest.FaultUndrained:            "Hello!",
	aiguardtest.FaultStreamAnsweredJSON:   "Hello!", // where none was asked for
	aiguardtest.FaultStreamManyPings:      "Hello!",
	aiguardtest.FaultStreamNoDone:         "Hello!",
	aiguardtest.FaultStreamNoDoneHeldOpen: "Hello!",
	aiguardtest.FaultStreamLong:           strings.Repeat("Hi ", 18),
	aiguardtest.FaultStreamHugeComments:   strings.Repeat("Hi ", 200),
}

// order is a call to make.
type order struct {
	*soak
	to    *provider
	id    int64
	fault string // "": none
	req   openai.ChatCompletionRequest
}

func request(model, content string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{Model: model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: content}}}
}

func (s *soak) order(rng *rand.Rand) *order {
	o := &order{soak: s, to: s.main, id: s.ids.Add(1)}
	model := "healthy"
	switch n := rng.IntN(10); {
	case n == 0:
		o.to = s.second
	case n < 6:
		o.fault = requestFaultNames[rng.IntN(len(requestFaultNames))]
		model = o.fault
	}
	o.req = request(fmt.Sprintf("%s#%d", model, rng.IntN(modelsAFault)), fmt.Sprintf("soak:%d; %s", o.id, strings.Repeat("x", rng.IntN(15_000))))
	return o
}

// act does one thing that callers do.
func (s *soak) act(rng *rand.Rand) {
	o := s.order(rng)
	ctx := context.Background() // a patient caller's is no help in cleaning up
	if rng.IntN(8) == 0 {       // leaves
		var cancel context.CancelFunc
		if d := ms(1 + rng.IntN(700)); rng.IntN(2) == 0 {
			ctx, cancel = context.WithTimeout(ctx, d)
		} else {
			ctx, cancel = context.WithCancel(ctx)
			defer time.AfterFunc(d, cancel).Stop()
		}
		defer cancel()
	}
	s.calls.Add(1)
	inDo := func(call func(context.Context) (string, error)) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) { return aiguard.Do(ctx, s.guard, call) }
	}
	switch n := rng.IntN(100); {
	case n < 35:
		o.whole(ctx, "chat", o.chat)
	case n < 45:
		o.whole(ctx, "chat in Do", inDo(o.chat))
	case n < 50:
		o.whole(ctx, "stream in Do", inDo(o.readAll))
	case n < 55:
		o.whole(ctx, "chat in a task", func(ctx context.Context) (text string, err error) {
			err = s.guard.RunTask(ctx, func(ctx context.Context) error {
				text, err = o.chat(ctx)
				return err
			})
			return text, err
		})
	case n < 58:
		o.forgotten(rng)
	default:
		o.stream(ctx, rng)
	}
}

func (o *order) chat(ctx context.Context) (string, error) {
	resp, err := o.to.client.CreateChatCompletion(ctx, o.req)
	if err != nil {
		return "", err
	}
	if len(resp.Choices) == 0 {
		return "", nil
	}
	return resp.Choices[0].Message.Content, nil
}

func (o *order) readAll(ctx context.Context) (string, error) {
	st, err := o.to.client.CreateChatCompletionStream(ctx, o.req)
	if err != nil {
		return "", err
	}
	defer st.Close()
	text, err := o.recv(st, -1, 0)
	if err == io.EOF {
		err = nil
	}
	return text, err
}

// whole makes a call that returns all it has at once.
func (o *order) whole(ctx context.Context, what string, call func(context.Context) (string, error)) {
	began := time.Now()
	text, err := call(ctx)
	o.took(what+" "+o.req.Model, began, config.TotalTimeout)
	o.judge(ctx, what, text, err)
}

// stream reads a stream to its end, at leisure or not, or closes it before.
func (o *order) stream(ctx context.Context, rng *rand.Rand) {
	began := time.Now()
	st, err := o.to.client.CreateChatCompletionStream(ctx, o.req)
	o.took("opening stream "+o.req.Model, began, config.TotalTimeout)
	if err != nil {
		o.judge(ctx, "opening a stream", "", err)
		return
	}
	defer st.Close()
	opened := time.Now()
	events, pause := -1, time.Duration(0)
	switch rng.IntN(6) {
	case 0:
		events = rng.IntN(10)
	case 1:
		pause = ms(rng.IntN(40))
	}
	text, err := o.recv(st, events, pause)
	o.took("stream "+o.req.Model, opened, config.StreamTimeout+buffered*pause)
	switch {
	case err == nil:
		o.count("stream closed early")
	case err == io.EOF:
		o.judge(ctx, "stream", text, nil)
	default:
		o.judge(ctx, "stream", text, err)
	}
}

// recv reads so many events of a stream, or, below 0, to its end.
func (o *order) recv(st *openai.ChatCompletionStream, events int, pause time.Duration) (string, error) {
	var text strings.Builder
	for ; events != 0; events-- {
		began := time.Now()
		ev, err := st.Recv()
		o.took("Recv "+o.req.Model, began, config.StreamIdleTimeout)
		if err != nil {
			return text.String(), err
		}
		for _, choice := range ev.Choices {
			text.WriteString(choice.Delta.Content)
		}
		time.Sleep(pause)
	}
	return text.String(), nil
}

// forgotten opens a stream that nobody will ever close.
func (o *order) forgotten(rng *rand.Rand) {
	ctx, began := context.Background(), time.Now()
	st, err := o.to.client.CreateChatCompletionStream(ctx, o.req)
	o.took("opening stream "+o.req.Model, began, config.TotalTimeout)
	if err != nil {
		o.judge(ctx, "opening a stream", "", err)
		return
	}
	_, _ = o.recv(st, rng.IntN(3), 0)
	o.count("stream forgotten")
}

// judge checks how a call ended.
func (o *order) judge(ctx context.Context, what, text string, err error) {
	kind := aiguard.KindOf(err)
	var own *aiguard.Error
	switch {
	case err == nil:
		good, _ := textOf(o.id)
		if also, ok := goodEnds[aiguardtest.Fault(o.fault)]; text != good && (!ok || text != also) {
			o.failf("%s, fault %q: looks complete with %d bytes: %.100q", what, o.fault, len(text), text)
		}
		o.count("ok")
		return
	case kind == "" && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		o.count("left by caller")
		return
	case kind == "":
		o.failf("%s, fault %q: neither a kind nor the caller's: %T %v", what, o.fault, err, err)
	case !errors.As(err, &own):
		o.failf("%s, fault %q: a kind but not an *Error: %T %v", what, o.fault, err, err)
	case kind == aiguard.ErrClosed:
		o.failf("%s, fault %q: not closed, but %v", what, o.fault, err)
	case ctx.Err() == nil && errors.Is(err, context.Canceled):
		o.failf("%s, fault %q: looks like the caller's cancellation: %v", what, o.fault, err)
	case strings.Contains(err.Error()+aiguard.UserMessage(err), aiguardtest.ProviderText):
		o.failf("%s, fault %q: shows the provider's text: %v", what, o.fault, err)
	}
	o.count(string(kind))
}

func clientConfig(url string, base *http.Transport) openai.ClientConfig {
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = url
	if base != nil {
		oc.HTTPClient = &http.Client{Transport: base}
	}
	return oc
}

// transport trusts a server's certificate, which the guard's own pool would not, and has the same bounds as that.
func transport(srv *aiguardtest.Server) *http.Transport {
	t := srv.Transport()
	t.DialContext = (&net.Dialer{Timeout: config.CallTimeout}).DialContext
	t.TLSHandshakeTimeout = config.CallTimeout
	t.MaxIdleConnsPerHost = int(config.MaxConcurrent)
	t.MaxResponseHeaderBytes = 64 << 10
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: config.CallTimeout, PingTimeout: config.CallTimeout / 2}
	return t
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// sleep reports false if ctx ended first.
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

// soon polls ok, and reports whether it came true in time.
func soon(ok func() bool) bool {
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// within reports whether f returns in time.
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
