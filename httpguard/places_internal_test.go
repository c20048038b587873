package httpguard

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestRandomArrivalsAndDeparturesLeakNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const capacity, maxQueue = 3, 10
		p := newPlaces(capacity, maxQueue, 5*time.Millisecond)
		var inside, entered atomic.Int64
		var all sync.WaitGroup
		for range 2000 {
			all.Go(func() {
				time.Sleep(rand.N(500 * time.Millisecond))
				ctx, leave := context.WithTimeout(t.Context(), rand.N(10*time.Millisecond))
				defer leave()
				if p.enter(ctx, "") != nil {
					return
				}
				entered.Add(1)
				assert.LessOrEqual(t, inside.Add(1), int64(capacity))
				held := rand.N(2 * time.Millisecond)
				time.Sleep(held)
				inside.Add(-1)
				p.leave(held)
			})
		}
		all.Wait()
		assert.Zero(t, p.taken)
		assert.Zero(t, p.waiting.Len())
		assert.Greater(t, entered.Load(), int64(100))
	})
}

func TestSlotGivenToALeavingWaiterGoesToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 200 { // repeat, because either event may come first
			p := newPlaces(1, 10, time.Second)
			assert.NoError(t, p.enter(t.Context(), ""))
			done := make(chan bool, 1)
			go func() { done <- p.enter(t.Context(), "") == nil }()
			time.Sleep(time.Second)
			p.leave(time.Second)
			if <-done {
				p.leave(time.Second)
			}
			assert.Zero(t, p.taken)
		}
	})
}
