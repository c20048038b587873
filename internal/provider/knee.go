package provider

import "time"

// knee finds how many requests in flight are worth while, where drops keep showing that there can be too many. Beyond its
// capacity a provider works on more requests at once, but answers no more of them; it may even answer fewer, long before
// it drops any. Additive increase and multiplicative decrease would go on between the drops and a part of that.
//
// So the rates of answers at two limits are compared, each held for some answers: at a base, and at a trial above it. The
// trial becomes the base if its rate has grown by a fair part of what the limit has. If not, the base is compared with
// its half in the same way. When neither is better the base is kept for a time, and then compared with a trial again.
//
// It compares rates and not times: how long an answer takes depends on what was asked.
type knee struct {
	step    step
	most    float64 // that the limit may be
	base    float64 // limit; 0: nothing is being looked for
	trial   float64 // the limit that is being measured
	rate    float64 // of answers at the base
	settled bool    // the base is better than its half

	answers, seconds, drops float64 // at the trial
	last                    Instant // answer
	until                   Instant // while the base is kept
}

// step is what the trial of a knee is.
type step int8

const (
	atBase step = iota
	above
	below
	keep
)

const (
	enoughAnswers = 64  // to measure a rate to a tenth, if answers differ as much as those of a chat
	worthwhile    = 0.4 // of the growth that there would be if the rate grew with the limit
	keepBase      = 2 * time.Minute
	farAbove      = 1.8 // times the base: the first trial, which is easy to tell from it
	justAbove     = 1.4 // the second
	nearby        = 1.1 // no trial is nearer to the base

	// Drops come again and again if one follows another this soon, but not without answers between.
	againWithin  = time.Minute
	againAnswers = 16
)

// look begins to look below a limit that was too high.
func (k *knee) look(tooHigh, most float64) (limit float64) {
	*k = knee{base: tooHigh / 2, most: most}
	return k.try(atBase, k.base)
}

func (k *knee) try(s step, limit float64) float64 {
	k.step, k.trial = s, limit
	k.answers, k.seconds, k.drops, k.last = 0, 0, 0, 0
	return limit
}

// answered counts answers that came while the limit was in use, and returns the limit to go on with.
func (k *knee) answered(now Instant, answers float64) float64 {
	if k.step == keep {
		if now < k.until {
			return k.base
		}
		return k.try(atBase, k.base) // what the provider can do may have changed
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

// unused notes that the limit is not in use: the time until the next answer says nothing.
func (k *knee) unused() { k.last = 0 }

// dropped counts a drop, and returns the limit to go on with. A few drops are nothing to look at.
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

// measured decides what comes after a measurement.
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

// higher tries a limit so many times the base, or the most there may be.
func (k *knee) higher(now Instant, times float64) float64 {
	limit := min(k.base*times, k.most)
	if limit < k.base*nearby {
		k.trial = limit
		return k.notAbove(now)
	}
	return k.try(above, limit)
}

// notAbove goes on where a trial above the base has brought nothing.
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
