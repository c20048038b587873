package cost

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

const waiters = 100_000

// queued is a crowd that waits for slots, all of which are held.
type queued struct {
	n         int
	bytesEach float64    // heap and stack of one that waits
	release   func()     // gives the slots back
	cancel    func()     // ends the context of those that wait
	wait      func() int // until all have returned; how many have been served
}

func newQueued(b *testing.B, name string) *queued {
	run := start[int](b, name, contender.Endless)
	release := sync.OnceFunc(hold(run, contender.Slots))
	b.Cleanup(release)

	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	var served atomic.Int64
	q := &queued{n: crowd(waiters), cancel: cancel, release: release}
	q.wait = func() int { wg.Wait(); return int(served.Load()) }
	before, memory := parked(), settledHeap()
	for range q.n {
		wg.Go(func() {
			if _, err := run(ctx, nothing); err == nil {
				served.Add(1)
			}
		})
	}
	awaitParked(b, before, q.n)
	q.bytesEach = float64(settledHeap()-memory) / float64(q.n)
	b.Cleanup(cancel)
	return q
}

// BenchmarkDrain is a crowd that waits until the slots come free: what one costs while it waits, and how long it takes
// to serve them all.
func BenchmarkDrain(b *testing.B) {
	compare(b, contender.Waiters, func(b *testing.B, name string) {
		var bytes float64
		for range b.N {
			b.StopTimer()
			q := newQueued(b, name)
			bytes += q.bytesEach
			b.StartTimer()
			q.release()
			if served := q.wait(); served != q.n {
				b.Fatalf("%d of %d have been served", served, q.n)
			}
		}
		b.ReportMetric(bytes/float64(b.N), "B/waiter")
	})
}

// BenchmarkCancel is the same crowd, whose common context ends.
func BenchmarkCancel(b *testing.B) {
	compare(b, contender.Leaving, func(b *testing.B, name string) {
		for range b.N {
			b.StopTimer()
			q := newQueued(b, name)
			b.StartTimer()
			q.cancel()
			if served := q.wait(); served != 0 {
				b.Fatalf("%d have been served", served)
			}
			b.StopTimer()
			q.release()
			b.StartTimer()
		}
	})
}
