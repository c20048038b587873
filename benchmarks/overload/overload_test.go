package main

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	peers "github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

func named(t *testing.T, name string) contender {
	t.Helper()
	for _, c := range contenders {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no contender %q", name)
	return contender{}
}

func TestEveryClientMeetsTheSameUsers(t *testing.T) {
	users := func(ask func(context.Context) error) (asked, work []time.Duration) {
		r := scenarios[0].run(5, 7, false)
		r.until = time.Minute
		synctest.Test(t, func(*testing.T) {
			for _, c := range offer(r, time.Now(), ask) {
				asked, work = append(asked, c.asked), append(work, c.work)
			}
		})
		return asked, work
	}
	asked, work := users(func(context.Context) error { return nil })
	again, workAgain := users(func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	})
	require.Equal(t, asked, again)
	require.Equal(t, work, workAgain)
	var sum time.Duration
	for _, w := range work {
		sum += w
	}
	require.InDelta(t, 5*5*60, len(work), 150)
	require.InDelta(t, meanWork.Seconds(), sum.Seconds()/float64(len(work)), 0.05)
}

// The naive client has no jitter of its own: what is left is the order of what happens in the same instant.
func TestSameSeedGivesTheSameFigures(t *testing.T) {
	r := scenarios[0].run(2, 3, false)
	r.until = 2 * time.Minute
	one, two := simulate(t, r, contenders[0]), simulate(t, r, contenders[0])
	require.InEpsilon(t, one.goodput, two.goodput, 0.01)
	require.InEpsilon(t, one.requestsPerAnswer, two.requestsPerAnswer, 0.01)
	require.InEpsilon(t, one.p50, two.p50, 0.01)
	r.seed++
	require.NotEqual(t, one, simulate(t, r, contenders[0]))
}

// What the README promises, at twenty times what the provider can do.
func TestAims(t *testing.T) {
	for _, name := range []string{peers.Aiguard, peers.Adaptive} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := named(t, name)
			r := scenarios[0].run(20, 1, false)
			r.until = 3 * time.Minute
			calm := simulate(t, r, c)
			require.GreaterOrEqual(t, calm.goodput, 0.95)
			require.LessOrEqual(t, calm.requestsPerAnswer, 1.05)

			outage := simulate(t, scenarios[0].run(20, 1, true), c)
			require.GreaterOrEqual(t, outage.goodput, 0.95)
			require.GreaterOrEqual(t, outage.recovery, time.Duration(0))
			require.LessOrEqual(t, outage.recovery, 2*time.Second)
			if name != peers.Aiguard { // a fixed limit still tries once for each user while the provider is down
				require.LessOrEqual(t, outage.requestsPerAnswer, 1.2)
			}
		})
	}
}

func TestAdaptiveLimitGainsWhereTheLimitIsTooHigh(t *testing.T) {
	r := scenarios[2].run(5, 1, false)
	fixed, adaptive := simulate(t, r, named(t, peers.Aiguard)), simulate(t, r, named(t, peers.Adaptive))
	require.Greater(t, adaptive.goodput, fixed.goodput)
	require.Less(t, adaptive.requestsPerAnswer, 1.05)
	require.Greater(t, fixed.requestsPerAnswer, 1.2)
}

// Noise is no lead, and to have no figure at all is to be behind.
func TestLeadIsMoreThanNoise(t *testing.T) {
	none := math.Inf(1)
	require.Equal(t, 1, goodput.beside(0.99, 0.8))
	require.Equal(t, -1, goodput.beside(0.8, 0.99))
	require.Zero(t, goodput.beside(0.99, 1))
	require.Equal(t, 1, requests.beside(1, 60))
	require.Equal(t, 1, requests.beside(1, none))
	require.Zero(t, requests.beside(none, none))
	require.Equal(t, -1, recovery.beside(0.6, 0))
	require.Equal(t, -1, recovery.beside(none, 2))
	require.Zero(t, recovery.beside(0.2, 0))
}

func TestReportTellsMedianAndRange(t *testing.T) {
	var results []result
	for _, v := range []float64{0.9, 0.5, 0.7} {
		results = append(results, result{calm: figures{goodput: v}})
	}
	require.Equal(t, "70% (50% to 90%)", goodput.told(results))
	require.Equal(t, "60% (50% to 70%)", goodput.told(results[1:]))
	require.Equal(t, "90%", goodput.told(results[:1]))
}

// A client that got no answer at all must not break the picture.
func TestChartIsDrawn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docs", "chart.svg")
	results := newReport(1, 1).results[0]
	for _, of := range results {
		for k := range of {
			of[k].outage.requestsPerAnswer = math.Inf(1)
		}
	}
	results[3][0].outage.requestsPerAnswer = 3
	require.NoError(t, drawChart(path, results))
	svg, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, c := range contenders {
		require.Contains(t, string(svg), c.name)
	}
}
