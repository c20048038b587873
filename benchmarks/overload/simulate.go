package main

import (
	"context"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

const (
	meanWork = time.Second     // of one answer, at full speed
	patience = time.Minute     // a user who has waited that long has left; an answer would be of no use
	warmUp   = time.Minute     // is not measured
	grain    = 0.1             // seconds: how fine recovery is measured
	window   = 2 * time.Second // over which it is averaged
	sigma    = 0.5             // of the logarithm of the work in an answer
)

// run is one simulation.
type run struct {
	provider aiguardtest.ProviderConfig
	limit    int     // for clients that have one
	load     float64 // as a multiple of what the provider can do
	until    time.Duration
	seed     uint64
}

// call is one user's.
type call struct {
	id   int
	work time.Duration

	asked time.Duration // since the start
	took  time.Duration
	end   ending
}

type callKey struct{}

// journal is what the provider made of the requests.
type journal struct {
	mu     sync.Mutex
	served []served
}

// served is what it made of one.
type served struct {
	call     *call
	from, to time.Duration // since the start
	answered bool
}

type ending int

const (
	answered ending = iota
	refused         // told so
	gaveUp          // left without either
)

// figures is what a run measured. Rates are in what the provider can do, shares are of calls.
type figures struct {
	goodput           float64
	requestsPerAnswer float64
	p50, p99          time.Duration // of answered calls
	refused, gaveUp   float64
	refusedAfter      time.Duration // p99
	recovery          time.Duration // from the end of the outage; -1: not within the run
}

// simulate offers the load to a provider through a client, in virtual time. Users arrive at random (Poisson), whatever
// became of those before them, and ask once. When they come and how much work their answers are follows from the
// seed alone, so that every client meets the same users.
func simulate(t *testing.T, r run, c contender) (f figures) {
	synctest.Test(t, func(*testing.T) {
		start := time.Now()
		var j journal
		ask, end := c.client(j.provider(r.provider, start), r.limit)
		calls := offer(r, start, ask)
		end()
		f = r.measure(calls, j.served)
	})
	return f
}

// provider returns a provider whose work is that of the calls, and which writes the journal.
func (j *journal) provider(cfg aiguardtest.ProviderConfig, start time.Time) *aiguardtest.Provider {
	of := func(r *aiguardtest.Request) *call { return r.Context().Value(callKey{}).(*call) }
	cfg.Work = func(r *aiguardtest.Request) time.Duration { return of(r).work }
	cfg.OnServed = func(s aiguardtest.Served) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.served = append(j.served, served{of(s.Request), s.From.Sub(start), s.To.Sub(start), s.Status == http.StatusOK})
	}
	return aiguardtest.NewProvider(cfg)
}

// answersPerSecond is what the provider can do at best.
func (r run) answersPerSecond() float64 {
	return min(float64(r.provider.Capacity)/meanWork.Seconds(), float64(r.provider.RPM)/60)
}

// outageEnd is when the outage is over.
func (r run) outageEnd() time.Duration { return r.provider.OutageAfter + r.provider.OutageFor }

// offer makes the calls and waits for them to end.
func offer(r run, start time.Time, ask func(context.Context) error) (calls []*call) {
	arrivals := rand.New(rand.NewPCG(r.seed, uint64(r.load*1000)))
	rate := r.load * r.answersPerSecond()
	var users sync.WaitGroup
	defer users.Wait()
	for {
		time.Sleep(time.Duration(arrivals.ExpFloat64() / rate * 1e9))
		asked := time.Since(start)
		if asked >= r.until {
			return calls
		}
		c := &call{id: len(calls), asked: asked}
		own := rand.New(rand.NewPCG(r.seed, uint64(c.id)<<32|uint64(r.load*1000)))
		c.work = time.Duration(math.Exp(sigma*own.NormFloat64()-sigma*sigma/2) * float64(meanWork))
		calls = append(calls, c)
		users.Go(func() {
			// As a web server's: it ends when the user leaves, and says nothing about it before.
			ctx, leave := context.WithCancel(context.WithValue(context.Background(), callKey{}, c))
			defer leave()
			defer time.AfterFunc(patience, leave).Stop()
			err := ask(ctx)
			c.took = time.Since(start) - c.asked
			switch {
			case ctx.Err() != nil:
				c.end = gaveUp
			case err != nil:
				c.end = refused
			}
		})
	}
}

func (r run) measure(calls []*call, log []served) (f figures) {
	var took, refusedAfter []time.Duration
	var n, useful, gone float64
	for _, c := range calls {
		if c.asked < warmUp {
			continue
		}
		n++
		switch c.end {
		case answered:
			took = append(took, c.took)
		case refused:
			refusedAfter = append(refusedAfter, c.took)
		case gaveUp:
			gone++
		}
	}
	for _, c := range calls {
		if at := c.asked + c.took; c.end == answered && at >= warmUp && at < r.until {
			useful++
		}
	}
	requests := 0.
	for _, s := range log {
		if s.from >= warmUp && s.from < r.until {
			requests++
		}
	}
	up := (r.until - warmUp - r.provider.OutageFor).Seconds()
	f.goodput = useful / up / r.answersPerSecond()
	f.requestsPerAnswer = requests / useful
	f.p50, f.p99 = percentile(took, 0.5), percentile(took, 0.99)
	f.refused, f.gaveUp = float64(len(refusedAfter))/n, gone/n
	f.refusedAfter = percentile(refusedAfter, 0.99)
	f.recovery = r.recovery(log)
	return f
}

func percentile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return -1 // there is none
	}
	slices.Sort(d)
	return d[int(math.Ceil(q*float64(len(d))))-1]
}

// recovery is how long after the outage the provider was again doing 90% of the useful work that it did before: work is
// useful if its answer reached a user in time. Counting work and not answers keeps the length of an answer out.
func (r run) recovery(log []served) time.Duration {
	if r.provider.OutageFor == 0 {
		return 0
	}
	work := make([]float64, int((r.until+2*patience).Seconds()/grain))
	for _, s := range log {
		if !s.answered || s.call.end != answered {
			continue
		}
		from, to := s.from.Seconds()/grain, s.to.Seconds()/grain
		for i := int(from); i <= int(to) && i < len(work); i++ {
			part := min(to, float64(i+1)) - max(from, float64(i))
			work[i] += s.call.work.Seconds() * part / (to - from)
		}
	}
	bin := func(d time.Duration) int { return int(math.Round(d.Seconds() / grain)) }
	mean := func(from, to int) (sum float64) {
		for _, w := range work[from:to] {
			sum += w
		}
		return sum / float64(to-from)
	}
	before := mean(bin(warmUp), bin(r.provider.OutageAfter))
	if before < 0.1*r.answersPerSecond()*meanWork.Seconds()*grain {
		return -1 // nothing to recover to
	}
	for i := bin(r.outageEnd()); i+bin(window) <= bin(r.until); i++ {
		if mean(i, i+bin(window)) >= 0.9*before {
			return time.Duration(float64(i-bin(r.outageEnd())) * grain * float64(time.Second))
		}
	}
	return -1
}
