package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"time"
)

// report is all results, in the order of scenarios, contenders and loads.
type report struct {
	seed    uint64
	results [][][]result
	others  [][]result // of contenders, in the first scenario at the highest load, with other seeds
	again   []result   // the same with the same seed
}

func newReport(seed uint64, rounds int) *report {
	r := &report{seed: seed, again: make([]result, len(contenders))}
	for _, s := range scenarios {
		var of [][]result
		for range contenders {
			of = append(of, make([]result, len(s.loads)))
		}
		r.results = append(r.results, of)
	}
	for range contenders {
		r.others = append(r.others, make([]result, rounds-1))
	}
	return r
}

// highest is contender j's results in scenario i at its highest load: in the first, with all seeds.
func (r *report) highest(i, j int) []result {
	last := r.results[i][j][len(scenarios[i].loads)-1]
	if i > 0 {
		return []result{last}
	}
	return append([]result{last}, r.others[j]...)
}

const preface = `# Goodput under overload

Written by ` + "`make bench`" + ` on %s with %s; ` + "`go run ./overload`" + ` in ` + "`benchmarks`" + ` is this part alone, and takes two to three minutes.

Users come at random (Poisson), ask once, and leave after a minute: an answer later than that is of no use. Load is their
number, as a multiple of the answers that the provider can give. An answer is a second of work on average (lognormal,
sigma 0.5). The provider is aiguardtest's: what it has in progress beyond its capacity shares its speed, so that everybody
waits longer and no more gets done; work for a client that has left stops. A refusal takes 20 ms; a 429's Retry-After says, in
whole seconds, when there is room again. In the outage, one minute, the provider first loses what it has in progress and refuses
connections, then answers 503.

The clients are the real ones: go-openai with three attempts a tenth of a second apart; openai-go with its own two retries and
a timeout of 30 s; go-openai over failsafe-go's retries (two, with backoff and Retry-After), circuit breaker (five failures,
1 s), bulkhead (a wait of 30 s) and timeout (30 s); aiguard with its defaults; the same with MinConcurrent 1; and that with
MaxQueue 20 in place of 100. Where a scenario names a limit, bulkhead and MaxConcurrent are set to it.

- Goodput: answers in time a second, as a fraction of what the provider can do. It may exceed 100%% a little by the luck of the draw.
- Requests: sent for each useful answer, the refused ones included. With the outage: in five minutes, one of which is the outage.
- p50, p99: of answered calls, with their wait. Refused, left: shares of all calls; who was refused was told so, after at
  most the time given (p99), and who left had heard nothing for a minute.
- Recovery: from the end of the outage until the provider did 90%% of the useful work that it did before, over 2 s. Shown above
  a load of 1, where work is always waiting; "none": not within three minutes, or there was next to none before.
`

func (r *report) write(w io.Writer, now time.Time) {
	fmt.Fprintf(w, preface, now.Format(time.DateOnly), runtime.Version())
	r.writeAims(w)
	r.writeComparison(w)
	for i, s := range scenarios {
		fmt.Fprintf(w, "\n## %s\n\n%s Seed %d.\n\n", s.name, s.about, r.seed)
		fmt.Fprintln(w, "| load | client | goodput | requests | p50 | p99 | refused (after) | left | requests, outage | recovery |")
		fmt.Fprintln(w, "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
		for k, load := range s.loads {
			for j, c := range contenders {
				f := r.results[i][j][k]
				refused, recovered := "0%", "–"
				if f.calm.refused > 0 {
					refused = fmt.Sprintf("%s (%s)", percent(f.calm.refused), seconds(f.calm.refusedAfter.Seconds()))
				}
				if load > 1 {
					recovered = seconds(some(f.outage.recovery))
				}
				fmt.Fprintf(w, "| %g | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", load, c.name, percent(f.calm.goodput),
					ratio(f.calm.requestsPerAnswer), seconds(some(f.calm.p50)), seconds(some(f.calm.p99)), refused,
					percent(f.calm.gaveUp), ratio(f.outage.requestsPerAnswer), recovered)
			}
		}
	}
}

// writeAims compares the first scenario at the highest load with what aiguard aims at.
func (r *report) writeAims(w io.Writer) {
	aims := []struct {
		column
		name string
		met  func(float64) bool
	}{
		{goodput, "goodput ≥ 95%", func(v float64) bool { return v >= 0.95 }},
		{requests, "requests ≤ 1.05", func(v float64) bool { return v <= 1.05 }},
		{inOutage, "with an outage ≤ 1.2", func(v float64) bool { return v <= 1.2 }},
		{recovery, "recovery ≤ 2s", func(v float64) bool { return v <= 2 }},
		{p50, "p50", func(float64) bool { return true }},
	}
	rounds := len(r.highest(0, 0))
	fmt.Fprintf(w, "\n## Aims\n\n%s, at %d times its capacity: median, lowest and highest of %d runs with seeds %d to %d.\n\n| client |",
		scenarios[0].name, highest, rounds, r.seed, r.seed+uint64(rounds)-1)
	for _, a := range aims {
		fmt.Fprintf(w, " %s |", a.name)
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("--:|", len(aims)))
	for j, c := range contenders {
		fmt.Fprintf(w, "| %s |", c.name)
		for _, a := range aims {
			results, missed := r.highest(0, j), ""
			if !a.met(median(a.in(results))) {
				missed = ", missed"
			}
			fmt.Fprintf(w, " %s%s |", a.told(results), missed)
		}
		fmt.Fprintln(w)
	}
}

const comparison = `
## Ahead, level, behind

Each aiguard beside %s, in this order, at the highest load of each scenario:
+ ahead, = level, − behind.

`

const why = `
Where somebody is ahead of aiguard, this is why:

- Recovery: a client that goes on sending through the whole outage has work there in the moment it ends; the requests are the price.
- p50 and p99: what has a queue answers calls that have waited in it; what has none refuses those. As many calls are answered, and a
  shorter queue answers them sooner.
- Requests, with an outage: a fixed limit tries once for each user while the provider is down; a circuit breaker or an
  adaptive limit does not.
- Goodput where the limit is too high: after a 429 aiguard waits and begins again with one request; a fixed limit then goes up to
  what the provider cannot bear, and so to the next 429.
`

// writeComparison tells where each of ours is ahead of whom, and how far to trust that.
func (r *report) writeComparison(w io.Writer) {
	var peers []int
	var names []string
	for j, c := range contenders {
		if !c.ours {
			peers, names = append(peers, j), append(names, c.name)
		}
	}
	fmt.Fprintf(w, comparison, strings.Join(names, "; "))
	fmt.Fprint(w, "| scenario | load | client |")
	for _, c := range columns {
		fmt.Fprintf(w, " %s |", c.name)
	}
	fmt.Fprintf(w, "\n|---|--:|---|%s\n", strings.Repeat("---|", len(columns)))
	for i, s := range scenarios {
		for j, c := range contenders {
			if !c.ours {
				continue
			}
			fmt.Fprintf(w, "| %s | %g | %s |", s.name, s.loads[len(s.loads)-1], c.name)
			for _, col := range columns {
				ours := median(col.in(r.highest(i, j)))
				for _, p := range peers {
					fmt.Fprintf(w, " %s", []string{"−", "=", "+"}[1+col.beside(ours, median(col.in(r.highest(i, p))))])
				}
				fmt.Fprint(w, " |")
			}
			fmt.Fprintln(w)
		}
	}
	fmt.Fprint(w, why)
	r.writeRepeat(w)
}

// writeRepeat tells how far two runs differ that should be the same.
func (r *report) writeRepeat(w io.Writer) {
	fmt.Fprintf(w, "\nUsers follow from the seed. The jitter of a client's own retries does not, nor does the order of what happens in the same\n"+
		"instant. Two runs of %q at %d times its capacity with seed %d differ, at the most, by", scenarios[0].name, highest, r.seed)
	for i, c := range columns {
		var most float64
		for j := range contenders {
			one, two := c.of(r.highest(0, j)[0]), c.of(r.again[j])
			apart := math.Abs(one - two)
			if c.part > 0 {
				apart /= max(one, two)
			}
			if !math.IsNaN(apart) { // neither has any
				most = max(most, apart)
			}
		}
		show := c.show
		if c.part > 0 {
			show = percent
		}
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		fmt.Fprintf(w, " %s of %s", show(most), c.name)
	}
	fmt.Fprint(w, ".\nLevel is what is not further apart than 2 points of goodput or of refused or left, 2% of requests, 10% of requests with an\n"+
		"outage, or 0.3 s. The other scenarios ran once: a second of recovery more or less says little there.\n")
}

func percent(v float64) string {
	if v > 0 && v < 0.1 {
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
