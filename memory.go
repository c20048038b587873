package aiguard

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"
)

// memory compares the live heap with a limit when a call is admitted, so it needs no goroutine. It also finds calls
// during which the heap grew much, and holds the room for buffered answers.
type memory struct {
	clock
	limit int64 // of the live heap; 0: none
	leap  int64 // growth during one call that is reported

	heap    atomic.Int64 // last sample
	sampled atomic.Int64 // time of the last sample; 0: never
	mu      sync.Mutex   // one sampler at a time
	over    atomic.Bool
	told    atomic.Int64 // time of the last report of a growth; 0: never

	room   room  // for answers that are read whole, and for the events of streams with a limit
	events *room // for the events of streams
}

const (
	memorySample = 100 * time.Millisecond
	// After the limit was reached, calls are rejected until the heap is below this share of it. This prevents
	// flapping.
	memoryResume = 0.95
	memoryShare  = 0.9 // of GOMEMLIMIT
	heapMetric   = "/memory/classes/heap/objects:bytes"

	leapShare     = 10       // of the limit: ten such calls at once would fill it
	leapUnlimited = 64 << 20 // without a limit
	leapEvery     = time.Second
	// JSON grows when it is decoded, most if it consists of small objects. One byte becomes at most this many.
	leapFactor = 64
)

func newMemory(limit, maxEvent int64, clock clock) *memory {
	switch {
	case limit == Off:
		limit = 0
	case limit == 0:
		if soft := debug.SetMemoryLimit(-1); soft != math.MaxInt64 {
			limit = int64(memoryShare * float64(soft))
		}
	}
	m := &memory{clock: clock, limit: limit, leap: leapUnlimited, room: room{size: math.MaxInt64}}
	m.events = &m.room
	if limit > 0 {
		m.leap, m.room.size = limit/leapShare, limit/roomShare
	} else if maxEvent == Off || maxEvent > smallEvent {
		m.events = &room{size: eventRoom, spare: true}
	}
	return m
}

// buffered returns the bytes of answers held in buffers.
func (m *memory) buffered() int64 {
	n := m.room.bytes()
	if m.events != &m.room {
		n += m.events.bytes()
	}
	return n
}

// check returns an error while the heap is over the limit. crossed is true for the first call that finds it so.
func (m *memory) check() (e *Error, crossed bool) {
	if m.limit == 0 {
		return nil, false
	}
	heap := m.sample(m.now(), memorySample)
	if !m.refuses(heap) {
		m.over.Store(false)
		return nil, false
	}
	return memoryError(heap, m.limit), !m.over.Swap(true)
}

func memoryError(size, limit int64) *Error {
	return &Error{Kind: ErrOverloaded, Phase: PhaseMemory, Size: size, Max: limit, RetryAfter: time.Second}
}

// refuses reports whether calls are rejected at this heap size: over the limit, or not yet below memoryResume.
func (m *memory) refuses(heap int64) bool {
	if m.limit == 0 {
		return false
	}
	return heap > m.limit || m.over.Load() && float64(heap) >= memoryResume*float64(m.limit)
}

// sample reads the heap, unless the last sample is younger than age.
func (m *memory) sample(now instant, age time.Duration) int64 {
	if !due(&m.sampled, now, age) || !m.mu.TryLock() {
		return m.heap.Load()
	}
	defer m.mu.Unlock()
	s := [1]metrics.Sample{{Name: heapMetric}}
	metrics.Read(s[:])
	m.heap.Store(int64(s[0].Value.Uint64()))
	m.sampled.Store(int64(now))
	return m.heap.Load()
}

// leap reports a heap that grew much since the call was admitted, at most once per second. The growth includes
// garbage and what other calls allocated. So the heap is read only if the call can be the cause. A call over HTTP can
// be the cause if it moved enough bytes, and a Do if it lasted longer than the interval between samples.
func (c *call) leap(ctx context.Context) {
	if c.trail != nil && c.trail.heap != 0 { // admitted, and there is a listener
		c.tellLeap(ctx)
	}
}

func (c *call) tellLeap(ctx context.Context) {
	m, age := c.memory, memorySample
	switch {
	case c.host == "":
		if c.inFlight < memorySample {
			return
		}
	case (c.wire.prompt+c.wire.answer)*leapFactor < m.leap:
		return
	default:
		age = 0 // such a call is rare and costs more than a sample
	}
	now := m.now()
	heap := m.sample(now, age)
	growth := heap - c.trail.heap
	if growth < m.leap || !m.tell(now) {
		return
	}
	if c.cfg.OnEvent != nil {
		ev := c.event(EventMemorySpike, nil)
		ev.HeapGrowth = growth
		ev.PromptBytes, ev.AnswerBytes = c.wire.moved()
		c.cfg.OnEvent(ctx, ev)
	}
	if c.cfg.Logger != nil {
		prompt, answer := c.wire.moved()
		c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "aiguard: memory spike", slog.String("op", short(c.Op)), slog.String("model", short(c.Model)),
			slog.Int64("prompt_bytes", prompt), slog.Int64("answer_bytes", answer),
			slog.Int64("heap_growth", growth), slog.Int64("heap", heap))
	}
}

// tell reports whether a growth may be reported again.
func (m *memory) tell(now instant) bool {
	last := m.told.Load()
	return due(&m.told, now, leapEvery) && m.told.CompareAndSwap(last, int64(now))
}

// due reports whether last is at least age before now, or was never set. It uses instants, because sampling would
// stop if the wall clock were set back.
func due(last *atomic.Int64, now instant, age time.Duration) bool {
	at := last.Load()
	return at == 0 || int64(now)-at >= int64(age)
}
