package cost

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

const waiters = 100_000

// queued is a crowd that waits for slots while all slots are held.
type queued struct {
	n         int
	bytesEach float64    // heap and stack of one waiting call
	release   func()     // releases the slots
	cancel    func()     // ends the context of the waiting calls
	wait      func() int // waits until all calls have returned and returns how many were served
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

// BenchmarkDrain measures a crowd that waits until slots are released: the memory of one waiting call, and the time to
// serve them all.
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

// BenchmarkCancel measures a crowd that waits until its common context ends.
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
