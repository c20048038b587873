package main

import (
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

const highest = 20 // times the provider's capacity

var loads = []float64{0.5, 1, 2, 5, 10, highest}

// scenario defines a provider, its users, and the concurrency limit for clients that have one.
type scenario struct {
	name     string
	about    string
	provider aiguardtest.ProviderConfig
	limit    int
	loads    []float64
	until    time.Duration // users arrive until then
	outage   bool          // also run with an outage
	seeds    bool          // run the highest load with every seed
	clients  []contender
	columns  []column

	deadline bool                        // users have 10 s, as the deadline of their contexts
	tenants  bool                        // users belong to ten tenants, one of them heavy
	first    *aiguardtest.ProviderConfig // the users' first choice; provider is the second
}

// run returns the run of this scenario at a load. With an outage it takes six minutes, including one minute of outage.
func (s scenario) run(load float64, seed uint64, outage bool) run {
	r := run{provider: s.provider, first: s.first, limit: s.limit, load: load, until: s.until, seed: seed,
		patience: patience, deadline: s.deadline, tenants: s.tenants}
	if s.deadline {
		r.patience = 10 * time.Second
	}
	if outage {
		r.provider.OutageAfter, r.provider.OutageFor = 2*time.Minute, time.Minute
		r.until = 6 * time.Minute
	}
	return r
}

// The first scenario is the main one. Rate limits are 20% above the provider's capacity, except where the rate limit is
// under test.
var (
	fits = scenario{
		name:     "A limit that fits",
		about:    "The provider works on 5 requests at once, aiguard's default limit. Its rate limit is 360 requests a minute.",
		provider: aiguardtest.ProviderConfig{Capacity: 5, RPM: 360}, limit: 5,
		loads: loads, until: 5 * time.Minute, outage: true, seeds: true, clients: contenders, columns: allColumns,
	}
	larger = scenario{
		name:     "A larger provider",
		about:    "The provider works on 20 requests at once, and the limit is 20. Its rate limit is 1,440 requests a minute.",
		provider: aiguardtest.ProviderConfig{Capacity: 20, RPM: 1440}, limit: 20,
		loads: []float64{1, 5}, until: 3 * time.Minute, outage: true, clients: contenders, columns: allColumns,
	}
	tooHigh = scenario{
		name: "A limit that is too high",
		about: "The limit is 50, but the provider is fastest with 8 requests. With 16 it does a fifth less work. Further requests get a " +
			"503. Its rate limit is 576 requests a minute.",
		provider: aiguardtest.ProviderConfig{Capacity: 8, Loss: 0.25, MaxActive: 16, RPM: 576}, limit: 50,
		loads: []float64{1, 5, highest}, until: 3 * time.Minute, seeds: true, clients: contenders, columns: calmColumns,
	}
	rateLimit = scenario{
		name:     "A rate limit below the limit",
		about:    "The provider works on 50 requests at once, which is the limit, but allows only 300 a minute.",
		provider: aiguardtest.ProviderConfig{Capacity: 50, RPM: 300}, limit: 50,
		loads: []float64{1, 5, highest}, until: 3 * time.Minute, seeds: true, clients: contenders, columns: rateColumns,
	}
	described = scenario{
		name:     "A rate limit in x-ratelimit headers",
		about:    "The same provider, but every answer has OpenAI's x-ratelimit headers, and the requests of a minute may come at once.",
		provider: aiguardtest.ProviderConfig{Capacity: 50, RPM: 300, RateLimitHeaders: true}, limit: 50,
		loads: []float64{1, 5, highest}, until: 3 * time.Minute, seeds: true, clients: contenders, columns: rateColumns,
	}
	deadlines = scenario{
		name: "Callers with 10 s deadlines",
		about: "The context of every user has a deadline of 10 s. The provider works on 5 requests at once, which is " +
			"the limit, and has no rate limit.",
		provider: aiguardtest.ProviderConfig{Capacity: 5}, limit: 5,
		loads: []float64{1, 2, 5, highest}, until: 5 * time.Minute, seeds: true, clients: contenders, columns: deadlineColumns,
		deadline: true,
	}
	tenants = scenario{
		name: "One tenant at 20 times its share",
		about: "Ten tenants share the provider. Nine of them ask for 8% of its capacity each, and one asks for 200%. " +
			"The provider works on 5 requests at once, which is the limit. The peers do not support tenants.",
		provider: aiguardtest.ProviderConfig{Capacity: 5, RPM: 360}, limit: 5,
		loads: []float64{lightTenants*lightLoad + heavyLoad}, until: 5 * time.Minute, seeds: true, clients: contenders,
		columns: tenantColumns, tenants: true,
	}
	down        = fallback("Fallback: the first choice is down", "refuses connections", aiguardtest.ProviderConfig{OutageFor: 24 * time.Hour})
	paused      = fallback("Fallback: the first choice is paused", "answers 429 with Retry-After: 60", aiguardtest.ProviderConfig{RetryAfter: time.Minute})
	limitedAway = fallback("Fallback: the first choice is rate limited", "answers 429 with Retry-After: 1", aiguardtest.ProviderConfig{RetryAfter: time.Second})

	scenarios = []scenario{fits, larger, tooHigh, rateLimit, described, deadlines, tenants, down, paused, limitedAway}
)

// fallback returns a scenario with two providers behind one guard. The first provider never answers.
func fallback(name, how string, first aiguardtest.ProviderConfig) scenario {
	return scenario{
		name: name,
		about: "aiguard.Fallback asks two providers behind one guard. The first " + how + ". The second is healthy, works on 20 requests at " +
			"once, which is the limit, and has no rate limit.",
		provider: aiguardtest.ProviderConfig{Capacity: 20}, limit: 20, first: &first,
		loads: []float64{0.5}, until: 5 * time.Minute, seeds: true, columns: fallbackColumns,
		clients: []contender{{"aiguard.Fallback", true, withFallback}},
	}
}

// Load of the tenants, as a multiple of the provider's capacity.
const (
	lightTenants = 9
	lightLoad    = 0.08
	heavyLoad    = 2.0
	heavyTenant  = "heavy"
)
