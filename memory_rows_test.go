package aiguard_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/procmem"
)

// What the worst answers may cost in resident memory, measured where it is undisputed: the provider
// is in this process and the caller in one of its own, whose VmHWM is read when all calls are over. VmHWM is of the
// whole process, so the runtime and the test binary (12 to 14 MB) are in every figure.
//
// Each row is run with one call and with 50 at once, which all stand at their greatest at the same moment: see step.

const (
	memoryChildEnv = "AIGUARD_MEMORY_CHILD" // what the child is to do, as JSON
	memoryMark     = "memory-report "       // before what it has to say

	crowd       = 50
	crowdMost   = 100_000 // kB
	singleMost  = 60_000
	honestMost  = 250_000 // no fault: our buffer and go-openai's decoding, which alone takes 112 to 139 MB
	hostileFrom = 150_000 // what an unguarded call must cost for its row to be worth its name
	runaway     = 600_000 // where the child ends itself, and not the machine

	memoryCap   = 1 << 20
	childTime   = 4 * time.Minute // on a busy machine
	exitRunaway = 86
)

// memoryOrder is what a child is to do.
type memoryOrder struct {
	URL              string
	Calls            int
	Raw              bool // without the guard
	Stream           bool
	Slow             bool // leave a stream alone for so long that the provider fills whatever is in between, then leave it
	MaxResponseBytes int64
	MaxEventBytes    int64
	MemoryLimit      int64
	CallTimeout      time.Duration
	Config           *memoryConfig // instead of these two
}

// memoryConfig is what of Config is not left at its default.
type memoryConfig struct {
	MaxConcurrent int64
	MaxQueue      int
}

// memoryReport is what it found.
type memoryReport struct {
	Start, Peak int            // VmHWM in kB
	Ends        map[string]int // how many calls ended so
	Runaway     bool
}

// memoryEnd is how a call ended: its kind, or what it was told.
func memoryEnd(text string, err error) string {
	switch kind := aiguard.KindOf(err); {
	case err == nil:
		return fmt.Sprintf("%d bytes, %.6x", len(text), sha256.Sum256([]byte(text)))
	case kind != "":
		return string(kind)
	}
	return "error: " + err.Error()
}

// TestMemoryChild is the caller, in a process of its own. It does nothing in any other.
func TestMemoryChild(t *testing.T) {
	text := os.Getenv(memoryChildEnv)
	if text == "" {
		return
	}
	var order memoryOrder
	require.NoError(t, json.Unmarshal([]byte(text), &order))
	report := memoryReport{Ends: map[string]int{}}
	report.Start, _ = memoryNow(t)
	stop := watchMemory(t, report)
	defer stop()

	var mu sync.Mutex
	var wg sync.WaitGroup
	call := memoryCaller(t, order)
	for range order.Calls {
		wg.Go(func() {
			end := memoryEnd(call(t.Context()))
			mu.Lock()
			defer mu.Unlock()
			report.Ends[end]++
		})
	}
	wg.Wait()
	report.Peak, _ = memoryNow(t)
	report.print()
}

// memoryCaller makes the client that the order asks for, with a connection pool of its own.
func memoryCaller(t *testing.T, order memoryOrder) func(context.Context) (string, error) {
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = order.URL
	if order.Raw {
		base := http.DefaultTransport.(*http.Transport).Clone()
		t.Cleanup(base.CloseIdleConnections)
		oc.HTTPClient = &http.Client{Transport: base}
		return func(ctx context.Context) (string, error) {
			return rawChat(ctx, openai.NewClientWithConfig(oc), order.Stream)
		}
	}
	cfg := aiguard.Config{
		MaxConcurrent: crowd, MaxQueue: aiguard.Off, Retry: aiguard.Retry{MaxAttempts: 1},
		MaxResponseBytes: order.MaxResponseBytes, MaxEventBytes: order.MaxEventBytes, MemoryLimit: order.MemoryLimit, CallTimeout: order.CallTimeout,
		StreamIdleTimeout: order.CallTimeout, StreamTimeout: childTime / 2,
	}
	if order.Config != nil {
		cfg = aiguard.Config{MaxConcurrent: order.Config.MaxConcurrent, MaxQueue: order.Config.MaxQueue}
	}
	c := newGuard(t, cfg).Client(oc)
	switch {
	case order.Slow:
		return func(ctx context.Context) (string, error) { return slowChat(ctx, c) }
	case order.Stream:
		return func(ctx context.Context) (string, error) { return streamChat(ctx, c) }
	}
	return func(ctx context.Context) (string, error) { return chat(ctx, c) }
}

func slowChat(ctx context.Context, c *aiguard.Client) (string, error) {
	s, err := c.CreateChatCompletionStream(ctx, chatRequest)
	if err != nil {
		return "", err
	}
	defer s.Close()
	time.Sleep(time.Second)
	ev, err := s.Recv()
	if err != nil {
		return "", err
	}
	return ev.Choices[0].Delta.Content, nil
}

func rawChat(ctx context.Context, c *openai.Client, stream bool) (string, error) {
	if stream {
		s, err := c.CreateChatCompletionStream(ctx, chatRequest)
		if err != nil {
			return "", err
		}
		defer s.Close()
		text, err := recvAll(s)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return text, err
	}
	resp, err := c.CreateChatCompletion(ctx, chatRequest)
	if err != nil || len(resp.Choices) == 0 {
		return "", err
	}
	return resp.Choices[0].Message.Content, nil
}

func (r memoryReport) print() {
	line, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	fmt.Printf("\n%s%s\n", memoryMark, line)
}

// watchMemory ends this process when it has become too big, too old, or an orphan.
func watchMemory(t *testing.T, report memoryReport) (stop func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for late := time.After(childTime); ; {
			select {
			case <-tick.C:
			case <-late:
				panic("the calls do not end")
			case <-over:
				return
			}
			if peak, now := memoryNow(t); now > runaway {
				report.Peak, report.Runaway, report.Ends = peak, true, nil
				report.print()
				os.Exit(exitRunaway)
			}
		}
	})
	return func() {
		close(over)
		wg.Wait()
	}
}

// memoryNow returns VmHWM and VmRSS of this process in kB.
func memoryNow(t *testing.T) (peak, now int) {
	now, peak, err := procmem.Of("self")
	if err != nil {
		t.Error(err)
	}
	return peak, now
}

// memoryRow is an answer, and how the guarded calls that get it end.
type memoryRow struct {
	fault  aiguardtest.Fault
	end    string
	hold   int  // of each answer comes so much, then nothing until all the others have come as far
	http2  bool // too
	stream bool
	slow   bool
	raw    int // so many calls without the guard are the control; 0: none

	defaults bool   // events may be as long as by default
	limit    int64  // the MemoryLimit, with which some find no room
	also     string // how calls that find none end

	name  string            // instead of fault's
	reply aiguardtest.Reply // instead of fault's
	most  int               // kB with all at once; 0: crowdMost
}

func memoryRows() []memoryRow {
	const (
		tooLarge = string(aiguard.ErrResponseTooLarge)
		invalid  = string(aiguard.ErrInvalidResponse)
		nearCap  = memoryCap - 1024
	)
	healthy := memoryEnd(strings.Repeat("Hi ", 200), nil)
	long := strings.Repeat("All work and no play. ", (memoryCap-4096)/22)
	return []memoryRow{
		{fault: aiguardtest.FaultHugeAnswer, end: tooLarge, hold: nearCap, http2: true, raw: 1},
		{fault: aiguardtest.FaultHugeError, end: string(aiguard.ErrUnavailable), hold: 60 << 10},
		{fault: aiguardtest.FaultManyObjects, end: tooLarge, hold: 900_000, raw: crowd},
		{fault: aiguardtest.FaultDeepNesting, end: tooLarge, hold: 200_000},
		{fault: aiguardtest.FaultGzipBomb, end: tooLarge, hold: 1000, http2: true, raw: 1}, // about 1,000 times as much
		{fault: aiguardtest.FaultGzipBombError, end: tooLarge, hold: 120},
		{fault: aiguardtest.FaultHugeHeaders, end: invalid, http2: true},
		{fault: aiguardtest.FaultManyHeaders, end: invalid, http2: true},
		{fault: aiguardtest.FaultStreamHugeLine, end: tooLarge, hold: nearCap, stream: true},
		{fault: aiguardtest.FaultStreamEndlessLine, end: tooLarge, hold: nearCap, stream: true, http2: true, raw: 1},
		{name: "stream/endless-line at the default", reply: aiguardtest.FaultStreamEndlessLine.Reply(), end: tooLarge, hold: 60 << 10, defaults: true,
			stream: true},
		{name: "stream/endless-line, MemoryLimit", reply: aiguardtest.FaultStreamEndlessLine.Reply(), end: tooLarge, also: string(aiguard.ErrOverloaded),
			hold: 60 << 10, defaults: true, limit: 80 << 20, stream: true},
		// Honest, as partial images are: whoever finds no room waits for it, and all arrive.
		{name: "an honest answer of two events of 1.4 MB", reply: events(bigEvent, 2), end: memoryEnd(strings.Repeat(bigEvent, 2), nil), hold: 60 << 10, defaults: true,
			stream: true, most: honestMost},
		{fault: aiguardtest.FaultStreamHugeComments, end: healthy, hold: memoryCap, stream: true},
		{fault: aiguardtest.FaultStreamManyObjects, end: tooLarge, hold: 900_000, stream: true},
		{name: "stream/pings-flood", reply: flood(": ping\n\n"), end: string(aiguard.ErrTimeout), stream: true},
		{name: "stream/slow-readers", reply: flood("data: " + hello + "\n\n"), end: memoryEnd("Hello", nil), stream: true, slow: true, http2: true},
		// Honest, and as long as it may be: what go-openai makes of it is in the figure too.
		{name: "an honest answer of 1 MiB", reply: aiguardtest.JSON(200, honest(long)), end: memoryEnd(long, nil), hold: memoryCap - 8192, most: honestMost},
	}
}

func (row memoryRow) String() string {
	if row.name != "" {
		return row.name
	}
	return string(row.fault)
}

func (row memoryRow) order(calls int) memoryOrder {
	order := memoryOrder{Calls: calls, Stream: row.stream, Slow: row.slow, MaxResponseBytes: memoryCap, CallTimeout: childTime / 2}
	if row.stream { // it is the length of a line that bounds it
		order.MaxResponseBytes, order.MaxEventBytes = 0, memoryCap
	}
	if row.defaults {
		order.MaxEventBytes, order.MemoryLimit = 0, row.limit
	}
	if row.end == string(aiguard.ErrTimeout) {
		order.MaxResponseBytes, order.CallTimeout = aiguard.Off, 500*time.Millisecond
	}
	return order
}

var bigEvent = strings.Repeat("0123456789", 140_000)

// events is a good stream that says text n times.
func events(text string, n int) aiguardtest.Reply {
	return func(w http.ResponseWriter, _ *aiguardtest.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range n {
			if _, err := fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%q}}]}\n\n", text); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	}
}

// honest is a good answer that says text.
func honest(text string) string {
	return `{"choices":[{"index":0,"message":{"role":"assistant","content":"` + text + `"},"finish_reason":"stop"}]}`
}

// flood sends the same part of a stream again and again, as fast as it is taken.
func flood(part string) aiguardtest.Reply {
	block := []byte(strings.Repeat(part, 1+(64<<10)/len(part)))
	return func(w http.ResponseWriter, r *aiguardtest.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
}

// step holds the answers to n requests back after so many bytes of their bodies until all have come as far: then all
// callers have the most at once.
type step struct {
	n, hold int
	come    atomic.Int64
	all     chan struct{}
	waiting atomic.Int64 // callers that were there when all had come
}

func newStep(n, hold int) *step { return &step{n: n, hold: hold, all: make(chan struct{})} }

func (s *step) wait(ctx context.Context) {
	if s.come.Add(1) == int64(s.n) {
		close(s.all)
	}
	select {
	case <-s.all:
	case <-ctx.Done():
		return
	}
	if s.hold > 0 { // what the kernel has is not yet what the caller has
		time.Sleep(100 * time.Millisecond)
	}
	if ctx.Err() == nil {
		s.waiting.Add(1)
	}
}

func (s *step) reply(next aiguardtest.Reply) aiguardtest.Reply {
	return func(w http.ResponseWriter, r *aiguardtest.Request) {
		if s.hold == 0 {
			s.wait(r.Context())
			next(w, r)
			return
		}
		h := &holdingWriter{ResponseWriter: w, left: s.hold, wait: func() { s.wait(r.Context()) }}
		next(h, r)
		h.once()
	}
}

type holdingWriter struct {
	http.ResponseWriter
	left int
	wait func()
}

func (w *holdingWriter) Write(p []byte) (n int, err error) {
	if w.left > 0 && len(p) >= w.left {
		if n, err = w.ResponseWriter.Write(p[:w.left]); err != nil {
			return n, err
		}
		w.once()
	}
	m, err := w.ResponseWriter.Write(p[n:])
	w.left -= m
	return n + m, err
}

// once waits, unless it has.
func (w *holdingWriter) once() {
	if w.wait != nil {
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		w.wait()
		w.left, w.wait = 0, nil
	}
}

func (w *holdingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// memoryLab runs children.
type memoryLab struct {
	binary string
	certs  string // of the TLS server
	http1  *aiguardtest.Server
	http2  *aiguardtest.Server
	table  strings.Builder
}

func newMemoryLab(t *testing.T) *memoryLab {
	t.Helper()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("there is no /proc to read memory from:", err)
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	lab := &memoryLab{binary: memoryBinary(t), http1: aiguardtest.NewServer(t), http2: aiguardtest.NewServer(t, aiguardtest.TLS())}
	lab.certs = certificateOf(t, lab.http2)
	fmt.Fprintf(&lab.table, "\n%-32s %-9s %5s %9s  %s\n", "row", "protocol", "calls", "peak MB", "ends")
	t.Cleanup(func() { t.Log(lab.table.String()) })
	return lab
}

// memoryBinary is this test binary; of one with the race detector, which multiplies memory, it makes one without.
func memoryBinary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	info, _ := debug.ReadBuildInfo()
	if info == nil || !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return self
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the race detector multiplies memory, and there is no go command to build a test binary without it:", err)
	}
	binary := filepath.Join(t.TempDir(), "memory.test")
	start := time.Now()
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-race=false", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Logf("built a test binary without the race detector in %v", time.Since(start).Round(time.Millisecond))
	return binary
}

// certificateOf writes the certificate of srv to a file, for the guard's own pool to trust.
func certificateOf(t *testing.T, srv *aiguardtest.Server) string {
	t.Helper()
	base := srv.Transport()
	defer base.CloseIdleConnections()
	u, err := url.Parse(srv.URL)
	require.NoError(t, err)
	conn, err := tls.Dial("tcp", u.Host, base.TLSClientConfig)
	require.NoError(t, err)
	defer conn.Close()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conn.ConnectionState().PeerCertificates[0].Raw})
	file := filepath.Join(t.TempDir(), "cert.pem")
	require.NoError(t, os.WriteFile(file, cert, 0o600))
	return file
}

// run lets a child make its calls while srv plays the row.
func (lab *memoryLab) run(t *testing.T, srv *aiguardtest.Server, row memoryRow, order memoryOrder) memoryReport {
	t.Helper()
	srv.Reset()
	reply := row.reply
	if reply == nil {
		reply = row.fault.Reply()
	}
	inStep := newStep(order.Calls, row.hold)
	srv.SetDefault(inStep.reply(reply))
	defer srv.SetDefault(nil)
	order.URL = srv.URL
	text, err := json.Marshal(order)
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), childTime+5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, lab.binary, "-test.run", "^TestMemoryChild$", "-test.v")
	cmd.Env = append(os.Environ(), memoryChildEnv+"="+string(text), "SSL_CERT_FILE="+lab.certs, "GOGC=100", "GOMEMLIMIT=off", "GODEBUG=")
	out, err := cmd.CombinedOutput()
	report, ok := findReport(out)
	require.True(t, ok, "%v: the child reports nothing:\n%s", err, out)

	proto, ends := "HTTP/1.1", fmt.Sprint(report.Ends)
	if srv == lab.http2 {
		proto = "HTTP/2"
	}
	if report.Runaway {
		ends = "stopped by the watchdog"
	}
	name := row.String()
	if order.Raw {
		name += ", unguarded"
	}
	fmt.Fprintf(&lab.table, "%-32s %-9s %5d %9.1f  %s\n", name, proto, order.Calls, float64(report.Peak)/1000, strings.TrimPrefix(ends, "map"))

	if !report.Runaway {
		require.NoError(t, err, "%s", out)
		if srv != lab.http2 || row.end != string(aiguard.ErrInvalidResponse) { // too much of a header ends the HTTP/2 connection that all share
			require.EqualValues(t, order.Calls, inStep.waiting.Load(), "callers there at once")
		}
	}
	return report
}

func findReport(out []byte) (r memoryReport, ok bool) {
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if text, found := strings.CutPrefix(lines.Text(), memoryMark); found {
			return r, json.Unmarshal([]byte(text), &r) == nil
		}
	}
	return r, false
}

func TestFiftyCallersOfTheWorstAnswersFitInto100MB(t *testing.T) {
	lab := newMemoryLab(t)
	for _, row := range memoryRows() {
		lab.guarded(t, "HTTP1", lab.http1, row)
		if row.http2 {
			lab.guarded(t, "HTTP2", lab.http2, row)
		}
		if row.raw > 0 {
			lab.unguarded(t, row)
		}
	}
}

func (lab *memoryLab) guarded(t *testing.T, proto string, srv *aiguardtest.Server, row memoryRow) {
	for _, calls := range []int{1, crowd} {
		most := singleMost
		if calls > 1 {
			most = max(crowdMost, row.most)
		}
		t.Run(fmt.Sprintf("%s/%s/%d", row, proto, calls), func(t *testing.T) {
			report := lab.run(t, srv, row, row.order(calls))
			if row.also != "" {
				require.Positive(t, report.Ends[row.end])
				report.Ends[row.end] += report.Ends[row.also]
				delete(report.Ends, row.also)
			}
			require.Equal(t, map[string]int{row.end: calls}, report.Ends)
			require.LessOrEqual(t, report.Peak, most, "kB")
		})
	}
}

// unguarded is the control: a row that costs a client without the guard little would prove nothing.
func (lab *memoryLab) unguarded(t *testing.T, row memoryRow) {
	t.Run(fmt.Sprintf("%s/unguarded/%d", row, row.raw), func(t *testing.T) {
		order := row.order(row.raw)
		order.Raw = true
		report := lab.run(t, lab.http1, row, order)
		require.Greater(t, report.Peak, hostileFrom, "kB")
	})
}
