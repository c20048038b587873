// Benchmarks measures the cost of a guard and of other libraries and prints it as a table. After a full run with enough
// rounds it writes RESULTS.md and draws ../docs/cost.svg. The measurements and their targets are in cost/rows.go, next
// to the benchmarks.
//
//	go run .                          all rows, 6 rounds: about 4 minutes
//	go run . -rounds 2 -bench '^Do'   a quick run, which writes no file
//	go run . -draw                    only the picture, from RESULTS.md
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"time"

	"github.com/aiguard-go/aiguard/benchmarks/cost"
)

const (
	resultsFile = "RESULTS.md"
	costChart   = "../docs/cost.svg"
)

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	rounds := flag.Int("rounds", enoughRounds, "number of rounds; each contender runs once per round")
	bench := flag.String("bench", ".", "run only rows whose benchmark matches this `pattern`")
	benchtime := flag.Duration("benchtime", 300*time.Millisecond, "duration of a benchmark that repeats its work")
	draw := flag.Bool("draw", false, "do not measure, only draw "+costChart+" from "+resultsFile)
	flag.Parse()
	if *draw {
		if err := redraw(resultsFile, costChart); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := run(ctx, *rounds, *bench, *benchtime); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, rounds int, bench string, benchtime time.Duration) error {
	if rounds < 1 {
		return fmt.Errorf("-rounds is %d; want 1 or more", rounds)
	}
	pattern, err := regexp.Compile(bench)
	if err != nil {
		return fmt.Errorf("-bench: %w", err)
	}
	var chosen []cost.Row
	for _, row := range cost.Rows {
		if pattern.MatchString(row.Bench) {
			chosen = append(chosen, row)
		}
	}
	if len(chosen) == 0 {
		return errors.New("-bench: no row matches " + bench)
	}
	r := &runner{rounds: rounds, benchtime: benchtime, progress: os.Stderr}
	all, err := r.run(ctx, chosen)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := report(&text, all, chosen, rounds, time.Now().UTC()); err != nil {
		return err
	}
	fmt.Print(text.String())
	if len(chosen) < len(cost.Rows) || rounds < enoughRounds {
		log.Printf("\n%s and %s are unchanged: they need all rows and %d rounds", resultsFile, costChart, enoughRounds)
		return nil
	}
	if err := os.WriteFile(resultsFile, text.Bytes(), 0o644); err != nil {
		return err
	}
	return drawCost(costChart, all)
}
