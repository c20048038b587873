// Command overload shows what users get of a provider that is asked for more than it can do, or is down for a minute,
// through aiguard and through its peers: real clients call a simulated provider in virtual time. It prints tables and, when
// there were enough rounds, writes OVERLOAD.md and draws ../../docs/overload.svg:
//
//	go run ./overload             in benchmarks: two to three minutes
//	go run ./overload -rounds 1   a quicker look, which writes nothing
//
// The users are random, but follow from -seed. The jitter of a client's own retries does not, nor does the order of what
// happens in the same instant: the report tells how far two runs with the same seed differ.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"testing"
	"time"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

const highest = 20 // times what the provider can do

var loads = []float64{0.5, 1, 2, 5, 10, highest}

// scenario is a provider, and the limit that the operator has set for clients that have one.
type scenario struct {
	name     string
	about    string
	provider aiguardtest.ProviderConfig
	limit    int
	loads    []float64
	calm     time.Duration // how long the run without an outage is
}

// scenarios: the first is the main one; the others are shorter, for the sake of time. Rate limits are a fifth above what
// the provider can do, but for the last.
var scenarios = []scenario{
	{"A limit that fits", "The provider works on 5 requests at once, aiguard's default limit; 360 requests a minute.",
		aiguardtest.ProviderConfig{Capacity: 5, RPM: 360}, 5, loads, 5 * time.Minute},
	{"A larger provider", "20 requests at once, and the limit of everybody who has one set to that; 1,440 requests a minute.",
		aiguardtest.ProviderConfig{Capacity: 20, RPM: 1440}, 20, []float64{1, 5}, 3 * time.Minute},
	{"A limit that is too high", "The limit is 50, but the provider is at its best with 8 requests. With 16 it gets a fifth less done, and it " +
		"answers 503 to more; 576 requests a minute.",
		aiguardtest.ProviderConfig{Capacity: 8, Loss: 0.25, MaxActive: 16, RPM: 576}, 50, []float64{1, 5, highest}, 3 * time.Minute},
	{"A rate limit below the limit", "The provider could work on 50 requests at once, which is the limit, but allows 300 a minute.",
		aiguardtest.ProviderConfig{Capacity: 50, RPM: 300}, 50, []float64{1, 5, highest}, 3 * time.Minute},
}

// run is this scenario at a load. With an outage it takes six minutes, one of which is the outage.
func (s scenario) run(load float64, seed uint64, outage bool) run {
	r := run{provider: s.provider, limit: s.limit, load: load, until: s.calm, seed: seed}
	if outage {
		r.provider.OutageAfter, r.provider.OutageFor = 2*time.Minute, time.Minute
		r.until = 6 * time.Minute
	}
	return r
}

// result is a contender's in a scenario at a load.
type result struct{ calm, outage figures }

const (
	enoughRounds = 6 // for a median that is told to others
	reportFile   = "overload/OVERLOAD.md"
	chartFile    = "../docs/overload.svg"
)

func main() {
	log.SetFlags(0)
	seed := flag.Uint64("seed", 1, "of the users")
	rounds := flag.Int("rounds", enoughRounds, "how often the first scenario runs at the highest load, each time with a seed of its own")
	flag.Parse()
	if *rounds < 1 {
		log.Fatalf("-rounds is %d; want 1 or more", *rounds)
	}

	// Virtual time is to be had inside a test only. testing.Main is there for programs that need one.
	test := testing.InternalTest{Name: "overload", F: func(t *testing.T) {
		if err := overload(t, *seed, *rounds); err != nil {
			t.Error(err)
		}
	}}
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{test}, nil, nil)
}

func overload(t *testing.T, seed uint64, rounds int) error {
	rep := newReport(seed, rounds)
	t.Run("simulations", func(t *testing.T) { // returns when all are over
		add := func(into *result, s scenario, c contender, load float64, seed uint64) {
			inParallel(t, func(t *testing.T) { into.calm = simulate(t, s.run(load, seed, false), c) })
			inParallel(t, func(t *testing.T) { into.outage = simulate(t, s.run(load, seed, true), c) })
		}
		for i, s := range scenarios {
			for j, c := range contenders {
				for k, load := range s.loads {
					add(&rep.results[i][j][k], s, c, load, seed)
				}
			}
		}
		for j, c := range contenders {
			for k := range rep.others[j] {
				add(&rep.others[j][k], scenarios[0], c, highest, seed+1+uint64(k))
			}
			add(&rep.again[j], scenarios[0], c, highest, seed)
		}
	})
	var text bytes.Buffer
	rep.write(&text, time.Now().UTC())
	fmt.Print(text.String())
	if rounds < enoughRounds {
		log.Printf("\n%s and %s are left alone: they want %d rounds", reportFile, chartFile, enoughRounds)
		return nil
	}
	if err := os.WriteFile(reportFile, text.Bytes(), 0o644); err != nil {
		return err
	}
	return drawChart(chartFile, rep.results[0])
}

func inParallel(t *testing.T, f func(*testing.T)) {
	t.Run("", func(t *testing.T) {
		t.Parallel()
		f(t)
	})
}
