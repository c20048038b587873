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
	burstOfRPM  = 10 // the part of a minute's requests that may come at once
)

// ProviderConfig is what a Provider can do. The zero value answers every
// request after a second; a number that is 0 is no such limit.
type ProviderConfig struct {
	// Capacity is how many requests are worked on at full speed. What is in
	// progress beyond shares that speed equally: everybody's answer takes
	// longer, and together they get no more done. This is processor sharing
	// (Kleinrock, "Time-shared Systems: A Theoretical Treatment", 1967), near
	// to what an inference server does that batches.
	Capacity int

	// Loss is what it costs to have more in progress than Capacity: with n
	// requests, all together advance at the speed of
	// Capacity / (1 + Loss*(n-Capacity)/Capacity), as where a server that is
	// out of memory drops requests and computes them again. 0: nothing.
	Loss float64

	// MaxActive is how many requests may be in progress; more get a 503.
	MaxActive int

	// RPM is how many requests a minute may come, as a token bucket that holds
	// a tenth of them; more get a 429 whose Retry-After says, in whole
	// seconds, when there is a token again. They take none.
	RPM int

	// RateLimitHeaders makes every answer and every 429 describe the bucket of
	// RPM as OpenAI does, as it was when the request came: in
	// x-ratelimit-limit-requests how many requests it holds, in
	// x-ratelimit-remaining-requests how many are left, and in
	// x-ratelimit-reset-requests the time until it is full again, such as
	// "120ms" or "6m0s". The bucket then holds all the requests of a minute, as
	// OpenAI's does.
	RateLimitHeaders bool

	// The provider is down for OutageFor, from OutageAfter after NewProvider:
	// it loses what it has in progress, then refuses connections, and in the
	// second half answers 503.
	OutageAfter, OutageFor time.Duration

	// RetryAfter makes the provider answer every request with a 429 that asks
	// for this wait, in whole seconds, however long the client has waited.
	RetryAfter time.Duration

	// Work is how long the answer to a request takes at full speed. It is
	// called once for each request, from many goroutines. nil: a second.
	Work func(*Request) time.Duration

	// OnServed is called when the provider is done with a request, with no
	// lock held, from many goroutines. nil: nobody is told.
	OnServed func(Served)
}

// Served is what a Provider made of a request.
type Served struct {
	Request  *Request
	Work     time.Duration // that it asked for
	From, To time.Time     // it was there

	// Status is 200, 429 or 503; 0: no answer, since the connection failed or
	// the client left.
	Status int
}

// Provider simulates a provider that can do only so much, for load tests: of
// what users get when they ask for more, and of how soon all is well after an
// outage. A client that leaves takes its request with it: no work is done for
// nobody. A refusal takes 20 ms.
//
// It is an http.RoundTripper, for an http.Client without a server: each answer
// is Text("Hello!"), a stream's events come all at once. It is a Reply for a
// Server, too. In a testing/synctest bubble minutes pass in no time; make the
// Provider inside the bubble, and with a Server use Pipe. There is nothing to
// close: it has no goroutine, and a timer only while requests are in progress.
type Provider struct {
	config ProviderConfig
	start  time.Time

	mu     sync.Mutex
	number int     // of the last request
	jobs   jobs    // in progress
	shared float64 // the work that a job would have got that is there since the start: seconds
	at     time.Time
	next   *time.Timer // to the next end of a job
	rate   bucket      // of RPM
}

// job is a request at the provider.
type job struct {
	Served
	retryAfter time.Duration
	header     http.Header // of the rate limit
	err        error       // the connection's

	finish float64       // the provider's shared work at which it is done
	done   chan struct{} // closed when it is over; nil: refused
	index  int           // in the heap
}

// NewProvider returns a provider that is up, unless its outage begins at once.
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

// Reply answers as next does, when the work is done. Use it on one Server:
//
//	fake.SetDefault(aiguardtest.NewProvider(config).Reply(aiguardtest.Text("Paris")))
//
// In an outage it resets connections, since the server still listens.
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

// reply is how the job is answered: next, if it was done.
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

// serve returns when the request was refused, its work is done, or its client
// has left.
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

// arrive begins to work on a job, or refuses it.
func (p *Provider) arrive(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	if j.Request.Number == 0 { // a server has numbered it
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

// down reports whether the outage is on, at a time after the start.
func (p *Provider) down(at time.Duration) bool {
	return at >= p.config.OutageAfter && at-p.config.OutageAfter < p.config.OutageFor
}

// speed is how fast each of the jobs in progress advances.
func (p *Provider) speed() float64 {
	n, capacity := float64(len(p.jobs)), float64(p.config.Capacity)
	if n <= capacity || capacity <= 0 {
		return 1
	}
	return capacity / (1 + p.config.Loss*(n-capacity)/capacity) / n
}

// advance gives the jobs the work done since it was last called.
func (p *Provider) advance() {
	now := time.Now()
	p.shared += now.Sub(p.at).Seconds() * p.speed()
	p.at = now
}

// plan sets the timer to the next end of a job: its answer, or the outage.
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
	p.next.Reset(max(next, 1)) // a zero duration crashes the race detector of Go 1.26.8 in a synctest bubble
}

// tick ends the jobs that are done, and in the outage all.
func (p *Provider) tick() {
	const exact = 1e-9 // as far as sums of seconds are
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

// left forgets a job whose client has gone. One that was over in the same
// moment stays so.
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
