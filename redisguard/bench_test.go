package redisguard_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/redisguard"
)

// BenchmarkAcquire compares Acquire and release, with room free, to a PING. It alternates between both in one run and
// reports the ratio of their medians.
func BenchmarkAcquire(b *testing.B) {
	s := startRedis(b)
	c := s.client(b)
	l := newLimiter(b, c, redisguard.Config{Limit: 10})
	ctx := context.Background()
	ping := func() { require.NoError(b, c.Ping(ctx).Err()) }
	acquire := func() {
		release, err := l.Acquire(ctx, aiguard.Call{Weight: 1, Tenant: "tenant"})
		require.NoError(b, err)
		release()
	}
	const each = 200
	measure := func(f func()) float64 {
		start := time.Now()
		for range each {
			f()
		}
		return float64(time.Since(start).Nanoseconds()) / each
	}
	measure(ping)
	measure(acquire)
	var pings, acquires []float64
	for b.Loop() {
		pings = append(pings, measure(ping))
		acquires = append(acquires, measure(acquire))
	}
	slices.Sort(pings)
	slices.Sort(acquires)
	p, a := pings[len(pings)/2], acquires[len(acquires)/2]
	b.ReportMetric(p, "ns/ping")
	b.ReportMetric(a, "ns/acquire")
	b.ReportMetric(a/p, "acquire/ping")
	b.ReportMetric(0, "ns/op")
}
