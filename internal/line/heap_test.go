package line

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// A rank in a heap may be out of date, but only too low. Then the first flow of a heap is the one that a search through
// all flows finds, whatever calls cost and however they leave.
func TestFirstOfAHeapIsTheLeastOfAllFlows(t *testing.T) {
	costs := []float64{0, 1e-3, 1, 30, 1e9, 1e18, 1e300, -1, -1e3, -1e18, -1e300}
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		b := newBench(50, 8, 40)
		b.Overload = int64(rng.IntN(2) * 100)
		var waiting, flying []*Waiter[int]
		drop := func(all []*Waiter[int]) (*Waiter[int], []*Waiter[int]) {
			i := rng.IntN(len(all))
			w := all[i]
			all[i] = all[len(all)-1]
			return w, all[:len(all)-1]
		}
		flows := map[*Waiter[int]]*flow[int]{}
		for step := range 8_000 {
			b.now += rng.Int64N(3)
			r := b.routes[rng.IntN(len(b.routes))]
			switch n := rng.IntN(12); {
			case n < 5 && len(waiting) < 600:
				w := &Waiter[int]{Weight: 1 + rng.Int64N(3)}
				b.Join(w, r, b.tenants[rng.IntN(1+rng.IntN(len(b.tenants)))], Priority(rng.IntN(3)), b.now, 50)
				waiting, flows[w] = append(waiting, w), w.flow
			case n < 7 && len(waiting) > 0:
				var w *Waiter[int]
				w, waiting = drop(waiting)
				b.Leave(w)
				delete(flows, w)
			case n < 9 && len(flying) > 0:
				var w *Waiter[int]
				w, flying = drop(flying)
				b.Release(flows[w].tenant, flows[w].priority, w.Weight, costs[rng.IntN(len(costs))])
				delete(flows, w)
			case n == 9:
				b.SetRoom(r, rng.Int64N(4)*rng.Int64N(20))
			case n == 10:
				r.Reopened(b.now, rng.Int64N(50))
			default:
				if w := b.First(b.now); w != nil && b.Admit(w, costs[rng.IntN(len(costs))]) {
					flying = append(flying, w)
					waiting = slices.DeleteFunc(waiting, func(o *Waiter[int]) bool { return o == w })
				}
			}
			if step%64 == 0 {
				checkHeaps(t, b)
			}
		}
	}
}

func checkHeaps(t *testing.T, b *bench) {
	for _, r := range b.routes {
		for p := range r.lanes {
			for _, h := range []*heap[int]{&r.lanes[p].byService, &r.lanes[p].byLength} {
				least := rank{key: math.Inf(1)}
				for i, e := range h.ranked {
					now := e.flow.rank(h.which)
					require.False(t, now.less(e.rank), "a rank that is too high")
					require.Equal(t, i, e.flow.at[h.which])
					require.False(t, i > 0 && e.less(h.ranked[(i-1)/2].rank), "not a heap")
					if now.less(least) {
						least = now
					}
				}
				if f := h.first(); f != nil {
					require.Equal(t, least, f.rank(h.which))
				} else {
					require.Empty(t, h.ranked)
				}
			}
		}
	}
}
