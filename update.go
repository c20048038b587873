package aiguard

// This file: the configuration in effect, and its replacement while the guard runs.

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard/internal/bymodel"
)

// live is a configuration in effect. It does not change. The settings of a call refer to the configuration that was
// in effect when the call began, so that a call never mixes two.
type live struct {
	version int64  // 1 for the configuration given to New
	given   Config // as the user gave it
	cfg     Config // with defaults in place of zero fields
	models  bymodel.Map[Call]
}

// newLive validates cfg and completes it.
func newLive(cfg Config) (*live, error) {
	cfg.keepDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg.Middleware, cfg.Models, cfg.aliases = slices.Clone(cfg.Middleware), maps.Clone(cfg.Models), nil
	if cfg.Limiter != nil && !reflect.ValueOf(cfg.Limiter).Comparable() {
		cfg.Limiter = &comparableLimiter{cfg.Limiter}
	}
	l := &live{version: 1, given: cfg, cfg: cfg, models: bymodel.New(cfg.Models)}
	l.cfg.setDefaults()
	return l, nil
}

// comparableLimiter holds a Limiter of a type that Go cannot compare, such as a function.
type comparableLimiter struct{ Limiter }

// keepDefaults sets fields of a Config from Guard.Config back to zero if they have a default that depends on other
// fields. They then follow changes of those fields.
func (c *Config) keepDefaults() {
	if c.from == nil {
		return
	}
	reported, given := &c.from.cfg, &c.from.given
	c.from = nil
	keep(&c.TotalTimeout, reported.TotalTimeout, given.TotalTimeout)
	keep(&c.MinConcurrent, reported.MinConcurrent, given.MinConcurrent)
	keep(&c.MaxBackground, reported.MaxBackground, given.MaxBackground)
	keep(&c.MemoryLimit, reported.MemoryLimit, given.MemoryLimit)
	keep(&c.Retry.BaseDelay, reported.Retry.BaseDelay, given.Retry.BaseDelay)
	keep(&c.Retry.MaxDelay, reported.Retry.MaxDelay, given.Retry.MaxDelay)
}

func keep[T int64 | time.Duration](field *T, reported, given T) {
	if *field == reported {
		*field = given
	}
}

// Config returns the settings in effect: the Config given to New or Update, with defaults in place of zero fields. If
// it is changed and given to Update, the defaults that depend on other fields, such as TotalTimeout, follow these.
func (g *Guard) Config() Config {
	g.must("Config")
	l := g.current.Load()
	cfg := l.cfg
	cfg.from = l
	cfg.Middleware, cfg.Models = slices.Clone(cfg.Middleware), maps.Clone(cfg.Models)
	return cfg
}

// Update replaces the configuration of g and of all Guards that share its limits:
//
//	cfg := g.Config()
//	cfg.MaxConcurrent = 20
//	err := g.Update(cfg)
//
// cfg is the whole new configuration. A zero field selects the default, as in New. Update applies either all of cfg or
// nothing. It returns an error that names each field that New would reject. Limiter cannot change. After Shutdown or
// Close, Update returns ErrClosed. Concurrent Updates are applied one after the other. Stats.ConfigVersion counts
// them.
//
// The limits of the queue, the routes and the memory change at once, also for calls that wait. A higher limit admits
// waiting calls before Update returns. With a lower limit, the calls in flight continue, and no call is admitted until
// the weight in flight is below it. A waiting call with more Weight than the new MaxConcurrent fails with
// ErrOverloaded. Waiting calls keep their places even if there are more of them than the new MaxQueue. A shorter
// QueueTimeout also ends waits that have begun, and a longer one applies to later waits. A route keeps its pause, its
// outage, its retry tokens and the limit that it has adapted to, within the new bounds.
//
// All other settings apply to calls that begin after Update. A call that has begun keeps the timeouts, limits, retry
// rules, Budget, Middleware, OnEvent and Logger that it began with. The Guard's own pool connects within the new
// CallTimeout. What took defaults from the Guard's settings when it was made, such as the middleware of
// httpguard.Limit, keeps them.
func (g *Guard) Update(cfg Config) error {
	g.must("Update")
	l, err := newLive(cfg)
	if err != nil {
		return err
	}
	if err := g.replace(l); err != nil {
		return err
	}
	cfg.logAliases()
	return nil
}

// replace puts l into effect.
func (c *core) replace(l *live) error {
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	old := c.current.Load()
	switch {
	case c.ring.closing.Load():
		return &Error{Kind: ErrClosed}
	case l.cfg.Limiter != old.cfg.Limiter:
		return errors.New("aiguard: Config.Limiter differs from the one given to New, which cannot change; start from Guard.Config")
	}
	l.version = old.version + 1
	c.memory.configure(l.cfg.MemoryLimit, l.cfg.MaxEventBytes)
	c.pool.configure(&l.cfg)
	c.limiter.update(&l.cfg)
	c.current.Store(l)
	return nil
}

// update applies a new configuration to the line and the routes, and reconsiders who waits. The caller holds the lock.
func (l *limiter) update(cfg *Config) {
	now := l.now()
	l.configure(cfg)
	l.budget.SetRatio(cfg.Retry.Budget)
	l.routes.configure(cfg, now)
	for i := len(l.line.Busy()) - 1; i >= 0; i-- { // backward, because a finished route is replaced by one already seen
		for w := l.line.Busy()[i].Oldest(); w != nil; {
			waiting := w.Value
			w = w.Behind()
			if l.fits(waiting.Weight) != nil {
				waiting.most = l.line.Capacity
				waiting.dismiss(tooHeavy)
				continue
			}
			waiting.shorten(l.patience)
		}
	}
	l.sweep(now)
}
