package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"
)

// report holds the results of the scenarios.
type report struct {
	seed      uint64
	rounds    int
	scenarios []scenario
	results   map[key][]result // one per seed, in most cases one
}

type key struct {
	scenario, contender string
	load                float64
}

func newReport(seed uint64, rounds int, scenarios []scenario) *report {
	r := &report{seed, rounds, scenarios, make(map[key][]result)}
	for _, s := range scenarios {
		for k, load := range s.loads {
			seeds := 1
			if s.seeds && k == len(s.loads)-1 {
				seeds = rounds
			}
			for _, c := range s.clients {
				r.results[key{s.name, c.name, load}] = make([]result, seeds)
			}
		}
	}
	return r
}

// highest returns a contender's results at the highest load of a scenario, with all seeds.
func (r *report) highest(s scenario, contender string) []result {
	return r.results[key{s.name, contender, s.loads[len(s.loads)-1]}]
}

const preface = `# Goodput under overload

Written by ` + "`make bench`" + ` on %s with %s. ` + "`go run ./overload`" + ` in ` + "`benchmarks`" + ` runs this part alone.

Users arrive at random (Poisson), ask once, and leave after a minute. A later answer does not count. Load is the number of users
as a multiple of the provider's capacity. An answer takes a second of work on average (lognormal, sigma 0.5).

The provider is aiguardtest's simulation. Requests in progress beyond its capacity share its speed. Every answer then takes longer,
and the rate of answers stays the same. When a client leaves, work for it stops. A refusal takes 20 ms. The Retry-After of a 429
is the time until the next request is allowed, in whole seconds. An outage lasts a minute. The provider first loses the requests
in progress and refuses connections. Later it answers 503.

The clients are real:

- go-openai, naive retries: three attempts, 100 ms apart.
- openai-go: its own two retries and a timeout of 30 s.
- failsafe-go+breaker: go-openai over failsafe-go's retries (two, with backoff and Retry-After), circuit breaker (five failures, 1 s),
  bulkhead (a wait of 30 s) and timeout (30 s).
- aiguard: its defaults. If a scenario names a limit, MaxConcurrent and the bulkhead are set to it. No other option is set.

Columns:

- goodput: answers in time per second, as a share of the provider's capacity. Random variation may lift it slightly above 100%%.
- requests: requests sent per answer, including refused requests. "outage" is a run of five minutes with one minute of outage.
- p50, p99: time of answered calls, including their wait.
- refused: calls that ended with an error before their user left. "refused after" is the 99th percentile of the time to that error.
- left: calls of users who left without an answer or an error.
- recovery: time from the end of the outage until the provider did 90%% of the useful work that it did before, averaged over 2 s.
  "none": not within three minutes, or almost no useful work before.
- 429s after an answer: requests that got a 429 and were sent after the first answer of the run.
- refused at once: refusals within 100 ms.
- timed out in the queue: calls that reached their deadline before a request reached the provider in time for its work.
- refused, but there was room: the share of refused calls that could have been served. A refused call could be served while its
  deadline was further away than its work takes. During that time, the slots of the provider may be idle: empty, or at work for a
  call that got no answer. At each moment, at most as many idle slots count as there are such calls. The total idle time, divided
  by a second of work, is the number of calls that could have been served.
- light tenants, lowest; heavy tenant: share of the tenant's calls that were answered.
- p99 after 5 calls: p99 without the first five calls. "the second alone" is go-openai without a guard, with the same users.
`

func (r *report) write(w io.Writer, now time.Time) {
	fmt.Fprintf(w, preface, now.Format(time.DateOnly), runtime.Version())
	r.writeAims(w)
	for _, s := range r.scenarios {
		fmt.Fprintf(w, "\n## %s\n\n%s Seed %d.\n\n| load | client |", s.name, s.about, r.seed)
		for _, c := range s.columns {
			fmt.Fprintf(w, " %s |", c.name)
		}
		fmt.Fprintf(w, "\n|--:|---|%s\n", strings.Repeat("--:|", len(s.columns)))
		for _, load := range s.loads {
			for _, c := range s.clients {
				fmt.Fprintf(w, "| %g | %s |", load, c.name)
				for _, col := range s.columns {
					fmt.Fprintf(w, " %s |", col.show(col.of(r.results[key{s.name, c.name, load}][0])))
				}
				fmt.Fprintln(w)
			}
		}
	}
}

// writeAims compares aiguard's figures at the highest load of each scenario with the aims.
func (r *report) writeAims(w io.Writer) {
	fmt.Fprintf(w, "\n## Aims\n\nThe defaults at %d times the provider's capacity, tenants and fallbacks aside: median, lowest and highest "+
		"of the runs with\nseeds %d to %d, and the medians of the peers.\n\n| | aim | aiguard | |", highest, r.seed, r.seed+uint64(r.rounds)-1)
	for _, c := range contenders {
		if !c.ours {
			fmt.Fprintf(w, " %s |", c.name)
		}
	}
	fmt.Fprintf(w, "\n|---|--:|--:|---|%s\n", strings.Repeat("--:|", len(contenders)-1))
	for _, s := range r.scenarios {
		for _, a := range aims {
			if a.scenario != s.name {
				continue
			}
			ours, peers := "", ""
			for _, c := range s.clients {
				results := r.highest(s, c.name)
				if !c.ours {
					peers += " " + a.show(a.median(results)) + " |"
					continue
				}
				verdict := "missed"
				if a.reached(a.median(results)) {
					verdict = "reached"
				}
				ours = a.told(results) + " | " + verdict
			}
			if peers == "" {
				peers = strings.Repeat(" – |", len(contenders)-1)
			}
			fmt.Fprintf(w, "| %s | %s | %s |%s\n", a.what, a, ours, peers)
		}
	}
}
