package main

import (
	"bytes"
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	peers "github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

func TestEveryClientMeetsTheSameUsers(t *testing.T) {
	r := tenants.run(5, 7, false)
	r.until = time.Minute
	type user struct {
		asked, work time.Duration
		tenant      string
	}
	users := func(ask func(context.Context) error) (all []user) {
		synctest.Test(t, func(*testing.T) {
			for _, c := range offer(r, time.Now(), ask) {
				all = append(all, user{c.asked, c.work, c.tenant})
			}
		})
		return all
	}
	all := users(func(context.Context) error { return nil })
	require.Equal(t, all, users(func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}))
	var sum time.Duration
	of := make(map[string]int)
	for _, u := range all {
		sum += u.work
		of[u.tenant]++
	}
	require.InDelta(t, 5*5*60, len(all), 150)
	require.InDelta(t, meanWork.Seconds(), sum.Seconds()/float64(len(all)), 0.05)
	require.Len(t, of, lightTenants+1)
	require.InDelta(t, heavyLoad/(lightTenants*lightLoad+heavyLoad), float64(of[heavyTenant])/float64(len(all)), 0.05)
}

// The naive client has no jitter. Only the order of simultaneous events can differ.
func TestSameSeedGivesTheSameFigures(t *testing.T) {
	r := fits.run(2, 3, false)
	r.until = 2 * time.Minute
	c := contender{peers.Naive, false, naive}
	one, two := simulate(t, r, c), simulate(t, r, c)
	require.InEpsilon(t, one.goodput, two.goodput, 0.01)
	require.InEpsilon(t, one.requestsPerAnswer, two.requestsPerAnswer, 0.01)
	require.InEpsilon(t, one.p50, two.p50, 0.01)
	r.seed++
	require.NotEqual(t, one, simulate(t, r, c))
}

// The defaults reach every aim of the report. Runs are shorter here, with one seed.
func TestDefaultsReachTheirAims(t *testing.T) {
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.until = 3 * time.Minute
			var got result
			for _, c := range s.clients {
				if c.ours {
					t.Run("simulation", func(t *testing.T) { s.simulate(t, c, s.loads[len(s.loads)-1], 1, &got) })
				}
			}
			for _, a := range aims {
				if a.scenario == s.name {
					v := a.of(got)
					assert.True(t, a.reached(v), "%s: %s, want %s", a.what, a.show(v), a)
				}
			}
		})
	}
}

func TestAnOutageCostsNoGoodputBeforeAndAfter(t *testing.T) {
	f := simulate(t, fits.run(highest, 1, true), contender{peers.Aiguard, true, guarded})
	require.GreaterOrEqual(t, f.goodput, 0.95)
}

// at returns a call that begins at second asked and ends after took seconds.
func at(asked, took float64, end ending) *call {
	d := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	return &call{asked: d(asked), took: d(took), end: end, work: time.Second}
}

// at returns the record of a request of the call, made by a provider with one slot.
func (c *call) at(from, to float64, status int) served {
	d := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	return served{c, d(from), d(to), status}
}

func TestIdleSlotsCountAgainstRefusedCalls(t *testing.T) {
	r := deadlines.run(1, 1, false)
	r.provider.Capacity = 1
	for name, c := range map[string]struct {
		others []served
		idle   float64
	}{
		"none is busy":               {nil, 9}, // the deadline is 10 s away, and the work takes a second
		"busy all the time":          {[]served{at(90, 40, answered).at(90, 130, 200)}, 0},
		"busy for a part":            {[]served{at(90, 13, answered).at(90, 103, 200)}, 6},
		"busy in vain":               {[]served{at(90, 10, gaveUp).at(90, 100, 0), at(95, 10, gaveUp).at(100, 105, 0)}, 9},
		"busy too late to be of use": {[]served{at(90, 29, answered).at(109, 119, 200)}, 9},
	} {
		t.Run(name, func(t *testing.T) {
			calls := []*call{at(100, 0, refused)}
			for _, s := range c.others {
				calls = append(calls, s.call)
			}
			require.InDelta(t, c.idle, r.idle(calls, c.others), 1e-9)
		})
	}
	two := []*call{at(100, 0, refused), at(100, 0, refused)}
	require.InDelta(t, 9, r.idle(two, nil), 1e-9, "there is one slot")
	r.provider.Capacity = 5
	require.InDelta(t, 18, r.idle(two, nil), 1e-9, "and two calls")
}

func TestDeadlinesAreMeasured(t *testing.T) {
	r := deadlines.run(1, 1, false)
	r.provider.Capacity = 1
	inTime, late := at(100, 10, gaveUp), at(100, 10, gaveUp)
	calls := []*call{
		at(100, 0, refused), at(100, 0.05, refused), at(100, 5, refused),
		at(100, 10, gaveUp), late, // timed out in the queue
		inTime, at(100, 10, answered),
		at(10, 10, gaveUp), // during the warm-up
	}
	var f figures
	r.measureDeadlines(&f, calls, []served{inTime.at(108, 110, 0), late.at(109.5, 110, 0)})
	require.InDelta(t, 2./3, f.refusedAtOnce, 1e-9)
	require.InDelta(t, 2./7, f.timedOut, 1e-9)
	require.Equal(t, 1., f.couldHave)

	r.measureDeadlines(&f, calls[6:7], nil)
	require.Equal(t, "–", percent(f.refusedAtOnce), "of none")
	require.Equal(t, "–", percent(f.couldHave), "of none")
}

func TestRateLimitsBeforeTheFirstAnswerDoNotCount(t *testing.T) {
	c := at(0, 1, answered)
	require.Equal(t, 1, limited([]served{c.at(0, 1, 200), c.at(0.5, 0.6, 429), c.at(1.5, 1.6, 429), c.at(2, 3, 200)}))
	require.Zero(t, limited([]served{c.at(0, 1, 429)}))
}

func TestLightTenantWithTheFewestAnswersCounts(t *testing.T) {
	var calls []*call
	add := func(tenant string, answers, refusals int) {
		for i := range answers + refusals {
			c := at(100, 1, answered)
			if c.tenant = tenant; i >= answers {
				c.end = refused
			}
			calls = append(calls, c)
		}
	}
	add("light 0", 9, 1)
	add("light 1", 4, 4)
	add(heavyTenant, 1, 9)
	lightest, heavy := tenantShares(calls)
	require.InDelta(t, 0.5, lightest, 1e-9)
	require.InDelta(t, 0.1, heavy, 1e-9)
}

func TestCallWithoutAnAnswerHasNoTime(t *testing.T) {
	r := down.run(0.5, 1, false)
	var calls []*call
	for i := range 100 {
		calls = append(calls, at(100, 1, answered))
		calls[i].id = i
	}
	for _, i := range []int{3, 4} { // the first five calls are left out
		calls[i].end = refused
	}
	require.Equal(t, time.Second, r.measure(calls, nil, nil).settledP99)
	calls[50].end = gaveUp
	require.Equal(t, never, r.measure(calls, nil, nil).settledP99)
}

func TestScenariosAreChosenByName(t *testing.T) {
	all, err := choose(1, ".")
	require.NoError(t, err)
	require.Len(t, all, len(scenarios))
	some, err := choose(6, "Fallback.*paused|fits")
	require.NoError(t, err)
	require.Len(t, some, 2)
	_, err = choose(0, ".")
	require.EqualError(t, err, "-rounds is 0; want 1 or more")
	_, err = choose(1, "[")
	require.ErrorContains(t, err, "-scenario: ")
	_, err = choose(1, "lunch")
	require.EqualError(t, err, "-scenario: no scenario matches lunch")
}

func TestReportShowsMedianAndRange(t *testing.T) {
	var results []result
	for _, v := range []float64{0.9, 0.5, 0.7} {
		results = append(results, result{calm: figures{goodput: v}})
	}
	require.Equal(t, "70% (50% to 90%)", goodput.told(results))
	require.Equal(t, "60% (50% to 70%)", goodput.told(results[1:]))
	require.Equal(t, "90%", goodput.told(results[:1]))
}

// good returns a report in which all clients have the best figures.
func good() *report {
	r := newReport(1, 2, scenarios)
	for _, results := range r.results {
		for i := range results {
			results[i].calm = figures{goodput: 1, requestsPerAnswer: 1, p50: time.Second, refusedAtOnce: 1, lightest: 1, settledP99: time.Second}
			results[i].outage = results[i].calm
			results[i].direct = results[i].calm
		}
	}
	return r
}

func TestReportNamesTheAimsThatAreMissed(t *testing.T) {
	r := good()
	var text bytes.Buffer
	r.write(&text, time.Now())
	require.NotContains(t, text.String(), "| missed |")
	require.Equal(t, len(aims), strings.Count(text.String(), "| reached |"))

	for _, results := range r.results {
		for i := range results {
			results[i] = result{calm: figures{requestsPerAnswer: math.Inf(1), p50: never, limited: 1, timedOut: 1, couldHave: 1, settledP99: never},
				outage: figures{requestsPerAnswer: math.Inf(1), recovery: never}}
		}
	}
	text.Reset()
	r.write(&text, time.Now())
	require.NotContains(t, text.String(), "| reached |")
	require.Equal(t, len(aims), strings.Count(text.String(), "| missed |"))
}

// A client without any answer must not break the picture.
func TestChartIsDrawn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "docs", "chart.svg")
	r := good()
	for _, load := range fits.loads {
		for i := range r.results[key{fits.name, peers.Naive, load}] {
			r.results[key{fits.name, peers.Naive, load}][i].outage.requestsPerAnswer = math.Inf(1)
		}
	}
	require.NoError(t, drawChart(path, r))
	svg, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, c := range fits.clients {
		require.Contains(t, string(svg), c.name)
	}
	require.Contains(t, string(svg), "gives 100% of its answers, half of them within 1.0 s")

	var text bytes.Buffer
	r.write(&text, time.Now())
	written, redrawn := filepath.Join(t.TempDir(), "OVERLOAD.md"), filepath.Join(t.TempDir(), "redrawn.svg")
	require.NoError(t, os.WriteFile(written, text.Bytes(), 0o644))
	require.NoError(t, redraw(written, redrawn))
	again, err := os.ReadFile(redrawn)
	require.NoError(t, err)
	require.Equal(t, string(svg), string(again), "the report contains all figures of the picture")
}
