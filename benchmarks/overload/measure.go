package main

import (
	"cmp"
	"math"
	"net/http"
	"slices"
	"time"
)

const (
	grain   = 0.1                    // seconds: how fine recovery is measured
	window  = 2 * time.Second        // over which it is averaged
	atOnce  = 100 * time.Millisecond // a refusal that comes later has kept its user waiting
	settled = 5                      // calls after which a fallback should know its first choice
)

// figures is what a run measured. Rates are in what the provider can do, shares are of calls.
type figures struct {
	goodput           float64
	requestsPerAnswer float64
	p50, p99          time.Duration // of answered calls
	refused, gaveUp   float64
	refusedAfter      time.Duration // p99
	recovery          time.Duration // from the end of the outage
	limited           int           // requests answered 429 that were sent after the first answer

	// Of callers with deadlines.
	refusedAtOnce float64 // of refusals; NaN: there were none
	timedOut      float64 // ended without an error, and no request of theirs reached the provider in time for an answer
	couldHave     float64 // of refusals: for as many there would have been room

	// Of tenants.
	lightest, heavy float64 // answered calls of those asked: the light tenant with the fewest, the heavy one

	// Of a fallback.
	settledP99    time.Duration // until an answer, after the first calls
	askedFirst    float64       // requests to the first choice for each call
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

// never is how long it takes to what does not happen.
const never = time.Duration(math.MaxInt64)

// untilAnswer is how long the user waited for the answer.
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

// limited counts the 429s to requests that were sent when somebody had been answered.
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

// measureDeadlines tells how soon refused calls were told, who timed out in the queue, and who could have been served.
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

// idle is the seconds of the provider's slots in which they did no useful work, but could have served a call that had been
// refused: one whose deadline was further away than its work takes. Work is useful if its call was answered. It counts no
// more slots than such calls. The provider has no rate limit.
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

// tenantShares is which share of their calls was answered: of the light tenant with the lowest share, and of the heavy one.
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

// recovery is how long after the outage the provider was again doing 90% of the useful work that it did before: work is
// useful if its answer reached a user in time. Counting work and not answers keeps the length of an answer out.
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
		return never // there is nothing to recover to
	}
	for i := bin(r.outageEnd()); i+bin(window) <= bin(r.until); i++ {
		if mean(i, i+bin(window)) >= 0.9*before {
			return time.Duration(float64(i-bin(r.outageEnd())) * grain * float64(time.Second))
		}
	}
	return never
}
