package main

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/procmem"
)

// meter measures the process, and by how much bounds are exceeded.
type meter struct {
	mu          sync.Mutex
	lag         time.Duration // the worst delay of a timer
	over        time.Duration // the most that a bound was exceeded by
	what        string        // that was
	early, late uint64        // highest RSS of the first and of the last quarter; 0: unknown
}

func (m *meter) watch(ctx context.Context, d time.Duration) {
	began := time.Now()
	for ctx.Err() == nil {
		before := time.Now()
		sleep(context.Background(), sampleEvery)
		lag, rss, at := time.Since(before)-sampleEvery, readRSS(), time.Since(began)
		m.mu.Lock()
		m.lag = max(m.lag, lag)
		switch {
		case at <= d/4:
			m.early = max(m.early, rss)
		case at >= d*3/4:
			m.late = max(m.late, rss)
		}
		m.mu.Unlock()
	}
}

// exceeded notes that something took d. Whether that is too much is known when the machine's lag is.
func (m *meter) exceeded(what string, d, bound time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if over := d - bound; over > m.over {
		m.over, m.what = over, fmt.Sprintf("%s: %v, bound %v", what, d.Round(time.Millisecond), bound)
	}
}

// readRSS is the memory that the process has of the machine, in bytes; 0 where /proc does not tell.
func readRSS() uint64 {
	kB, _, _ := procmem.Of("self")
	return uint64(kB) << 10
}

// liveHeap is the heap after two collections: pools keep what they have for one.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func mb(n uint64) string { return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) }
