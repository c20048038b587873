package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

const (
	meanWork = time.Second // of one answer, at full speed
	patience = time.Minute // a user who has waited that long has left; an answer would be of no use
	warmUp   = time.Minute // is not measured
	sigma    = 0.5         // of the logarithm of the work in an answer
)

// run is one simulation.
type run struct {
	provider aiguardtest.ProviderConfig
	first    *aiguardtest.ProviderConfig // at firstHost; nil: there is none
	limit    int                         // for clients that have one
	load     float64                     // as a multiple of what the provider can do
	until    time.Duration
	seed     uint64

	patience time.Duration // a user leaves after it
	deadline bool          // the user's context has a deadline
	tenants  bool          // users belong to tenants
}

// call is one user's.
type call struct {
	id     int
	work   time.Duration
	tenant string

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
	status   int           // 0: the connection failed, or the client left
}

type ending int

const (
	answered ending = iota
	refused         // told so
	gaveUp          // left without either
)

// simulate offers the load to a provider through a client, in virtual time. Users arrive at random (Poisson), whatever
// became of those before them, and ask once. When they come and how much work their answers are follows from the
// seed alone, so that every client meets the same users.
func simulate(t *testing.T, r run, c contender) (f figures) {
	synctest.Test(t, func(*testing.T) {
		start := time.Now()
		var j, firsts journal
		p := hosts{"": j.provider(r.provider, start)}
		if r.first != nil {
			p[firstHost] = firsts.provider(*r.first, start)
		}
		ask, end := c.client(p, r.limit)
		calls := offer(r, start, ask)
		end()
		synctest.Wait()
		f = r.measure(calls, j.served, firsts.served)
	})
	return f
}

// hosts are providers by host name; "" is for all others.
type hosts map[string]http.RoundTripper

func (h hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	p, ok := h[r.URL.Host]
	if !ok {
		p = h[""]
	}
	return p.RoundTrip(r)
}

// provider returns a provider whose work is that of the calls, and which writes the journal.
func (j *journal) provider(cfg aiguardtest.ProviderConfig, start time.Time) *aiguardtest.Provider {
	of := func(r *aiguardtest.Request) *call { return r.Context().Value(callKey{}).(*call) }
	cfg.Work = func(r *aiguardtest.Request) time.Duration { return of(r).work }
	cfg.OnServed = func(s aiguardtest.Served) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.served = append(j.served, served{of(s.Request), s.From.Sub(start), s.To.Sub(start), s.Status})
	}
	return aiguardtest.NewProvider(cfg)
}

// answersPerSecond is what the provider can do at best.
func (r run) answersPerSecond() float64 {
	most := float64(r.provider.Capacity) / meanWork.Seconds()
	if rpm := r.provider.RPM; rpm > 0 {
		most = min(most, float64(rpm)/60)
	}
	return most
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
		if r.tenants {
			c.tenant = tenantOf(own)
		}
		calls = append(calls, c)
		users.Go(func() {
			ctx, leave := r.user(c)
			defer leave()
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

// user returns the context of a user. Without a deadline it is like that of a web server: it ends when the user leaves, and
// says nothing about it before.
func (r run) user(c *call) (context.Context, context.CancelFunc) {
	ctx := context.WithValue(context.Background(), callKey{}, c)
	if c.tenant != "" {
		ctx = withTenant(ctx, c.tenant)
	}
	if r.deadline {
		return context.WithTimeout(ctx, r.patience)
	}
	ctx, leave := context.WithCancel(ctx)
	timer := time.AfterFunc(r.patience, leave)
	return ctx, func() { timer.Stop(); leave() }
}

// tenantOf draws the tenant of a user.
func tenantOf(own *rand.Rand) string {
	of := own.Float64() * (lightTenants*lightLoad + heavyLoad)
	if of < heavyLoad {
		return heavyTenant
	}
	return fmt.Sprintf("light %d", int((of-heavyLoad)/lightLoad))
}
