package aiguard

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever comes together, nobody waits for ever, the room is never overrun, and in the end it is empty.
func TestRoomIsNeverOverrunNorBlockedForGood(t *testing.T) {
	const size, answers = 8 << 20, 200
	r := &room{size: size}
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			h := &hold{room: r}
			defer h.release()
			if i%10 == 0 { // as the Close of a stream that is being read
				wg.Go(func() { h.release(); cancel() })
			}
			if i%10 == 1 {
				wg.Go(cancel)
			}
			for want := int64(512); h.grow(ctx, want) && random.IntN(8) > 0; want *= 2 + random.Int64N(4) {
				if held := r.bytes(); held > size+answers*roomFree {
					t.Errorf("%d bytes held", held)
				}
			}
		})
	}
	wg.Wait()
	require.Zero(t, r.held)
	require.Zero(t, r.stalled)
	require.Empty(t, r.waiting)
}
