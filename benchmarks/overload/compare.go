package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// column is a figure of which less is better, or more.
type column struct {
	name string
	of   func(result) float64 // infinite: there is none
	show func(float64) string
	more bool

	// Figures that are no further apart than least, or this part of the smaller, are level.
	least, part float64
}

var (
	goodput    = column{"goodput", func(r result) float64 { return r.calm.goodput }, percent, true, 0.02, 0}
	requests   = column{"requests", func(r result) float64 { return r.calm.requestsPerAnswer }, ratio, false, 0, 0.02}
	p50        = column{"p50", func(r result) float64 { return some(r.calm.p50) }, seconds, false, 0.3, 0}
	p99        = column{"p99", func(r result) float64 { return some(r.calm.p99) }, seconds, false, 0.3, 0}
	unanswered = column{"refused or left", func(r result) float64 { return r.calm.refused + r.calm.gaveUp }, percent, false, 0.02, 0}
	inOutage   = column{"requests, outage", func(r result) float64 { return r.outage.requestsPerAnswer }, ratio, false, 0, 0.1}
	recovery   = column{"recovery", func(r result) float64 { return some(r.outage.recovery) }, seconds, false, 0.3, 0}

	columns = []column{goodput, requests, p50, p99, unanswered, inOutage, recovery}
)

// some is a duration in seconds, if there is one.
func some(d time.Duration) float64 {
	if d < 0 {
		return math.Inf(1)
	}
	return d.Seconds()
}

// beside tells how a figure of ours stands beside a peer's: positive is ahead, 0 level.
func (c column) beside(ours, peers float64) int {
	if ours == peers || math.Abs(ours-peers) <= max(c.least, c.part*min(ours, peers)) {
		return 0
	}
	if c.more {
		return cmp.Compare(ours, peers)
	}
	return cmp.Compare(peers, ours)
}

// in is the figure in each of the results, the lowest first.
func (c column) in(results []result) []float64 {
	var all []float64
	for _, r := range results {
		all = append(all, c.of(r))
	}
	slices.Sort(all)
	return all
}

// median of what is sorted.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// told is a column's median, lowest and highest figure.
func (c column) told(results []result) string {
	all := c.in(results)
	low, high := c.show(all[0]), c.show(all[len(all)-1])
	if low == high {
		return low
	}
	return fmt.Sprintf("%s (%s to %s)", c.show(median(all)), low, high)
}
