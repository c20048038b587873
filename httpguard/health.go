package httpguard

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// DefaultSaturatedAfter is the default of HealthConfig.SaturatedAfter.
const DefaultSaturatedAfter = 10 * time.Second

// HealthConfig configures Readyz and Health. The zero value is valid.
type HealthConfig struct {
	// SaturatedAfter is how long calls must have been waiting for slots before Readyz reports "saturated". With
	// aiguard.Off, Readyz never reports it. Default 10s.
	SaturatedAfter time.Duration

	// UnreadyWhenDegraded makes Readyz respond with 503 also for "saturated", "route_paused" and "route_down". By
	// default their status is 200, because removing instances makes saturation worse and does not repair a provider.
	// Default false.
	UnreadyWhenDegraded bool
}

// Livez returns a handler that responds with 200 while the process serves requests.
func Livez() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		report(w, http.StatusOK, healthReport{Status: "ok"})
	})
}

// Readyz returns a handler that reports to an orchestrator or a load balancer whether this process accepts calls. The
// response is JSON and must not be cached. It holds a status, the reasons for it, and the guard's Stats.
//
//   - "unavailable", 503: the guard is "draining" after Shutdown or Close, or is "over_memory".
//   - "degraded", 200: calls have waited for slots for SaturatedAfter ("saturated"), or a provider's route is paused
//     or down ("route_paused", "route_down"). UnreadyWhenDegraded changes the status code to 503.
//   - "ok", 200: no reason applies.
//
// Readyz measures saturation between probes, from the first probe that finds calls waiting. It starts no goroutine.
// If probes are further apart than SaturatedAfter, two probes in a row must find calls waiting. A probe never calls
// the provider.
//
// Readyz returns an error if g is nil or a field of cfg is invalid. The handler is safe for concurrent use.
func Readyz(g *aiguard.Guard, cfg HealthConfig) (http.Handler, error) {
	if g == nil {
		return nil, errors.New("httpguard: Readyz: nil Guard; make it with aiguard.New")
	}
	if cfg.SaturatedAfter < aiguard.Off {
		return nil, fmt.Errorf("httpguard: HealthConfig.SaturatedAfter is %v; want a positive duration, 0 for the default, or aiguard.Off",
			cfg.SaturatedAfter)
	}
	return &health{guard: g, saturatedAfter: cmp.Or(cfg.SaturatedAfter, DefaultSaturatedAfter), strict: cfg.UnreadyWhenDegraded}, nil
}

// Health returns a handler that serves Livez at /livez and Readyz at /readyz, for GET and HEAD. It returns the same
// errors as Readyz.
func Health(g *aiguard.Guard, cfg HealthConfig) (http.Handler, error) {
	ready, err := Readyz(g, cfg)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", Livez())
	mux.Handle("GET /readyz", ready)
	return mux, nil
}

type health struct {
	guard          *aiguard.Guard
	saturatedAfter time.Duration
	strict         bool

	mu    sync.Mutex
	since time.Time // first of the latest probes in a row that found calls waiting; zero if the last probe did not
}

func (h *health) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	st, routes, now := h.guard.Stats(), h.guard.Routes(), time.Now()
	paused, down := troubled(routes, now)
	body := healthReport{Status: "ok", Stats: newStats(st)}
	for _, r := range []struct {
		name   string
		holds  bool
		status string
	}{
		{"saturated", h.saturated(full(st, routes, now), now), "degraded"},
		{"route_paused", paused, "degraded"},
		{"route_down", down, "degraded"},
		{"draining", st.Draining, "unavailable"},
		{"over_memory", st.OverMemory, "unavailable"},
	} {
		if r.holds {
			body.Status, body.Reasons = r.status, append(body.Reasons, r.name)
		}
	}
	status := http.StatusOK
	if body.Status == "unavailable" || h.strict && body.Status == "degraded" {
		status = http.StatusServiceUnavailable
	}
	report(w, status, body)
}

// troubled reports whether the provider of any route has requested a pause, and whether any route is down.
func troubled(routes []aiguard.RouteStats, now time.Time) (paused, down bool) {
	for _, r := range routes {
		paused = paused || r.PausedUntil.After(now)
		down = down || !r.DownSince.IsZero()
	}
	return paused, down
}

// full reports whether calls wait for slots, rather than for the end of a provider's pause or outage. Heavy calls may
// wait while some slots are free.
func full(st aiguard.Stats, routes []aiguard.RouteStats, now time.Time) bool {
	if st.Waiting == 0 || st.InFlight == 0 || st.MaxConcurrent == aiguard.Off {
		return false
	}
	waiting := st.Waiting
	for _, r := range routes {
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

// stats is the JSON form of aiguard.Stats. It omits limits that are off and values that do not apply.
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
	ConfigVersion int64      `json:"config_version"`
}

func newStats(st aiguard.Stats) *stats {
	s := &stats{
		InFlight: st.InFlight, Waiting: st.Waiting, MaxConcurrent: max(st.MaxConcurrent, 0), Limit: max(st.Limit, 0),
		HeapBytes: st.HeapBytes, MemoryLimit: st.MemoryLimit, BufferedBytes: st.BufferedBytes, OverMemory: st.OverMemory, Draining: st.Draining,
		Calls: st.Calls, Succeeded: st.Succeeded, Failed: st.Failed, Refused: st.Refused,
		Retries: st.Retries, Timeouts: st.Timeouts, WaitCount: st.WaitCount, WaitTime: st.WaitTime.Seconds(), ConfigVersion: st.ConfigVersion,
	}
	if !st.PausedUntil.IsZero() {
		s.PausedUntil = &st.PausedUntil
	}
	return s
}

// report writes body as JSON that no cache stores.
func report(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // fails only if the client has disconnected
}
