package cacheguard

import (
	"context"
	"fmt"
	"time"

	"github.com/maypok86/otter/v2"
)

// entryOverhead is the approximate memory for an entry in addition to its bytes. It includes the name.
const entryOverhead = 256

// memory is the in-process Store. It uses otter, is limited in bytes, and evicts the entries that are least likely to
// be used again (W-TinyLFU).
type memory struct {
	cache *otter.Cache[string, item]
}

type item struct {
	entry []byte
	ttl   time.Duration
}

// newMemory calls evicted with the name of each entry that it evicts. evicted must not use the memory.
func newMemory(maxBytes int64, evicted func(name string)) (*memory, error) {
	cache, err := otter.New(&otter.Options[string, item]{
		MaximumWeight:    uint64(maxBytes),
		Weigher:          func(_ string, v item) uint32 { return uint32(len(v.entry) + entryOverhead) },
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[string, item]) time.Duration { return e.Value.ttl }),
		Executor:         func(f func()) { f() }, // evicts within Set, without a goroutine
		OnDeletion: func(e otter.DeletionEvent[string, item]) {
			if e.WasEvicted() {
				evicted(e.Key)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("cacheguard: %w", err)
	}
	return &memory{cache}, nil
}

func (m *memory) Get(_ context.Context, name string) ([]byte, error) {
	v, _ := m.cache.GetIfPresent(name)
	return v.entry, nil
}

func (m *memory) Set(_ context.Context, name string, entry []byte, ttl time.Duration) error {
	m.cache.Set(name, item{entry, ttl})
	return nil
}

func (m *memory) size() (entries int, bytes int64) {
	return m.cache.EstimatedSize(), int64(m.cache.WeightedSize())
}

func (m *memory) close() {
	m.cache.StopAllGoroutines()
	m.cache.InvalidateAll()
}
