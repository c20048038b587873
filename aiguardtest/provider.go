package aiguardtest

import (
	"container/heap"
	"context"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"syscall"
	"time"
)

const (
	defaultWork = time.Second
	refusalTime = 20 * time.Millisecond
	burstOfRPM  = 10 // share of a minute's requests that may come at once
)

// ProviderConfig configures a Provider. The zero value answers every request after a second, without limits. For each
// number, 0 means no limit.
type ProviderConfig struct {
	// Capacity is the number of requests at full speed. More requests in progress share that speed equally. Every
	// answer then takes longer, and the total rate of answers stays the same. This is processor sharing (Kleinrock,
	// "Time-shared Systems: A Theoretical Treatment", 1967), which is close to an inference server with batching.
	Capacity int

	// Loss is the cost of exceeding Capacity. With n requests in progress, the total speed is
	// Capacity / (1 + Loss*(n-Capacity)/Capacity). This models a server that runs out of memory, drops requests and
	// computes them again. Default 0: no loss.
	Loss float64

	// MaxActive is the number of requests that may be in progress. Further requests get a 503.
	MaxActive int

	// RPM is the number of requests allowed per minute, as a token bucket that holds a tenth of them. Further requests
	// get a 429 and take no token. Their Retry-After is the time until the next token, in whole seconds.
	RPM int

	// RateLimitHeaders adds OpenAI's rate limit headers to every answer and every 429. The headers describe the bucket
	// of RPM when the request arrived: x-ratelimit-limit-requests is its size, x-ratelimit-remaining-requests is the
	// number of requests left, and x-ratelimit-reset-requests is the time until it is full, such as "120ms" or "6m0s".
	// With this option the bucket holds all requests of a minute, as OpenAI's does.
	RateLimitHeaders bool

	// An outage begins OutageAfter after NewProvider and lasts for OutageFor. The provider loses the requests in
	// progress and refuses connections. In the second half of the outage it answers 503.
	OutageAfter, OutageFor time.Duration

	// RetryAfter makes the provider answer every request with a 429. Its Retry-After is this duration in whole seconds,
	// however long the client has waited.
	RetryAfter time.Duration

	// Work returns the duration of a request's answer at full speed. It is called once for each request, from many
	// goroutines. Default: a second.
	Work func(*Request) time.Duration

	// OnServed is called at the end of each request, with no lock held, from many goroutines. Default: none.
	OnServed func(Served)
}

// Served describes how a Provider handled one request.
type Served struct {
	Request  *Request
	Work     time.Duration // work requested
	From, To time.Time     // arrival and end

	// Status is 200, 429 or 503. It is 0 without an answer, because the connection failed or the client left.
	Status int
}

// Provider simulates a provider with limited capacity, for load tests and for tests of the recovery after an outage.
// When a client leaves, work on its request stops. A refusal takes 20 ms.
//
// A Provider is an http.RoundTripper, so an http.Client can use it without a server. Each answer is then
// Text("Hello!"), and the events of a stream arrive all at once. With Reply it serves the requests of a Server. In a
// testing/synctest bubble minutes of virtual time pass at once. Create the Provider inside the bubble, and use Pipe for
// a Server. A Provider needs no Close: it has no goroutine, and a timer only while requests are in progress.
type Provider struct {
	config ProviderConfig
	start  time.Time

	mu     sync.Mutex
	number int     // number of the last request
	jobs   jobs    // in progress
	shared float64 // work in seconds that one job would have received since the start
	at     time.Time
	next   *time.Timer // fires at the next end of a job
	rate   bucket      // bucket of RPM
}

// job is a request in progress at the provider.
type job struct {
	Served
	retryAfter time.Duration
	header     http.Header // rate limit headers
	err        error       // connection error

	finish float64       // value of the provider's shared at which the job is done
	done   chan struct{} // closed at the end of the job; nil: refused
	index  int           // position in the heap
}

// NewProvider returns a provider that works until its outage begins.
func NewProvider(config ProviderConfig) *Provider {
	now := time.Now()
	p := &Provider{config: config, start: now, at: now}
	if rpm := float64(config.RPM); config.RateLimitHeaders {
		p.rate = newBucket(rpm, rpm, now)
	} else {
		p.rate = newBucket(max(rpm/burstOfRPM, 1), rpm, now)
	}
	p.next = time.AfterFunc(time.Hour, p.tick)
	p.next.Stop()
	return p
}

// Reply answers as next does when the work is done. Use it on one Server:
//
//	fake.SetDefault(aiguardtest.NewProvider(config).Reply(aiguardtest.Text("Paris")))
//
// During an outage it resets connections, because the server still listens.
func (p *Provider) Reply(next Reply) Reply {
	return func(w http.ResponseWriter, r *Request) {
		j := p.serve(r)
		switch {
		case j.Status != 0:
			j.reply(next)(w, r)
		case j.err != nil:
			ResetConn()(w, r)
		}
	}
}

// RoundTrip answers a request without a server.
func (p *Provider) RoundTrip(hr *http.Request) (*http.Response, error) {
	r := newRequest(hr)
	if hr.Body != nil {
		var err error
		r.Body, err = io.ReadAll(hr.Body)
		_ = hr.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	r.parse()
	j := p.serve(r)
	switch {
	case j.err != nil:
		return nil, j.err
	case j.Status == 0:
		return nil, context.Cause(hr.Context())
	}
	w := httptest.NewRecorder()
	j.reply(Text("Hello!"))(w, r)
	resp := w.Result()
	resp.ContentLength, resp.Request = int64(w.Body.Len()), hr
	return resp, nil
}

// reply returns the reply for the job. It is next if the job was done.
func (j *job) reply(next Reply) Reply {
	switch j.Status {
	case http.StatusTooManyRequests:
		d := dialectOf(j.Request)
		next = d.refuse(d.limited, "Retry-After", strconv.Itoa(int(math.Ceil(j.retryAfter.Seconds()))))
	case http.StatusServiceUnavailable:
		next = Error(j.Status, "")
	}
	if j.header == nil {
		return next
	}
	return func(w http.ResponseWriter, r *Request) {
		maps.Copy(w.Header(), j.header)
		next(w, r)
	}
}

// serve waits until the request was refused, its work is done, or its client has left.
func (p *Provider) serve(r *Request) *job {
	j := &job{Served: Served{Request: r, Work: defaultWork, From: time.Now()}}
	if p.config.Work != nil {
		j.Work = p.config.Work(r)
	}
	p.arrive(j)
	if j.done != nil {
		select {
		case <-j.done:
		case <-r.Context().Done():
			p.left(j)
		}
	} else if wait(r.Context(), refusalTime) != nil {
		j.Status, j.err = 0, nil
	}
	j.To = time.Now()
	if p.config.OnServed != nil {
		p.config.OnServed(j.Served)
	}
	return j
}

// arrive starts a job or refuses it.
func (p *Provider) arrive(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	if j.Request.Number == 0 { // a Server has already set the number
		j.Request.Number = p.number
	}
	switch now := j.From.Sub(p.start); {
	case p.down(now) && now-p.config.OutageAfter < p.config.OutageFor/2:
		j.err = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		return
	case p.down(now):
		j.Status = http.StatusServiceUnavailable
		return
	}
	if j.retryAfter = p.config.RetryAfter; j.retryAfter <= 0 {
		j.retryAfter = p.rate.take(j.From)
	}
	if p.config.RateLimitHeaders && p.config.RPM > 0 {
		j.header = p.rate.header()
	}
	if j.retryAfter > 0 {
		j.Status = http.StatusTooManyRequests
		return
	}
	if p.config.MaxActive > 0 && len(p.jobs) >= p.config.MaxActive {
		j.Status = http.StatusServiceUnavailable
		return
	}
	p.advance()
	j.finish, j.done = p.shared+j.Work.Seconds(), make(chan struct{})
	heap.Push(&p.jobs, j)
	p.plan()
}

// down reports whether the outage is on at a time after the start.
func (p *Provider) down(at time.Duration) bool {
	return at >= p.config.OutageAfter && at-p.config.OutageAfter < p.config.OutageFor
}

// speed returns the speed of each job in progress.
func (p *Provider) speed() float64 {
	n, capacity := float64(len(p.jobs)), float64(p.config.Capacity)
	if n <= capacity || capacity <= 0 {
		return 1
	}
	return capacity / (1 + p.config.Loss*(n-capacity)/capacity) / n
}

// advance adds the work done since the last call to the jobs.
func (p *Provider) advance() {
	now := time.Now()
	p.shared += now.Sub(p.at).Seconds() * p.speed()
	p.at = now
}

// plan sets the timer to the next event: the end of a job, or the outage.
func (p *Provider) plan() {
	if len(p.jobs) == 0 {
		p.next.Stop()
		return
	}
	seconds := max(p.jobs[0].finish-p.shared, 0) / p.speed()
	next := time.Duration(math.Ceil(seconds * float64(time.Second)))
	if crash := p.config.OutageAfter - p.at.Sub(p.start); crash > 0 && p.config.OutageFor > 0 {
		next = min(next, crash)
	}
	p.next.Reset(max(next, 1)) // in a synctest bubble, a zero duration crashes the race detector of Go 1.26.8
}

// tick ends the jobs that are done. In an outage it ends all jobs.
func (p *Provider) tick() {
	const exact = 1e-9 // tolerance for sums of seconds
	p.mu.Lock()
	defer p.mu.Unlock()
	p.advance()
	for len(p.jobs) > 0 && p.jobs[0].finish <= p.shared+exact {
		j := heap.Pop(&p.jobs).(*job)
		j.Status = http.StatusOK
		close(j.done)
	}
	if p.down(p.at.Sub(p.start)) {
		for _, j := range p.jobs {
			j.err = &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
			close(j.done)
		}
		p.jobs = nil
	}
	p.plan()
}

// left removes a job whose client has left. A job that ended at the same moment keeps its result.
func (p *Provider) left(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if j.Status != 0 || j.err != nil {
		return
	}
	p.advance()
	heap.Remove(&p.jobs, j.index)
	p.plan()
}

// jobs is a heap ordered by the time at which jobs are done.
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
