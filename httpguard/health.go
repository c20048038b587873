package httpguard

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// DefaultSaturatedAfter is the default of HealthConfig.SaturatedAfter.
const DefaultSaturatedAfter = 10 * time.Second

// HealthConfig is what Health needs to know: nothing.
type HealthConfig struct {
	// SaturatedAfter is for how long calls must have been waiting for slots until /readyz says so. 10s;
	// aiguard.Off: it never does
	SaturatedAfter time.Duration
}

// Health serves the probes of an orchestrator or load balancer, by GET and HEAD, as JSON that no cache stores:
//
//   - /livez is 200 while the process serves requests.
//   - /readyz is 200 with status "ok", or 503 with status "unavailable" and all reasons that hold: "draining" after
//     Shutdown or Close, "over_memory" above the memory limit, and "saturated" when for SaturatedAfter calls have been
//     waiting for slots. Either comes with the guard's Stats.
//
// A provider that has asked for a pause is no reason: other models still answer, and every instance of the service waits for
// the same provider. The Stats have paused_until.
//
// No goroutine watches: saturation is measured from the first /readyz probe that finds it, and one that does not starts
// anew. With probes further apart than SaturatedAfter it takes two. A probe never makes a call to the provider.
//
// Health panics if g is nil or SaturatedAfter is out of range.
func Health(g *aiguard.Guard, cfg HealthConfig) http.Handler {
	_ = g.Stats()
	if cfg.SaturatedAfter < aiguard.Off {
		panic(fmt.Sprintf("httpguard: HealthConfig.SaturatedAfter is %v; want a positive duration, 0 for the default, or aiguard.Off",
			cfg.SaturatedAfter))
	}
	h := &health{guard: g, saturatedAfter: cmp.Or(cfg.SaturatedAfter, DefaultSaturatedAfter)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		report(w, http.StatusOK, healthReport{Status: "ok"})
	})
	mux.HandleFunc("GET /readyz", h.ready)
	return mux
}

type health struct {
	guard          *aiguard.Guard
	saturatedAfter time.Duration

	mu    sync.Mutex
	since time.Time // of the first probe in a row that found it saturated; zero: the last did not
}

func (h *health) ready(w http.ResponseWriter, _ *http.Request) {
	st := h.guard.Stats()
	now := time.Now()
	var reasons []string
	for _, r := range []struct {
		name  string
		holds bool
	}{
		{"draining", st.Draining},
		{"over_memory", st.OverMemory},
		{"saturated", h.saturated(h.full(st, now), now)},
	} {
		if r.holds {
			reasons = append(reasons, r.name)
		}
	}
	body := healthReport{Status: "ok", Reasons: reasons, Stats: newStats(st)}
	status := http.StatusOK
	if reasons != nil {
		body.Status, status = "unavailable", http.StatusServiceUnavailable
	}
	report(w, status, body)
}

// full reports whether calls wait for slots, and not for the end of a provider's pause or outage. Heavy calls may wait although
// some slots are left.
func (h *health) full(st aiguard.Stats, now time.Time) bool {
	if st.Waiting == 0 || st.InFlight == 0 || st.MaxConcurrent == aiguard.Off {
		return false
	}
	waiting := st.Waiting
	for _, r := range h.guard.Routes() {
		if r.PausedUntil.After(now) || !r.DownSince.IsZero() {
			waiting -= r.Waiting
		}
	}
	return waiting > 0
}

func (h *health) saturated(full bool, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !full:
		h.since = time.Time{}
	case h.since.IsZero():
		h.since = now
	}
	return full && h.saturatedAfter != aiguard.Off && now.Sub(h.since) >= h.saturatedAfter
}

type healthReport struct {
	Status  string   `json:"status"`
	Reasons []string `json:"reasons,omitempty"`
	Stats   *stats   `json:"stats,omitempty"`
}

// stats is aiguard.Stats as JSON; what has no bound or does not apply is left out.
type stats struct {
	InFlight      int64      `json:"in_flight"`
	Waiting       int64      `json:"waiting"`
	MaxConcurrent int64      `json:"max_concurrent,omitempty"`
	Limit         int64      `json:"limit,omitempty"`
	HeapBytes     int64      `json:"heap_bytes,omitempty"`
	MemoryLimit   int64      `json:"memory_limit,omitempty"`
	BufferedBytes int64      `json:"buffered_bytes"`
	PausedUntil   *time.Time `json:"paused_until,omitempty"`
	OverMemory    bool       `json:"over_memory"`
	Draining      bool       `json:"draining"`
	Calls         int64      `json:"calls"`
	Succeeded     int64      `json:"succeeded"`
	Failed        int64      `json:"failed"`
	Refused       int64      `json:"refused"`
	Retries       int64      `json:"retries"`
	Timeouts      int64      `json:"timeouts"`
	WaitCount     int64      `json:"wait_count"`
	WaitTime      float64    `json:"wait_time"` // seconds
}

func newStats(st aiguard.Stats) *stats {
	s := &stats{
		InFlight: st.InFlight, Waiting: st.Waiting, MaxConcurrent: max(st.MaxConcurrent, 0), Limit: max(st.Limit, 0),
		HeapBytes: st.HeapBytes, MemoryLimit: st.MemoryLimit, BufferedBytes: st.BufferedBytes, OverMemory: st.OverMemory, Draining: st.Draining,
		Calls: st.Calls, Succeeded: st.Succeeded, Failed: st.Failed, Refused: st.Refused,
		Retries: st.Retries, Timeouts: st.Timeouts, WaitCount: st.WaitCount, WaitTime: st.WaitTime.Seconds(),
	}
	if !st.PausedUntil.IsZero() {
		s.PausedUntil = &st.PausedUntil
	}
	return s
}

func report(w http.ResponseWriter, status int, body healthReport) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // whoever does not take it is gone
}
