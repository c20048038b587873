package aiguard

import (
	"cmp"
	"slices"

	"github.com/aiguard-go/aiguard/internal/line"
)

// TenantStats describes one tenant's use of the Guard. The first fields are gauges, the others are counters.
type TenantStats struct {
	Tenant            string // cut to 128 bytes, without unprintable characters
	InFlight, Waiting int64  // weight in flight, calls waiting
	Calls, Refused    int64  // calls admitted; calls rejected by the queue
}

// PriorityStats has the same numbers for one priority.
type PriorityStats struct {
	InFlight, Waiting int64
	Refused           int64
}

// tenants holds the known tenants. It keeps those with calls in flight or waiting, and the busiest maxTenants of the
// others, so tenant names from users cannot grow it without bound.
type tenants struct {
	m    map[string]*tenant
	none tenant // Tenant ""
	rest tenant // stands for all tenants that were rejected while unknown
}

const (
	maxTenants    = 1000
	maxTenantName = 256 // bytes
)

// tenant is the state of one tenant, guarded by the limiter's mutex.
type tenant struct {
	name     string
	line     line.Tenant[*inLine]
	inFlight int64
	calls    int64
	refused  int64
}

func (ts *tenants) init() { ts.m = make(map[string]*tenant) }

// get returns the tenant of that name and makes it if necessary.
func (ts *tenants) get(name string) *tenant {
	if name == "" {
		return &ts.none
	}
	t := ts.m[name]
	if t == nil {
		if len(ts.m) >= 2*maxTenants {
			ts.prune()
		}
		t = &tenant{name: name}
		ts.m[name] = t
	}
	return t
}

// peek is like get, but does not make a tenant, because the call may be rejected.
func (ts *tenants) peek(name string) *tenant {
	if name == "" {
		return &ts.none
	}
	if t := ts.m[name]; t != nil {
		return t
	}
	return &ts.rest
}

// prune removes the least busy idle tenants until maxTenants are left. It runs once per maxTenants new tenants.
func (ts *tenants) prune() {
	var idle []*tenant
	for _, t := range ts.m {
		if t.inFlight == 0 && t.line.Waiting() == 0 {
			idle = append(idle, t)
		}
	}
	slices.SortFunc(idle, func(a, b *tenant) int { return cmp.Compare(a.calls+a.refused, b.calls+b.refused) })
	for _, t := range idle[:min(len(idle), len(ts.m)-maxTenants)] {
		delete(ts.m, t.name)
	}
}

// stats returns the busiest maxTenants tenants, the busiest first.
func (ts *tenants) stats() []TenantStats {
	if len(ts.m) == 0 {
		return nil
	}
	all := make([]TenantStats, 0, len(ts.m)+1)
	for _, t := range ts.m {
		all = append(all, t.stats())
	}
	if ts.none.calls > 0 {
		all = append(all, ts.none.stats())
	}
	slices.SortFunc(all, func(a, b TenantStats) int {
		return cmp.Or(cmp.Compare(b.Calls+b.Refused, a.Calls+a.Refused), cmp.Compare(a.Tenant, b.Tenant))
	})
	return all[:min(len(all), maxTenants)]
}

func (t *tenant) stats() TenantStats {
	return TenantStats{Tenant: short(t.name), InFlight: t.inFlight, Waiting: int64(t.line.Waiting()), Calls: t.calls, Refused: t.refused}
}
