package cacheguard_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/cacheguard"
)

// store is a Store in a map with hooks.
type store struct {
	before func(ctx context.Context, use string) error // nil: no hook

	mu      sync.Mutex
	uses    []string
	entries map[string][]byte
	ttls    []time.Duration
}

func (s *store) use(ctx context.Context, use string) error {
	s.mu.Lock()
	s.uses = append(s.uses, use)
	before := s.before
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, use)
}

func (s *store) Get(ctx context.Context, name string) ([]byte, error) {
	if err := s.use(ctx, "get"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[name], nil
}

func (s *store) Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error {
	if err := s.use(ctx, "set"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries == nil {
		s.entries = map[string][]byte{}
	}
	s.entries[name] = entry
	s.ttls = append(s.ttls, ttl)
	return nil
}

func (s *store) setBefore(f func(ctx context.Context, use string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// used returns the number of uses since the last call.
func (s *store) used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.uses)
	s.uses = nil
	return n
}

// numbered returns the i-th of a series of cacheable requests.
func numbered(i int) string { return strings.Replace(certain, "Hi", strings.Repeat("Hi", i+1), 1) }

func TestConfiguredStoreIsUsed(t *testing.T) {
	s := &store{}
	inVirtualTime(t, cacheguard.Config{Store: s, TTL: time.Minute}, func(t *testing.T, w *world) {
		ask := func(ctx context.Context) string {
			a := w.chat(ctx, certain)
			require.NoError(t, a.err)
			synctest.Wait()
			return a.source
		}
		assert.Equal(t, "miss", ask(t.Context()))
		assert.Equal(t, "hit", ask(t.Context()))
		assert.Equal(t, "miss", ask(cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true, TTL: time.Hour})))
		assert.Equal(t, []time.Duration{time.Minute, time.Hour}, s.ttls)
		for name, entry := range s.entries {
			assert.Regexp(t, "^[0-9a-f]{64}$", name)
			assert.NotContains(t, string(entry), "sk-one")
			assert.NotContains(t, string(entry), `"content":"Hi"`, "the prompt")
		}
		assert.Zero(t, w.cache.Stats().StoreFailures)
	})
}

func TestIdenticalCallersShareOneLookup(t *testing.T) {
	s := &store{}
	inVirtualTime(t, cacheguard.Config{Store: s}, func(t *testing.T, w *world) {
		require.NoError(t, w.chat(t.Context(), certain).err)
		synctest.Wait()
		s.used()
		s.setBefore(func(context.Context, string) error { time.Sleep(10 * time.Millisecond); return nil })
		for _, a := range all(100, func(int) answer { return w.chat(t.Context(), certain) }) {
			require.NoError(t, a.err)
			require.Equal(t, "hit", a.source)
		}
		assert.Equal(t, 1, s.used())
	})
}

func TestFailingStoreDoesNotFailOrDelayCalls(t *testing.T) {
	for name, before := range map[string]func(context.Context, string) error{
		"broken": func(context.Context, string) error { return errors.New("broken") },
		"slow":   func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() },
		"deaf":   func(context.Context, string) error { time.Sleep(time.Minute); return nil },
		"slow writes": func(ctx context.Context, use string) error {
			if use == "set" {
				<-ctx.Done()
			}
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cacheguard.Config{Store: &store{before: before}}, func(t *testing.T, w *world) {
				start := time.Now()
				for i := range 100 {
					before := time.Now()
					a := w.chat(t.Context(), numbered(i))
					require.NoError(t, a.err)
					require.Equal(t, "miss", a.source)
					require.LessOrEqual(t, time.Since(before), cacheguard.DefaultLookupTimeout)
					time.Sleep(10 * time.Millisecond)
				}
				// Of 100 calls in just over a second, one finds the failure and perhaps one probes after the pause.
				assert.LessOrEqual(t, time.Since(start), time.Second+2*cacheguard.DefaultLookupTimeout)
				assert.Equal(t, 100, w.srv.Count())
				failures := w.cache.Stats().StoreFailures
				time.Sleep(2 * time.Minute) // lets blocked goroutines and writes finish
				if name == "slow writes" {
					failures = min(1, w.cache.Stats().StoreFailures)
				}
				assert.Positive(t, failures)
				assert.LessOrEqual(t, failures, int64(2))
				assert.Zero(t, w.cache.Stats().InFlight)
			})
		})
	}
}

func TestFailedStoreIsPausedThenProbed(t *testing.T) {
	s := &store{}
	inVirtualTime(t, cacheguard.Config{Store: s}, func(t *testing.T, w *world) {
		broken := errors.New("broken")
		s.setBefore(func(context.Context, string) error { return broken })
		require.NoError(t, w.chat(t.Context(), numbered(0)).err)
		assert.Equal(t, 1, s.used())
		time.Sleep(999 * time.Millisecond)
		require.NoError(t, w.chat(t.Context(), numbered(1)).err)
		assert.Zero(t, s.used(), "the store is not used")

		time.Sleep(2 * time.Millisecond)
		s.setBefore(func(context.Context, string) error { time.Sleep(10 * time.Millisecond); return broken })
		all(20, func(i int) answer { return w.chat(t.Context(), numbered(i)) })
		assert.Equal(t, 1, s.used(), "one call probes for all")

		time.Sleep(1100 * time.Millisecond)
		s.setBefore(nil)
		require.NoError(t, w.chat(t.Context(), numbered(2)).err)
		synctest.Wait()
		assert.Equal(t, 2, s.used(), "the store is used again")
		assert.Equal(t, "hit", w.chat(t.Context(), numbered(2)).source)
	})
}

func TestLeavingCallerIsNotAStoreFailure(t *testing.T) {
	s := &store{before: func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }}
	inVirtualTime(t, cacheguard.Config{Store: s}, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.ErrorIs(t, w.chat(ctx, certain).err, context.DeadlineExceeded)
		synctest.Wait()
		assert.Zero(t, w.cache.Stats().StoreFailures)
		assert.Zero(t, w.guard.Stats().Calls, "no caller is left")
	})
}

func TestInvalidEntryIsAMiss(t *testing.T) {
	for name, spoil := range map[string]func(entry, other []byte) []byte{
		"flipped":            func(e, _ []byte) []byte { e[len(e)/2] ^= 1; return e },
		"cut":                func(e, _ []byte) []byte { return e[:len(e)-1] },
		"empty":              func(_, _ []byte) []byte { return []byte{} },
		"text":               func(_, _ []byte) []byte { return []byte("hello") },
		"version":            func(e, _ []byte) []byte { e[0]++; return e },
		"another's":          func(_, o []byte) []byte { return o },
		"with trailing data": func(e, _ []byte) []byte { return append(e, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s := &store{}
			inVirtualTime(t, cacheguard.Config{Store: s}, func(t *testing.T, w *world) {
				require.NoError(t, w.chat(t.Context(), numbered(0)).err)
				synctest.Wait()
				var first string
				for first = range s.entries {
				}
				require.NoError(t, w.chat(t.Context(), numbered(1)).err)
				synctest.Wait()
				for other, entry := range s.entries {
					if other != first {
						s.entries[first] = spoil(bytes.Clone(s.entries[first]), entry)
					}
				}
				a := w.chat(t.Context(), numbered(0))
				require.NoError(t, a.err)
				assert.Equal(t, "miss", a.source)
				assert.EqualValues(t, 1, w.cache.Stats().Corrupt)
				assert.Zero(t, w.cache.Stats().StoreFailures)
				synctest.Wait()
				assert.Equal(t, "hit", w.chat(t.Context(), numbered(0)).source, "replaced")
			})
		})
	}
}

// A caller that arrives during the write gets the answer without the store.
func TestWriteDelaysNoCaller(t *testing.T) {
	s := &store{before: func(ctx context.Context, use string) error {
		if use == "set" {
			time.Sleep(500 * time.Millisecond)
		}
		return nil
	}}
	inVirtualTime(t, cacheguard.Config{Store: s}, func(t *testing.T, w *world) {
		start := time.Now()
		for _, want := range []string{"miss", "shared", "shared"} {
			a := w.chat(t.Context(), certain)
			require.NoError(t, a.err)
			assert.Equal(t, want, a.source)
		}
		// A caller never joins a finished request if its answer is random or was a refresh.
		for range 2 {
			assert.Equal(t, "miss", w.chat(t.Context(), dice).source)
			assert.Equal(t, "miss", w.chat(cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true}), certain).source)
		}
		assert.Zero(t, time.Since(start))
		time.Sleep(time.Second)
		assert.Equal(t, "hit", w.chat(t.Context(), certain).source)
		assert.Equal(t, 5, w.srv.Count())
	})
}

func TestCloseWaitsForWrites(t *testing.T) {
	s := &store{before: func(ctx context.Context, use string) error {
		if use == "set" {
			time.Sleep(500 * time.Millisecond)
		}
		return nil
	}}
	inVirtualTime(t, cacheguard.Config{Store: s}, func(t *testing.T, w *world) {
		require.NoError(t, w.chat(t.Context(), certain).err)
		start := time.Now()
		require.NoError(t, w.cache.Close())
		assert.Equal(t, 500*time.Millisecond, time.Since(start))
		assert.Len(t, s.entries, 1)
	})
}
