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
	limit atomic.Int64 // of the live heap; Off: none
	spike atomic.Int64 // growth during one call that is reported

	heap    atomic.Int64 // last sample
	sampled atomic.Int64 // time of the last sample; 0: never
	mu      sync.Mutex   // one sampler at a time
	over    atomic.Bool
	told    atomic.Int64 // time of the last report of a growth; 0: never

	room   room                 // for answers that are read whole
	spare  room                 // for the events of streams if there is no limit
	events atomic.Pointer[room] // for the events of streams: one of the two
}

const (
	memorySample = 100 * time.Millisecond
	// After the limit was reached, calls are rejected until the heap is below this share of it. This prevents
	// flapping.
	memoryResume = 0.95
	memoryShare  = 0.9 // of GOMEMLIMIT
	heapMetric   = "/memory/classes/heap/objects:bytes"

	spikeShare     = 10       // of the limit: ten such calls at once would fill it
	spikeUnlimited = 64 << 20 // without a limit
	spikeEvery     = time.Second
	// JSON grows when it is decoded, most if it consists of small objects. One byte becomes at most this many.
	spikeFactor = 64
)

func newMemory(limit, maxEvent int64, clock clock) *memory {
	m := &memory{clock: clock, spare: room{size: eventRoom, spare: true}}
	m.configure(limit, maxEvent)
	return m
}

// configure sets the limits. A stream keeps the room in which it began.
func (m *memory) configure(limit, maxEvent int64) {
	spike, size, events := int64(spikeUnlimited), int64(math.MaxInt64), &m.room
	if limit != Off {
		spike, size = limit/spikeShare, limit/roomShare
	} else if maxEvent == Off || maxEvent > smallEvent {
		events = &m.spare
	}
	m.limit.Store(limit)
	m.spike.Store(spike)
	m.room.resize(size)
	m.events.Store(events)
}

// defaultMemoryLimit returns the limit that follows from GOMEMLIMIT, or Off.
func defaultMemoryLimit() int64 {
	soft := debug.SetMemoryLimit(-1)
	if soft == math.MaxInt64 {
		return Off
	}
	return max(int64(memoryShare*float64(soft)), 1)
}

// buffered returns the bytes of answers held in buffers.
func (m *memory) buffered() int64 { return m.room.bytes() + m.spare.bytes() }

// check returns an error while the heap is over the limit. crossed is true for the first call that finds it so.
func (m *memory) check() (e *Error, crossed bool) {
	limit := m.limit.Load()
	if limit == Off {
		return nil, false
	}
	heap := m.sample(m.now(), memorySample)
	if !m.refuses(heap) {
		m.over.Store(false)
		return nil, false
	}
	return memoryError(heap, limit), !m.over.Swap(true)
}

func memoryError(size, limit int64) *Error {
	return &Error{Kind: ErrOverloaded, Phase: PhaseMemory, Size: size, Max: limit, RetryAfter: time.Second, setting: "MemoryLimit"}
}

// refuses reports whether calls are rejected at this heap size: over the limit, or not yet below memoryResume.
func (m *memory) refuses(heap int64) bool {
	limit := m.limit.Load()
	return limit != Off && (heap > limit || m.over.Load() && float64(heap) >= memoryResume*float64(limit))
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

// checkSpike reports a heap that grew much since the call was admitted, at most once per second. The growth includes
// garbage and what other calls allocated. So the heap is read only if the call can be the cause. A call over HTTP can
// be the cause if it moved enough bytes, and a Do if it lasted longer than the interval between samples.
func (h *history) checkSpike(ctx context.Context, w *wire) {
	if h.trail != nil && h.trail.heap != 0 { // admitted, and there is a listener
		h.measureSpike(ctx, w)
	}
}

func (h *history) measureSpike(ctx context.Context, w *wire) {
	m, age := h.memory, memorySample
	switch {
	case h.host == "":
		if h.inFlight < memorySample {
			return
		}
	case (w.prompt+w.answer)*spikeFactor < m.spike.Load():
		return
	default:
		age = 0 // such a call is rare and costs more than a sample
	}
	now := m.now()
	heap := m.sample(now, age)
	growth := heap - h.trail.heap
	if growth < m.spike.Load() || !m.mayReport(now) {
		return
	}
	if h.cfg.OnEvent != nil {
		ev := h.event(EventMemorySpike, nil)
		ev.HeapGrowth = growth
		ev.PromptBytes, ev.AnswerBytes = w.moved()
		h.cfg.OnEvent(ctx, ev)
	}
	if h.cfg.Logger != nil {
		prompt, answer := w.moved()
		h.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "aiguard: memory spike", slog.String("op", short(h.Op)), slog.String("model", short(h.Model)),
			slog.Int64("prompt_bytes", prompt), slog.Int64("answer_bytes", answer),
			slog.Int64("heap_growth", growth), slog.Int64("heap", heap))
	}
}

// mayReport reports whether a growth may be reported again.
func (m *memory) mayReport(now instant) bool {
	last := m.told.Load()
	return due(&m.told, now, spikeEvery) && m.told.CompareAndSwap(last, int64(now))
}

// due reports whether last is at least age before now, or was never set. It uses instants, because sampling would
// stop if the wall clock were set back.
func due(last *atomic.Int64, now instant, age time.Duration) bool {
	at := last.Load()
	return at == 0 || int64(now)-at >= int64(age)
}
