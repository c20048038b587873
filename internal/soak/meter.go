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

// meter measures the process and how far limits are exceeded.
type meter struct {
	mu     sync.Mutex
	lag    time.Duration // worst delay of a timer
	over   time.Duration // worst excess over a limit
	what   string        // the call with that excess
	gauges []*gauge
}

// gauge is a value that must not grow. Its peak in the last quarter of the run may exceed the peak in the first by at
// most most.
type gauge struct {
	name        string
	read        func() uint64 // returns 0 if unknown
	text        func(uint64) string
	most        uint64
	early, late uint64
}

func (g *gauge) String() string {
	return fmt.Sprintf("%s: at most %s in the first quarter and %s in the last; want growth of at most %s", g.name, g.text(g.early), g.text(g.late), g.text(g.most))
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

// exceeded records the duration of a call. The verdict waits until the machine's worst lag is known.
func (m *meter) exceeded(what string, d, bound time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if over := d - bound; over > m.over {
		m.over, m.what = over, fmt.Sprintf("%s: %v, limit %v", what, d.Round(time.Millisecond), bound)
	}
}

// readRSS returns the resident memory of the process in bytes, or 0 if /proc does not report it.
func readRSS() uint64 {
	kB, _, _ := procmem.Of("self")
	return uint64(kB) << 10
}

// openFiles returns the number of open files and sockets, or 0 if /proc does not report it.
func openFiles() uint64 {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return uint64(len(open))
}

// liveHeap returns the heap after two collections, because sync.Pool keeps its content for one.
func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func mb(n uint64) string { return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) }
