package httpguard_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

// health is the response of a probe.
type health struct {
	code    int
	Status  string
	Reasons []string
	Stats   map[string]any
}

func healthOf(t *testing.T, g *aiguard.Guard, cfg httpguard.HealthConfig) http.Handler {
	t.Helper()
	h, err := httpguard.Health(g, cfg)
	require.NoError(t, err)
	return h
}

func probe(t *testing.T, h http.Handler, path string) health {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	answer := health{code: w.Code}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
	return answer
}

func TestReadyzNamesEachReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			cfg     aiguard.Config
			prepare func(g *aiguard.Guard)
			status  string
			reasons []string
		}{
			"none":     {status: "ok"},
			"draining": {prepare: func(g *aiguard.Guard) { assert.NoError(t, g.Close()) }, status: "unavailable", reasons: []string{"draining"}},
			"memory":   {cfg: aiguard.Config{MemoryLimit: 1}, status: "unavailable", reasons: []string{"over_memory"}},
			"paused":   {prepare: pause, status: "degraded", reasons: []string{"route_paused"}},
			"down":     {prepare: outage, status: "degraded", reasons: []string{"route_down"}},
			"all reasons": {
				cfg: aiguard.Config{MemoryLimit: 1 << 40},
				prepare: func(g *aiguard.Guard) {
					pause(g)
					outage(g)
					assert.NoError(t, g.Close())
				},
				status:  "unavailable",
				reasons: []string{"route_paused", "route_down", "draining"},
			},
		} {
			g := newGuard(t, c.cfg)
			if c.prepare != nil {
				c.prepare(g)
			}
			h := healthOf(t, g, httpguard.HealthConfig{})
			before := g.Stats().Calls
			ready := probe(t, h, "/readyz")
			assert.Equal(t, c.reasons, ready.Reasons, name)
			assert.Equal(t, c.status, ready.Status, name)
			assert.Equal(t, c.status == "unavailable", ready.code == http.StatusServiceUnavailable, name)
			strict := probe(t, healthOf(t, g, httpguard.HealthConfig{UnreadyWhenDegraded: true}), "/readyz")
			assert.Equal(t, c.status, strict.Status, name)
			assert.Equal(t, c.status != "ok", strict.code == http.StatusServiceUnavailable, name)
			live := probe(t, h, "/livez")
			assert.Equal(t, health{code: 200, Status: "ok"}, live, "%s: liveness does not depend on it", name)
			assert.Equal(t, before, g.Stats().Calls, "a probe makes no call")
		}
	})
}

// pause makes a provider request a pause of 30 seconds.
func pause(g *aiguard.Guard) {
	_, _ = aiguard.Do(context.Background(), g.With(aiguard.Call{Op: "ask", Attempts: 1}), func(context.Context) (int, error) {
		return 0, &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: 30 * time.Second}
	})
}

// outage makes a provider fail until its route is down.
func outage(g *aiguard.Guard) {
	for range 5 {
		_, _ = aiguard.Do(context.Background(), g.With(aiguard.Call{Op: "answer", Attempts: 1}), func(context.Context) (int, error) {
			return 0, &aiguard.Error{Kind: aiguard.ErrUnavailable, StatusCode: http.StatusBadGateway}
		})
	}
}

func TestPauseIsDegradedUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{})
		pause(g)
		h := healthOf(t, g, httpguard.HealthConfig{})
		ready := probe(t, h, "/readyz")
		assert.Equal(t, http.StatusOK, ready.code, "another model may answer")
		until, err := time.Parse(time.RFC3339Nano, ready.Stats["paused_until"].(string))
		require.NoError(t, err)
		time.Sleep(time.Until(until) + 1)
		assert.Equal(t, "ok", probe(t, h, "/readyz").Status)
	})
}

func TestSaturationIsReportedAfterSaturatedAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1, CallTimeout: aiguard.Off, QueueTimeout: aiguard.Off, TotalTimeout: aiguard.Off})
		h := healthOf(t, g, httpguard.HealthConfig{})
		never := healthOf(t, g, httpguard.HealthConfig{SaturatedAfter: aiguard.Off})
		call := func(done <-chan struct{}) {
			go func() {
				_, _ = aiguard.Do(t.Context(), g, func(context.Context) (int, error) { <-done; return 0, nil })
			}()
			synctest.Wait()
		}
		first, second := make(chan struct{}), make(chan struct{})
		defer close(second)
		saturated := func() bool {
			probe(t, never, "/readyz")
			ready := probe(t, h, "/readyz")
			assert.Equal(t, http.StatusOK, ready.code)
			assert.Equal(t, ready.Status == "degraded", len(ready.Reasons) == 1)
			return ready.Status != "ok"
		}
		call(first)
		assert.False(t, saturated())
		time.Sleep(time.Hour)
		assert.False(t, saturated(), "busy, but no call waits")

		call(second)
		assert.False(t, saturated(), "saturated since the first probe that saw it")
		time.Sleep(httpguard.DefaultSaturatedAfter - 1)
		assert.False(t, saturated())
		time.Sleep(1 * time.Nanosecond)
		assert.True(t, saturated())

		close(first)
		synctest.Wait()
		assert.False(t, saturated(), "the queue is empty")
		call(second)
		assert.False(t, saturated(), "the measurement starts again")
		time.Sleep(time.Hour)
		assert.True(t, saturated())
		assert.Equal(t, "ok", probe(t, never, "/readyz").Status)
	})
}

func TestWaitingForAPauseIsNotSaturation(t *testing.T) {
	for name, limit := range map[string]int64{"default": 0, "without a limit": aiguard.Off} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGuard(t, aiguard.Config{MaxConcurrent: limit, QueueTimeout: aiguard.Off})
				pause(g)
				wait := func(op string, f func()) {
					go func() {
						_, _ = aiguard.Do(t.Context(), g.With(aiguard.Call{Op: op}), func(context.Context) (int, error) { f(); return 0, nil })
					}()
					synctest.Wait()
				}
				done := make(chan struct{})
				wait("another", func() { <-done })
				wait("ask", func() {})
				st := g.Stats()
				require.Equal(t, []int64{1, 1}, []int64{st.InFlight, st.Waiting})
				h := healthOf(t, g, httpguard.HealthConfig{})
				assert.NotContains(t, probe(t, h, "/readyz").Reasons, "saturated")
				time.Sleep(2 * httpguard.DefaultSaturatedAfter)
				require.EqualValues(t, 1, g.Stats().Waiting)
				assert.NotContains(t, probe(t, h, "/readyz").Reasons, "saturated")
				close(done)
				time.Sleep(time.Minute)
			})
		})
	}
}

// Free slots may be too few for any waiting heavy call.
func TestHeavyCallsWaitingBesideFreeSlotsAreSaturation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 10, CallTimeout: aiguard.Off, QueueTimeout: aiguard.Off, TotalTimeout: aiguard.Off})
		done := make(chan struct{})
		defer close(done)
		for range 2 {
			go func() {
				_, _ = aiguard.Do(t.Context(), g.With(aiguard.Call{Weight: 8}), func(context.Context) (int, error) { <-done; return 0, nil })
			}()
		}
		synctest.Wait()
		st := g.Stats()
		require.Equal(t, []int64{8, 1}, []int64{st.InFlight, st.Waiting})
		h := healthOf(t, g, httpguard.HealthConfig{})
		assert.Empty(t, probe(t, h, "/readyz").Reasons)
		time.Sleep(httpguard.DefaultSaturatedAfter)
		assert.Equal(t, []string{"saturated"}, probe(t, h, "/readyz").Reasons)
	})
}

func TestReadyzHasEveryStat(t *testing.T) {
	g := newGuard(t, aiguard.Config{MemoryLimit: 1 << 40})
	_, err := aiguard.Do(t.Context(), g, func(context.Context) (int, error) { return 0, errors.New("no") })
	require.Error(t, err)
	pause(g)
	stats := probe(t, healthOf(t, g, httpguard.HealthConfig{}), "/readyz").Stats
	assert.Len(t, stats, reflect.TypeFor[aiguard.Stats]().NumField()-4, "all but the statistics of priorities, and of tenants, whose names are not public")
	assert.EqualValues(t, 5, stats["max_concurrent"])
	assert.EqualValues(t, 2, stats["calls"])
	assert.EqualValues(t, 2, stats["failed"])
	assert.EqualValues(t, int64(1<<40), stats["memory_limit"])
	assert.Positive(t, stats["heap_bytes"])
	assert.EqualValues(t, 0, stats["wait_time"])
	assert.Equal(t, false, stats["draining"])

	unbounded := newGuard(t, aiguard.Config{MaxConcurrent: aiguard.Off})
	assert.NotContains(t, probe(t, healthOf(t, unbounded, httpguard.HealthConfig{}), "/readyz").Stats, "max_concurrent")
}

func TestProbesAreGetOrHead(t *testing.T) {
	h := healthOf(t, newGuard(t, aiguard.Config{}), httpguard.HealthConfig{})
	for _, path := range []string{"/livez", "/readyz"} {
		for method, code := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405, "DELETE": 405, "OPTIONS": 405} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			assert.Equal(t, code, w.Code, "%s %s", method, path)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	assert.Equal(t, http.StatusNotFound, w.Code)
}

func TestHealthConfigOutOfRangeIsAnError(t *testing.T) {
	_, err := httpguard.Health(newGuard(t, aiguard.Config{}), httpguard.HealthConfig{SaturatedAfter: -2})
	assert.EqualError(t, err, "httpguard: HealthConfig.SaturatedAfter is -2ns; want a positive duration, 0 for the default, or aiguard.Off")
	_, err = httpguard.Readyz(nil, httpguard.HealthConfig{})
	assert.EqualError(t, err, "httpguard: Readyz: nil Guard; make it with aiguard.New")
}
