package aiguard_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

// stressSlack is what a loaded machine may take on top of a bound. What hangs takes for ever.
const stressSlack = 10 * time.Second

// stressTime is how long the random test goes on: AIGUARD_STRESS, such as 30s.
func stressTime(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("AIGUARD_STRESS")
	if s == "" {
		return 3 * time.Second
	}
	d, err := time.ParseDuration(s)
	require.NoError(t, err, "AIGUARD_STRESS")
	require.Positive(t, d, "AIGUARD_STRESS")
	return d
}

// stressUntil polls ok, and reports whether it came true in time.
func stressUntil(ok func() bool) bool {
	for deadline := time.Now().Add(stressSlack); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// stressLeavesNothing has the end of the test check that goroutines and heap are back where they are now. Call it
// before anything that a Cleanup closes.
func stressLeavesNothing(t *testing.T) {
	t.Helper()
	const heapSlack = 16 << 20
	goroutines, heap := runtime.NumGoroutine(), stressHeap()
	t.Cleanup(func() {
		if !stressUntil(func() bool { return runtime.NumGoroutine() <= goroutines }) {
			t.Errorf("%d goroutines, %d before:\n%.20000s", runtime.NumGoroutine(), goroutines, leaktest.Stacks())
		}
		if !stressUntil(func() bool { return stressHeap() <= heap+heapSlack }) {
			t.Errorf("live heap %d KiB, %d before", stressHeap()>>10, heap>>10)
		}
	})
}

func stressHeap() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// stressClient is a client over the guard's own pool and real sockets. The test's end closes its guard, and checks that
// every slot and every connection is given back.
func stressClient(t *testing.T, srv *aiguardtest.Server, cfg aiguard.Config) *aiguard.Client {
	t.Helper()
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = srv.URL
	c, err := aiguard.NewClient(oc, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { stressClosed(t, c.Guard(), srv) })
	return c
}

// stressClosed closes g and checks that nothing is left of it.
func stressClosed(t *testing.T, g *aiguard.Guard, srv *aiguardtest.Server) {
	t.Helper()
	require.NoError(t, g.Close())
	if !stressUntil(func() bool { st := g.Stats(); return st.InFlight == 0 && st.Waiting == 0 }) {
		t.Errorf("left after Close: %+v", g.Stats())
	}
	if srv == nil {
		return
	}
	if !stressUntil(func() bool { open, _ := srv.Conns(); return open == 0 }) {
		open, _ := srv.Conns()
		t.Errorf("%d connections left after Close", open)
	}
}

// stressRendezvous holds each that comes until there are n.
type stressRendezvous struct {
	n int

	mu   sync.Mutex
	here int
	gate chan struct{}
}

func (r *stressRendezvous) wait(ctx context.Context) bool {
	r.mu.Lock()
	if r.here == 0 {
		r.gate = make(chan struct{})
	}
	gate := r.gate
	if r.here++; r.here == r.n {
		close(gate)
		r.here = 0
	}
	r.mu.Unlock()
	timeout := time.NewTimer(stressSlack)
	defer timeout.Stop()
	select {
	case <-gate:
		return true
	case <-ctx.Done():
	case <-timeout.C:
	}
	return false
}

// stressOperations are the ways to make one call.
func stressOperations(srv *aiguardtest.Server, c *aiguard.Client) map[string]func(context.Context) error {
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = srv.URL
	tr := srv.Transport()
	tr.DisableKeepAlives = true
	oc.HTTPClient = &http.Client{Transport: tr}
	raw := openai.NewClientWithConfig(oc)
	call := func(ctx context.Context) error { _, err := chat(ctx, c); return err }
	stream := func(ctx context.Context) error { _, err := streamChat(ctx, c); return err }
	inDo := func(call func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := aiguard.Do(ctx, c.Guard(), func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
			return err
		}
	}
	return map[string]func(context.Context) error{
		"chat": call,
		"raw client in Do": inDo(func(ctx context.Context) error {
			_, err := raw.CreateChatCompletion(ctx, chatRequest)
			return err
		}),
		"chat in Do":   inDo(call),
		"stream":       stream,
		"stream in Do": inDo(stream),
		"Do in Do":     inDo(inDo(call)),
		"chat in task": func(ctx context.Context) error { return c.Guard().RunTask(ctx, call) },
		"task in Do":   inDo(func(ctx context.Context) error { return c.Guard().RunTask(ctx, call) }),
		"Do in a task": func(ctx context.Context) error { return c.Guard().RunTask(ctx, inDo(call)) },
		"some of these": func(ctx context.Context) error {
			return []func(context.Context) error{call, stream, inDo(call)}[rand.N(3)](ctx)
		},
	}
}

// The provider answers only when five requests are there, and would see a sixth.
func TestStressTenOperationsFillFiveSlotsAndNoMore(t *testing.T) {
	const rounds, operations, slots = 10, 10, 5
	stressLeavesNothing(t)
	srv := aiguardtest.NewServer(t)
	c := stressClient(t, srv, aiguard.Config{MaxConcurrent: slots})
	for name, operation := range stressOperations(srv, c) {
		t.Run(name, func(t *testing.T) {
			srv.Reset()
			five := &stressRendezvous{n: slots}
			srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
				if !five.wait(r.Context()) {
					return aiguardtest.Error(http.StatusTeapot, "fewer than five at once")
				}
				return aiguardtest.TextN("one two three four", 4)
			})
			for range rounds {
				var wg sync.WaitGroup
				for range operations {
					wg.Go(func() { assert.NoError(t, operation(t.Context())) })
				}
				wg.Wait()
			}
			assert.Equal(t, slots, srv.Peak())
			assert.Equal(t, rounds*operations, srv.Count())
			assert.Zero(t, c.Guard().Stats().InFlight)
		})
	}
}

func TestStressTenOperationsEndWithAnAnswerOrAKind(t *testing.T) {
	const rounds, operations, slots = 20, 10, 5
	stressLeavesNothing(t)
	srv := aiguardtest.NewServer(t)
	c := stressClient(t, srv, aiguard.Config{MaxConcurrent: slots, Retry: aiguard.Retry{BaseDelay: time.Millisecond}})
	srv.Handle(func(*aiguardtest.Request) aiguardtest.Reply {
		return []aiguardtest.Reply{
			aiguardtest.Text("Hello!"),
			aiguardtest.After(time.Millisecond, aiguardtest.Text("Hello!")),
			aiguardtest.Slowly(time.Millisecond, aiguardtest.Text("Hello!")),
			aiguardtest.Error(http.StatusServiceUnavailable, ""),
			aiguardtest.Error(http.StatusInternalServerError, ""),
			aiguardtest.Error(http.StatusBadRequest, ""),
			aiguardtest.Error(http.StatusTooManyRequests, "rate_limit_exceeded", "Retry-After-Ms", "2"),
		}[rand.N(7)]
	})
	for name, operation := range stressOperations(srv, c) {
		t.Run(name, func(t *testing.T) {
			srv.Reset()
			for range rounds {
				var wg sync.WaitGroup
				for range operations {
					wg.Go(func() {
						if err := operation(t.Context()); err != nil {
							assert.NotEmpty(t, aiguard.KindOf(err), "%v", err)
						}
					})
				}
				wg.Wait()
			}
			assert.LessOrEqual(t, srv.Peak(), slots)
			assert.Zero(t, c.Guard().Stats().InFlight)
		})
	}
}

// What the random test's callers know of an answer: which fault they have ordered, and the text that a whole one has.
var (
	stressText = strings.Repeat("The quick brown fox jumps over the lazy dog. ", 10)

	errStressFn    = errors.New("stress: fn failed")
	errStressCause = errors.New("stress: the caller has its reasons")
	errStressPanic = "stress: fn panics"
)

type stressFault struct {
	reply func(n int) aiguardtest.Reply // n is from 0 to 999
	whole bool                          // may end well
}

var stressFaults = map[string]stressFault{
	"ok": {whole: true, reply: func(int) aiguardtest.Reply { return aiguardtest.TextN(stressText, 8) }},
	"delay": {whole: true, reply: func(n int) aiguardtest.Reply {
		return aiguardtest.After(stressMs(n/40), aiguardtest.TextN(stressText, 8))
	}},
	"slow": {whole: true, reply: func(n int) aiguardtest.Reply {
		return aiguardtest.Slowly(stressMs(n/100), aiguardtest.TextN(stressText, 8))
	}},
	"gzip": {whole: true, reply: func(int) aiguardtest.Reply { return stressGzip(aiguardtest.TextN(stressText, 8)) }},
	"429ms": {reply: func(n int) aiguardtest.Reply {
		return aiguardtest.Error(http.StatusTooManyRequests, "rate_limit_exceeded", "Retry-After-Ms", strconv.Itoa(1+n/50))
	}},
	"429": {reply: func(int) aiguardtest.Reply { return aiguardtest.Error(http.StatusTooManyRequests, "slow_down") }},
	"far": {reply: func(int) aiguardtest.Reply {
		return aiguardtest.Error(http.StatusTooManyRequests, "", "Retry-After", "60")
	}},
	"quota": {reply: func(int) aiguardtest.Reply {
		return aiguardtest.Error(http.StatusTooManyRequests, "insufficient_quota")
	}},
	"500": {reply: func(int) aiguardtest.Reply { return aiguardtest.Error(http.StatusInternalServerError, "") }},
	"503": {reply: func(int) aiguardtest.Reply { return aiguardtest.Error(http.StatusServiceUnavailable, "") }},
	"401": {reply: func(int) aiguardtest.Reply { return aiguardtest.Error(http.StatusUnauthorized, "invalid_api_key") }},
	"cut": {reply: func(n int) aiguardtest.Reply { return aiguardtest.Cut(n/4, aiguardtest.TextN(stressText, 8)) }},
	"gzipcut": {reply: func(n int) aiguardtest.Reply {
		return aiguardtest.Cut(n/16, stressGzip(aiguardtest.TextN(stressText, 8)))
	}},
	"end": {reply: func(n int) aiguardtest.Reply { return aiguardtest.Events(stressChunks(n / 250)...) }},
	"noend": {reply: func(n int) aiguardtest.Reply {
		return aiguardtest.HangAfter(aiguardtest.Events(stressChunks(n / 250)...))
	}},
	"midway": {reply: func(n int) aiguardtest.Reply {
		return aiguardtest.Events(append(stressChunks(n/250), `{"error":{"message":"x","type":"server_error"}}`)...)
	}},
	"badevent": {reply: func(n int) aiguardtest.Reply {
		return aiguardtest.Events(append(stressChunks(n/250), `{"choices":oops}`)...)
	}},
	"reset": {reply: func(int) aiguardtest.Reply { return aiguardtest.ResetConn() }},
	"drop":  {reply: func(int) aiguardtest.Reply { return aiguardtest.Drop() }},
	"hang":  {reply: func(int) aiguardtest.Reply { return aiguardtest.Hang() }},
	"json": {reply: func(int) aiguardtest.Reply {
		return aiguardtest.Raw(http.StatusOK, "application/json", `{"choices":[{]}`)
	}},
	"html": {reply: func(int) aiguardtest.Reply { return aiguardtest.Raw(http.StatusOK, "text/html", "<html>busy</html>") }},
}

var stressFaultNames = func() (names []string) {
	for name := range stressFaults {
		names = append(names, name)
	}
	return names
}()

// stressSleep is a fn's work, which heeds its context.
func stressSleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func stressMs(n int) time.Duration { return time.Duration(n) * time.Millisecond }

func stressChunks(n int) []string {
	chunks := make([]string, n, n+1)
	for i := range chunks {
		chunks[i] = `{"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"abc"}}]}`
	}
	return chunks
}

// stressGzip compresses next, event by event, for those who take it.
func stressGzip(next aiguardtest.Reply) aiguardtest.Reply {
	return func(w http.ResponseWriter, r *aiguardtest.Request) {
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			next(w, r)
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		zw := gzip.NewWriter(w)
		next(&stressGzipWriter{w, zw}, r)
		_ = zw.Close()
	}
}

type stressGzipWriter struct {
	http.ResponseWriter
	zw *gzip.Writer
}

func (w *stressGzipWriter) Write(p []byte) (int, error) { return w.zw.Write(p) }
func (w *stressGzipWriter) Flush() {
	_ = w.zw.Flush()
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// stress is a run of the random test.
type stress struct {
	*testing.T
	seed   uint64
	cfg    aiguard.Config
	url    string
	client *aiguard.Client
	guard  *aiguard.Guard
	ctx    context.Context // of everybody, to the end of the test
	failed atomic.Int64
	lives  *lives

	// What the events say and what only the callers know, to compare the counters with. A nested call is part of its Do.
	succeeded, ended, refused, left, either, retries, queued, thrown atomic.Int64
	actions                                                          atomic.Int64
}

func (s *stress) failf(format string, args ...any) {
	if n := s.failed.Add(1); n <= 20 {
		s.Errorf("seed %d: "+format, append([]any{s.seed}, args...)...)
	}
}

// A thousand callers do at random what callers do, to a provider that fails at random as providers do.
func TestStressRandomActions(t *testing.T) {
	d := stressTime(t) / 2
	retry := aiguard.Retry{BaseDelay: 5 * time.Millisecond, MaxDelay: 40 * time.Millisecond}
	roomy := aiguard.Config{MaxConcurrent: 10 + rand.Int64N(11), MaxQueue: 5000, Retry: retry}
	roomy.Retry.Timeouts, roomy.Retry.Budget = true, 1
	tight := aiguard.Config{MaxConcurrent: 5, MaxQueue: 20, Retry: retry}
	tight.Middleware = []aiguard.Middleware{
		func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
			return next(context.WithValue(ctx, http.NoBody, "middleware"))
		},
		func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error { return next(ctx) },
	}
	for name, cfg := range map[string]aiguard.Config{"roomy": roomy, "tight": tight} {
		t.Run(name, func(t *testing.T) { stressRandomly(t, cfg, d) })
	}
}

func stressRandomly(t *testing.T, cfg aiguard.Config, d time.Duration) {
	const callers = 1000
	stressLeavesNothing(t)
	srv := aiguardtest.NewServer(t)
	t.Cleanup(srv.Reset) // its journal of 10,000 requests is no leak
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)

	s := &stress{T: t, seed: rand.Uint64(), url: srv.URL, ctx: ctx, lives: newLives(t)}
	cfg.CallTimeout, cfg.StreamIdleTimeout, cfg.StreamTimeout = stressMs(250), stressMs(150), stressMs(400)
	cfg.QueueTimeout, cfg.TotalTimeout, cfg.TaskTimeout = stressMs(400), stressMs(1200), stressMs(800)
	cfg.MaxPromptChars = 1000
	cfg.OnEvent = s.event
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	s.cfg = cfg
	s.client = stressClient(t, srv, cfg)
	s.guard = s.client.Guard()

	var mu sync.Mutex
	provider := rand.New(rand.NewPCG(s.seed, callers))
	srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
		mu.Lock()
		name, n := stressFaultNames[provider.IntN(len(stressFaultNames))], provider.IntN(1000)
		healthy := provider.IntN(5) > 0
		mu.Unlock()
		if _, rest, ordered := bytes.Cut(r.Body, []byte("fault:")); ordered {
			ordered, _, _ := bytes.Cut(rest, []byte(";"))
			name = string(ordered)
		} else if name == "far" || healthy { // far would close a route that others use
			name = "ok"
		}
		return stressFaults[name].reply(n)
	})

	stop := make(chan struct{})
	var callersDone, monitor sync.WaitGroup
	var inFlight, samples int64
	monitor.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Microsecond):
				s.gauges()
				inFlight += s.guard.Stats().InFlight
				samples++
			}
		}
	})
	over := time.Now().Add(d)
	for i := range callers {
		callersDone.Go(func() {
			rng := rand.New(rand.NewPCG(s.seed, uint64(i)))
			for time.Now().Before(over) {
				s.act(rng)
				s.actions.Add(1)
				time.Sleep(stressMs(rng.IntN(100))) // a thousand who are refused and come back at once leave no time to serve
			}
		})
	}
	stuck := time.AfterFunc(d+2*stressSlack, func() { panic("stress: callers are stuck\n" + leaktest.Stacks()) })
	callersDone.Wait()
	stuck.Stop()
	close(stop)
	monitor.Wait()

	// Streams that nobody closed are still ending, by StreamTimeout.
	if !stressUntil(func() bool { return s.differences() == "" }) {
		s.failf("%s\n%+v\nsucceeded %d, failed %d, refused %d, left %d, left or failed %d, thrown %d, retries %d, queued %d",
			s.differences(), s.guard.Stats(), s.succeeded.Load(), s.ended.Load(), s.refused.Load(), s.left.Load(), s.either.Load(),
			s.thrown.Load(), s.retries.Load(), s.queued.Load())
	}
	s.lives.ended(-1)
	t.Logf("seed %d: %d actions, %d requests, %.1f in flight on average, %+v", s.seed, s.actions.Load(), srv.Count(),
		float64(inFlight)/float64(max(samples, 1)), s.guard.Stats())
}

func (s *stress) gauges() {
	st := s.guard.Stats()
	if st.InFlight < 0 || st.InFlight > s.cfg.MaxConcurrent {
		s.failf("in flight %d, capacity %d", st.InFlight, s.cfg.MaxConcurrent)
	}
	if st.Waiting < 0 {
		s.failf("waiting %d", st.Waiting)
	}
}

// differences compares the counters with what has been seen; "": they add up.
func (s *stress) differences() string {
	st := s.guard.Stats()
	var wrong []string
	must := func(ok bool, what string) {
		if !ok {
			wrong = append(wrong, what)
		}
	}
	failed := s.ended.Load() + s.thrown.Load()
	left := st.Calls - st.Succeeded - st.Failed - st.Refused
	must(st.InFlight == 0, "InFlight is not 0")
	must(st.Waiting == 0, "Waiting is not 0")
	must(st.Succeeded == s.succeeded.Load(), "Succeeded is wrong")
	must(st.Refused == s.refused.Load(), "Refused is wrong")
	must(st.Failed >= failed && st.Failed <= failed+s.either.Load(), "Failed is wrong")
	must(left >= s.left.Load() && left <= s.left.Load()+s.either.Load(), "Calls is wrong")
	must(st.Failed+left == failed+s.left.Load()+s.either.Load(), "Calls is not the sum")
	must(st.Retries == s.retries.Load(), "Retries is wrong")
	must(st.WaitCount == s.queued.Load(), "WaitCount is wrong")
	return strings.Join(wrong, ", ")
}

// event is Config.OnEvent.
func (s *stress) event(ctx context.Context, ev aiguard.Event) {
	s.gauges()
	s.lives.OnEvent(ctx, ev)
	switch ev.Type {
	case aiguard.EventRetry:
		s.retries.Add(1)
	case aiguard.EventQueued:
		s.queued.Add(1)
	case aiguard.EventRefused, aiguard.EventDone:
		if ev.Call.Op == "nested" {
			return
		}
		var own *aiguard.Error
		switch {
		case ev.Err == nil:
			s.succeeded.Add(1)
		case ctx.Err() != nil && ev.Err == context.Cause(ctx):
			s.left.Add(1)
		case errors.As(ev.Err, &own) && ev.Type == aiguard.EventRefused:
			s.refused.Add(1)
		case errors.As(ev.Err, &own):
			s.ended.Add(1)
		case ev.Err == aiguard.ErrUnwound: // counted as thrown
		case errors.Is(ev.Err, errStressFn):
			s.either.Add(1) // fn failed, and its caller may have left meanwhile
		default:
			s.left.Add(1)
		}
	}
}

// judge checks how an action ended.
func (s *stress) judge(what string, ctx context.Context, began time.Time, bound time.Duration, err error) {
	if took := time.Since(began); took > bound+stressSlack {
		s.failf("%s: took %v, bound %v: %v", what, took, bound, err)
	}
	if err == nil {
		return
	}
	var own *aiguard.Error
	kind := aiguard.KindOf(err)
	switch {
	case kind == "" && ctx.Err() != nil && errors.Is(err, ctx.Err()), kind == "" && errors.Is(err, errStressFn):
	case kind == "":
		s.failf("%s: neither a kind nor the caller's: %T %v (ctx: %v)", what, err, err, ctx.Err())
	case kind == aiguard.ErrClosed:
		s.failf("%s: not closed, but %v", what, err)
	case !errors.As(err, &own):
		s.failf("%s: a kind but not an *Error: %T %v", what, err, err)
	case ctx.Err() == nil && errors.Is(err, context.Canceled):
		s.failf("%s: looks like the caller's cancellation: %v", what, err)
	case kind == aiguard.ErrTimeout && !errors.Is(err, context.DeadlineExceeded):
		s.failf("%s: a timeout that is not DeadlineExceeded: %v", what, err)
	}
	_ = aiguard.UserMessage(err) + err.Error()
}

// caller is a caller's context: patient, with a deadline, or leaving at any time.
func (s *stress) caller(rng *rand.Rand) (context.Context, context.CancelFunc) {
	d := stressMs(1 + rng.IntN(400))
	switch rng.IntN(8) {
	case 0:
		return context.WithTimeout(s.ctx, d)
	case 1:
		return context.WithTimeoutCause(s.ctx, d, errStressCause)
	case 2:
		ctx, cancel := context.WithCancelCause(s.ctx)
		timer := time.AfterFunc(d, func() { cancel(errStressCause) })
		return ctx, func() { timer.Stop(); cancel(nil) }
	case 3:
		ctx, cancel := context.WithCancel(s.ctx)
		timer := time.AfterFunc(d, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	}
	return context.WithCancel(s.ctx)
}

// order is a request, with a fault ordered in it more often than not.
func (s *stress) order(rng *rand.Rand) (req openai.ChatCompletionRequest, fault string) {
	req = openai.ChatCompletionRequest{Model: fmt.Sprintf("model-%d", rng.IntN(4))}
	content := "Say hello."
	if rng.IntN(3) == 0 {
		fault = stressFaultNames[rng.IntN(len(stressFaultNames))]
		if slow := fault == "hang" || fault == "noend"; slow && rng.IntN(5) > 0 { // they take up most of the time
			fault = "ok"
		}
		content = "fault:" + fault + ";"
		if fault == "far" {
			req.Model = "far"
		}
	}
	if rng.IntN(50) == 0 {
		content += strings.Repeat("x", 1000) // over MaxPromptChars
	}
	req.Messages = []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: content}}
	return req, fault
}

// some is the client, or one with settings of its own.
func (s *stress) some(rng *rand.Rand) *aiguard.Client {
	if rng.IntN(3) > 0 {
		return s.client
	}
	weight := 1 + rng.Int64N(3)
	if rng.IntN(20) == 0 {
		weight = 1 + rng.Int64N(s.cfg.MaxConcurrent+1) // now and then more than there is
	}
	return s.client.With(aiguard.Call{Weight: weight, Timeout: stressMs(rng.IntN(400)), Attempts: rng.IntN(5)})
}

// act does one thing that callers do.
func (s *stress) act(rng *rand.Rand) {
	ctx, cancel := s.caller(rng)
	defer cancel()
	c := s.some(rng)
	g := c.Guard()
	began := time.Now()
	switch n := rng.IntN(100); {
	case n < 20:
		s.judge("chat", ctx, began, s.cfg.TotalTimeout, s.chat(ctx, rng, c))
	case n < 55:
		s.stream(ctx, cancel, rng, c)
	case n < 75:
		s.do(ctx, rng, c)
	case n < 83:
		err := g.RunTask(ctx, func(ctx context.Context) error {
			for range rng.IntN(4) {
				if err := s.chat(ctx, rng, c); err != nil {
					return err
				}
			}
			return nil
		})
		// The task's time, from With, is not TaskTimeout, but no longer than it.
		s.judge("task", ctx, began, s.cfg.TaskTimeout+s.cfg.TotalTimeout, err)
	case n < 87:
		_, err := c.ListModels(ctx)
		s.judge("models", ctx, began, s.cfg.TotalTimeout, err)
	case n < 91:
		_, err := c.CreateEmbeddings(ctx, openai.EmbeddingRequest{Input: []string{"a", "b"}, Model: "embed"})
		s.judge("embeddings", ctx, began, s.cfg.TotalTimeout, err)
	case n < 95:
		s.raw(ctx, rng, g)
	case n < 98:
		over := rng.IntN(2) == 0
		err := g.CheckPrompt("m", strings.Repeat("x", map[bool]int{true: 1001, false: 1000}[over]))
		if errors.Is(err, aiguard.ErrPromptTooLarge) != over {
			s.failf("CheckPrompt: %v", err)
		}
	default:
		s.gauges()
	}
}

func (s *stress) chat(ctx context.Context, rng *rand.Rand, c *aiguard.Client) error {
	req, fault := s.order(rng)
	resp, err := c.CreateChatCompletion(ctx, req)
	switch {
	case err != nil:
	case fault != "" && !stressFaults[fault].whole:
		s.failf("chat: fault %q looks like success", fault)
	case len(resp.Choices) != 1 || resp.Choices[0].Message.Content != stressText:
		s.failf("chat: fault %q: a wrong answer without an error: %+v", fault, resp)
	}
	return err
}

// stream opens a stream and reads, closes, leaves or forgets it.
func (s *stress) stream(ctx context.Context, cancel context.CancelFunc, rng *rand.Rand, c *aiguard.Client) {
	req, fault := s.order(rng)
	began := time.Now()
	st, err := c.CreateChatCompletionStream(ctx, req)
	s.judge("stream", ctx, began, s.cfg.TotalTimeout, err)
	if err != nil {
		return
	}
	total := s.cfg.TotalTimeout + s.cfg.StreamTimeout
	some := rng.IntN(6) // events; then: close, leave, …
	var text strings.Builder
	recv := func(n int, pause time.Duration) (err error) {
		for ; n != 0 && err == nil; n-- {
			var ev openai.ChatCompletionStreamResponse
			if ev, err = st.Recv(); err == nil {
				for _, choice := range ev.Choices {
					text.WriteString(choice.Delta.Content)
				}
				if pause > 0 {
					time.Sleep(pause)
				}
			}
		}
		if err == io.EOF && (fault != "" && !stressFaults[fault].whole || text.String() != stressText) {
			s.failf("stream: fault %q ended with io.EOF after %q", fault, text.String())
		}
		return err
	}
	judge := func(what string, err error) {
		if err != io.EOF {
			s.judge(what, ctx, began, total, err)
		}
	}
	switch n := rng.IntN(20); {
	case n < 9: // read it whole
		judge("stream, read", recv(-1, 0))
		_ = st.Close()
	case n < 11: // slowly
		judge("stream, read slowly", recv(-1, stressMs(rng.IntN(10))))
		_ = st.Close()
	case n < 13: // close it half-way, twice
		judge("stream, closed", recv(some, 0))
		_ = st.Close()
		_ = st.Close()
	case n < 15: // close it while somebody reads
		read := make(chan error)
		go func() { read <- recv(-1, 0) }()
		time.Sleep(stressMs(some))
		_ = st.Close()
		if err := <-read; aiguard.KindOf(err) == aiguard.ErrClosed {
			s.failf("stream, closed while reading: %v", err)
		}
	case n < 17: // leave half-way
		err := recv(some, 0)
		cancel()
		if err == nil {
			err = recv(-1, 0)
		}
		judge("stream, left", err)
		_ = st.Close()
	case n < 18: // leave while reading, and never close
		timer := time.AfterFunc(stressMs(some), cancel)
		judge("stream, left while reading", recv(-1, 0))
		timer.Stop()
	case n < 19 || rng.IntN(3) > 0: // forget it, and leave later
		judge("stream, forgotten", recv(some, 0))
		time.Sleep(stressMs(some))
	default: // forget it altogether: only StreamTimeout ends it
		forever, err := c.CreateChatCompletionStream(s.ctx, req)
		s.judge("stream, abandoned", s.ctx, time.Now(), s.cfg.TotalTimeout, err)
		if err == nil {
			_, _ = forever.Recv()
		}
		_ = st.Close()
	}
}

// do calls Do with an fn that does one of all the things that an fn may do.
func (s *stress) do(ctx context.Context, rng *rand.Rand, c *aiguard.Client) {
	nested := c.With(aiguard.Call{Op: "nested"})
	began := time.Now()
	judge := func(err error) { s.judge("Do", ctx, began, s.cfg.TotalTimeout+time.Second, err) }
	type void = struct{}
	do := func(fn func(context.Context) error) error {
		_, err := aiguard.Do(ctx, c.Guard(), func(ctx context.Context) (void, error) { return void{}, fn(ctx) })
		return err
	}
	switch rng.IntN(20) {
	case 0:
		judge(do(func(context.Context) error { return nil }))
	case 1:
		judge(do(func(context.Context) error { return fmt.Errorf("wrapped: %w", errStressFn) }))
	case 2:
		func() {
			defer func() {
				if r := recover(); r == errStressPanic {
					s.thrown.Add(1)
				} else if r != nil {
					panic(r)
				}
			}()
			judge(do(func(context.Context) error { panic(errStressPanic) }))
		}()
	case 3:
		gone := make(chan void)
		go func() {
			defer close(gone)
			judge(do(func(context.Context) error {
				s.thrown.Add(1)
				runtime.Goexit()
				return nil
			}))
		}()
		<-gone
	case 4: // ignores its ctx
		judge(do(func(context.Context) error { time.Sleep(stressMs(rng.IntN(30))); return nil }))
	case 5: // waits for its end, which is near, and says so in its own words
		c = c.With(aiguard.Call{Timeout: stressMs(1 + rng.IntN(20))})
		judge(do(func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("fn: %w", ctx.Err()) }))
	case 6:
		c = c.With(aiguard.Call{Timeout: stressMs(1 + rng.IntN(20))})
		judge(do(func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }))
	case 7: // a deadline of its own
		judge(do(func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, stressMs(rng.IntN(50)))
			defer cancel()
			if err := s.chat(ctx, rng, nested); err != nil {
				return fmt.Errorf("%w: %w", errStressFn, err)
			}
			return nil
		}))
	case 8:
		judge(do(func(ctx context.Context) error {
			_, err := aiguard.Do(ctx, nested.Guard(), func(ctx context.Context) (void, error) { return void{}, s.chat(ctx, rng, nested) })
			return err
		}))
	case 9:
		judge(do(func(ctx context.Context) error {
			return nested.Guard().RunTask(ctx, func(ctx context.Context) error { return s.chat(ctx, rng, nested) })
		}))
	case 10: // streams inside
		judge(do(func(ctx context.Context) error {
			st, err := nested.CreateChatCompletionStream(ctx, chatRequest)
			if err != nil {
				return err
			}
			defer st.Close()
			if _, err = recvAll(st); err == io.EOF {
				err = nil
			}
			return err
		}))
	default:
		judge(do(func(ctx context.Context) error {
			for range 1 + rng.IntN(3) {
				if err := s.chat(ctx, rng, nested); err != nil {
					return err
				}
			}
			return nil
		}))
	}
}

// raw is another SDK: plain HTTP over Guard.Transport.
func (s *stress) raw(ctx context.Context, rng *rand.Rand, g *aiguard.Guard) {
	fault := stressFaultNames[rng.IntN(len(stressFaultNames))]
	model := "raw"
	if fault == "far" {
		model = "far"
	}
	body := fmt.Sprintf(`{"model":%q,"stream":%t,"messages":[{"role":"user","content":"fault:%s;"}]}`, model, rng.IntN(2) == 0, fault)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/chat/completions", strings.NewReader(body))
	if err != nil {
		s.failf("%v", err)
		return
	}
	req.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := g.HTTPClient().Do(req)
	if err = failureOf(resp, err); err == nil {
		_, err = io.CopyN(io.Discard, resp.Body, 1+rng.Int64N(4000))
		_ = resp.Body.Close()
		if err == io.EOF {
			err = nil
			if !stressFaults[fault].whole {
				s.failf("raw: fault %q looks like success", fault)
			}
		}
	}
	s.judge("raw", ctx, began, s.cfg.TotalTimeout+s.cfg.StreamTimeout, err)
}

// A stream's context may end, and its Close be called from anywhere, at any moment: at its handover, while it is read,
// at its end, and all of that together.
func TestStressStreamsAreLeftAndClosedAtAnyMoment(t *testing.T) {
	const callers, each = 20, 60
	stressLeavesNothing(t)
	srv := aiguardtest.NewServer(t)
	srv.Handle(func(*aiguardtest.Request) aiguardtest.Reply {
		text := aiguardtest.Slowly(time.Duration(rand.N(500))*time.Microsecond, aiguardtest.TextN("one two three", 3))
		if rand.N(2) == 0 {
			return aiguardtest.HangAfter(aiguardtest.Events(stressChunks(1)...))
		}
		return text
	})
	const whole = 20 * time.Millisecond
	c := stressClient(t, srv, aiguard.Config{MaxConcurrent: callers, StreamIdleTimeout: 4 * time.Millisecond, StreamTimeout: whole,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), OnEvent: func(context.Context, aiguard.Event) {}})
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if rand.N(2) == 0 { // closed, unread, just as it is given up for abandoned
					start := time.Now()
					st, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
					if assert.NoError(t, err) {
						time.Sleep(whole - time.Since(start) + time.Duration(rand.N(2000)-1000)*time.Microsecond)
						assert.NoError(t, st.Close())
					}
					continue
				}
				ctx, cancel := context.WithCancel(t.Context())
				timer := time.AfterFunc(time.Duration(rand.N(5000))*time.Microsecond, cancel)
				st, err := c.CreateChatCompletionStream(ctx, chatRequest)
				if err != nil {
					assert.True(t, ctx.Err() != nil && errors.Is(err, context.Canceled), "%v", err)
					cancel()
					continue
				}
				var closers sync.WaitGroup
				for range rand.N(3) {
					closers.Go(func() {
						time.Sleep(time.Duration(rand.N(5000)) * time.Microsecond)
						assert.NoError(t, st.Close())
					})
				}
				_, err = recvAll(st)
				assert.Error(t, err)
				closers.Wait()
				assert.NoError(t, st.Close())
				timer.Stop()
				cancel()
			}
		})
	}
	wg.Wait()
	assert.True(t, stressUntil(func() bool { return c.Guard().Stats().InFlight == 0 }))
}

// stressTripper counts what goes out.
type stressTripper struct {
	http.RoundTripper
	sent atomic.Int64
}

func (r *stressTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	r.sent.Add(1)
	return r.RoundTripper.RoundTrip(req)
}

// The budget has ten tokens at first, gets a tenth for each call and one for each ten seconds, and a retry takes one:
//
//	requests = calls + retries <= calls + 10 + calls/10 + seconds/10
func TestStressOutageIsAskedForOnlyByProbes(t *testing.T) {
	const callers, each = 100, 20
	const calls = callers * each
	outage := func(t *testing.T, url string, srv *aiguardtest.Server) {
		stressLeavesNothing(t)
		base := &http.Transport{}
		t.Cleanup(base.CloseIdleConnections)
		out := &stressTripper{RoundTripper: base}
		oc := openai.DefaultConfig("sk-secret-key")
		oc.BaseURL, oc.HTTPClient = url, &http.Client{Transport: out}
		start := time.Now()
		c, err := aiguard.NewClient(oc, aiguard.Config{MaxConcurrent: 20, MaxQueue: aiguard.Off,
			QueueTimeout: aiguard.Off, TotalTimeout: time.Minute, CallTimeout: time.Minute,
			Retry: aiguard.Retry{BaseDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond}})
		require.NoError(t, err)
		t.Cleanup(func() { stressClosed(t, c.Guard(), nil) })

		var wg sync.WaitGroup
		var attempts atomic.Int64
		for range callers {
			wg.Go(func() {
				for range each {
					_, err := chat(t.Context(), c)
					var e *aiguard.Error
					if assert.ErrorAs(t, err, &e) {
						assert.Equal(t, aiguard.ErrUnavailable, e.Kind, "%v", err)
						attempts.Add(int64(e.Attempts))
					}
				}
			})
		}
		wg.Wait()
		// Five failures take the route down, as many as are in flight follow, and then there are probes.
		most := 5 + 20 + int64(time.Since(start)/(500*time.Millisecond))
		st := c.Guard().Stats()
		t.Logf("%d calls, %d requests, at most %d, in %v", calls, out.sent.Load(), most, time.Since(start))
		assert.EqualValues(t, calls, st.Calls)
		assert.EqualValues(t, calls, st.Failed+st.Refused)
		assert.Equal(t, attempts.Load(), out.sent.Load())
		assert.LessOrEqual(t, out.sent.Load(), most)
		assert.NotZero(t, c.Guard().Routes()[0].DownSince)
		if srv != nil {
			assert.EqualValues(t, out.sent.Load(), srv.Count())
		}
	}
	t.Run("503", func(t *testing.T) {
		srv := aiguardtest.NewServer(t)
		srv.SetDefault(aiguardtest.Error(http.StatusServiceUnavailable, ""))
		outage(t, srv.URL, srv)
	})
	t.Run("refused connections", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, ln.Close()) // a port that nobody listens on
		outage(t, "http://"+ln.Addr().String()+"/v1", nil)
	})
}

// stressQueue has n calls wait behind one, which hold lets go. Their errors come in a channel.
func stressQueue(t *testing.T, ctx context.Context, n int, c *aiguard.Client, call func(context.Context) error) (hold func() error, ends <-chan error) {
	t.Helper()
	g := c.Guard()
	held, letGo, first := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := aiguard.Do(context.Background(), g, func(context.Context) (int, error) {
			close(held)
			<-letGo
			return 0, nil
		})
		first <- err
	}()
	<-held
	waiting := make(chan error, n)
	for range n {
		go func() { waiting <- call(ctx) }()
	}
	require.True(t, stressUntil(func() bool { return g.Stats().Waiting == int64(n) }), "%+v", g.Stats())
	return func() error { close(letGo); return <-first }, waiting
}

const stressWaiters = 10_000

func stressQueues(t *testing.T, test func(t *testing.T, srv *aiguardtest.Server, c *aiguard.Client, call func(context.Context) error)) {
	for _, name := range []string{"chat", "Do"} {
		t.Run(name, func(t *testing.T) {
			stressLeavesNothing(t)
			srv := aiguardtest.NewServer(t)
			c := stressClient(t, srv, aiguard.Config{MaxConcurrent: 1, MaxQueue: aiguard.Off,
				QueueTimeout: aiguard.Off, TotalTimeout: aiguard.Off, CallTimeout: aiguard.Off})
			call := func(ctx context.Context) error { _, err := chat(ctx, c); return err }
			if name == "Do" {
				call = func(ctx context.Context) error {
					_, err := aiguard.Do(ctx, c.Guard(), func(context.Context) (int, error) { return 0, nil })
					return err
				}
			}
			test(t, srv, c, call)
		})
	}
}

func TestStressTenThousandWaitersLeaveAtOnce(t *testing.T) {
	stressQueues(t, func(t *testing.T, srv *aiguardtest.Server, c *aiguard.Client, call func(context.Context) error) {
		ctx, cancel := context.WithCancel(t.Context())
		hold, ends := stressQueue(t, ctx, stressWaiters, c, call)
		start := time.Now()
		cancel()
		for range stressWaiters {
			if err := <-ends; !errors.Is(err, context.Canceled) || aiguard.KindOf(err) != "" {
				t.Fatalf("a waiter that left: %v", err)
			}
		}
		t.Logf("left in %v", time.Since(start))
		assert.Less(t, time.Since(start), stressSlack)
		st := c.Guard().Stats()
		assert.Zero(t, st.Waiting)
		assert.EqualValues(t, 1, st.InFlight)
		assert.Zero(t, st.Failed+st.Refused)
		assert.EqualValues(t, stressWaiters, st.WaitCount)

		require.NoError(t, hold()) // the slot still works
		require.NoError(t, call(t.Context()))
		assert.LessOrEqual(t, srv.Count(), 1)
	})
}

func TestStressCloseEndsTenThousandWaiters(t *testing.T) {
	stressQueues(t, func(t *testing.T, srv *aiguardtest.Server, c *aiguard.Client, call func(context.Context) error) {
		hold, ends := stressQueue(t, t.Context(), stressWaiters, c, call)
		start := time.Now()
		require.NoError(t, c.Guard().Close())
		for range stressWaiters {
			if err := <-ends; aiguard.KindOf(err) != aiguard.ErrClosed {
				t.Fatalf("a waiter of a closed guard: %v", err)
			}
		}
		t.Logf("closed in %v", time.Since(start))
		assert.Less(t, time.Since(start), stressSlack)
		assert.Zero(t, c.Guard().Stats().Waiting)
		assert.NoError(t, hold(), "fn does not heed its context, and has a result")
		assert.NoError(t, c.Guard().Shutdown(t.Context()))
		assert.Zero(t, srv.Count())
		assert.ErrorIs(t, call(t.Context()), aiguard.ErrClosed)
	})
}

func TestStressShutdownDrainsTenThousandWaiters(t *testing.T) {
	stressQueues(t, func(t *testing.T, srv *aiguardtest.Server, c *aiguard.Client, call func(context.Context) error) {
		g := c.Guard()
		waiters := stressWaiters
		if strings.HasSuffix(t.Name(), "chat") {
			waiters /= 10 // each is a request, one after the other
		}
		hold, ends := stressQueue(t, t.Context(), waiters, c, call)
		down := make(chan error, 1)
		go func() { down <- g.Shutdown(context.Background()) }()
		require.True(t, stressUntil(func() bool {
			return errors.Is(g.RunTask(t.Context(), func(context.Context) error { return nil }), aiguard.ErrClosed)
		}))
		assert.ErrorIs(t, call(t.Context()), aiguard.ErrClosed)
		start := time.Now()
		require.NoError(t, hold())
		for range waiters {
			if err := <-ends; err != nil {
				t.Fatalf("a waiter of a guard that shuts down: %v", err)
			}
		}
		require.NoError(t, <-down)
		t.Logf("drained in %v", time.Since(start))
		assert.EqualValues(t, waiters+1, g.Stats().Succeeded)
		assert.Zero(t, g.Stats().Waiting)
		assert.LessOrEqual(t, srv.Peak(), 1)
	})
}

// The call in the slot began half a second before the queue: the n-th waiter gets it after n-0.5 seconds, and may wait 30.
func TestStressQueueIsInOrderAndRefusesThoseWhoWaitTooLong(t *testing.T) {
	const waiters, served = 100, 30
	cfg := aiguard.Config{MaxConcurrent: 1, QueueTimeout: served * time.Second}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
		numbered := func(n int) error {
			req := chatRequest
			req.Model = strconv.Itoa(n)
			_, err := c.CreateChatCompletion(t.Context(), req)
			return err
		}
		var wg sync.WaitGroup
		wg.Go(func() { assert.NoError(t, numbered(0)) })
		time.Sleep(500 * time.Millisecond)
		for n := 1; n <= waiters; n++ {
			wg.Go(func() {
				start := time.Now()
				err := numbered(n)
				if n <= served {
					assert.NoError(t, err, "waiter %d", n)
					assert.Equal(t, time.Duration(n)*time.Second+500*time.Millisecond, time.Since(start), "waiter %d", n)
					return
				}
				var e *aiguard.Error
				if assert.ErrorAs(t, err, &e, "waiter %d", n) {
					assert.Equal(t, aiguard.ErrOverloaded, e.Kind)
					assert.Equal(t, "queue", e.Phase)
					assert.Equal(t, served*time.Second, e.Limit)
					assert.Equal(t, served*time.Second, e.Queued)
					assert.Positive(t, e.RetryAfter)
					assert.Zero(t, e.Attempts)
				}
				assert.Equal(t, served*time.Second, time.Since(start), "waiter %d", n)
			})
			synctest.Wait() // it is in the queue
			assert.EqualValues(t, n, c.Guard().Stats().Waiting)
		}
		wg.Wait()
		for n, r := range srv.Requests() {
			assert.Equal(t, strconv.Itoa(n), r.Model, "served out of order")
		}
		assert.Equal(t, 1+served, srv.Count())
		assert.Equal(t, 1, srv.Peak())
		st := c.Guard().Stats()
		assert.EqualValues(t, waiters-served, st.Refused)
		assert.EqualValues(t, waiters, st.WaitCount)
		assert.Zero(t, st.Waiting)
	})
}

func TestStressShutdownWaitsForCallsStreamsAndTasks(t *testing.T) {
	cfg := aiguard.Config{MaxConcurrent: 3}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("one two three", 3)))
		start := time.Now()
		stream, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)

		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		wg.Go(func() {
			assert.NoError(t, g.RunTask(t.Context(), func(ctx context.Context) error {
				for range 20 { // they last longer than the stream
					if _, err := chat(ctx, c); err != nil {
						return err
					}
					if _, err := aiguard.Do(ctx, g, func(ctx context.Context) (string, error) { return chat(ctx, c) }); err != nil {
						return err
					}
				}
				return nil
			}))
		})
		synctest.Wait()
		down := make(chan error, 2)
		for range cap(down) {
			go func() { down <- g.Shutdown(context.Background()) }()
		}
		synctest.Wait()
		_, err = chat(t.Context(), c)
		assert.ErrorIs(t, err, aiguard.ErrClosed)
		_, err = c.CreateChatCompletionStream(t.Context(), chatRequest)
		assert.ErrorIs(t, err, aiguard.ErrClosed)
		assert.ErrorIs(t, g.RunTask(t.Context(), func(context.Context) error { return nil }), aiguard.ErrClosed)
		assert.Empty(t, down)

		text, err := recvAll(stream)
		assert.Equal(t, io.EOF, err)
		assert.Equal(t, "one two three", text)
		require.NoError(t, stream.Close())
		for range cap(down) {
			assert.NoError(t, <-down)
		}
		wg.Wait()
		assert.GreaterOrEqual(t, time.Since(start), 40*time.Second)
		assert.NoError(t, g.Close())
		assert.NoError(t, g.Shutdown(t.Context()))
	})
}

func TestStressShutdownCancelsTheRestWhenItsTimeIsOver(t *testing.T) {
	cfg := aiguard.Config{MaxConcurrent: 3}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if r.Stream {
				return aiguardtest.HangAfter(aiguardtest.Events(stressChunks(1)...))
			}
			return aiguardtest.Hang()
		})
		stream, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		forgotten, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		start := time.Now()
		var wg sync.WaitGroup
		ends := map[string]func() error{
			"stream": func() error { _, err := recvAll(stream); return err },
			"task": func() error {
				return g.RunTask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
			},
			"task's call": func() error {
				return g.RunTask(t.Context(), func(ctx context.Context) error { _, err := chat(ctx, c); return err })
			},
		}
		for range 10 { // one in the slot, the others in the queue
			ends["call "+strconv.Itoa(len(ends))] = func() error { _, err := chat(t.Context(), c); return err }
		}
		for name, end := range ends {
			wg.Go(func() {
				err := end()
				assert.ErrorIs(t, err, aiguard.ErrClosed, "%s", name)
				assert.NotErrorIs(t, err, context.Canceled, "%s: nobody left", name)
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		assert.ErrorIs(t, g.Shutdown(ctx), context.DeadlineExceeded)
		wg.Wait()
		took(t, start, 5*time.Second)
		synctest.Wait()
		assert.Zero(t, g.Stats().InFlight)
		assert.Zero(t, srv.Active(), "the provider still works")
		require.NoError(t, forgotten.Close())
		require.NoError(t, g.Shutdown(t.Context()))
	})
}

// A call that has its turn in a reopening route waits for a slot; a call inside a Do, which has a slot, must not wait for
// that turn, or the two wait for each other until a bound runs out.
func TestStressCallInsideDoAndQueuedCallDoNotWaitForEachOther(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(http.StatusTooManyRequests, "rate_limit_exceeded", "Retry-After", "1"))
		start := time.Now()
		_, err := chat(t.Context(), c.With(aiguard.Call{Attempts: 1})) // pauses the route for a second
		assert.ErrorIs(t, err, aiguard.ErrRateLimited)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := aiguard.Do(t.Context(), c.Guard(), func(ctx context.Context) (string, error) {
				if err := stressSleep(ctx, 2*time.Second); err != nil {
					return "", err
				}
				return chat(ctx, c)
			})
			assert.NoError(t, err)
		})
		synctest.Wait() // the Do has the slot
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		wg.Wait()
		assert.Less(t, time.Since(start), 10*time.Second, "a healthy provider, and nobody got through")
	})
}

// What fn leaves behind may call the guard at any time, with a context that never ends and says it is inside.
func TestStressCallsLeftBehindByATaskAreRefusedAfterShutdown(t *testing.T) {
	for range 50 {
		g, err := aiguard.New(aiguard.Config{})
		require.NoError(t, err)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		leave := func(ctx context.Context) error {
			ctx = context.WithoutCancel(ctx)
			for range 4 {
				wg.Go(func() {
					for {
						_, err := aiguard.Do(ctx, g, func(context.Context) (int, error) { return 0, nil })
						if err != nil {
							assert.ErrorIs(t, err, aiguard.ErrClosed)
							return
						}
						select {
						case <-stop:
							assert.Fail(t, "a call was let in after Shutdown")
							return
						default:
						}
					}
				})
			}
			return nil
		}
		require.NoError(t, g.RunTask(t.Context(), leave))
		_, err = aiguard.Do(t.Context(), g, func(ctx context.Context) (int, error) { return 0, leave(ctx) })
		require.NoError(t, err)
		require.NoError(t, g.Shutdown(t.Context()))
		time.AfterFunc(stressSlack, sync.OnceFunc(func() { close(stop) }))
		wg.Wait()
		assert.Zero(t, g.Stats().InFlight)
	}
}

// Close, three times, and Shutdown come while a hundred goroutines do everything.
func TestStressCloseInTheMiddleOfEverything(t *testing.T) {
	const goroutines, iterations = 100, 50
	stressLeavesNothing(t)
	srv := aiguardtest.NewServer(t)
	srv.SetDefault(aiguardtest.Slowly(time.Millisecond, aiguardtest.TextN("one two three", 3)))
	for i := range iterations {
		oc := openai.DefaultConfig("sk-secret-key")
		oc.BaseURL = srv.URL
		c, err := aiguard.NewClient(oc, aiguard.Config{MaxConcurrent: 20, MaxQueue: 50})
		require.NoError(t, err)
		g := c.Guard()
		operations := []func(context.Context) error{
			func(ctx context.Context) error { _, err := chat(ctx, c); return err },
			func(ctx context.Context) error { _, err := streamChat(ctx, c); return err },
			func(ctx context.Context) error {
				_, err := c.CreateChatCompletionStream(ctx, chatRequest) // never closed
				return err
			},
			func(ctx context.Context) error {
				_, err := aiguard.Do(ctx, g, func(ctx context.Context) (string, error) { return chat(ctx, c) })
				return err
			},
			func(ctx context.Context) error {
				_, err := aiguard.Do(ctx, g, func(ctx context.Context) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
				return err
			},
			func(ctx context.Context) error {
				return g.RunTask(ctx, func(ctx context.Context) error { _, err := chat(ctx, c); return err })
			},
			func(ctx context.Context) error { _, err := c.ListModels(ctx); return err },
		}
		var started, ended sync.WaitGroup
		started.Add(goroutines)
		for n := range goroutines {
			ended.Go(func() {
				started.Done()
				for err := error(nil); !errors.Is(err, aiguard.ErrClosed); n++ {
					err = operations[n%len(operations)](t.Context())
					if k := aiguard.KindOf(err); err != nil && k != aiguard.ErrClosed && k != aiguard.ErrOverloaded {
						t.Errorf("operation %d: %v", n%len(operations), err)
						return
					}
					if errors.Is(err, aiguard.ErrOverloaded) {
						runtime.Gosched()
					}
				}
			})
		}
		started.Wait()
		pause := time.NewTimer(time.Duration(i) * 200 * time.Microsecond) // earlier or later into it
		<-pause.C
		for range 3 {
			ended.Go(func() { assert.NoError(t, g.Close()) })
		}
		ended.Go(func() { assert.NoError(t, g.Shutdown(t.Context())) })
		stuck := time.AfterFunc(3*stressSlack, func() { panic("stress: Close does not end everything\n" + leaktest.Stacks()) })
		ended.Wait()
		stuck.Stop()
		stressClosed(t, g, srv)
	}
}
