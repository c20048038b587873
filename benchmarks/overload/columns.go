package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// result has the figures of a contender in a scenario at a load.
type result struct {
	calm, outage figures
	direct       figures // the same users with only the second choice
}

// column is a column of a table.
type column struct {
	name string
	of   func(result) float64 // infinite: no value
	show func(float64) string
}

var (
	goodput    = column{"goodput", func(r result) float64 { return r.calm.goodput }, percent}
	requests   = column{"requests", func(r result) float64 { return r.calm.requestsPerAnswer }, ratio}
	p50        = column{"p50", func(r result) float64 { return some(r.calm.p50) }, seconds}
	p99        = column{"p99", func(r result) float64 { return some(r.calm.p99) }, seconds}
	refusal    = column{"refused", func(r result) float64 { return r.calm.refused }, percent}
	told       = column{"refused after", func(r result) float64 { return some(r.calm.refusedAfter) }, seconds}
	left       = column{"left", func(r result) float64 { return r.calm.gaveUp }, percent}
	inOutage   = column{"requests, outage", func(r result) float64 { return r.outage.requestsPerAnswer }, ratio}
	recovery   = column{"recovery", func(r result) float64 { return some(r.outage.recovery) }, seconds}
	limits     = column{"429s after an answer", func(r result) float64 { return float64(r.calm.limited) }, count}
	soon       = column{"refused at once", func(r result) float64 { return r.calm.refusedAtOnce }, percent}
	timedOut   = column{"timed out in the queue", func(r result) float64 { return r.calm.timedOut }, percent}
	couldHave  = column{"refused, but there was room", func(r result) float64 { return r.calm.couldHave }, percent}
	lightest   = column{"light tenants, lowest", func(r result) float64 { return r.calm.lightest }, percent}
	heaviest   = column{"heavy tenant", func(r result) float64 { return r.calm.heavy }, percent}
	isAnswered = column{"answered", func(r result) float64 { return r.calm.answeredShare }, percent}
	settledP99 = column{"p99 after 5 calls", func(r result) float64 { return some(r.calm.settledP99) }, seconds}
	directP99  = column{"p99 of the second alone", func(r result) float64 { return some(r.direct.settledP99) }, seconds}
	slowdown   = column{"p99, × the second alone", func(r result) float64 { return some(r.calm.settledP99) / some(r.direct.settledP99) }, ratio}
	askedFirst = column{"requests to the first, per call", func(r result) float64 { return r.calm.askedFirst }, ratio}

	calmColumns     = []column{goodput, requests, p50, p99, refusal, told, left}
	allColumns      = append(slices.Clone(calmColumns), inOutage, recovery)
	rateColumns     = append(slices.Clone(calmColumns), limits)
	deadlineColumns = []column{goodput, requests, p50, p99, refusal, soon, timedOut, couldHave, left}
	tenantColumns   = []column{lightest, heaviest, goodput, requests, p50, p99}
	fallbackColumns = []column{isAnswered, settledP99, directP99, slowdown, askedFirst}
)

// some returns d in seconds, or infinity if d is never.
func some(d time.Duration) float64 {
	if d == never {
		return math.Inf(1)
	}
	return d.Seconds()
}

// median returns the median of the column in the results.
func (c column) median(results []result) float64 {
	all := c.sorted(results)
	n := len(all)
	return (all[(n-1)/2] + all[n/2]) / 2
}

func (c column) sorted(results []result) []float64 {
	var all []float64
	for _, r := range results {
		all = append(all, c.of(r))
	}
	slices.Sort(all)
	return all
}

// told formats the column's median, lowest and highest figure.
func (c column) told(results []result) string {
	all := c.sorted(results)
	low, high := c.show(all[0]), c.show(all[len(all)-1])
	if low == high {
		return low
	}
	return fmt.Sprintf("%s (%s to %s)", c.show(c.median(results)), low, high)
}

func percent(v float64) string {
	switch {
	case math.IsNaN(v): // a share of zero calls
		return "–"
	case v > 0 && v < 0.1:
		return fmt.Sprintf("%.1f%%", 100*v)
	}
	return fmt.Sprintf("%.0f%%", 100*v)
}

func ratio(v float64) string {
	switch {
	case math.IsInf(v, 0) || math.IsNaN(v):
		return "no answers"
	case v >= 10:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func seconds(v float64) string {
	if math.IsInf(v, 0) {
		return "none"
	}
	return fmt.Sprintf("%.1fs", v)
}

func count(v float64) string { return fmt.Sprintf("%.0f", v) }
