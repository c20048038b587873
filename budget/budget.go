// Package budget limits what calls may spend: calls, tokens or money, per minute, hour, day or month, for each tenant, model
// or key of your own, and for each run of an agent.
//
//	b, err := budget.New(budget.Config{
//		Prices: map[string]budget.Price{"gpt-4o-mini*": {Input: 0.15 * budget.Unit, Output: 0.60 * budget.Unit}},
//		Limits: []budget.Limit{{Name: "tenant and day", Cost: 5 * budget.Unit, Per: budget.Tenant, Window: budget.Day}},
//	})
//	guard, err := aiguard.New(aiguard.Config{Budget: b})
//
//	ctx = budget.WithRun(ctx, budget.Run{Calls: 20, Cost: 0.10 * budget.Unit, Time: time.Minute})
//
// Each attempt reserves the most that it can use before it is sent. When it ends, its usage replaces the reservation: the
// usage that the answer reports, an estimate if it reports none, or nothing if the attempt was not sent or the provider
// refused it. See aiguard.Budget. Concurrent calls therefore never spend the same money twice. A limit is as exact as the
// estimates. An answer can use more than was reserved, for example if the prompt has images. The sum then exceeds the
// limit, and the next call is rejected.
//
// An attempt counts as a call if it was sent and the provider did not refuse it. A Do counts as one call. If it makes
// guarded calls of the same Guard, those count instead.
//
// A rejected call fails with aiguard.ErrBudget. Error.RetryAfter is the time to the end of the window, or until the oldest
// part of a sliding window ends. It is 0 for a run, and for a call that needs more than the whole limit.
package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/bymodel"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// DefaultStoreTimeout is the default of Config.StoreTimeout.
const DefaultStoreTimeout = 2 * time.Second

// Config configures a Budget. The zero Config is valid: it has no limits, and only runs are limited.
type Config struct {
	// Prices are the prices of models, all in the same currency. A key is a model's name, or a prefix that ends in "*". The
	// longest matching key applies. Default none
	Prices map[string]Price

	// FreeUnpriced counts a call of a model without a price as free. Otherwise a call that needs a price is rejected with
	// aiguard.ErrMisconfigured. Default false
	FreeUnpriced bool

	Limits   []Limit        // a call must fit into all of them. Default none
	Location *time.Location // time zone of days and months. Default UTC

	// Store keeps what was spent in windows. If a process crashes, the reservations of its calls in flight count as spent
	// until the window ends. Default NewMemory()
	Store             Store
	StoreTimeout      time.Duration // longest wait for a Store other than Memory. Default 2s
	AllowWithoutStore bool          // allow calls, uncounted, while the Store fails; otherwise they fail with aiguard.ErrUnavailable. Default false

	// OnSoft is called when the spending reaches the Soft fraction of a limit. It is called once per key and window, in the
	// goroutine of the call. With more than 10,000 keys, it may be called again for the same key. Default none
	OnSoft func(context.Context, Reached)

	// Logger logs when the Store begins to fail, and when it works again, at most once a second. Default none
	Logger *slog.Logger
}

// Reached describes a limit that is nearly spent.
type Reached struct {
	Limit string // Limit.Name
	Key   string // such as the tenant or the model
	What  string // "calls", "tokens" or "cost"
	Spent int64  // includes the reservations of calls in flight; cost is in billionths
	Max   int64
	Until time.Time // end of the window; for a sliding window, the next time at which a part of it ends
}

// String describes what was spent. It leaves out Key, which users may have chosen.
func (r Reached) String() string {
	u := unitOf(r.What)
	return fmt.Sprintf("limit %q: %s %s of %s spent, until %s", clip(printable(r.Limit), 64), r.What, u.print(r.Spent), u.print(r.Max), r.Until.Format(time.RFC3339))
}

// Budget is an aiguard.Budget. Several Guards may share it. It is safe for concurrent use. Create it with New.
type Budget struct {
	cfg    Config
	prices bymodel.Map[Price]
	local  bool        // the store is a Memory
	broken atomic.Bool // the Store, as the log says

	mu     sync.Mutex
	told   map[string]int64 // by key: the slot for which OnSoft was called
	logged time.Time        // the last line about the Store
}

var _ aiguard.Budget = (*Budget)(nil)

// New returns a Budget. If a field is out of range, New returns an error that names the field.
func New(cfg Config) (*Budget, error) {
	var mistakes []error
	mistake := func(format string, args ...any) {
		mistakes = append(mistakes, fmt.Errorf("budget: Config."+format, args...))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Prices)) {
		p := cfg.Prices[name]
		if !bymodel.IsKey(name) {
			mistake("Prices: name is %q; want "+bymodel.WantKey, name)
		}
		for _, m := range []Money{p.Input, p.CachedInput, p.CacheWrite, p.Output} {
			if m < 0 || m > maxPrice {
				mistake("Prices[%q] has %v; want prices from 0 to %v per million tokens", name, m, Money(maxPrice))
			}
		}
	}
	seen := make(map[string]bool)
	for i := range cfg.Limits {
		l := &cfg.Limits[i]
		if text := l.mistake(); text != "" {
			mistake("Limits[%d]: %s", i, text)
		} else if seen[l.Name] {
			mistake("Limits[%d]: Name is %q; want one that no other limit has", i, l.Name)
		} else if l.Cost > 0 && len(cfg.Prices) == 0 {
			mistake("Limits[%d]: Cost is %v; want Prices to be set with it", i, l.Cost)
		}
		seen[l.Name] = true
	}
	if cfg.Store != nil && errtree.IsNil(cfg.Store) {
		mistake("Store is a nil %T; want a Store, or nil for a Memory", cfg.Store)
	}
	if cfg.StoreTimeout < 0 {
		mistake("StoreTimeout is %v; want a positive duration, or 0 for the default", cfg.StoreTimeout)
	}
	if mistakes != nil {
		return nil, errors.Join(mistakes...)
	}
	if cfg.StoreTimeout == 0 {
		cfg.StoreTimeout = DefaultStoreTimeout
	}
	if cfg.Location == nil {
		cfg.Location = time.UTC
	}
	if cfg.Store == nil {
		cfg.Store = NewMemory()
	}
	cfg.Limits = slices.Clone(cfg.Limits)
	_, local := cfg.Store.(*Memory)
	return &Budget{cfg: cfg, prices: bymodel.New(cfg.Prices), local: local, told: make(map[string]int64)}, nil
}

// Reserve implements aiguard.Budget.
func (b *Budget) Reserve(ctx context.Context, call aiguard.Call, most aiguard.Usage) (settle func(aiguard.Usage), err error) {
	h := &hold{Budget: b, ctx: context.WithoutCancel(ctx), model: call.Model, run: runOf(ctx)}
	if err := h.value(ctx, call, most); err != nil {
		return nil, err
	}
	if err := h.run.reserve(h.amounts); err != nil {
		return nil, err
	}
	spent := false
	defer func() {
		if !spent { // refused, or the Store panics
			h.run.settle(h.amounts, amounts{}, "", false, true)
		}
	}()
	if err := h.spend(); err != nil {
		return nil, err
	}
	spent = true
	return h.settle, nil
}

// hold is a reservation.
type hold struct {
	*Budget
	amounts
	ctx     context.Context
	model   string
	price   Price
	priced  bool
	run     *run
	limits  []part
	charges []Charge // of limits
	sums    []Sum
	once    sync.Once
}

// part is a limit that applies.
type part struct {
	*Limit
	key string
}

// value computes what the call takes of each limit. It rejects a call that needs a price and has none.
func (h *hold) value(ctx context.Context, call aiguard.Call, most aiguard.Usage) error {
	now := time.Now()
	needsPrice := h.run.limitsCost()
	for i := range h.cfg.Limits {
		l := &h.cfg.Limits[i]
		key, applies := "", true
		if l.Per != nil {
			key, applies = l.Per(ctx, call)
		}
		if applies {
			h.limits = append(h.limits, part{l, key})
			needsPrice = needsPrice || l.Cost > 0
		}
	}
	most = sane(most)
	h.price, _, h.priced = h.prices.Find(call.Model)
	nameless := call.Model == "" && most.Input+most.Output == 0 // a Do, or a request that is no inference
	if !h.priced && needsPrice && !nameless && !h.cfg.FreeUnpriced {
		return &aiguard.Error{Kind: aiguard.ErrMisconfigured, Phase: aiguard.PhaseBudget, Err: unpriced{call.Model}}
	}
	h.amounts = h.worth(most)
	h.calls = 1
	for _, l := range h.limits {
		h.charges = append(h.charges, l.charge(l.key, h.of(l.unit()), now, h.cfg.Location))
	}
	return nil
}

func (b *hold) worth(u aiguard.Usage) amounts {
	return amounts{tokens: u.Input + u.Output, cost: int64(b.price.cost(u))}
}

// spend takes the call's amounts from the limits.
func (h *hold) spend() error {
	if len(h.charges) == 0 {
		return nil
	}
	sums, spent, err := h.store(h.ctx, h.charges)
	switch {
	case err != nil && h.cfg.AllowWithoutStore:
		h.limits, h.charges = nil, nil
		return nil
	case err != nil:
		return &aiguard.Error{Kind: aiguard.ErrUnavailable, Phase: aiguard.PhaseBudget, Err: err}
	case spent:
		h.sums = sums
		return nil
	}
	return h.refusal(sums)
}

// refusal returns the error for the exceeded limit. If there are several, it is the one that lasts longest.
func (h *hold) refusal(sums []Sum) error {
	e := &aiguard.Error{Kind: aiguard.ErrBudget, Phase: aiguard.PhaseBudget}
	now := time.Now()
	for i, l := range h.limits {
		c := &h.charges[i]
		if sums[i].Spent <= c.Max-c.Amount {
			continue
		}
		wait := max(l.next(c, sums[i].Oldest).Sub(now), time.Second)
		never := c.Amount > c.Max
		if e.Err != nil && !never && (e.RetryAfter == 0 || wait <= e.RetryAfter) {
			continue
		}
		if e.RetryAfter = wait; never {
			e.RetryAfter = 0
		}
		e.Err = &Exceeded{Limit: l.Name, Key: l.key, What: l.unit().String(), Spent: sums[i].Spent, Asked: c.Amount, Max: c.Max}
	}
	return e
}

// settle is the function that Reserve returns. Its second call does nothing.
func (h *hold) settle(used aiguard.Usage) { h.once.Do(func() { h.settleOnce(used) }) }

func (h *hold) settleOnce(used aiguard.Usage) {
	u := amounts{}
	if used != (aiguard.Usage{}) {
		u = h.worth(sane(used))
		u.calls = 1
	}
	h.run.settle(h.amounts, u, h.model, used.Estimated, h.priced)
	if len(h.charges) == 0 {
		return
	}
	changed := make([]Charge, 0, len(h.charges))
	at := make([]int, 0, len(h.charges))
	for i, l := range h.limits {
		c := h.charges[i]
		if c.Amount = u.of(l.unit()) - h.of(l.unit()); c.Amount != 0 {
			c.Max = math.MaxInt64
			changed, at = append(changed, c), append(at, i)
		}
	}
	if len(changed) > 0 {
		sums, _, err := h.store(h.ctx, changed)
		if err != nil {
			return // what was reserved stays spent
		}
		for j, i := range at {
			h.sums[i] = sums[j]
		}
	}
	h.tell()
}

// store calls the Store. It logs the first of several errors in a row.
func (b *Budget) store(ctx context.Context, charges []Charge) (sums []Sum, spent bool, err error) {
	if b.local {
		return b.cfg.Store.Spend(ctx, charges)
	}
	sctx, cancel := context.WithTimeout(ctx, b.cfg.StoreTimeout)
	defer cancel()
	sums, spent, err = b.cfg.Store.Spend(sctx, charges)
	if err == nil && len(sums) != len(charges) {
		err = fmt.Errorf("budget: Store returned %d sums for %d charges", len(sums), len(charges))
	}
	if broken := err != nil; b.cfg.Logger != nil && b.broken.Load() != broken && b.turned(broken) {
		if broken {
			b.cfg.Logger.ErrorContext(ctx, "budget: store failed", "error", err, "calls_allowed", b.cfg.AllowWithoutStore)
		} else {
			b.cfg.Logger.InfoContext(ctx, "budget: store works again")
		}
	}
	return sums, spent, err
}

// logInterval is the shortest time between two log lines about the Store.
const logInterval = time.Second

// turned reports whether to log that the Store has failed or works again.
func (b *Budget) turned(broken bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.broken.Load() == broken || now.Sub(b.logged) < logInterval {
		return false
	}
	b.logged = now
	b.broken.Store(broken)
	return true
}

// tell calls OnSoft for the limits whose Soft fraction is reached.
func (h *hold) tell() {
	if h.cfg.OnSoft == nil {
		return
	}
	for i, l := range h.limits {
		c, sum := &h.charges[i], h.sums[i]
		if l.reached(sum.Spent) && h.first(c, l.Sliding) {
			h.cfg.OnSoft(h.ctx, Reached{Limit: l.Name, Key: l.key, What: l.unit().String(), Spent: sum.Spent, Max: c.Max, Until: l.next(c, sum.Oldest)})
		}
	}
}

// first reports whether OnSoft has not been called for the charge's window. A sliding window counts as a new one when
// nothing of the old one is left.
func (b *Budget) first(c *Charge, sliding bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if told, ok := b.told[c.Key]; ok && (told == c.Slot || sliding && told >= c.Since) {
		return false
	}
	if len(b.told) >= maxKeys {
		clear(b.told)
	}
	b.told[c.Key] = c.Slot
	return true
}
