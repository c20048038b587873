// Benchmarks measures what a guard costs beside what others cost, prints it as a table, and, when all was measured often
// enough, writes RESULTS.md and draws ../docs/cost.svg. What is measured, and what is to be reached, is in cost/rows.go; the
// benchmarks are beside it.
//
//	go run .                          all rows, 6 rounds: about 4 minutes
//	go run . -rounds 2 -bench '^Do'   a quick look, which writes nothing
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
	rounds := flag.Int("rounds", enoughRounds, "how often each contender runs")
	bench := flag.String("bench", ".", "only rows whose benchmark matches this `pattern`")
	benchtime := flag.Duration("benchtime", 300*time.Millisecond, "how long a benchmark that repeats its work does so")
	draw := flag.Bool("draw", false, "measure nothing: draw "+costChart+" from "+resultsFile)
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
		log.Printf("\n%s and %s are left alone: they want all rows and %d rounds", resultsFile, costChart, enoughRounds)
		return nil
	}
	if err := os.WriteFile(resultsFile, text.Bytes(), 0o644); err != nil {
		return err
	}
	return drawCost(costChart, all)
}
