// Load sends examples/questions twenty times its capacity and checks how the service handles the overload. Every
// request must get an operation or a proper rejection. Rejections must be fast, accepted operations must finish, and
// memory must stay flat.
//
//	go run ./examples/questions/load
//	go run ./examples/questions/load -for 1m -times 50
//
// The load is an open loop. Each request is sent when it is due, even if earlier requests are still waiting, and its
// latency counts from that time. The program builds the service and runs it with its fake provider. It exits with
// code 1 if a check fails.
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
	flag.Float64Var(&o.times, "times", 20, "load as a multiple of the service's capacity")
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

// The service runs five operations at once. Each takes about 200 ms, and ten more may wait.
const (
	maxConcurrent = 5
	pace          = 15 * time.Millisecond
)

// The limits that the checks apply.
const (
	maxRefusalP99  = 100 * time.Millisecond // or twice the control server's, on a busy machine
	maxGrowth      = 1.25                   // of resident memory, from the first quarter of the test to the last
	leastOfTheWork = 0.7                    // minimum share of the capacity that the service must use
)

// run prints a table and returns an error that joins the failed checks.
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
	fmt.Fprintf(out, "Capacity: %.1f operations per second. Load: %.0f times as many, %.0f requests per second for %v.\n\n",
		capacity, o.times, rate, o.length)

	// Warm up with a crowd. Memory depends mostly on the number of open connections, which varies with timing.
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
	fmt.Fprintf(out, "\nOperations completed: %d, %.0f%% of the capacity\n", r.done, 100*float64(r.done)/(capacity*o.length.Seconds()))
	if first > 0 {
		fmt.Fprintf(out, "Memory of the service: %.1f MB in the first quarter, %.1f MB in the last\n", mb(first), mb(last))
	}

	var broken []error
	check := func(holds bool, format string, args ...any) {
		if !holds {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	check(r.improper == nil, "improper response: %v", r.improper)
	check(len(r.latencies[refused]) > 0, "no request was rejected, so there was no overload")
	check(r.done == len(r.latencies[accepted]), "%d operations were accepted, %d done", len(r.latencies[accepted]), r.done)
	check(float64(last) <= maxGrowth*float64(first), "memory grew from %.1f MB to %.1f MB", mb(first), mb(last))
	check(s.end() == nil, "the service did not exit cleanly")
	if broken != nil {
		return errors.Join(broken...)
	}
	if p99 := r.quantile(refused, 0.99); p99 >= limit {
		return slow{fmt.Errorf("the 99th percentile of refusals took %v; want less than %v", p99, limit)}
	}
	if float64(r.done) < leastOfTheWork*capacity*o.length.Seconds() {
		return slow{fmt.Errorf("only %d operations were done", r.done)}
	}
	fmt.Fprintln(out, "PASS")
	return nil
}

// slow is the failure of a check of the speed. Other programs on the machine may cause it.
type slow struct{ error }

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }
