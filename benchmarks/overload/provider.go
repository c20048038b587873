package main

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// model is what a provider can do.
type model struct {
	// capacity is the number of requests that it works on at full speed. What is beyond shares that speed equally
	// (processor sharing): everybody's answer takes longer, and together they get no more done.
	capacity float64

	// loss is what overload costs: with n requests in progress all together progress at the speed of
	// capacity / (1 + loss*(n-capacity)/capacity). An inference server that runs out of memory evicts requests and
	// computes them again. 0: processor sharing is free.
	loss float64

	rpm   float64 // requests a minute, as a token bucket; more get 429 with Retry-After. 0: no such limit
	burst float64 // what the bucket holds

	room int // requests in progress at the most; more get 503. 0: no such limit

	outageFrom, outageTo time.Duration // after the start; its first half refuses connections, its second answers 503
}

const (
	meanWork  = time.Second           // of one answer, at full speed
	turnround = 20 * time.Millisecond // of a refusal
)

// answersPerSecond is what the provider can do at best.
func (m model) answersPerSecond() float64 {
	best := m.capacity / meanWork.Seconds()
	if m.rpm > 0 {
		best = min(best, m.rpm/60)
	}
	return best
}

// provider is an http.RoundTripper that plays a model in the time of its bubble. A client that leaves takes its request
// with it: no work is done for nobody.
type provider struct {
	model
	start time.Time

	mu     sync.Mutex
	jobs   jobs    // in progress
	shared float64 // work that each job has been given since the start, had it been there: seconds
	at     time.Time
	timer  *time.Timer // the next answer
	tokens float64
	filled time.Time

	requests []time.Duration // when each arrived
	answers  []answer
}

// answer is what the provider has worked out for a call.
type answer struct {
	call     int
	work     time.Duration
	from, to time.Duration // it worked on it
}

// job is a request in progress.
type job struct {
	finish float64 // the provider's shared work at which it is done
	from   time.Time
	end    chan error // buffered
	index  int        // in the heap
}

func newProvider(m model) *provider {
	now := time.Now()
	p := &provider{model: m, start: now, at: now, filled: now, tokens: m.burst}
	p.timer = time.AfterFunc(math.MaxInt64, p.tick)
	if m.outageTo > m.outageFrom {
		time.AfterFunc(m.outageFrom, p.crash)
	}
	return p
}

// speed is how fast each of the n jobs in progress advances.
func (p *provider) speed() float64 {
	n := float64(len(p.jobs))
	if n <= p.capacity {
		return 1
	}
	return p.capacity / (1 + p.loss*(n-p.capacity)/p.capacity) / n
}

// advance gives the jobs the work done since it was last called.
func (p *provider) advance() {
	now := time.Now()
	p.shared += now.Sub(p.at).Seconds() * p.speed()
	p.at = now
}

// plan sets the timer for the next answer.
func (p *provider) plan() {
	if len(p.jobs) == 0 {
		p.timer.Stop()
		return
	}
	d := max(p.jobs[0].finish-p.shared, 0) / p.speed()
	p.timer.Reset(time.Duration(math.Ceil(d * 1e9)))
}

// tick ends the jobs that are done.
func (p *provider) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	for len(p.jobs) > 0 && p.jobs[0].finish <= p.shared+1e-9 {
		heap.Pop(&p.jobs).(*job).end <- nil
	}
	p.plan()
}

// crash ends what is in progress at the begin of the outage.
func (p *provider) crash() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	for _, j := range p.jobs {
		j.end <- &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
	p.jobs = nil
	p.plan()
}

// take takes a token of the rate limit, or says when there will be one.
func (p *provider) take() (wait time.Duration) {
	if p.rpm == 0 {
		return 0
	}
	now := time.Now()
	p.tokens = min(p.tokens+now.Sub(p.filled).Minutes()*p.rpm, p.burst)
	p.filled = now
	if p.tokens >= 1 {
		p.tokens--
		return 0
	}
	return time.Duration((1 - p.tokens) / p.rpm * float64(time.Minute))
}

// RoundTrip answers a request, or refuses it.
func (p *provider) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	ctx := req.Context()
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return nil, errors.New("overload: a request of no call")
	}
	j, refusal, err := p.arrive(c)
	if j == nil {
		select {
		case <-time.After(turnround):
			return refusal, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	select {
	case err := <-j.end:
		if err != nil {
			return nil, err
		}
		p.answered(c, j)
		return reply(http.StatusOK, chatAnswer), nil
	case <-ctx.Done():
		p.left(j)
		return nil, context.Cause(ctx)
	}
}

// arrive begins to work on a request, or says how it is refused.
func (p *provider) arrive(c *call) (*job, *http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := time.Since(p.start)
	p.requests = append(p.requests, since)
	switch {
	case since >= p.outageFrom && since < (p.outageFrom+p.outageTo)/2:
		return nil, nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	case since >= p.outageFrom && since < p.outageTo:
		return nil, reply(http.StatusServiceUnavailable, overloaded), nil
	}
	if wait := p.take(); wait > 0 {
		r := reply(http.StatusTooManyRequests, rateLimited)
		r.Header.Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		return nil, r, nil
	}
	if p.room > 0 && len(p.jobs) >= p.room {
		return nil, reply(http.StatusServiceUnavailable, overloaded), nil
	}
	p.advance()
	j := &job{finish: p.shared + c.work.Seconds(), from: time.Now(), end: make(chan error, 1)}
	heap.Push(&p.jobs, j)
	p.plan()
	return j, nil, nil
}

// left forgets a job whose client has gone.
func (p *provider) left(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j.index >= len(p.jobs) || p.jobs[j.index] != j {
		return // done in the same moment
	}
	p.advance()
	heap.Remove(&p.jobs, j.index)
	p.plan()
}

func (p *provider) answered(c *call, j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers = append(p.answers, answer{c.id, c.work, j.from.Sub(p.start), time.Since(p.start)})
}

const (
	chatAnswer = `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`
	rateLimited = `{"error":{"message":"not now","type":"requests","param":null,"code":"rate_limit_exceeded"}}`
	overloaded  = `{"error":{"message":"not now","type":"server_error","param":null,"code":null}}`
)

func reply(status int, body string) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(strings.NewReader(body)),
		ContentLength: int64(len(body)),
	}
}

// jobs is a heap: the first to be done comes first.
type jobs []*job

func (h jobs) Len() int           { return len(h) }
func (h jobs) Less(i, j int) bool { return h[i].finish < h[j].finish }
func (h jobs) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *jobs) Push(x any) {
	j := x.(*job)
	j.index = len(*h)
	*h = append(*h, j)
}

func (h *jobs) Pop() any {
	old := *h
	j := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return j
}
