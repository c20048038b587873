package cost

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

func nothing(context.Context) (int, error) { return 0, nil }

// BenchmarkDo measures Do with a function that does nothing, while all slots are free.
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

var crowds = []int{1000, 10_000}

// BenchmarkDoCrowd measures many goroutines that call at once. The function yields its processor, so the slots are
// taken and all other calls queue.
func BenchmarkDoCrowd(b *testing.B) {
	for _, goroutines := range crowds {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			compare(b, contender.Limiting, func(b *testing.B, name string) {
				doCrowd(b, name, goroutines, func(int) context.Context { return b.Context() })
			})
		})
	}
}

// BenchmarkDoCrowdTenants compares the crowd of BenchmarkDoCrowd with and without tenants and priorities.
func BenchmarkDoCrowdTenants(b *testing.B) {
	for _, goroutines := range crowds {
		b.Run(fmt.Sprint(goroutines), func(b *testing.B) {
			compare(b, contender.Sharing, func(b *testing.B, name string) {
				ctxOf := func(int) context.Context { return b.Context() }
				if name != contender.OneTenant {
					ctxs := tenants(b.Context(), 100)
					ctxOf = func(i int) context.Context {
						return aiguard.WithCall(ctxs[i%len(ctxs)], aiguard.Call{Priority: aiguard.Priority(i/len(ctxs)%3 - 1)})
					}
				}
				doCrowd(b, name, goroutines, ctxOf)
			})
		})
	}
}

// doCrowd runs the crowd. Goroutine i calls with the context ctxOf(i).
func doCrowd(b *testing.B, name string, goroutines int, ctxOf func(i int) context.Context) {
	yield := func(context.Context) (int, error) { runtime.Gosched(); return 0, nil }
	run := start[int](b, name, contender.Endless)
	n := crowd(goroutines)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	before := parked()
	for i := range n {
		calls := b.N / n
		if i < b.N%n {
			calls++
		}
		ctx := ctxOf(i)
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
}

// tenants returns the contexts of n tenants.
func tenants(ctx context.Context, n int) []context.Context {
	ctxs := make([]context.Context, n)
	for i := range ctxs {
		ctxs[i] = aiguard.WithCall(ctx, aiguard.Call{Tenant: fmt.Sprint("tenant ", i)})
	}
	return ctxs
}

// BenchmarkRefused measures a call that is rejected because all slots and the queue are full.
func BenchmarkRefused(b *testing.B) {
	compare(b, contender.Refusing, func(b *testing.B, name string) {
		refused(b, name, []context.Context{b.Context()})
	})
}

// BenchmarkRefusedTenants measures rejected calls of 10,000 tenants in turn. Each call in the queue belongs to a
// different tenant, so none has to give up its place.
func BenchmarkRefusedTenants(b *testing.B) {
	compare(b, contender.Refusing, func(b *testing.B, name string) {
		refused(b, name, tenants(b.Context(), 10_000))
	})
}

// refused makes calls with the contexts in turn.
func refused(b *testing.B, name string, ctxs []context.Context) {
	run := start[int](b, name, contender.Refused)
	fill := contender.Slots
	if name == contender.Aiguard {
		fill += contender.Queue
	}
	var i atomic.Int64
	next := func() context.Context { return ctxs[int(i.Add(1))%len(ctxs)] }
	before := parked()
	release := hold(func(_ context.Context, fn func(context.Context) (int, error)) (int, error) { return run(next(), fn) }, fill)
	if name == contender.Aiguard {
		awaitParked(b, before, fill)
	}
	for b.Loop() {
		if _, err := run(next(), nothing); err == nil {
			b.Fatal("not refused")
		}
	}
	release()
}
