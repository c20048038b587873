package provider

import "time"

// knee searches for the number of requests in flight beyond which more bring no benefit. It runs when drops keep
// showing that the limit is too high. Beyond its capacity a provider works on more requests at once, but answers no
// more per second. It may even answer fewer, long before it drops any. Additive increase and multiplicative decrease
// alone would keep moving between the limit that causes drops and a fraction of it.
//
// knee compares the rates of answers at two limits, each held for some answers: a base, and a trial above it. The
// trial becomes the base if its rate has grown by a fair part of the growth of the limit. If not, the base is
// compared with its half in the same way. If neither is better, the base is kept for a time and then compared with a
// trial again.
//
// knee compares rates and not times, because the time of an answer depends on the request.
type knee struct {
	step    step
	most    float64 // maximum of the limit
	base    float64 // limit; 0: no search
	trial   float64 // limit that is being measured
	rate    float64 // rate of answers at the base
	settled bool    // the base is better than its half

	answers, seconds, drops float64 // counted at the trial
	last                    Instant // time of the last answer
	until                   Instant // end of the time for which the base is kept
}

// step is the current step of a knee.
type step int8

const (
	atBase step = iota
	above
	below
	keep
)

const (
	enoughAnswers = 64  // to measure a rate to a tenth, if answers vary as much as those of a chat
	worthwhile    = 0.4 // fraction of the growth that a proportional rate would have
	keepBase      = 2 * time.Minute
	farAbove      = 1.8 // first trial, as a multiple of the base: easy to tell from it
	justAbove     = 1.4 // second trial
	nearby        = 1.1 // minimum distance of a trial from the base

	// Drops are recurrent if one follows another within this time, but with answers in between.
	againWithin  = time.Minute
	againAnswers = 16
)

// look starts a search below a limit that was too high.
func (k *knee) look(tooHigh, most float64) (limit float64) {
	*k = knee{base: tooHigh / 2, most: most}
	return k.try(atBase, k.base)
}

func (k *knee) try(s step, limit float64) float64 {
	k.step, k.trial = s, limit
	k.answers, k.seconds, k.drops, k.last = 0, 0, 0, 0
	return limit
}

// answered counts answers that came while the limit was in use, and returns the next limit.
func (k *knee) answered(now Instant, answers float64) float64 {
	if k.step == keep {
		if now < k.until {
			return k.base
		}
		return k.try(atBase, k.base) // the provider's capacity may have changed
	}
	if k.last != 0 {
		k.answers += answers
		k.seconds += float64(now-k.last) / float64(time.Second)
	}
	k.last = now
	if k.answers < enoughAnswers {
		return k.trial
	}
	return k.measured(now, k.answers/k.seconds)
}

// unused records that the limit is not in use, so that the time until the next answer is not counted.
func (k *knee) unused() { k.last = 0 }

// dropped counts a drop and returns the next limit. It ignores a few drops.
func (k *knee) dropped(now Instant) float64 {
	if k.drops++; k.drops <= 2+k.answers/20 {
		return k.trial
	}
	if k.step != above {
		return k.look(k.trial, k.most)
	}
	if nearer := (k.base + k.trial) / 2; nearer >= nearby*k.base {
		return k.try(above, nearer)
	}
	return k.notAbove(now)
}

// measured decides the step after a measurement.
func (k *knee) measured(now Instant, rate float64) float64 {
	switch k.step {
	case atBase:
		k.rate = rate
		return k.higher(now, farAbove)
	case above:
		if !grows(k.rate, rate, k.base, k.trial) {
			return k.notAbove(now)
		}
		k.base, k.rate, k.settled = k.trial, rate, true
		return k.higher(now, farAbove)
	default:
		if k.settled = grows(rate, k.rate, k.trial, k.base); k.settled {
			return k.higher(now, justAbove)
		}
		k.base, k.rate = k.trial, rate
		return k.try(below, k.base/2)
	}
}

// higher tries a multiple of the base, or the maximum.
func (k *knee) higher(now Instant, times float64) float64 {
	limit := min(k.base*times, k.most)
	if limit < k.base*nearby {
		k.trial = limit
		return k.notAbove(now)
	}
	return k.try(above, limit)
}

// notAbove continues after a trial above the base brought no benefit.
func (k *knee) notAbove(now Instant) float64 {
	switch {
	case !k.settled && k.base > 2:
		return k.try(below, k.base/2)
	case k.settled && k.trial > k.base*justAbove:
		return k.higher(now, justAbove)
	}
	k.settled, k.until = true, now+Instant(keepBase)
	return k.try(keep, k.base)
}

// grows reports whether the rate has grown enough with the limit.
func grows(rate, to, limit, limitTo float64) bool {
	return to/rate-1 >= worthwhile*(limitTo/limit-1)
}
