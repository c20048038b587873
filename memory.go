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

// memory compares the live heap with a limit, at admission: no goroutine watches. It tells across which call the heap has
// leapt, and has the room for buffered answers.
type memory struct {
	clock
	limit int64 // of the live heap; 0: none
	leap  int64 // growth across one call that is told

	heap    atomic.Int64 // the last sample
	sampled atomic.Int64 // when, an instant; 0: never
	mu      sync.Mutex   // one sampler at a time
	over    atomic.Bool
	told    atomic.Int64 // when a call was last named for a leap, an instant; 0: never

	room   room  // for answers that are read whole, and for the events of streams with a limit
	events *room // for the events of streams
}

const (
	memorySample = 100 * time.Millisecond
	// Refusing ends at this share of the limit, so that it does not flicker around it.
	memoryResume = 0.95
	memoryShare  = 0.9 // of GOMEMLIMIT
	heapMetric   = "/memory/classes/heap/objects:bytes"

	leapShare     = 10       // of the limit: ten such calls at once would fill it
	leapUnlimited = 64 << 20 // without a limit
	leapEvery     = time.Second
	// JSON grows in decoding, most where it is all small objects: no byte of it becomes more than this.
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

// buffered is how many bytes of answers are held in buffers.
func (m *memory) buffered() int64 {
	n := m.room.bytes()
	if m.events != &m.room {
		n += m.events.bytes()
	}
	return n
}

// check refuses while the heap is over the limit; crossed is true for the first call that finds it so.
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

// refuses reports whether calls are refused with such a heap: over the limit, or not far enough below since it was over.
func (m *memory) refuses(heap int64) bool {
	if m.limit == 0 {
		return false
	}
	return heap > m.limit || m.over.Load() && float64(heap) >= memoryResume*float64(m.limit)
}

// sample reads the heap unless the last reading is younger than age.
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

// leap tells when the heap has grown much since the call was admitted. What others did meanwhile, and garbage, is in the
// growth: so it is read only where the call can have caused it, and told at most once a second. What moved over HTTP is
// known, in bytes; a Do is taken for innocent when it was over before the next sample.
func (c *call) leap(ctx context.Context) {
	if c.trail != nil && c.trail.heap != 0 { // admitted, and somebody listens
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
		age = 0 // such a call is rare, and dearer than a sample
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
		ev.PromptBytes, ev.AnswerBytes = c.moved()
		c.cfg.OnEvent(ctx, ev)
	}
	if c.cfg.Logger != nil {
		prompt, answer := c.moved()
		c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "aiguard: memory spike", slog.String("op", short(c.Op)), slog.String("model", short(c.Model)),
			slog.Int64("prompt_bytes", prompt), slog.Int64("answer_bytes", answer),
			slog.Int64("heap_growth", growth), slog.Int64("heap", heap))
	}
}

// moved is the bytes that the last attempt has sent and received.
func (c *call) moved() (prompt, answer int64) {
	if c.wire == nil {
		return 0, 0
	}
	return c.wire.prompt, c.wire.answer
}

// tell reports whether it is time to name a call again.
func (m *memory) tell(now instant) bool {
	last := m.told.Load()
	return due(&m.told, now, leapEvery) && m.told.CompareAndSwap(last, int64(now))
}

// due reports whether what last happened at that instant is old enough at now, or has never happened. The wall clock would not
// do: set back, it would stop the sampling.
func due(last *atomic.Int64, now instant, age time.Duration) bool {
	at := last.Load()
	return at == 0 || int64(now)-at >= int64(age)
}
