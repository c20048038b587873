package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"time"
)

// report is all results, in the order of scenarios, contenders and loads.
type report struct {
	seed    uint64
	results [][][]result
	spread  [][]result // of contenders, in the first scenario at the highest load, with other seeds
}

func newReport(seed uint64, spread int) *report {
	r := &report{seed: seed}
	for _, s := range scenarios {
		var of [][]result
		for range contenders {
			of = append(of, make([]result, len(s.loads)))
		}
		r.results = append(r.results, of)
	}
	for range contenders {
		r.spread = append(r.spread, make([]result, spread))
	}
	return r
}

const preface = `# Goodput under overload

Measured on %s with %s, seed %d. ` + "`go run ./overload`" + ` in this folder measures again and draws ` + "`docs/overload.svg`" + `.

Users come at random (Poisson), ask once, and leave after a minute: an answer later than that is of no use. Load is their
number, as a multiple of the answers that the provider can give. An answer is a second of work on average (lognormal,
sigma 0.5). What the provider has in progress beyond its capacity shares it equally, so that everybody waits longer and no
more gets done; work for a client that has left stops. A refusal takes 20 ms. The rate limit is a token bucket
whose 429 says in Retry-After when there is a token again; refused requests take none. In the outage, one minute, the
provider first loses what it has in progress and refuses connections, then answers 503.

The clients are the real ones: go-openai with three attempts a tenth of a second apart; openai-go with its own two retries and
a timeout of 30 s; go-openai over failsafe-go's retries (two, with backoff and Retry-After), circuit breaker (five failures,
1 s), bulkhead (a wait of 30 s) and timeout (30 s); aiguard with its defaults; and aiguard with MinConcurrent 1.
Where the scenario names a limit, bulkhead and MaxConcurrent are set to it.

- Goodput: answers in time a second, as a fraction of what the provider can do. It may exceed 100%% a little by the luck of the draw.
- Requests: sent for each useful answer, the refused ones included. With the outage: in five minutes, one of which is the outage.
- p50, p99: of answered calls, with their wait. Refused, left: shares of all calls; who was refused was told so, after at
  most the time given (p99), and who left had heard nothing for a minute.
- Recovery: from the end of the outage until the provider did 90%% of the useful work that it did before, over 2 s. Shown above
  a load of 1, where work is always waiting; "none": not within three minutes, or there was next to none before.
`

func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, preface, time.Now().UTC().Format(time.DateOnly), runtime.Version(), r.seed)
	r.writeAims(w)
	for i, s := range scenarios {
		fmt.Fprintf(w, "\n## %s\n\n%s\n\n", s.name, s.about)
		fmt.Fprintln(w, "| load | client | goodput | requests | p50 | p99 | refused (after) | left | requests, outage | recovery |")
		fmt.Fprintln(w, "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
		for k, load := range s.loads {
			for j, c := range contenders {
				f := r.results[i][j][k]
				recovery := "–"
				if load > 1 {
					recovery = recovered(f.outage.recovery)
				}
				fmt.Fprintf(w, "| %g | %s | %s | %s | %s | %s | %s (%s) | %s | %s | %s |\n", load, c.name, percent(f.calm.goodput),
					ratio(f.calm.requestsPerAnswer), seconds(f.calm.p50), seconds(f.calm.p99), percent(f.calm.refused),
					seconds(f.calm.refusedAfter), percent(f.calm.gaveUp), ratio(f.outage.requestsPerAnswer), recovery)
			}
		}
	}
	r.writeSpread(w)
}

// writeAims compares the first scenario at the highest load with what aiguard aims at.
func (r *report) writeAims(w io.Writer) {
	fmt.Fprintf(w, "\n## Aims\n\n%s, at %g times its capacity:\n\n| client |", scenarios[0].name, loads[len(loads)-1])
	aims := []struct {
		name string
		met  func(result) bool
		show func(result) string
	}{
		{"goodput ≥ 95%", func(f result) bool { return f.calm.goodput >= 0.95 }, func(f result) string { return percent(f.calm.goodput) }},
		{"requests ≤ 1.05", func(f result) bool { return f.calm.requestsPerAnswer <= 1.05 }, func(f result) string { return ratio(f.calm.requestsPerAnswer) }},
		{"with an outage ≤ 1.2", func(f result) bool { return f.outage.requestsPerAnswer <= 1.2 }, func(f result) string { return ratio(f.outage.requestsPerAnswer) }},
		{"recovery ≤ 2s", func(f result) bool { return f.outage.recovery >= 0 && f.outage.recovery <= 2*time.Second }, func(f result) string { return recovered(f.outage.recovery) }},
	}
	for _, a := range aims {
		fmt.Fprintf(w, " %s |", a.name)
	}
	fmt.Fprint(w, "\n|---|--:|--:|--:|--:|\n")
	for j, c := range contenders {
		fmt.Fprintf(w, "| %s |", c.name)
		for _, a := range aims {
			f, miss := r.results[0][j][len(loads)-1], ""
			if !a.met(f) {
				miss = " (missed)"
			}
			fmt.Fprintf(w, " %s%s |", a.show(f), miss)
		}
		fmt.Fprintln(w)
	}
}

func (r *report) writeSpread(w io.Writer) {
	if len(r.spread[0]) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## Spread\n\n%s at %g times its capacity, lowest to highest of %d runs with seeds %d to %d:\n\n", scenarios[0].name,
		loads[len(loads)-1], len(r.spread[0]), r.seed+1, r.seed+uint64(len(r.spread[0])))
	fmt.Fprint(w, "| client | goodput | requests | p50 | requests, outage | recovery |\n|---|--:|--:|--:|--:|--:|\n")
	for j, c := range contenders {
		between := func(of func(result) float64, show func(float64) string) string {
			low, high := math.Inf(1), math.Inf(-1)
			for _, f := range r.spread[j] {
				low, high = min(low, of(f)), max(high, of(f))
			}
			if show(low) == show(high) {
				return show(low)
			}
			return show(low) + " to " + show(high)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", c.name,
			between(func(f result) float64 { return f.calm.goodput }, percent),
			between(func(f result) float64 { return f.calm.requestsPerAnswer }, ratio),
			between(func(f result) float64 { return float64(f.calm.p50) }, func(v float64) string { return seconds(time.Duration(v)) }),
			between(func(f result) float64 { return f.outage.requestsPerAnswer }, ratio),
			between(func(f result) float64 { return float64(f.outage.recovery) }, func(v float64) string { return recovered(time.Duration(v)) }))
	}
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

func seconds(d time.Duration) string {
	if d < 0 {
		return "–"
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}

func recovered(d time.Duration) string {
	if d < 0 {
		return "none"
	}
	return seconds(d)
}
