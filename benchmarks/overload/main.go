// Command overload shows what users get of a provider that is asked for more than it can do, or is down for a minute,
// through aiguard and through its peers: real clients call a simulated provider in virtual time. It prints tables and, when
// all was run often enough, writes OVERLOAD.md and draws ../../docs/overload.svg:
//
//	go run ./overload                                   in benchmarks: all, about 3 minutes on two idle cores
//	go run ./overload -rounds 1                         a quicker look, which writes nothing
//	go run ./overload -rounds 1 -scenario 'deadlines'   some scenarios, by a pattern of their names
//
// The users are random, but follow from -seed. The jitter of a client's own retries does not, nor does the order of what
// happens in the same instant.
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
	enoughRounds = 6 // for a median that is told to others
	reportFile   = "overload/OVERLOAD.md"
	chartFile    = "../docs/overload.svg"
)

func main() {
	log.SetFlags(0)
	seed := flag.Uint64("seed", 1, "of the users")
	rounds := flag.Int("rounds", enoughRounds, "how often each scenario with an aim runs at its highest load, each time with a seed of its own")
	pattern := flag.String("scenario", ".", "run only scenarios whose name matches this `pattern`")
	draw := flag.Bool("draw", false, "simulate nothing: draw "+chartFile+" from "+reportFile)
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

	// Virtual time is to be had inside a test only. testing.Main is there for programs that need one.
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
	t.Run("simulations", rep.simulate) // returns when all are over
	var text bytes.Buffer
	rep.write(&text, time.Now().UTC())
	fmt.Print(text.String())
	if rep.rounds < enoughRounds || len(rep.scenarios) < len(scenarios) {
		log.Printf("\n%s and %s are left alone: they want all scenarios and %d rounds", reportFile, chartFile, enoughRounds)
		return nil
	}
	if err := os.WriteFile(reportFile, text.Bytes(), 0o644); err != nil {
		return err
	}
	return drawChart(chartFile, rep)
}

// simulate fills in the results.
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

// simulate runs a scenario with a client, in parallel with others.
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
