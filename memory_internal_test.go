package aiguard

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What is due is measured on the guard's own clock, from its making on, and not by the wall clock, which may be set back.
func TestHeapIsSampledByTheGuardsClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(Off, DefaultMaxEventBytes, newClock())
		m.sample(m.now(), memorySample)
		require.Equal(t, int64(m.now()), m.sampled.Load(), "the first sample is due at once")
		first := m.sampled.Load()
		time.Sleep(memorySample - 1)
		m.sample(m.now(), memorySample)
		require.Equal(t, first, m.sampled.Load())
		time.Sleep(time.Nanosecond)
		m.sample(m.now(), memorySample)
		require.Equal(t, int64(m.now()), m.sampled.Load())
		require.Less(t, m.sampled.Load(), int64(time.Hour), "an instant, not a date")

		require.True(t, m.mayReport(m.now()))
		require.False(t, m.mayReport(m.now()))
		time.Sleep(spikeEvery)
		require.True(t, m.mayReport(m.now()))
		require.Less(t, m.told.Load(), int64(time.Hour))

		var never atomic.Int64
		require.True(t, due(&never, 1, time.Hour))
	})
}
