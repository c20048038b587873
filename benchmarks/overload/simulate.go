package main

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	patience = time.Minute     // a user who has waited that long has left; an answer would be of no use
	warmUp   = time.Minute     // is not measured
	grain    = 0.1             // seconds: how fine recovery is measured
	window   = 2 * time.Second // over which it is averaged
	sigma    = 0.5             // of the logarithm of the work in an answer
)

// run is one simulation.
type run struct {
	model model
	limit int     // for clients that have one
	load  float64 // as a multiple of what the provider can do
	until time.Duration
	seed  uint64
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
		p := newProvider(r.model)
		ask, end := c.client(p, r.limit)
		calls := offer(r, p.start, ask)
		end()
		p.timer.Stop()
		f = r.measure(calls, p)
	})
	return f
}

// offer makes the calls and waits for them to end.
func offer(r run, start time.Time, ask func(context.Context) error) (calls []*call) {
	arrivals := rand.New(rand.NewPCG(r.seed, uint64(r.load*1000)))
	rate := r.load * r.model.answersPerSecond()
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

func (r run) measure(calls []*call, p *provider) (f figures) {
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
	for _, at := range p.requests {
		if at >= warmUp && at < r.until {
			requests++
		}
	}
	up := (r.until - warmUp - (r.model.outageTo - r.model.outageFrom)).Seconds()
	f.goodput = useful / up / r.model.answersPerSecond()
	f.requestsPerAnswer = requests / useful
	f.p50, f.p99 = percentile(took, 0.5), percentile(took, 0.99)
	f.refused, f.gaveUp = float64(len(refusedAfter))/n, gone/n
	f.refusedAfter = percentile(refusedAfter, 0.99)
	f.recovery = r.recovery(calls, p)
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
func (r run) recovery(calls []*call, p *provider) time.Duration {
	if r.model.outageTo == 0 {
		return 0
	}
	work := make([]float64, int((r.until+2*patience).Seconds()/grain))
	for _, a := range p.answers {
		if calls[a.call].end != answered {
			continue
		}
		from, to := a.from.Seconds()/grain, a.to.Seconds()/grain
		for i := int(from); i <= int(to) && i < len(work); i++ {
			part := min(to, float64(i+1)) - max(from, float64(i))
			work[i] += a.work.Seconds() * part / (to - from)
		}
	}
	bin := func(d time.Duration) int { return int(math.Round(d.Seconds() / grain)) }
	mean := func(from, to int) (sum float64) {
		for _, w := range work[from:to] {
			sum += w
		}
		return sum / float64(to-from)
	}
	before := mean(bin(warmUp), bin(r.model.outageFrom))
	if before < 0.1*r.model.answersPerSecond()*meanWork.Seconds()*grain {
		return -1 // nothing to recover to
	}
	for i := bin(r.model.outageTo); i+bin(window) <= bin(r.until); i++ {
		if mean(i, i+bin(window)) >= 0.9*before {
			return time.Duration(float64(i-bin(r.model.outageTo)) * grain * float64(time.Second))
		}
	}
	return -1
}
