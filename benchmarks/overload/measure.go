package main

import (
	"cmp"
	"math"
	"net/http"
	"slices"
	"time"
)

const (
	grain   = 0.1                    // resolution of the recovery, in seconds
	window  = 2 * time.Second        // over which the recovery is averaged
	atOnce  = 100 * time.Millisecond // limit for an immediate refusal
	settled = 5                      // number of calls after which a fallback should avoid its first choice
)

// figures are the measurements of a run. Rates are relative to the provider's capacity, shares are of calls.
type figures struct {
	goodput           float64
	requestsPerAnswer float64
	p50, p99          time.Duration // of answered calls
	refused, gaveUp   float64
	refusedAfter      time.Duration // p99 of refused calls
	recovery          time.Duration // since the end of the outage
	limited           int           // requests that got a 429 and were sent after the first answer

	// For callers with deadlines.
	refusedAtOnce float64 // share of refusals; NaN: no refusals
	timedOut      float64 // calls without an error whose requests did not reach the provider in time for an answer
	couldHave     float64 // share of refusals for which there was room

	// For tenants.
	lightest, heavy float64 // share of answered calls: of the light tenant with the lowest share, and of the heavy tenant

	// For a fallback.
	settledP99    time.Duration // time to an answer, without the first calls
	askedFirst    float64       // requests to the first choice per call
	answeredShare float64
}

func (r run) measure(calls []*call, log, firsts []served) (f figures) {
	var took, refusedAfter, settledTook []time.Duration
	var n, useful, gone float64
	for _, c := range calls {
		if c.id >= settled {
			settledTook = append(settledTook, c.untilAnswer())
		}
		if c.asked < warmUp {
			continue
		}
		n++
		switch c.end {
		case answered:
			took = append(took, c.took)
		case refused:
			refusedAfter = append(refusedAfter, c.took)
		case gaveUp:
			gone++
		}
	}
	for _, c := range calls {
		if at := c.asked + c.took; c.end == answered && at >= warmUp && at < r.until {
			useful++
		}
	}
	requests := 0.
	for _, s := range log {
		if s.from >= warmUp && s.from < r.until {
			requests++
		}
	}
	up := (r.until - warmUp - r.provider.OutageFor).Seconds()
	f.goodput = useful / up / r.answersPerSecond()
	f.requestsPerAnswer = requests / useful
	f.p50, f.p99 = percentile(took, 0.5), percentile(took, 0.99)
	f.refused, f.gaveUp = float64(len(refusedAfter))/n, gone/n
	f.refusedAfter = percentile(refusedAfter, 0.99)
	f.recovery = r.recovery(log)
	f.limited = limited(log)
	f.settledP99 = percentile(settledTook, 0.99)
	f.askedFirst = float64(len(firsts)) / float64(len(calls))
	f.answeredShare = float64(len(took)) / n
	if r.deadline {
		r.measureDeadlines(&f, calls, log)
	}
	if r.tenants {
		f.lightest, f.heavy = tenantShares(calls)
	}
	return f
}

// never is the duration until something that does not happen.
const never = time.Duration(math.MaxInt64)

// untilAnswer returns how long the user waited for the answer.
func (c *call) untilAnswer() time.Duration {
	if c.end != answered {
		return never
	}
	return c.took
}

func percentile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return never
	}
	slices.Sort(d)
	return d[int(math.Ceil(q*float64(len(d))))-1]
}

// limited returns the number of 429s for requests that were sent after the first answer.
func limited(log []served) (n int) {
	first := never
	for _, s := range log {
		if s.status == http.StatusOK {
			first = min(first, s.to)
		}
	}
	for _, s := range log {
		if s.status == http.StatusTooManyRequests && s.from > first {
			n++
		}
	}
	return n
}

// measureDeadlines measures the time of refusals, timeouts in the queue, and refused calls for which there was room.
func (r run) measureDeadlines(f *figures, calls []*call, log []served) {
	inTime := make(map[*call]bool)
	for _, s := range log {
		if s.from+s.call.work <= s.call.asked+r.patience {
			inTime[s.call] = true
		}
	}
	var n, refusals, soon, timedOut float64
	for _, c := range calls {
		if c.asked < warmUp {
			continue
		}
		n++
		if c.end == refused {
			refusals++
			if c.took <= atOnce {
				soon++
			}
		}
		if c.end == gaveUp && !inTime[c] {
			timedOut++
		}
	}
	f.timedOut = timedOut / n
	f.refusedAtOnce, f.couldHave = soon/refusals, min(r.idle(calls, log)/meanWork.Seconds()/refusals, 1)
}

// idle returns the total idle time of the provider's slots, in seconds, during which a refused call could have been
// served. A refused call could be served while its deadline is further away than its work takes. A slot is idle unless
// it works for a call that gets an answer. At each moment idle counts at most as many slots as there are such calls.
// The provider has no rate limit.
func (r run) idle(calls []*call, log []served) (sum float64) {
	type change struct {
		at            time.Duration
		busy, waiting int
	}
	var changes []change
	during := func(from, to time.Duration, busy, waiting int) {
		from, to = max(from, warmUp), min(to, r.until)
		if from < to {
			changes = append(changes, change{from, busy, waiting}, change{to, -busy, -waiting})
		}
	}
	for _, s := range log {
		if s.call.end == answered {
			during(s.from, s.to, 1, 0)
		}
	}
	for _, c := range calls {
		if c.end == refused && c.asked >= warmUp {
			during(c.asked+c.took, c.asked+r.patience-c.work, 0, 1)
		}
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.at, b.at) })
	var now change
	for _, next := range changes {
		sum += (next.at - now.at).Seconds() * float64(max(min(r.provider.Capacity-now.busy, now.waiting), 0))
		now = change{next.at, now.busy + next.busy, now.waiting + next.waiting}
	}
	return sum
}

// tenantShares returns the share of answered calls: of the light tenant with the lowest share, and of the heavy tenant.
func tenantShares(calls []*call) (lightest, heavy float64) {
	asked, got := make(map[string]float64), make(map[string]float64)
	for _, c := range calls {
		if c.asked < warmUp {
			continue
		}
		asked[c.tenant]++
		if c.end == answered {
			got[c.tenant]++
		}
	}
	lightest = 1
	for tenant, n := range asked {
		if tenant != heavyTenant {
			lightest = min(lightest, got[tenant]/n)
		}
	}
	return lightest, got[heavyTenant] / asked[heavyTenant]
}

// recovery returns how long after the outage the provider again did 90% of the useful work that it did before. Work is
// useful if its answer reached a user in time. Counting work instead of answers removes the effect of the length of an
// answer.
func (r run) recovery(log []served) time.Duration {
	if r.provider.OutageFor == 0 {
		return 0
	}
	work := make([]float64, int((r.until+2*patience).Seconds()/grain))
	for _, s := range log {
		if s.status != http.StatusOK || s.call.end != answered {
			continue
		}
		from, to := s.from.Seconds()/grain, s.to.Seconds()/grain
		for i := int(from); i <= int(to) && i < len(work); i++ {
			part := min(to, float64(i+1)) - max(from, float64(i))
			work[i] += s.call.work.Seconds() * part / (to - from)
		}
	}
	bin := func(d time.Duration) int { return int(math.Round(d.Seconds() / grain)) }
	mean := func(from, to int) (sum float64) {
		for _, w := range work[from:to] {
			sum += w
		}
		return sum / float64(to-from)
	}
	before := mean(bin(warmUp), bin(r.provider.OutageAfter))
	if before < 0.1*r.answersPerSecond()*meanWork.Seconds()*grain {
		return never // no useful work before the outage
	}
	for i := bin(r.outageEnd()); i+bin(window) <= bin(r.until); i++ {
		if mean(i, i+bin(window)) >= 0.9*before {
			return time.Duration(float64(i-bin(r.outageEnd())) * grain * float64(time.Second))
		}
	}
	return never
}
