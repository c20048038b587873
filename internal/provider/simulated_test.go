package provider

import (
	"math"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func config(most float64) *Config {
	return &Config{Least: 1, Most: most, Retries: 0.1, Jitter: func(time.Duration) time.Duration { return 0 }}
}

const start = Instant(time.Hour)

// after is a moment since the start.
func after(d time.Duration) Instant { return start + Instant(d) }

// send1 sends a request of weight 1, which is over at once.
func (r *Route) send1(now Instant, o Outcome) {
	s := r.Send(now, 1, 0)
	r.Judge(now, &s, o, true)
	r.Done(now, &s)
}

// gone is the loss of a request that may also mean too much to do.
var gone = Outcome{Lost: true, Dropped: true}

func TestOneProbeAtATimeUnlessItIsOutForLongerThanFailuresTake(t *testing.T) {
	r := New(config(10))
	for range 5 {
		s := r.Send(start, 1, 0)
		r.Judge(after(20*time.Millisecond), &s, gone, true) // a loss takes 20 ms
		r.Done(after(20*time.Millisecond), &s)
	}
	due := r.outage.probeAt
	probe := r.Send(due, 1, 0)
	require.True(t, probe.Probe)
	state, until := r.State(due+1, 0)
	require.Equal(t, Down, state)
	require.Equal(t, due+Instant(80*time.Millisecond), until)
	second := r.Send(until, 1, 0)
	require.True(t, second.Probe, "the first has probably found the provider at work")
	r.Judge(until+1, &second, gone, true)
	r.Done(until+1, &second)
	require.NotZero(t, r.DownSince())
	r.Judge(until+2, &probe, found, true)
	require.Zero(t, r.DownSince())
}

// Answers to what was sent before an "outage" show that it was none.
func TestOutageThatWasNoneDoesNotBringTheLimitBack(t *testing.T) {
	r := New(config(50))
	early := r.Send(start, 1, 0)
	for i := range 20 {
		r.send1(after(time.Duration(i)*time.Millisecond), gone)
	}
	require.NotZero(t, r.DownSince())
	low := r.Limit()
	require.Less(t, low, 50.)
	r.Judge(after(time.Second), &early, answered, true)
	require.Zero(t, r.DownSince())
	require.Less(t, r.Limit(), low+2)

	r = New(config(50))
	for i := range 20 {
		r.send1(after(time.Duration(i)*time.Millisecond), gone)
	}
	now := r.outage.probeAt
	for range 25 {
		r.send1(now, answered)
	}
	require.Equal(t, 50., r.Limit(), "an outage says nothing of the capacity")
}

func TestLongerPauseWinsAndWhatWasSentBeforeDoesNotEndIt(t *testing.T) {
	r := New(config(10))
	early := r.Send(start, 1, 0)
	r.send1(after(time.Second), limited(time.Minute))
	r.send1(after(2*time.Second), limited(time.Second))
	require.Equal(t, after(61*time.Second), r.PausedUntil(after(3*time.Second)))
	r.Judge(after(3*time.Second), &early, answered, true)
	require.Equal(t, after(61*time.Second), r.PausedUntil(after(3*time.Second)))
}

// A simulated provider that answers no faster beyond its knee, and drops beyond twice that.
func TestKneeIsFoundWhereDropsComeAgainAndAgain(t *testing.T) {
	for _, tc := range []struct{ knee, drops, least, most float64 }{{8, 16, 5, 12}, {8, 60, 5, 60}, {20, 40, 14, 30}, {40, 41, 28, 41}} {
		cfg := config(50)
		r := New(cfg)
		rng := rand.New(rand.NewPCG(1, 2))
		var limits []float64
		type job struct {
			Sending
			left float64
		}
		var jobs []*job
		for step := range 60_000 { // 10 ms each
			now := after(time.Duration(step) * 10 * time.Millisecond)
			for float64(r.InFlight()) < math.Floor(r.Limit()) {
				s := r.Send(now, 1, 0)
				if float64(len(jobs)) >= tc.drops {
					r.Judge(now, &s, Outcome{Found: true, Dropped: true}, true)
					r.Done(now, &s)
					break
				}
				jobs = append(jobs, &job{s, math.Exp(rng.NormFloat64()/2 - 0.125)})
			}
			speed := min(1, tc.knee/float64(len(jobs)))
			kept := jobs[:0]
			for _, j := range jobs {
				if j.left -= 0.01 * speed; j.left > 0 {
					kept = append(kept, j)
					continue
				}
				r.Judge(now, &j.Sending, answered, true)
				r.Done(now, &j.Sending)
			}
			jobs = kept
			if step > 20_000 {
				limits = append(limits, r.Limit())
			}
		}
		var sum float64
		for _, l := range limits {
			sum += l
		}
		mean := sum / float64(len(limits))
		require.GreaterOrEqual(t, mean, tc.least, "%+v", tc)
		require.LessOrEqual(t, mean, tc.most, "%+v", tc)
	}
}

func TestHeadersAreReadAsProvidersSendThem(t *testing.T) {
	for name, tc := range map[string]struct {
		headers          map[string]string
		requests, tokens Told
		ok               bool
	}{
		"OpenAI": {map[string]string{
			"x-ratelimit-limit-requests": "5000", "x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "12ms",
			"x-ratelimit-limit-tokens": "160000", "x-ratelimit-remaining-tokens": "159976", "x-ratelimit-reset-tokens": "6m0s",
		}, Told{5000, 4999, 12 * time.Millisecond}, Told{160000, 159976, 6 * time.Minute}, true},
		"Anthropic": {map[string]string{
			"Date":                               "Sun, 29 Nov 2026 10:00:00 GMT",
			"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49", "anthropic-ratelimit-requests-reset": "2026-11-29T10:00:30Z",
		}, Told{50, 49, 30 * time.Second}, Unknown, true},
		"seconds":           {map[string]string{"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "59.70"}, Told{60, 0, 59700 * time.Millisecond}, Unknown, true},
		"limit alone":       {map[string]string{"x-ratelimit-limit-requests": "60"}, Told{60, -1, -1}, Unknown, true},
		"unknown remaining": {map[string]string{"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "-1"}, Told{60, -1, -1}, Unknown, true},
		"absent":            {nil, Unknown, Unknown, false},
		"absent is not 0":   {map[string]string{"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h"}, Unknown, Unknown, false},
		"garbage":           {map[string]string{"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "NaN"}, Unknown, Unknown, false},
		"endless":           {map[string]string{"x-ratelimit-limit-requests": "1e300"}, Unknown, Unknown, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			for k, v := range tc.headers {
				h.Set(k, v)
			}
			requests, tokens, ok := Limits(h)
			require.Equal(t, tc.ok, ok)
			require.Equal(t, tc.requests, requests)
			require.Equal(t, tc.tokens, tokens)
		})
	}
}

// The bucket of the provider and ours, which knows it by headers alone: nothing is sent that the provider refuses, and
// nothing is left unused.
func TestToldPaceFollowsTheProvidersBucket(t *testing.T) {
	r := New(config(1000))
	level, rate, size := 10., 1., 10.
	type answer struct {
		Sending
		at   Instant
		told Told
	}
	var answers []answer
	sent := 0
	for step := range 12_000 { // two minutes
		now := after(time.Duration(step) * 10 * time.Millisecond)
		level = min(level+rate*0.01, size)
		for len(answers) > 0 && answers[0].at <= now {
			r.Tell(now, &answers[0].Sending, answers[0].told, Unknown)
			r.Done(now, &answers[0].Sending)
			answers = answers[1:]
		}
		if step > 0 && sent == 1 && len(answers) == 1 && step < 100 {
			continue // the first answer tells
		}
		for room, _ := r.Room(now, 0); room > 0 && sent < 2000; room, _ = r.Room(now, 0) {
			require.GreaterOrEqual(t, level, 1-1e-6, "step %d", step)
			level--
			sent++
			s := r.Send(now, 1, 0)
			answers = append(answers, answer{s, now + Instant(time.Second), Told{60, math.Floor(level), time.Duration((size - level) / rate * float64(time.Second))}})
			if sent == 1 {
				break
			}
		}
	}
	require.InDelta(t, 129, sent, 3)
}

func TestLearnedPaceKeepsToWhatIsLetIn(t *testing.T) {
	r := New(config(1000))
	level, refused, sent := 30., 0, 0
	for step := range 12_000 { // two minutes of 5 requests a second
		now := after(time.Duration(step) * 10 * time.Millisecond)
		level = min(level+0.05, 30)
		for i := 0; i < 3; i++ {
			if room, _ := r.Room(now, 0); room == 0 {
				break
			}
			sent++
			if level < 1 {
				refused++
				r.send1(now, limited(time.Second))
				continue
			}
			level--
			r.send1(now, answered)
		}
	}
	require.Greater(t, sent-refused, 590)
	require.Less(t, float64(refused), 0.05*float64(sent))
	require.InDelta(t, 300, r.Pace.Requests(), 60)
}

// Whoever refuses at random is not asked less and less.
func TestRandomRefusalsDoNotStarveARoute(t *testing.T) {
	r := New(config(1000))
	rng := rand.New(rand.NewPCG(3, 4))
	now, sent := start, 0
	for now < after(5*time.Minute) {
		now += Instant(20 * time.Millisecond)
		if room, _ := r.Room(now, 0); room == 0 {
			continue
		}
		sent++
		if rng.IntN(7) == 0 {
			r.send1(now, limited(2*time.Millisecond))
		} else {
			r.send1(now, answered)
		}
	}
	require.Greater(t, sent, 10_000, "of 15,000")
}

// Two routes of one configuration, driven at random: neither knows what becomes of the other, in flight never falls below
// zero, and a route that is left alone opens again.
func TestRoutesAreIndependent(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 5))
		cfg := config(8)
		driven, alone := New(cfg), New(cfg)
		fresh := *alone
		var flying []*Sending
		now := start
		outcomes := []Outcome{answered, found, gone, limited(time.Second), limited(0), limited(time.Hour), {}, {Found: true, Dropped: true}}
		for range 500 {
			now += Instant(rng.Int64N(int64(2 * time.Second)))
			if room, at := driven.Room(now, 0); room > 0 {
				s := driven.Send(now, 1+rng.Int64N(min(room, 3)), 0)
				flying = append(flying, &s)
			} else if at != 0 {
				require.Greater(t, at, now)
			}
			if len(flying) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(flying))
				driven.Judge(now, flying[i], outcomes[rng.IntN(len(outcomes))], rng.IntN(2) == 0)
				driven.Done(now, flying[i])
				driven.Done(now, flying[i])
				flying = append(flying[:i], flying[i+1:]...)
			}
			require.GreaterOrEqual(t, driven.InFlight(), int64(0))
			require.GreaterOrEqual(t, driven.Limit(), 1.)
			require.LessOrEqual(t, driven.Limit(), 8.)
		}
		require.Equal(t, fresh, *alone)
		for _, s := range flying {
			driven.Done(now, s)
		}
		require.Zero(t, driven.InFlight())
		room, _ := driven.Room(now+Instant(2*time.Hour), 0)
		require.Positive(t, room)
	}
}
