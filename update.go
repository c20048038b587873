package aiguard

// This file: the configuration in effect.

import (
	"maps"
	"slices"
)

// live is a configuration in effect. It does not change. The settings of a call refer to the configuration that was
// in effect when the call began, so a call uses one configuration from beginning to end.
type live struct {
	cfg      Config // with defaults in place of zero fields
	ownTotal bool   // TotalTimeout was set by the user
	models   models
}

// newLive returns the configuration that a valid cfg describes.
func newLive(cfg Config) *live {
	l := &live{cfg: cfg, ownTotal: cfg.TotalTimeout != 0}
	l.cfg.setDefaults()
	l.cfg.Middleware, l.cfg.Models = slices.Clone(cfg.Middleware), maps.Clone(cfg.Models)
	l.models = newModels(l.cfg.Models)
	return l
}
