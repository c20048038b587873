// Load offers examples/questions twenty times what it can do, and checks that it bears it: every request gets its operation
// or a proper refusal, refusals are quick, what was taken is done, and memory stays flat.
//
//	go run ./examples/questions/load
//	go run ./examples/questions/load -for 1m -times 50
//
// The load is an open loop: requests are sent when they are due, whether or not earlier ones were answered, and their latency
// counts from when they were due. It builds the service, runs it with its fake provider, and exits with 1 if a
// property does not hold.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

func main() {
	var o options
	flag.DurationVar(&o.length, "for", 30*time.Second, "how long")
	flag.Float64Var(&o.times, "times", 20, "what is offered, in capacities of the service")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type options struct {
	length time.Duration
	times  float64
}

// The service: operations that take about 200 ms, five at once, ten more that wait.
const (
	maxConcurrent = 5
	pace          = 15 * time.Millisecond
)

// What has to hold.
const (
	maxRefusalP99  = 100 * time.Millisecond // or twice what a server that does nothing takes, on a machine busy with other things
	maxGrowth      = 1.25                   // of the resident memory, from the first quarter to the last
	leastOfTheWork = 0.7                    // of its capacity, which the service goes on to do
)

// run prints the table, and returns what does not hold.
func run(ctx context.Context, o options, out io.Writer) error {
	if o.length <= 0 || !(o.times > 0) {
		return fmt.Errorf("-for is %v and -times is %v; want more than 0", o.length, o.times)
	}
	s, err := startService(ctx, "-pace", pace.String(), "-max-concurrent", fmt.Sprint(maxConcurrent), "-max-queue", "10", "-drain-delay", "0s")
	if err != nil {
		return err
	}
	defer s.kill()
	client := newClient(s.url)
	defer client.close()
	capacity, err := client.capacity(ctx)
	if err != nil {
		return err
	}
	rate := capacity * o.times
	fmt.Fprintf(out, "The service does %.1f operations a second. It is offered %.0f times as many: %.0f requests a second, for %v.\n\n",
		capacity, o.times, rate, o.length)

	// A crowd first: connections that are open at once are what memory goes to, and their number depends on chance.
	if err := client.crowd(ctx, 1000); err != nil {
		return err
	}
	control := newControl()
	defer control.close()
	memory := watchMemory(s.pid)
	answers := client.offer(ctx, rate, o.length, control)
	first, last := memory.stop()
	ended, err := client.outcome(ctx, answers)
	if err != nil {
		return err
	}
	r := newReport(answers, ended)
	limit := max(maxRefusalP99, 2*r.quantile(controlled, 0.99))
	r.print(out)
	fmt.Fprintf(out, "\nOperations done: %d, %.0f%% of what it could do in that time\n", r.done, 100*float64(r.done)/(capacity*o.length.Seconds()))
	if first > 0 {
		fmt.Fprintf(out, "Memory of the service: %.1f MB in the first quarter, %.1f MB in the last\n", mb(first), mb(last))
	}

	var broken []error
	check := func(holds bool, format string, args ...any) {
		if !holds {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	check(r.improper == nil, "not a proper answer: %v", r.improper)
	check(len(r.latencies[refused]) > 0, "nothing was refused: that was no overload")
	check(r.quantile(refused, 0.99) < limit, "the 99th percentile of refusals took %v; want less than %v", r.quantile(refused, 0.99), limit)
	check(r.done == len(r.latencies[accepted]), "%d operations were accepted, %d done", len(r.latencies[accepted]), r.done)
	check(float64(r.done) >= leastOfTheWork*capacity*o.length.Seconds(), "only %d operations were done", r.done)
	check(float64(last) <= maxGrowth*float64(first), "memory grew from %.1f MB to %.1f MB", mb(first), mb(last))
	check(s.end() == nil, "the service did not end well")
	if broken == nil {
		fmt.Fprintln(out, "PASS")
	}
	return errors.Join(broken...)
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }
