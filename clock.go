package aiguard

import (
	"math"
	"time"
)

// clock is a monotonic clock per Guard. It is cheap to read, and an instant takes a third of the memory of a
// time.Time.
type clock struct{ born time.Time }

// instant is a time in nanoseconds since the clock was made. It is never 0.
type instant int64

func newClock() clock { return clock{time.Now().Add(-1)} }

func (c *clock) now() instant { return instant(time.Since(c.born)) }

func (c *clock) since(i instant) time.Duration { return time.Duration(c.now() - i) }

func (c *clock) time(i instant) time.Time { return c.born.Add(time.Duration(i)) }

// instant converts t to the clock.
func (c *clock) instant(t time.Time) instant { return instant(t.Sub(c.born)) }

// add returns the instant d after i. A sum beyond the range is the last instant.
func (i instant) add(d time.Duration) instant {
	if instant(d) > math.MaxInt64-max(i, 0) {
		return math.MaxInt64
	}
	return i + instant(d)
}
