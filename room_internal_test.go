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

func TestReleasedAnswerTakesNoRoom(t *testing.T) {
	r := &room{size: 8 << 20}
	h := &hold{room: r}
	require.True(t, h.grow(t.Context(), 1<<20))
	require.True(t, h.release())
	require.False(t, h.release(), "only once")
	require.True(t, h.grow(t.Context(), 2<<20), "its reader may still be at work")
	require.Zero(t, r.bytes())
}

// In a room with something to spare everybody gets what they want in the end, one after another: at most one of them is beyond
// the size.
func TestRoomWithSomethingToSpareRefusesNobody(t *testing.T) {
	const size, most, answers = 4 << 20, 17 << 20, 100
	r := &room{size: size, spare: true}
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 2))
			h := &hold{room: r}
			defer h.release()
			for range 3 { // events
				for want := int64(512); want < most; want *= 2 + random.Int64N(15) {
					if !h.grow(t.Context(), want) {
						t.Error("refused")
					}
					if held := r.bytes(); held > size+most+answers*roomFree {
						t.Errorf("%d bytes held", held)
					}
				}
				h.shrink(roomFree / 4)
			}
		})
	}
	wg.Wait()
	require.Zero(t, r.held)
	require.Zero(t, r.stalled)
	require.Empty(t, r.waiting)
	require.Nil(t, r.extra)
}

// A waiter that leaves while another answer exceeds the size is granted nothing.
func TestWhoeverWaitsInARoomMayLeave(t *testing.T) {
	r := &room{size: 1 << 20, spare: true}
	first, second := &hold{room: r}, &hold{room: r}
	require.True(t, first.grow(t.Context(), 5<<20))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, second.grow(ctx, 2<<20))
	require.True(t, first.grow(t.Context(), 9<<20), "the one that is beyond it never waits")
	first.shrink(1 << 10)
	require.EqualValues(t, 1<<10, r.bytes())
	require.True(t, second.grow(t.Context(), 2<<20))
	second.release()
	first.release()
	require.Zero(t, r.bytes())
}

func TestLargerRoomAdmitsThoseWhoWait(t *testing.T) {
	r := &room{size: 2 << 20}
	first, second := &hold{room: r}, &hold{room: r}
	require.True(t, first.grow(t.Context(), 2<<20))
	w := r.ask(second, 1<<20)
	require.False(t, w.granted)
	r.resize(3 << 20)
	require.True(t, w.granted)
	<-w.done
	require.EqualValues(t, 3<<20, r.bytes())
}

func TestSmallerRoomRefusesWhatCanNeverFit(t *testing.T) {
	r := &room{size: 8 << 20}
	first, large, small := &hold{room: r}, &hold{room: r}, &hold{room: r}
	require.True(t, first.grow(t.Context(), 8<<20))
	tooLarge, fits := r.ask(large, 4<<20), r.ask(small, 1<<20)
	r.resize(2 << 20)
	require.NotContains(t, r.waiting, tooLarge)
	<-tooLarge.done
	require.False(t, tooLarge.granted)
	require.EqualValues(t, 8<<20, r.bytes(), "what is held is kept")
	first.release()
	<-fits.done
	require.True(t, fits.granted)
}
