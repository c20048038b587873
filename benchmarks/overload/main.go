// Command overload simulates a provider under overload and during an outage of a minute. Real clients, with aiguard and
// with its peers, call the simulated provider in virtual time. The command prints tables. After a full run with enough
// rounds it writes OVERLOAD.md and draws ../../docs/overload.svg:
//
//	go run ./overload                                   in benchmarks: all, about 3 minutes on two idle cores
//	go run ./overload -rounds 1                         a quick run, which writes no file
//	go run ./overload -rounds 1 -scenario 'deadlines'   some scenarios, by a pattern of their names
//
// The random users follow from -seed. The jitter of a client's own retries and the order of simultaneous events do not.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"regexp"
	"testing"
	"time"
)

const (
	enoughRounds = 6 // enough for a published median
	reportFile   = "overload/OVERLOAD.md"
	chartFile    = "../docs/overload.svg"
)

func main() {
	log.SetFlags(0)
	seed := flag.Uint64("seed", 1, "seed of the random users")
	rounds := flag.Int("rounds", enoughRounds, "runs of each scenario with an aim at its highest load, each with a different seed")
	pattern := flag.String("scenario", ".", "run only scenarios whose name matches this `pattern`")
	draw := flag.Bool("draw", false, "do not simulate, only draw "+chartFile+" from "+reportFile)
	flag.Parse()
	if *draw {
		if err := redraw(reportFile, chartFile); err != nil {
			log.Fatal(err)
		}
		return
	}
	chosen, err := choose(*rounds, *pattern)
	if err != nil {
		log.Fatal(err)
	}

	// Virtual time exists only inside a test. testing.Main runs a test in a program.
	test := testing.InternalTest{Name: "overload", F: func(t *testing.T) {
		if err := overload(t, newReport(*seed, *rounds, chosen)); err != nil {
			t.Error(err)
		}
	}}
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{test}, nil, nil)
}

// choose returns the scenarios to run.
func choose(rounds int, pattern string) (chosen []scenario, err error) {
	if rounds < 1 {
		return nil, fmt.Errorf("-rounds is %d; want 1 or more", rounds)
	}
	match, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("-scenario: %w", err)
	}
	for _, s := range scenarios {
		if match.MatchString(s.name) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, errors.New("-scenario: no scenario matches " + pattern)
	}
	return chosen, nil
}

func overload(t *testing.T, rep *report) error {
	t.Run("simulations", rep.simulate) // returns at the end of all simulations
	var text bytes.Buffer
	rep.write(&text, time.Now().UTC())
	fmt.Print(text.String())
	if rep.rounds < enoughRounds || len(rep.scenarios) < len(scenarios) {
		log.Printf("\n%s and %s are unchanged: they need all scenarios and %d rounds", reportFile, chartFile, enoughRounds)
		return nil
	}
	if err := os.WriteFile(reportFile, text.Bytes(), 0o644); err != nil {
		return err
	}
	return drawChart(chartFile, rep)
}

// simulate runs all simulations and stores their results.
func (r *report) simulate(t *testing.T) {
	for _, s := range r.scenarios {
		for _, c := range s.clients {
			for _, load := range s.loads {
				results := r.results[key{s.name, c.name, load}]
				for i := range results {
					s.simulate(t, c, load, r.seed+uint64(i), &results[i])
				}
			}
		}
	}
}

// simulate runs a scenario with a client, in parallel with other simulations.
func (s scenario) simulate(t *testing.T, c contender, load float64, seed uint64, into *result) {
	inParallel := func(into *figures, r run, c contender) {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			*into = simulate(t, r, c)
		})
	}
	inParallel(&into.calm, s.run(load, seed, false), c)
	if s.outage {
		inParallel(&into.outage, s.run(load, seed, true), c)
	}
	if s.first != nil {
		inParallel(&into.direct, s.run(load, seed, false), direct)
	}
}
