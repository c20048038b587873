package provider

import (
	"math"
	"time"
)

// window is a limit that follows the provider's capacity between Config.Least and Most, as TCP's congestion window
// does (RFC 5681). It starts at Most. Each full round of answers raises it by one, but only while it is in use. A
// drop lowers it by a fraction, once for all requests that were sent before. After a pause or an outage it starts at
// half and grows by one per answer until it reaches the threshold. Response times are not used, because long answers
// are not congestion.
type window struct {
	limit     float64
	threshold float64 // below it each answer adds a whole unit
	lowered   Instant // when the limit was lowered
	before    float64 // limit at the first drop since the last answer; 0: no drop
	inFlight  int64   // weight
	answers   int     // since the limit was lowered
	knee      knee
}

const (
	decrease = 0.7 // as CUBIC (RFC 9438): halving would leave more of the provider idle

	// reopenAlone is the threshold of a route without a limit: this many answers are enough proof.
	reopenAlone = 16
)

// room returns the available weight. A weight above the limit is admitted alone.
func (w *window) room() int64 {
	switch {
	case w.inFlight == 0, math.IsInf(w.limit, 1):
		return math.MaxInt64
	case float64(w.inFlight) >= w.limit:
		return 0
	}
	return int64(w.limit) - w.inFlight
}

// reconfigure applies new bounds. A limit at the old maximum follows the maximum. A lower one stays as it is, within
// the new bounds.
func (w *window) reconfigure(old, cfg *Config) {
	if cfg.Least == old.Least && cfg.Most == old.Most {
		return
	}
	follow := func(limit float64) float64 {
		if limit >= old.Most || cfg.Least >= cfg.Most {
			return cfg.Most
		}
		return cfg.bound(limit)
	}
	reopening := w.limit < w.threshold
	w.threshold = follow(w.threshold)
	if reopening { // it grows to the threshold
		w.limit = min(w.limit, w.threshold)
	} else {
		w.limit = follow(w.limit)
	}
	if w.before != 0 {
		w.before = follow(w.before)
	}
	w.knee = knee{} // what it has measured may be out of bounds
}

func (w *window) answered(now Instant, weight int64, busy bool, cfg *Config) {
	w.before = 0
	w.answers++
	inUse := busy && float64(w.inFlight) > w.limit-1
	switch {
	case w.limit < w.threshold:
		w.limit = min(w.limit+float64(weight), w.threshold)
		if w.limit >= reopenAlone && math.IsInf(cfg.Most, 1) {
			w.limit, w.threshold = cfg.Most, cfg.Most
		}
	case w.knee.base != 0 && inUse:
		w.set(w.knee.answered(now, float64(weight)), cfg)
	case w.knee.base != 0:
		w.knee.unused()
	case busy || float64(2*w.inFlight) >= w.limit:
		w.limit = min(w.limit+min(float64(weight)/w.limit, 1), cfg.Most)
	}
}

// set sets the limit, within its bounds.
func (w *window) set(limit float64, cfg *Config) {
	w.limit = cfg.bound(limit)
	w.threshold = w.limit
}

func (c *Config) bound(limit float64) float64 { return min(max(limit, c.Least), c.Most) }

// drop lowers the limit after a request that was sent at the given time has failed. limited is true for a 429, which
// does not show how many concurrent requests the provider can serve.
func (w *window) drop(now, sent Instant, limited bool, cfg *Config) {
	if sent < w.lowered || cfg.Least >= cfg.Most {
		return
	}
	again := time.Duration(now-w.lowered) < againWithin && w.answers >= againAnswers
	w.lowered, w.answers = now, 0
	if w.before == 0 {
		w.before = w.limit
	}
	switch {
	case limited:
		w.knee = knee{}
		w.set(w.limit*decrease, cfg)
	case w.knee.base != 0:
		w.set(w.knee.dropped(now), cfg)
	case again:
		w.set(w.knee.look(w.limit, cfg.Most), cfg)
	default:
		w.set(w.limit*decrease, cfg)
	}
}

// reopen starts again on the way to a previous limit.
func (w *window) reopen(before float64, cfg *Config) {
	if before == 0 {
		before = cfg.Most
	}
	w.threshold = before
	w.limit = max(before/2, min(cfg.Least, before), 1)
	if math.IsInf(before, 1) {
		w.limit = 1
	}
	w.before = 0
}

// restore returns to the limit from before an outage, because an outage says nothing about the provider's capacity:
// half of it at once, and one more per answer.
func (w *window) restore() {
	w.threshold = max(w.limit, w.before)
	w.limit, w.before = max(w.threshold/2, 1), 0
	w.knee = knee{}
}
