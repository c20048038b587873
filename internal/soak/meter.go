package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/internal/procmem"
)

// meter measures the process, and by how much bounds are exceeded.
type meter struct {
	mu     sync.Mutex
	lag    time.Duration // the worst delay of a timer
	over   time.Duration // the most that a bound was exceeded by
	what   string        // that was
	gauges []*gauge
}

// gauge is something that must not grow: the highest of the last quarter may exceed that of the first by so much.
type gauge struct {
	name        string
	read        func() uint64 // 0: unknown
	text        func(uint64) string
	most        uint64
	early, late uint64
}

func (g *gauge) String() string {
	return fmt.Sprintf("%s up to %s in the first quarter, %s in the last; want at most %s more", g.name, g.text(g.early), g.text(g.late), g.text(g.most))
}

func gauges(slots func() uint64) []*gauge {
	count := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return []*gauge{
		{name: "RSS in MB", read: readRSS, text: mb, most: 64 << 20},
		{name: "goroutines", read: func() uint64 { return uint64(runtime.NumGoroutine()) }, text: count, most: 100},
		{name: "files and sockets", read: openFiles, text: count, most: 60},
		{name: "slots", read: slots, text: count, most: uint64(config.MaxConcurrent) / 4},
	}
}

func (m *meter) watch(ctx context.Context, d time.Duration) {
	began := time.Now()
	for ctx.Err() == nil {
		before := time.Now()
		sleep(context.Background(), sampleEvery)
		lag, at := time.Since(before)-sampleEvery, time.Since(began)
		m.mu.Lock()
		m.lag = max(m.lag, lag)
		for _, g := range m.gauges {
			switch {
			case at <= d/4:
				g.early = max(g.early, g.read())
			case at >= d*3/4:
				g.late = max(g.late, g.read())
			}
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

// openFiles is how many files and sockets the process has open; 0 where /proc does not tell.
func openFiles() uint64 {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return uint64(len(open))
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
