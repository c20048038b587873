package aiguard

import (
	"math"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

// memory compares the live heap with a limit, at admission: no goroutine watches.
type memory struct {
	limit int64 // 0: none

	heap    atomic.Int64 // the last sample
	sampled atomic.Int64 // when, in Unix nanoseconds
	mu      sync.Mutex   // one sampler at a time
	over    atomic.Bool
}

const (
	memorySample = 100 * time.Millisecond
	// Refusing ends at this share of the limit, so that it does not flicker around it.
	memoryResume = 0.95
	memoryShare  = 0.9 // of GOMEMLIMIT
	heapMetric   = "/memory/classes/heap/objects:bytes"
)

func newMemory(limit int64) *memory {
	switch {
	case limit == Off:
		limit = 0
	case limit == 0:
		if soft := debug.SetMemoryLimit(-1); soft != math.MaxInt64 {
			limit = int64(memoryShare * float64(soft))
		}
	}
	return &memory{limit: limit}
}

// check refuses while the heap is over the limit; spike is true for the first call that finds it so.
func (m *memory) check() (e *Error, spike bool) {
	if m.limit == 0 {
		return nil, false
	}
	heap := m.sample(memorySample)
	if !m.refuses(heap) {
		m.over.Store(false)
		return nil, false
	}
	spike = !m.over.Swap(true)
	return &Error{Kind: ErrOverloaded, Phase: phaseMemory, Size: heap, Max: m.limit, RetryAfter: time.Second}, spike
}

// refuses reports whether calls are refused with such a heap: over the limit, or not far enough below since it was over.
func (m *memory) refuses(heap int64) bool {
	if m.limit == 0 {
		return false
	}
	return heap > m.limit || m.over.Load() && float64(heap) >= memoryResume*float64(m.limit)
}

// sample reads the heap unless the last reading is younger than age.
func (m *memory) sample(age time.Duration) int64 {
	now := time.Now().UnixNano()
	if now-m.sampled.Load() < int64(age) || !m.mu.TryLock() {
		return m.heap.Load()
	}
	defer m.mu.Unlock()
	s := [1]metrics.Sample{{Name: heapMetric}}
	metrics.Read(s[:])
	m.heap.Store(int64(s[0].Value.Uint64()))
	m.sampled.Store(now)
	return m.heap.Load()
}
