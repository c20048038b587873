package cost

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

func nothing(context.Context) (int, error) { return 0, nil }

// BenchmarkDo is a call of a function that does nothing, with all slots free.
func BenchmarkDo(b *testing.B) {
	compare(b, contender.Wrapping, func(b *testing.B, name string) {
		run := start[int](b, name, contender.Bounded)
		ctx := b.Context()
		for b.Loop() {
			if _, err := run(ctx, nothing); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkDoCrowd is many goroutines that call at once: the function gives its processor away, so that the slots are taken
// and all others queue.
func BenchmarkDoCrowd(b *testing.B) {
	yield := func(context.Context) (int, error) { runtime.Gosched(); return 0, nil }
	for _, goroutines := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			compare(b, contender.Limiting, func(b *testing.B, name string) {
				run := start[int](b, name, contender.Endless)
				ctx, n := b.Context(), crowd(goroutines)
				begin := make(chan struct{})
				var wg sync.WaitGroup
				before := parked()
				for i := range n {
					calls := b.N / n
					if i < b.N%n {
						calls++
					}
					wg.Go(func() {
						<-begin
						for range calls {
							if _, err := run(ctx, yield); err != nil {
								b.Error(err)
							}
						}
					})
				}
				awaitParked(b, before, n)
				b.ResetTimer()
				close(begin)
				wg.Wait()
			})
		})
	}
}

// BenchmarkRefused is a call that finds neither a slot nor a place in the queue.
func BenchmarkRefused(b *testing.B) {
	compare(b, contender.Refusing, func(b *testing.B, name string) {
		run := start[int](b, name, contender.Refused)
		fill := contender.Slots
		if name == contender.Aiguard {
			fill += contender.Queue
		}
		before := parked()
		release := hold(run, fill)
		if name == contender.Aiguard {
			awaitParked(b, before, fill)
		}
		ctx := b.Context()
		for b.Loop() {
			if _, err := run(ctx, nothing); err == nil {
				b.Fatal("not refused")
			}
		}
		release()
	})
}
