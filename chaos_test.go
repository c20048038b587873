package aiguard_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

const (
	chaosCallers = 50
	chaosSlots   = 20

	// chaosSlack is what a call may take on top of its bound, besides twice the worst delay that the machine had for a timer
	// meanwhile.
	chaosSlack = time.Second

	chaosForEver = time.Duration(-1)
)

var chaosConfig = aiguard.Config{
	CallTimeout: 500 * time.Millisecond, StreamIdleTimeout: 300 * time.Millisecond, StreamTimeout: 1500 * time.Millisecond,
	QueueTimeout: time.Second, TotalTimeout: 2 * time.Second,
	MaxConcurrent: chaosSlots, MaxQueue: 25, // a full queue refuses some
	Retry: aiguard.Retry{BaseDelay: 20 * time.Millisecond, MaxDelay: 100 * time.Millisecond}, // and the default budget
}

// The provider is well, but the network between it and fifty callers freezes, resets, slices, delays, half-closes and cuts
// connections at random. AIGUARD_CHAOS (10m) makes it long, AIGUARD_CHAOS_SEED makes a run's decisions again, which are
// those of a connection by its number.
func TestChaosOfTheNetworkBreaksNoPromise(t *testing.T) {
	d, seed := 4*time.Second, rand.Uint64()
	var err error
	if s := os.Getenv("AIGUARD_CHAOS"); s != "" {
		d, err = time.ParseDuration(s)
		require.NoError(t, err, "AIGUARD_CHAOS")
		require.Positive(t, d, "AIGUARD_CHAOS")
	}
	if s := os.Getenv("AIGUARD_CHAOS_SEED"); s != "" {
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "AIGUARD_CHAOS_SEED")
	}
	// On HTTP/2 a connection carries everybody, and much more of it.
	t.Run("HTTP1", func(t *testing.T) { chaosRun(t, d, &chaosProxy{seed: seed, far: 64 << 10}) })
	t.Run("HTTP2", func(t *testing.T) { chaosRun(t, d, &chaosProxy{seed: seed, far: 512 << 10}, aiguardtest.TLS()) })
}

// chaos is one run.
type chaos struct {
	*testing.T
	seed   uint64
	srv    *aiguardtest.Server
	client *aiguard.Client
	raw    *openai.Client
	failed atomic.Int64

	calls, ids atomic.Int64
	lag        atomic.Int64 // the worst delay of a timer

	mu       sync.Mutex
	outcomes map[string]int
	over     time.Duration // by which a bound was exceeded at most
	overWhat string
}

func (c *chaos) failf(format string, args ...any) {
	if c.failed.Add(1) <= 20 {
		c.Errorf("AIGUARD_CHAOS_SEED=%d: "+format, append([]any{c.seed}, args...)...)
	}
}

func chaosRun(t *testing.T, d time.Duration, p *chaosProxy, opts ...aiguardtest.Option) {
	stressLeavesNothing(t)
	srv := aiguardtest.NewServer(t, opts...)
	t.Cleanup(srv.Reset) // its journal is no leak
	p.start(t, srv)
	c := &chaos{T: t, seed: p.seed, srv: srv, outcomes: map[string]int{}}
	base := c.connect(p, len(opts) > 0)
	srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply { return chaosAnswerTo(r.Body).reply() })

	stop := make(chan struct{})
	var callers, clock sync.WaitGroup
	clock.Go(func() { c.measureLag(stop) })
	began := time.Now()
	for i := range chaosCallers {
		callers.Go(func() {
			rng := rand.New(rand.NewPCG(c.seed, math.MaxUint64-uint64(i)))
			for time.Since(began) < d {
				c.act(rng)
				time.Sleep(stressMs(rng.IntN(100)))
			}
		})
	}
	stuck := time.AfterFunc(d+3*stressSlack, func() {
		panic(fmt.Sprintf("AIGUARD_CHAOS_SEED=%d: callers are stuck\n%s", c.seed, leaktest.Stacks()))
	})
	callers.Wait()
	stuck.Stop()
	close(stop)
	clock.Wait()

	g := c.client.Guard()
	idle := func() bool { st := g.Stats(); return st.InFlight == 0 && st.Waiting == 0 }
	if !stressUntil(idle) {
		c.failf("slots left behind: %+v", g.Stats())
	}
	c.checkTimes()
	c.checkRequests(time.Since(began))
	c.checkOutcomes()

	require.NoError(t, g.Close())
	base.CloseIdleConnections()
	gone := func() bool { open, _ := srv.Conns(); return open == 0 && p.open() == 0 }
	if !stressUntil(gone) {
		open, _ := srv.Conns()
		c.failf("connections left behind: %d to the proxy, %d to the server\n%.20000s", p.open(), open, leaktest.Stacks())
	}
	t.Logf("AIGUARD_CHAOS_SEED=%d: %v in %d connections\n%d requests, %+v\n%v\nworst overtime %v (%s), worst lag %v", c.seed, p.did(),
		p.total(), srv.Count(), g.Stats(), c.outcomes, c.over, c.overWhat, time.Duration(c.lag.Load()))
}

// connect makes the clients, which reach the server through the proxy alone. Over HTTP/1.1 the guarded one uses the guard's
// own pool; it would not trust the server's certificate, so over HTTP/2 it is one with the same bounds.
func (c *chaos) connect(p *chaosProxy, secure bool) (base *http.Transport) {
	oc := openai.DefaultConfig("sk-secret-key")
	scheme := "http://"
	base = c.srv.Transport()
	limit := chaosConfig.CallTimeout
	base.DialContext = (&net.Dialer{Timeout: limit}).DialContext
	base.TLSHandshakeTimeout = limit
	base.MaxIdleConnsPerHost = chaosSlots
	base.HTTP2 = &http.HTTP2Config{SendPingTimeout: limit, PingTimeout: limit / 2}
	raw := oc
	raw.HTTPClient = &http.Client{Transport: base}
	if secure {
		scheme = "https://"
		oc.HTTPClient = raw.HTTPClient
	}
	oc.BaseURL = scheme + p.addr() + "/v1"
	raw.BaseURL = oc.BaseURL
	cfg := chaosConfig
	cfg.Budget = newLedger(c)
	client, err := aiguard.NewClient(oc, cfg)
	require.NoError(c, err)
	c.client, c.raw = client, openai.NewClientWithConfig(raw)
	return base
}

// chaosAnswer is what the server says to one request, and its caller must get: no two have the same text.
type chaosAnswer struct {
	text   string
	chunks int
	pause  time.Duration // between two of them
	gzip   bool
	bare   bool // over HTTP/1.1 with neither a length nor chunks: a cut looks like the end
}

func chaosAnswerNo(id int64) chaosAnswer {
	rng := rand.New(rand.NewPCG(uint64(id), 0))
	sentence := fmt.Sprintf("Call %d: the quick brown fox jumps over the lazy dog. ", id)
	a := chaosAnswer{text: strings.Repeat(sentence, 1+rng.IntN(60)), chunks: 1 + rng.IntN(20), gzip: rng.IntN(4) == 0, bare: rng.IntN(3) == 0}
	if rng.IntN(3) == 0 {
		a.pause = stressMs(1 + rng.IntN(15))
	}
	return a
}

func chaosAnswerTo(body []byte) chaosAnswer {
	_, rest, _ := bytes.Cut(body, []byte("chaos:"))
	number, _, _ := bytes.Cut(rest, []byte(";"))
	id, err := strconv.ParseInt(string(number), 10, 64)
	if err != nil {
		panic("chaos: a request that nobody sent: " + string(body))
	}
	return chaosAnswerNo(id)
}

func (a chaosAnswer) reply() aiguardtest.Reply {
	r := aiguardtest.TextN(a.text, a.chunks)
	if a.pause > 0 {
		r = aiguardtest.Slowly(a.pause, r)
	}
	if a.gzip {
		r = stressGzip(r)
	}
	if a.bare {
		next := r
		r = func(w http.ResponseWriter, r *aiguardtest.Request) {
			if r.Proto == "HTTP/1.1" && r.Model != chaosRaw {
				w.Header().Set("Transfer-Encoding", "identity")
			}
			next(w, r)
		}
	}
	return r
}

// chaosRaw is the model of calls without a guard around their requests: go-openai takes an answer cut to nothing for io.EOF,
// which may mean anything, and passes on what net/http says of an HTTP/2 connection lost in the middle of an answer, of which
// only the text could tell what it is.
const (
	chaosRaw     = "raw"
	chaosRawInDo = "raw chat in Do"
)

// act makes one call, of a patient caller or one that leaves.
func (c *chaos) act(rng *rand.Rand) {
	ctx := context.Background() // a patient caller's is no help in cleaning up
	switch d := stressMs(1 + rng.IntN(600)); rng.IntN(8) {
	case 0:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	case 1:
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		defer time.AfterFunc(d, cancel).Stop()
	}
	id := c.ids.Add(1)
	want := chaosAnswerNo(id).text
	req := openai.ChatCompletionRequest{Model: "m", Messages: []openai.ChatCompletionMessage{{
		Role: openai.ChatMessageRoleUser, Content: fmt.Sprintf("chaos:%d; %s", id, strings.Repeat("x", rng.IntN(2000))),
	}}}
	ask := func(client interface {
		CreateChatCompletion(context.Context, openai.ChatCompletionRequest) (openai.ChatCompletionResponse, error)
	}) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			resp, err := client.CreateChatCompletion(ctx, req)
			if err != nil {
				return "", err
			}
			return resp.Choices[0].Message.Content, nil
		}
	}
	chat := ask(c.client)
	c.calls.Add(1)
	switch n := rng.IntN(100); {
	case n < 35:
		c.bounded("chat", ctx, want, chat)
	case n < 75:
		c.stream(ctx, rng, req, want)
	case n < 85:
		c.bounded("chat in Do", ctx, want, c.inDo(chat))
	case n < 95:
		c.bounded("stream in Do", ctx, want, c.inDo(func(ctx context.Context) (string, error) {
			s, err := c.client.CreateChatCompletionStream(ctx, req)
			if err != nil {
				return "", err
			}
			defer s.Close()
			text, err := recvAll(s)
			if err == io.EOF {
				err = nil
			}
			return text, err
		}))
	default:
		req.Model = chaosRaw
		c.bounded(chaosRawInDo, ctx, want, c.inDo(ask(c.raw)))
	}
}

func (c *chaos) inDo(call func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) { return aiguard.Do(ctx, c.client.Guard(), call) }
}

// bounded makes a call that returns all it has at once.
func (c *chaos) bounded(what string, ctx context.Context, want string, call func(context.Context) (string, error)) {
	began := time.Now()
	text, err := call(ctx)
	c.took(what, began, chaosConfig.TotalTimeout)
	c.judge(what, ctx, err)
	if err == nil && text != want {
		c.failf("%s: a wrong answer without an error: %s", what, chaosDiff(text, want))
	}
	var e *aiguard.Error
	if errors.As(err, &e) {
		c.exceeds(what+"'s time in flight", e.InFlight, time.Duration(e.Attempts)*chaosConfig.CallTimeout)
	}
}

// stream reads a stream, at leisure or not, closes it early, or forgets it.
func (c *chaos) stream(ctx context.Context, rng *rand.Rand, req openai.ChatCompletionRequest, want string) {
	began := time.Now()
	s, err := c.client.CreateChatCompletionStream(ctx, req)
	c.took("opening a stream", began, chaosConfig.TotalTimeout)
	if err != nil {
		c.judge("opening a stream", ctx, err)
		return
	}
	opened := time.Now()
	most, pause, forget := -1, time.Duration(0), false
	switch rng.IntN(10) {
	case 0:
		most = rng.IntN(10)
	case 1:
		most, forget = rng.IntN(10), rng.IntN(3) == 0
	case 2, 3:
		pause = stressMs(rng.IntN(20))
	}
	if !forget {
		defer s.Close()
	}
	var text strings.Builder
	for ; most != 0; most-- {
		asked := time.Now()
		var ev openai.ChatCompletionStreamResponse
		ev, err = s.Recv()
		c.took("Recv", asked, chaosConfig.StreamIdleTimeout)
		for _, choice := range ev.Choices {
			text.WriteString(choice.Delta.Content)
		}
		if err != nil {
			break
		}
		time.Sleep(pause)
	}
	const buffered = 20 // events that go-openai may have read ahead
	c.took("a stream", opened, chaosConfig.StreamTimeout+buffered*pause)
	got := text.String()
	switch {
	case !strings.HasPrefix(want, got):
		c.failf("stream: not what the server sent: %s", chaosDiff(got, want))
	case err == nil:
		c.count("stream: left early")
	case err != io.EOF:
		c.judge("stream", ctx, err)
	case got != want:
		c.failf("stream: a cut answer looks complete: %s", chaosDiff(got, want))
	default:
		c.judge("stream", ctx, nil)
	}
}

func chaosDiff(got, want string) string {
	return fmt.Sprintf("%d bytes, want %d: %.100q … %q", len(got), len(want), got, got[max(len(got)-100, 0):])
}

// judge checks the error of a call, and counts it.
func (c *chaos) judge(what string, ctx context.Context, err error) {
	kind := aiguard.KindOf(err)
	var own *aiguard.Error
	switch {
	case err == nil:
		c.count(what + ": ok")
		return
	case kind == "" && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		c.count(what + ": the caller left")
		return
	case what == chaosRawInDo && strings.HasPrefix(err.Error(), "http2: client connection "):
		c.count(what + ": lost its connection, which net/http gives no type")
		return
	case kind == "":
		c.failf("%s: neither a kind nor the caller's: %T %v (ctx: %v)", what, err, err, ctx.Err())
	case !errors.As(err, &own):
		c.failf("%s: a kind but not an *Error: %T %v", what, err, err)
	case !chaosNetworkFault(own):
		c.failf("%s: the network's fault is blamed on the provider: %v: %#v", what, own, own.Err)
	case ctx.Err() == nil && errors.Is(err, context.Canceled):
		c.failf("%s: looks like the caller's cancellation: %v", what, err)
	case kind == aiguard.ErrTimeout && !errors.Is(err, context.DeadlineExceeded):
		c.failf("%s: a timeout that is not DeadlineExceeded: %v", what, err)
	}
	c.count(what + ": " + string(kind))
}

// chaosNetworkFault reports whether e is what a network can do to a good answer.
func chaosNetworkFault(e *aiguard.Error) bool {
	switch e.Kind {
	case aiguard.ErrTimeout, aiguard.ErrOverloaded, aiguard.ErrUnavailable, aiguard.ErrTruncated:
		return true
	case aiguard.ErrRejected: // half a request, and a connection on which the server can still say so
		return e.StatusCode == http.StatusBadRequest
	case aiguard.ErrInvalidResponse: // an HTTP/2 connection lost as the headers came: net/http does not tell it from bad ones
		return e.Phase == "headers" && e.StatusCode == 0 && strings.Contains(fmt.Sprint(e.Err), "http2: client conn")
	}
	return false
}

func (c *chaos) count(outcome string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes[outcome]++
}

func (c *chaos) took(what string, began time.Time, bound time.Duration) {
	c.exceeds(what, time.Since(began), bound)
}

// exceeds notes by how much a bound was exceeded: whether that is too much is known when the machine's lag is.
func (c *chaos) exceeds(what string, d, bound time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if over := d - bound; over > c.over {
		c.over, c.overWhat = over, fmt.Sprintf("%s: %v, bound %v", what, d, bound)
	}
}

func (c *chaos) measureLag(stop <-chan struct{}) {
	const tick = 5 * time.Millisecond
	for {
		before := time.Now()
		select {
		case <-time.After(tick):
			c.lag.Store(max(c.lag.Load(), int64(time.Since(before)-tick)))
		case <-stop:
			return
		}
	}
}

func (c *chaos) checkTimes() {
	if lag := time.Duration(c.lag.Load()); c.over > chaosSlack+2*lag {
		c.failf("a call took too long: %s (worst lag of the machine: %v)", c.overWhat, lag)
	}
}

// checkRequests holds the requests that reached the server against the calls and the default budget of retries.
func (c *chaos) checkRequests(elapsed time.Duration) {
	st, calls := c.client.Guard().Stats(), c.calls.Load()
	allowed := int64(float64(calls)*aiguard.DefaultBudget + 10 + elapsed.Seconds()/10)
	requests := int64(c.srv.Count())
	if requests > calls+allowed {
		c.failf("%d requests for %d calls, of which %d may be retried", requests, calls, allowed)
	}
	if st.Calls != calls || requests > st.Calls+st.Retries || st.Retries > allowed {
		c.failf("%d requests for %d calls, %d retries allowed: %+v", requests, calls, allowed, st)
	}
}

// checkOutcomes makes sure that the run proves something.
func (c *chaos) checkOutcomes() {
	c.mu.Lock()
	defer c.mu.Unlock()
	bad := 0
	for _, kind := range []aiguard.Kind{aiguard.ErrTimeout, aiguard.ErrUnavailable, aiguard.ErrTruncated} {
		for outcome, n := range c.outcomes {
			if strings.HasSuffix(outcome, string(kind)) {
				bad += n
			}
		}
	}
	if c.outcomes["chat: ok"] == 0 || c.outcomes["stream: ok"] == 0 || bad == 0 {
		c.failf("too much chaos, or too little: %v", c.outcomes)
	}
}

// chaosProxy is a network that fails. What it does to a connection follows from the seed and the connection's number.
type chaosProxy struct {
	seed uint64
	far  int // where a connection ends at the latest, in bytes from the server

	ln     net.Listener
	target string
	wg     sync.WaitGroup

	mu       sync.Mutex
	conns    map[*chaosConn]struct{} // nil once closed
	accepted uint64
	done     map[string]int
}

// chaosPlan is what happens to a connection.
type chaosPlan struct {
	accept   string // "nothing", "close" or "reset" at once; "": it is passed on
	up, down chaosWay
}

// chaosWay is what happens in one direction.
type chaosWay struct {
	slice    int           // at most so many bytes at a time; 0: as they come
	delay    time.Duration // before each write
	patience time.Duration // for all delays; an endless drip would be all that happens
	steps    []chaosStep   // in order
}

type chaosStep struct {
	at int // bytes
	do string
	d  time.Duration // of a freeze
}

func (p *chaosProxy) plan(n uint64) (plan chaosPlan) {
	rng := rand.New(rand.NewPCG(p.seed, n))
	switch rng.IntN(20) {
	case 0:
		plan.accept = "nothing"
	case 1:
		plan.accept = "close"
	case 2:
		plan.accept = "reset"
	}
	plan.down = chaosWayOf(rng, p.far)
	plan.up = chaosWayOf(rng, p.far/8)
	if rng.IntN(2) == 0 { // answers are more than requests: let something be left to happen to them
		plan.up.steps = plan.up.steps[:len(plan.up.steps)-1]
	}
	return plan
}

func chaosWayOf(rng *rand.Rand, far int) (w chaosWay) {
	offset := func() int {
		if rng.IntN(4) == 0 { // near the beginning
			return int(math.Pow(float64(far), rng.Float64()))
		}
		return 1 + rng.IntN(far)
	}
	if rng.IntN(3) == 0 {
		w.slice = 1 + rng.IntN(100)
	}
	if rng.IntN(4) == 0 {
		w.delay = time.Duration(rng.IntN(20_000)) * time.Microsecond
		w.patience = stressMs(rng.IntN(1500))
	}
	end := chaosStep{at: offset(), do: []string{"freeze", "reset", "half-close", "cut"}[rng.IntN(4)], d: chaosForEver}
	for range rng.IntN(3) {
		if at := offset(); at < end.at {
			w.steps = append(w.steps, chaosStep{at: at, do: "freeze", d: stressMs(rng.IntN(800))})
		}
	}
	slices.SortFunc(w.steps, func(a, b chaosStep) int { return a.at - b.at })
	w.steps = append(w.steps, end)
	return w
}

func (p *chaosProxy) start(t *testing.T, srv *aiguardtest.Server) {
	t.Helper()
	_, rest, _ := strings.Cut(srv.URL, "://")
	p.target, _, _ = strings.Cut(rest, "/")
	p.conns, p.done = map[*chaosConn]struct{}{}, map[string]int{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.ln = ln
	p.wg.Go(p.serve)
	t.Cleanup(p.close)
}

func (p *chaosProxy) serve() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		c := &chaosConn{proxy: p, client: client.(*net.TCPConn), over: make(chan struct{})}
		p.mu.Lock()
		if p.conns == nil {
			p.mu.Unlock()
			c.end()
			return
		}
		p.conns[c] = struct{}{}
		plan := p.plan(p.accepted)
		p.accepted++
		p.mu.Unlock()
		p.wg.Go(func() {
			defer p.forget(c)
			c.run(plan)
		})
	}
}

func (p *chaosProxy) addr() string { return p.ln.Addr().String() }

func (p *chaosProxy) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func (p *chaosProxy) total() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

func (p *chaosProxy) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done[what]++
}

func (p *chaosProxy) did() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.done)
}

func (p *chaosProxy) forget(c *chaosConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *chaosProxy) close() {
	_ = p.ln.Close()
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	left := slices.Collect(maps.Keys(conns))
	p.mu.Unlock()
	for _, c := range left {
		c.end()
	}
	p.wg.Wait()
}

// chaosConn is a connection through the proxy. It lasts until the client closes it, or until the plan or the server does.
type chaosConn struct {
	proxy  *chaosProxy
	client *net.TCPConn
	over   chan struct{}

	mu     sync.Mutex
	server *net.TCPConn
	ended  bool
}

func (c *chaosConn) run(plan chaosPlan) {
	defer c.end()
	if plan.accept != "" {
		c.proxy.note("accept, then " + plan.accept)
	}
	switch plan.accept {
	case "nothing":
		_, _ = io.Copy(io.Discard, c.client)
		return
	case "close":
		return
	case "reset":
		c.reset()
		return
	}
	server, err := net.DialTimeout("tcp", c.proxy.target, stressSlack)
	if err != nil {
		return // the test is over
	}
	c.mu.Lock()
	c.server = server.(*net.TCPConn)
	ended := c.ended
	c.mu.Unlock()
	if ended {
		_ = server.Close()
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.pump(c.client, c.server, plan.up) })
	wg.Go(func() { c.pump(c.server, c.client, plan.down) })
	wg.Wait()
}

// pump passes on what comes from src. It goes on reading from the client whatever happens, and so learns when that leaves.
func (c *chaosConn) pump(src, dst *net.TCPConn, way chaosWay) {
	defer c.end()
	sizes := rand.New(rand.NewPCG(uint64(way.slice), 0))
	buf := make([]byte, 16<<10)
	for at := 0; ; {
		n, err := src.Read(buf)
		for data := buf[:n]; len(data) > 0; {
			n := len(data)
			if len(way.steps) > 0 {
				step := way.steps[0]
				if at == step.at {
					way.steps = way.steps[1:]
					held, goOn := c.step(step, src, dst)
					if !goOn {
						return
					}
					data = append(bytes.Clone(data), held...)
					continue
				}
				n = min(n, step.at-at)
			}
			if way.slice > 0 {
				n = min(n, 1+sizes.IntN(way.slice))
			}
			if way.delay > 0 && way.patience > 0 {
				way.patience -= way.delay
				if !c.sleep(way.delay) {
					return
				}
			}
			if _, err := dst.Write(data[:n]); err != nil {
				return
			}
			at += n
			data = data[n:]
		}
		if err != nil {
			if err != io.EOF {
				c.reset()
			}
			return
		}
	}
}

// step does what the plan says. held has come from the client during a freeze.
func (c *chaosConn) step(s chaosStep, src, dst *net.TCPConn) (held []byte, goOn bool) {
	what := s.do
	if s.do == "freeze" && s.d == chaosForEver {
		what = "freeze for ever"
	}
	c.proxy.note(what + map[bool]string{true: " up", false: " down"}[src == c.client])
	switch s.do {
	case "reset":
		c.reset()
		return nil, false
	case "half-close":
		_ = dst.CloseWrite()
		_, _ = io.Copy(io.Discard, src)
		return nil, false
	case "cut":
		return nil, false
	}
	if src == c.client {
		return c.hold(s.d)
	}
	if s.d == chaosForEver {
		<-c.over
		return nil, false
	}
	return nil, c.sleep(s.d)
}

// hold reads from the client for d without passing it on.
func (c *chaosConn) hold(d time.Duration) (held []byte, goOn bool) {
	if d == chaosForEver {
		_, _ = io.Copy(io.Discard, c.client)
		return nil, false
	}
	_ = c.client.SetReadDeadline(time.Now().Add(d))
	held, err := io.ReadAll(c.client)
	_ = c.client.SetReadDeadline(time.Time{})
	return held, errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *chaosConn) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.over:
		return false
	}
}

// reset ends the connection with a RST to both sides.
func (c *chaosConn) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	_ = c.client.SetLinger(0)
	if c.server != nil {
		_ = c.server.SetLinger(0)
	}
	c.close()
}

func (c *chaosConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.close()
	}
}

func (c *chaosConn) close() {
	c.ended = true
	_ = c.client.Close()
	if c.server != nil {
		_ = c.server.Close()
	}
	close(c.over)
}
