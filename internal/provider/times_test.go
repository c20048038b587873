package provider

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// timed is a route of which nothing but its times matters.
func timed(quantile float64) *Route {
	return New(&Config{Least: math.Inf(1), Most: math.Inf(1), Quantile: quantile})
}

// take makes a request that takes so long, and returns after how long it was late.
func (r *Route) take(at Instant, d time.Duration, f Form, answered bool) time.Duration {
	s := r.Send(at, 1, 0)
	late := r.Late(&s, f)
	end := at + Instant(d)
	if answered {
		r.Judge(end, &s, Outcome{Answered: true, Found: true}, false)
		end += Instant(time.Minute) // a stream goes on after its start
	}
	r.Done(end, &s)
	return late
}

func TestLateIsTheQuantileOfTheLatestTimes(t *testing.T) {
	for _, q := range []float64{0.001, 0.5, 0.9, 0.95, 0.999} {
		rng := rand.New(rand.NewPCG(1, 2))
		r := timed(q)
		var all []time.Duration
		for i := range 1000 {
			d := time.Duration(rng.IntN(50)) * time.Millisecond // many are equal
			want := time.Duration(0)
			if len(all) >= timesNeeded {
				last := slices.Clone(all[max(len(all)-recentKept, 0):])
				slices.Sort(last)
				want = last[max(int(math.Ceil(q*float64(len(last))))-1, 0)]
			}
			if late := r.take(Instant(1+i), d, Whole, true); late != want {
				t.Fatalf("quantile %v of %d times: %v, want %v", q, len(all), late, want)
			}
			all = append(all, d)
		}
		if kept := r.times[Whole-1]; len(kept.sorted) != recentKept || !slices.IsSorted(kept.sorted) {
			t.Fatalf("%d times kept", len(kept.sorted))
		}
	}
}

func TestFormsHaveTimesOfTheirOwn(t *testing.T) {
	r := timed(0.95)
	for range timesNeeded {
		r.take(1, time.Second, Start, true)
		r.take(1, time.Minute, Whole, true)
	}
	if start, whole := r.take(1, 0, Start, true), r.take(1, 0, Whole, true); start != time.Second || whole != time.Minute {
		t.Fatalf("late after %v and %v", start, whole)
	}
}

func TestWhatEndsWithoutAnAnswerCountsOnlyIfItIsLate(t *testing.T) {
	r := timed(0.5)
	for range 50 {
		r.take(1, time.Hour, Whole, false) // nothing is known yet: it may be early
	}
	for range timesNeeded {
		r.take(1, time.Second, Whole, true)
	}
	for range 50 {
		r.take(1, time.Second, Whole, false)
		r.take(1, time.Millisecond, Whole, false)
	}
	if late := r.take(1, time.Second, Whole, true); late != time.Second || len(r.times[Whole-1].sorted) != timesNeeded+1 {
		t.Fatalf("late after %v; %d times", late, len(r.times[Whole-1].sorted))
	}
	for range 50 {
		r.take(1, 2*time.Second, Whole, false)
	}
	if late := r.take(1, 0, Whole, true); late != 2*time.Second {
		t.Fatalf("late after %v", late)
	}
}

func TestTimesOfRequestsThatNobodyAsksAboutAreNotKept(t *testing.T) {
	r := timed(0)
	for range 50 {
		s := r.Send(1, 1, 0)
		r.Judge(2, &s, Outcome{Answered: true}, false)
		r.Done(3, &s)
	}
	if r.times != (times{}) {
		t.Fatal("times are kept")
	}
}

func TestRouteIsHealthyFromAnAnswerToTheNextFailure(t *testing.T) {
	for name, o := range map[string]Outcome{
		"lost":          {Lost: true, Dropped: true},
		"429":           {Limited: true, Dropped: true, Pause: time.Second},
		"429, no pause": {Limited: true},
	} {
		r := New(&Config{Least: 1, Most: 10})
		judge := func(at Instant, o Outcome) {
			s := r.Send(at, 1, 0)
			r.Judge(at, &s, o, false)
			r.Done(at, &s)
		}
		if !r.Healthy(1) {
			t.Fatalf("%s: nothing is known yet", name)
		}
		judge(1, o)
		if later := Instant(time.Hour); r.Healthy(2) || r.Healthy(later) {
			t.Fatalf("%s: healthy after it", name)
		}
		judge(Instant(time.Hour), Outcome{Answered: true, Found: true})
		if !r.Healthy(Instant(time.Hour)) {
			t.Fatalf("%s: unhealthy after an answer", name)
		}
	}
}
