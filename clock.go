package aiguard

import "time"

// clock is a guard's own: monotonic, cheap to read, and its moments a third of a time.Time.
type clock struct{ born time.Time }

// instant is a moment on a clock, in nanoseconds since it was made, and never 0.
type instant int64

func newClock() clock { return clock{time.Now().Add(-1)} }

func (c *clock) now() instant { return instant(time.Since(c.born)) }

func (c *clock) since(i instant) time.Duration { return time.Duration(c.now() - i) }

func (c *clock) time(i instant) time.Time { return c.born.Add(time.Duration(i)) }

// instant is t on the clock.
func (c *clock) instant(t time.Time) instant { return instant(t.Sub(c.born)) }

func (i instant) add(d time.Duration) instant { return i + instant(d) }
