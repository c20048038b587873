package otelguard

import (
	"context"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/budget"
)

// BudgetReached is a function for the OnSoft of a budget.Config. The gauge aiguard.budget.reached counts the keys that have
// nearly spent a limit. A key counts until its window ends.
func (t *Telemetry) BudgetReached(_ context.Context, r budget.Reached) {
	t.budgets.add(budgetLimit{t.budgets.names.bound(r.Limit), r.What}, r.Key, r.Until, time.Now())
}

// budgetLimit is a limit of package budget, as its labels name it.
type budgetLimit struct{ name, unit string }

// budgets are the limits that are nearly spent.
type budgets struct {
	names values

	mu sync.Mutex
	m  map[budgetLimit]map[string]time.Time // of each key, the end of its window
}

// maxBudgetKeys is the maximum number of keys of a limit that are counted. Further keys do not count.
const maxBudgetKeys = 10_000

func (b *budgets) add(limit budgetLimit, key string, until, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keys := b.m[limit]
	if keys == nil {
		if b.m == nil {
			b.m = make(map[budgetLimit]map[string]time.Time)
		}
		keys = make(map[string]time.Time)
		b.m[limit] = keys
	}
	if len(keys) >= maxBudgetKeys {
		forget(keys, now)
	}
	if len(keys) < maxBudgetKeys {
		keys[key] = until
	}
}

// reached returns how many keys have nearly spent each limit. A limit stays in the result with 0 after its windows ended.
func (b *budgets) reached(now time.Time) map[budgetLimit]int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	counts := make(map[budgetLimit]int64, len(b.m))
	for limit, keys := range b.m {
		forget(keys, now)
		counts[limit] = int64(len(keys))
	}
	return counts
}

// forget drops the keys whose windows have ended.
func forget(keys map[string]time.Time, now time.Time) {
	for key, until := range keys {
		if !until.After(now) {
			delete(keys, key)
		}
	}
}
