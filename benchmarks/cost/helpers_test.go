package cost

import (
	"context"
	"errors"
	"flag"
	"runtime"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

var small = flag.Bool("small", false, "divide the size of crowds by 100, to check that benchmarks work")

// crowd returns n, or a hundredth of it with -small.
func crowd(n int) int {
	if *small {
		return n / 100
	}
	return n
}

// compare runs f as a sub-benchmark for each contender in names.
func compare(b *testing.B, names []string, f func(b *testing.B, name string)) {
	for _, name := range names {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			f(b, name)
		})
	}
}

// start returns the contender called name and stops it at the end of the benchmark.
func start[T any](tb testing.TB, name string, waiting contender.Waiting) contender.Run[T] {
	run, stop := contender.New[T](name, waiting)
	tb.Cleanup(stop)
	return run
}

// parked returns the number of goroutines that wait.
func parked() int {
	s := []metrics.Sample{{Name: "/sched/goroutines/waiting:goroutines"}}
	metrics.Read(s)
	return int(s[0].Value.Uint64())
}

// awaitParked waits until n more goroutines are parked than before.
func awaitParked(tb testing.TB, before, n int) {
	tb.Helper()
	for deadline := time.Now().Add(20 * time.Second); parked() < before+n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("%d of %d goroutines wait", parked()-before, n)
		}
	}
}

// hold makes n calls and returns when all slots are taken. release ends the calls and waits for them.
func hold(run contender.Run[int], n int) (release func()) {
	taken, over := make(chan struct{}, n), make(chan struct{})
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for err := errors.New("not yet"); err != nil; { // goresilience may reject a call before its own worker is ready
				_, err = run(context.Background(), func(context.Context) (int, error) {
					taken <- struct{}{}
					<-over
					return 0, nil
				})
			}
		})
	}
	for range contender.Slots {
		<-taken
	}
	return func() { close(over); wg.Wait() }
}

// settledHeap returns the size of the live heap and the stacks in bytes.
func settledHeap() int64 {
	runtime.GC()
	runtime.GC() // the first run frees what only finalizers and pools could reach
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
