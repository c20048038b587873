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
	patience = time.Minute // the user leaves after that, and an answer no longer counts
	warmUp   = time.Minute // not measured
	sigma    = 0.5         // of the logarithm of an answer's work
)

// run is one simulation.
type run struct {
	provider aiguardtest.ProviderConfig
	first    *aiguardtest.ProviderConfig // at firstHost; nil: none
	limit    int                         // for clients that have one
	load     float64                     // as a multiple of the provider's capacity
	until    time.Duration
	seed     uint64

	patience time.Duration // the user leaves after that
	deadline bool          // the user's context has a deadline
	tenants  bool          // users belong to tenants
}

// call is the call of one user.
type call struct {
	id     int
	work   time.Duration
	tenant string

	asked time.Duration // since the start
	took  time.Duration
	end   ending
}

type callKey struct{}

// journal records what the provider did with the requests.
type journal struct {
	mu     sync.Mutex
	served []served
}

// served records what the provider did with one request.
type served struct {
	call     *call
	from, to time.Duration // since the start
	status   int           // 0: the connection failed, or the client left
}

type ending int

const (
	answered ending = iota
	refused         // got an error
	gaveUp          // left without an answer or an error
)

// simulate applies the load to a provider through a client in virtual time. Users arrive at random (Poisson),
// independently of earlier users, and ask once. Their arrival and the work of their answers depend only on the seed, so
// every client gets the same users.
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

// hosts maps host names to providers. "" is the default.
type hosts map[string]http.RoundTripper

func (h hosts) RoundTrip(r *http.Request) (*http.Response, error) {
	p, ok := h[r.URL.Host]
	if !ok {
		p = h[""]
	}
	return p.RoundTrip(r)
}

// provider returns a provider that takes the work from the calls and writes the journal.
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

// answersPerSecond returns the provider's capacity.
func (r run) answersPerSecond() float64 {
	most := float64(r.provider.Capacity) / meanWork.Seconds()
	if rpm := r.provider.RPM; rpm > 0 {
		most = min(most, float64(rpm)/60)
	}
	return most
}

// outageEnd returns the end of the outage.
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

// user returns the context of a user. Without a deadline it is like that of a web server: it ends when the user leaves,
// and has no deadline.
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

// tenantOf returns a random tenant for a user.
func tenantOf(own *rand.Rand) string {
	of := own.Float64() * (lightTenants*lightLoad + heavyLoad)
	if of < heavyLoad {
		return heavyTenant
	}
	return fmt.Sprintf("light %d", int((of-heavyLoad)/lightLoad))
}
