package aiguard

import "net/http"

// SetRoom bounds the answers held to so many bytes, as a MemoryLimit does that the test's own heap might be over.
func SetRoom(g *Guard, bytes int64) {
	g.memory.room.resize(bytes)
	g.memory.events.Store(&g.memory.room)
}

// SetSpike sets the growth of the heap during a call that is reported.
func SetSpike(g *Guard, bytes int64) { g.memory.spike.Store(bytes) }

// Pool is the transport that g owns.
func Pool(g *Guard) *http.Transport { return g.pool.Transport }

// WithoutOrigin returns cfg without the mark of Guard.Config, for comparison.
func WithoutOrigin(cfg Config) Config {
	cfg.from = nil
	return cfg
}
