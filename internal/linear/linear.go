// Package linear checks that work grows no faster than its input: what a user of a service can send must cost no more for
// each byte when there are more of them.
package linear

import (
	"math"
	"runtime"
	"time"
)

// Sizes are the sizes of input in bytes, about.
var Sizes = [...]int{4 << 10, 16 << 10, 64 << 10, 256 << 10}

// Generous bounds, for a machine that is busy: what is quadratic misses them by orders of magnitude.
const (
	rounds     = 5
	mostRounds = 40   // while a bound is missed: others use the machine, and the race detector makes a sync.Pool forget
	mostNanos  = 5000 // for a byte
	mostGrowth = 8    // of the time for a byte, from the first size to the last; quadratic would be 64
	freeNanos  = 50   // for a byte, whatever the growth
	fixedBytes = 64 << 10
)

// T is what Check needs of a *testing.T: a package that ships must not import testing.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
}

// Check measures work on each of Sizes. prepare makes the input and returns its length and the work to do once. mostBytes
// is how many bytes may be allocated for each byte of input, beside a fixed amount.
func Check(t T, mostBytes float64, prepare func(size int) (length int, work func())) {
	t.Helper()
	var first float64
	for i, size := range Sizes {
		best, least := time.Hour, uint64(1<<63)
		var length int
		nanos := func() float64 { return float64(best) / float64(length) }
		tooSlow := func() bool { return nanos() > mostNanos }
		tooMany := func() bool { return float64(least) > mostBytes*float64(length)+fixedBytes }
		growing := func() bool { return i == len(Sizes)-1 && nanos() > mostGrowth*first+freeNanos }
		for n := 0; n < rounds || n < mostRounds && (tooSlow() || tooMany() || growing()); n++ {
			var work func()
			length, work = prepare(size)
			before, start := allocated(), time.Now()
			work()
			took := time.Since(start)
			best, least = min(best, took), min(least, allocated()-before)
		}
		if i == 0 {
			first = nanos()
		}
		t.Logf("%7d bytes: %6.1f ns and %4.1f bytes for each", length, nanos(), float64(least)/float64(length))
		if tooSlow() {
			t.Errorf("%.0f ns for each of %d bytes; want at most %d", nanos(), length, mostNanos)
		}
		if tooMany() {
			t.Errorf("%d bytes allocated for %d; want at most %.0f for each, and %d", least, length, mostBytes, fixedBytes)
		}
		if growing() {
			t.Errorf("%.1f ns for each byte of the first size, %.1f of the last", first, nanos())
		}
	}
}

// Within checks that work takes less than limit once in ten times, because others may use the machine.
func Within(t T, limit time.Duration, work func()) {
	t.Helper()
	best := time.Duration(math.MaxInt64)
	for n := 0; n < 10 && best >= limit; n++ {
		start := time.Now()
		work()
		best = min(best, time.Since(start))
	}
	if best >= limit {
		t.Errorf("took %v; want less than %v", best, limit)
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
