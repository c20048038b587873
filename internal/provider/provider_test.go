package provider

import (
	"math"
	"math/rand/v2"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bench is a route with a clock.
type bench struct {
	*Route
	now Instant
}

func newBench(cfg Config) *bench {
	if cfg.Jitter == nil {
		cfg.Jitter = func(time.Duration) time.Duration { return 0 }
	}
	return &bench{New(&cfg), 1}
}

// open is a route that nothing bounds.
func open() *bench { return newBench(Config{Least: math.Inf(1), Most: math.Inf(1), Retries: 0.1}) }

func (b *bench) pass(d time.Duration) { b.now += Instant(d) }

func (b *bench) send() *Sending {
	s := b.Send(b.now, 1, 0)
	return &s
}

// end is the end of a request.
func (b *bench) end(s *Sending, o Outcome) {
	b.Judge(b.now, s, o, false)
	b.Done(b.now, s)
}

// ask sends a request that ends at once.
func (b *bench) ask(o Outcome) *Sending {
	s := b.send()
	b.end(s, o)
	return s
}

func (b *bench) state() State {
	s, _ := b.State(b.now, 0)
	return s
}

// opens is the time until the route may take a request.
func (b *bench) opens(t *testing.T) time.Duration {
	room, at := b.Room(b.now, 0)
	if room > 0 {
		return 0
	}
	require.NotZero(t, at)
	return time.Duration(at - b.now)
}

var (
	answered = Outcome{Answered: true, Found: true}
	found    = Outcome{Found: true}
	lost     = Outcome{Lost: true}
	dropped  = Outcome{Dropped: true}
)

func limited(pause time.Duration) Outcome {
	return Outcome{Limited: true, Dropped: true, Pause: pause}
}

func TestPauseLastsAsLongAsTheLongestThatWasAskedFor(t *testing.T) {
	b := open()
	late := b.send()
	b.ask(limited(30 * time.Second))
	require.Equal(t, Paused, b.state())
	require.Equal(t, 30*time.Second, b.opens(t))
	b.pass(10 * time.Second)
	b.end(late, limited(time.Second))
	require.Equal(t, 20*time.Second, b.opens(t), "a shorter one does not end it")
	b.pass(20*time.Second - 1)
	require.Equal(t, Paused, b.state())
	b.pass(1)
	require.Equal(t, Open, b.state())
	require.Zero(t, b.PausedUntil(b.now))
}

func TestPauseBeyondTheEndOfTimeDoesNotEnd(t *testing.T) {
	b := open()
	b.ask(limited(math.MaxInt64))
	require.Equal(t, Paused, b.state())
}

func TestOneProbeAMinuteIsSentIntoALongPause(t *testing.T) {
	b := open()
	before := b.send()
	b.ask(limited(time.Hour))
	require.Equal(t, time.Minute, b.opens(t))
	b.pass(time.Minute - 1)
	require.False(t, b.send().Probe, "a call that does not wait is no probe")
	b.pass(1)
	require.Equal(t, Open, b.state())
	probe := b.send()
	require.True(t, probe.Probe)
	require.Equal(t, Paused, b.state(), "one at a time")
	b.end(probe, Outcome{})
	require.Equal(t, Open, b.state(), "who left has asked nothing: the next may")
	b.ask(limited(time.Hour))
	require.Equal(t, time.Minute, b.opens(t), "refused again")
	b.end(before, answered)
	require.Equal(t, Paused, b.state(), "an answer to what was sent before the pause does not end it")
	b.pass(time.Minute)
	b.ask(answered)
	require.Equal(t, Open, b.state())
	require.Zero(t, b.Refusals())
}

func TestRouteIsToldOnceThatAPauseIsOver(t *testing.T) {
	b := open()
	b.ask(limited(5 * time.Second))
	require.Zero(t, b.Reopened(b.now))
	b.pass(5 * time.Second)
	require.Equal(t, 5*time.Second, b.Reopened(b.now))
	require.Zero(t, b.Reopened(b.now))
}

func TestFiveInARowThatFindNoProviderAreAnOutage(t *testing.T) {
	for name, between := range map[string]Outcome{"an answer": answered, "a refusal": found, "a 429": limited(0)} {
		b := open()
		for range 3 {
			for range outageAfter - 1 {
				b.ask(lost)
			}
			require.Zero(t, b.DownSince(), name)
			b.ask(between)
		}
	}
	b := open()
	for range outageAfter - 1 {
		b.ask(lost)
		b.ask(Outcome{}) // says nothing
	}
	require.Zero(t, b.DownSince())
	b.pass(time.Second)
	b.ask(lost)
	require.Equal(t, b.now, b.DownSince())
}

// down is a route whose provider is not there.
func down(cfg Config) *bench {
	b := newBench(cfg)
	for range outageAfter {
		b.ask(lost)
	}
	return b
}

// A 429 asks for a pause, and then the requests that were in flight beside it are lost.
func TestPauseIsHonoredInAnOutage(t *testing.T) {
	for _, pause := range []time.Duration{20 * time.Second, 10 * time.Minute} {
		b := open()
		var beside []*Sending
		for range outageAfter {
			beside = append(beside, b.send())
		}
		b.ask(limited(pause))
		for _, s := range beside {
			b.end(s, gone)
		}
		require.Equal(t, Down, b.state())
		require.Equal(t, min(pause, askAgainAfter), b.opens(t), "no probe before the end of the pause, or once a minute")
		b.pass(min(pause, askAgainAfter))
		probe := b.send()
		require.True(t, probe.Probe)
		b.end(probe, gone)
		require.Equal(t, min(pause, askAgainAfter) == askAgainAfter, b.opens(t) == askAgainAfter, "the pause is over or goes on")
		b.pass(askAgainAfter)
		probe = b.send()
		b.end(probe, Outcome{}) // canceled
		require.Zero(t, b.opens(t), "the next call is the probe")
	}
}

func TestInAnOutageOneProbeAtATimeIsSentLessAndLessOften(t *testing.T) {
	b := down(Config{Least: 1, Most: 10})
	var gaps []time.Duration
	for time.Duration(b.now-b.DownSince()) < 6*time.Minute {
		gap := b.opens(t)
		require.Positive(t, gap)
		require.Equal(t, Down, b.state())
		b.pass(gap - 1)
		require.Equal(t, Down, b.state())
		b.pass(1)
		require.Equal(t, Open, b.state())
		s := b.send()
		require.True(t, s.Probe)
		require.Equal(t, Down, b.state(), "one at a time")
		b.end(s, lost)
		gaps = append(gaps, gap)
	}
	require.Equal(t, 500*time.Millisecond, gaps[0])
	require.Equal(t, 5*time.Second, gaps[len(gaps)-1])
	for i := range gaps[1:] {
		require.LessOrEqual(t, gaps[i], gaps[i+1])
	}
	require.Less(t, len(gaps), 120+60+30+15+12*4)

	b = down(Config{Jitter: func(d time.Duration) time.Duration { return d }})
	require.Equal(t, 625*time.Millisecond, b.opens(t), "callers of many processes do not ask together")
}

func TestProbeThatLearnsNothingLetsTheNextAsk(t *testing.T) {
	b := down(Config{})
	b.pass(b.opens(t))
	s := b.send()
	require.Equal(t, Down, b.state())
	b.end(s, Outcome{})
	require.Equal(t, Open, b.state())
}

// A probe that is out for longer than failures take has probably found the provider at work.
// A probe of a pause may be under way when an outage begins. It does not count as a probe of the outage.
func TestProbeOfAPauseIsNoProbeOfTheOutageAfterIt(t *testing.T) {
	b := open()
	var beside []*Sending
	for range outageAfter {
		beside = append(beside, b.send())
	}
	b.ask(limited(61 * time.Second))
	b.pass(askAgainAfter)
	ofPause := b.send()
	require.True(t, ofPause.Probe)
	for _, s := range beside {
		b.end(s, gone)
	}
	b.end(ofPause, gone)
	b.pass(askAgainAfter)
	b.end(b.send(), Outcome{}) // canceled
	require.Zero(t, b.opens(t), "the next call is the probe")
}

func TestProbeThatTakesLongIsFollowedByAnother(t *testing.T) {
	b := newBench(Config{})
	for range outageAfter {
		s := b.send()
		b.pass(100 * time.Millisecond)
		b.end(s, lost)
	}
	b.pass(b.opens(t))
	b.send()
	require.Equal(t, 400*time.Millisecond, b.opens(t))
	b.pass(400 * time.Millisecond)
	require.True(t, b.send().Probe)
}

func TestFirstReactionEndsAnOutage(t *testing.T) {
	for name, o := range map[string]Outcome{"an answer": answered, "a refusal": found, "a 429": limited(0)} {
		b := down(Config{Least: 1, Most: 10})
		b.pass(b.opens(t))
		b.ask(o)
		require.Zero(t, b.DownSince(), name)
	}
}

// Time-outs of an outage lower the limit, but say nothing about the provider's capacity.
func TestOutageLeavesTheLimitAsItWas(t *testing.T) {
	for name, sentBefore := range map[string]bool{"a probe": false, "what was sent before": true} {
		b := newBench(Config{Least: 1, Most: 100})
		s := b.send()
		for range outageAfter {
			b.pass(time.Second)
			b.ask(Outcome{Lost: true, Dropped: true})
		}
		require.Less(t, b.Limit(), 50.)
		b.pass(b.opens(t))
		if sentBefore {
			b.end(s, answered)
			require.Less(t, b.Limit(), 50., "%s was answered: there was too much to do", name)
			continue
		}
		b.ask(answered)
		require.Equal(t, 51., b.Limit(), "%s: half at once", name)
		for range 49 {
			b.ask(answered)
		}
		require.Equal(t, 100., b.Limit(), "%s: and one more for each answer", name)
	}
}

func TestDropLowersTheLimitOnceForAllThatWereOnTheirWay(t *testing.T) {
	b := newBench(Config{Least: 4, Most: 10})
	var out []*Sending
	for range 10 {
		out = append(out, b.send())
	}
	b.pass(time.Second)
	for _, s := range out {
		b.end(s, dropped)
	}
	require.InDelta(t, 7, b.Limit(), 1e-9)
	for range 10 {
		b.pass(time.Second)
		b.ask(dropped)
	}
	require.Equal(t, 4., b.Limit(), "never below the least")
}

func TestAnswersRaiseTheLimitByOneARoundWhileItIsInUse(t *testing.T) {
	b := newBench(Config{Least: 1, Most: 20})
	b.ask(dropped)
	limit := b.Limit()
	for range 100 {
		b.pass(time.Second)
		b.ask(answered)
	}
	require.Equal(t, limit, b.Limit(), "one request at a time says nothing about so many")
	for range 3 {
		n := int(b.Limit())
		var out []*Sending
		for range n {
			out = append(out, b.send())
		}
		before := b.Limit()
		for _, s := range out {
			b.Judge(b.now, s, answered, true)
		}
		require.InDelta(t, before+1, b.Limit(), 0.2)
		for _, s := range out {
			b.Done(b.now, s)
		}
	}
}

func TestNoMoreIsSentThanTheLimitAllows(t *testing.T) {
	b := newBench(Config{Least: 3, Most: 3})
	for range 3 {
		require.Equal(t, Open, b.state())
		b.send()
	}
	room, at := b.Room(b.now, 0)
	require.Zero(t, room)
	require.Zero(t, at)
	require.Equal(t, Full, b.state())
}

func TestAfterAPauseTheRouteReopensGradually(t *testing.T) {
	b := newBench(Config{Least: 1, Most: 40})
	b.ask(limited(time.Second))
	b.pass(time.Second)
	require.InDelta(t, 14, b.Limit(), 1e-9, "lowered to 28, of which half")
	b.ask(answered)
	require.InDelta(t, 15, b.Limit(), 1e-9)
	for range 100 {
		b.ask(answered)
	}
	require.InDelta(t, 28, b.Limit(), 1e-9, "and no further than before")

	b = open()
	b.ask(limited(time.Second))
	b.pass(time.Second)
	require.Equal(t, 1., b.Limit())
	for range reopenAlone - 1 {
		require.False(t, math.IsInf(b.Limit(), 1))
		b.ask(answered)
	}
	require.True(t, math.IsInf(b.Limit(), 1))
}

// A provider works on ten requests at a time, and drops what it has not begun when there are thirty.
func TestLimitFindsWhatTheProviderCanWorkOn(t *testing.T) {
	const capacity, tooMany = 10, 30
	rng := rand.New(rand.NewPCG(1, 2))
	b := newBench(Config{Least: 1, Most: 100})
	var out []*Sending
	sum, n := 0., 0
	const enough = 20_000
	for i := range enough {
		for float64(len(out)) < math.Max(math.Floor(b.Limit()), 1) {
			out = append(out, b.send())
		}
		b.pass(time.Duration(float64(time.Second) * rng.ExpFloat64() / math.Min(float64(len(out)), capacity)))
		k := rng.IntN(len(out))
		s := out[k]
		out[k] = out[len(out)-1]
		out = out[:len(out)-1]
		o := answered
		if len(out) >= tooMany {
			o = dropped
		}
		b.Judge(b.now, s, o, true)
		b.Done(b.now, s)
		if i > enough/2 {
			sum, n = sum+b.Limit(), n+1
		}
	}
	require.InDelta(t, 12, sum/float64(n), 5)
}

func TestRetryBudgetIsAFractionOfCallsAboveAFloor(t *testing.T) {
	var b Budget
	b.Init(0.1, 3)
	now := Instant(1)
	spend := func() (n int) {
		for ; b.Has(now); n++ {
			b.Take()
		}
		return n
	}
	require.Equal(t, 3, spend())
	for range 21 {
		b.Pay()
	}
	require.Equal(t, 2, spend())
	for range 1000 {
		b.Pay()
	}
	require.Equal(t, 3, spend(), "good times save up nothing")
	for range 1000 {
		b.Pay()
	}
	b.at = 0 // no time has been told of yet
	require.Equal(t, 3, spend())
	now += Instant(BudgetRefill)
	require.Equal(t, 1, spend(), "a quiet service may retry too")
	now += 100 * Instant(BudgetRefill)
	require.Equal(t, 3, spend())

	b.Init(-1, 3)
	for range 100 {
		require.True(t, b.Has(now), "Off")
		b.Take()
	}
}

// sendAll sends as often as the route allows until the time is over.
func (b *bench) sendAll(t *testing.T, span time.Duration, tokens float64) (n int) {
	for end := b.now + Instant(span); ; {
		state, at := b.State(b.now, tokens)
		for state == Open {
			s := b.Send(b.now, 1, tokens)
			b.Done(b.now, &s)
			n++
			require.Less(t, n, 1000, "nothing paces it")
			state, at = b.State(b.now, tokens)
		}
		require.Equal(t, Paced, state)
		if at > end {
			b.now = end
			return n
		}
		b.now = at
	}
}

func TestConfiguredPaceIsKept(t *testing.T) {
	b := newBench(Config{Least: 1, Most: 10, RequestsPerMinute: 60})
	assert.Equal(t, 6, b.sendAll(t, 0, 0), "a tenth at once")
	assert.Equal(t, 120, b.sendAll(t, 2*time.Minute, 0))
	assert.InDelta(t, 60, b.Pace.Requests(), 1e-6)

	b = newBench(Config{Least: 1, Most: 10, TokensPerMinute: 60_000})
	assert.Equal(t, 6, b.sendAll(t, 0, 1000))
	assert.Equal(t, 60, b.sendAll(t, time.Minute, 1000))
	b.Pace.Settle(b.now, 5000)
	assert.Equal(t, 55, b.sendAll(t, time.Minute, 1000), "the answers took more than expected")
	b.Pace.Settle(b.now, 1e15)
	assert.Zero(t, b.sendAll(t, time.Minute, 1000))
	assert.Equal(t, 60, b.sendAll(t, time.Minute, 1000), "an absurd usage costs a minute")
	assert.InDelta(t, 60_000, b.Pace.Tokens(), 1)
}

func TestOneRequestAMinuteIsSentAgainstHeadersThatStopARouteForLong(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for name, told := range map[string][2]Told{"requests": {{60, 0, year}, Unknown}, "tokens": {Unknown, {60_000, 0, year}}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(Config{Least: 1, Most: 10, TokensPerMinute: 60_000})
			paced := func() {
				t.Helper()
				for range 2 {
					state, until := b.State(b.now, 1000)
					require.Equal(t, Paced, state)
					require.Greater(t, until, b.now+Instant(time.Hour), "as long as the headers say")
					room, at := b.Room(b.now, 1000)
					require.Zero(t, room)
					require.LessOrEqual(t, at, b.now+Instant(time.Minute))
					b.now = at - 1
				}
				b.pass(1)
			}
			s := b.Send(b.now, 1, 1000)
			b.Tell(b.now, &s, told[0], told[1])
			b.Done(b.now, &s)
			for range 3 {
				paced()
				room, _ := b.Room(b.now, 1000)
				require.Positive(t, room)
				s = b.Send(b.now, 1, 1000)
				b.Done(b.now, &s)
			}
			b.Pace.Settle(b.now, 60_000)
			b.pass(time.Minute)
			state, _ := b.State(b.now, 6000)
			require.Equal(t, Paced, state, "the configured pace is kept")
			b.pass(time.Minute)
			require.Equal(t, Open, b.state())
			s = b.Send(b.now, 1, 1000)
			b.Tell(b.now, &s, Told{60, 59, time.Second}, Told{60_000, 59_000, time.Second})
			b.Done(b.now, &s)
			require.Equal(t, Open, b.state(), "the headers of the next answer count")
		})
	}
}

func TestPaceOfHeadersIsKept(t *testing.T) {
	b := open()
	s, later := b.send(), b.send()
	b.Tell(b.now, s, Told{60, 10, 50 * time.Second}, Unknown)
	assert.Equal(t, 9, b.sendAll(t, 0, 0), "ten are left, of which one is on its way")
	assert.Equal(t, 60, b.sendAll(t, time.Minute, 0))
	b.Tell(b.now, later, Told{60, 0, time.Minute}, Unknown)
	b.Tell(b.now, s, Told{60, 60, 0}, Unknown)
	require.Equal(t, Paced, b.state(), "what is said of an earlier request comes too late")

	b = open()
	s = b.send()
	for _, told := range []Told{Unknown, {-1, 0, time.Hour}, {60, -1, time.Hour}, {0, 0, time.Hour}} {
		b.Tell(b.now, s, told, told)
		require.Equal(t, Open, b.state(), "%v", told)
	}
	b.Tell(b.now, s, Unknown, Told{60_000, 1000, 59 * time.Second})
	assert.Equal(t, 1, b.sendAll(t, 0, 1000))
	assert.Equal(t, 60, b.sendAll(t, time.Minute, 1000))
}

func TestHeadersThatAreAbsentOrUnknownSayNothing(t *testing.T) {
	for _, h := range []http.Header{
		{},
		{"X-Ratelimit-Limit-Requests": {"-1"}, "X-Ratelimit-Remaining-Requests": {"-1"}},
		{"X-Ratelimit-Limit-Requests": {"many"}},
		{"X-Ratelimit-Remaining-Requests": {"0"}},
	} {
		_, _, ok := Limits(h)
		require.False(t, ok, "%v", h)
	}
	requests, tokens, ok := Limits(http.Header{"X-Ratelimit-Limit-Requests": {"60"}, "X-Ratelimit-Remaining-Requests": {"0"}, "X-Ratelimit-Reset-Requests": {"1m30s"}})
	require.True(t, ok)
	require.Equal(t, Told{60, 0, 90 * time.Second}, requests)
	require.Equal(t, Unknown, tokens)
	requests, tokens, ok = Limits(http.Header{"Anthropic-Ratelimit-Tokens-Limit": {"40000"}, "Anthropic-Ratelimit-Tokens-Remaining": {"39000"},
		"Anthropic-Ratelimit-Tokens-Reset": {"2026-01-01T00:00:10Z"}, "Date": {"Thu, 01 Jan 2026 00:00:00 GMT"}})
	require.True(t, ok)
	require.Equal(t, Unknown, requests)
	require.Equal(t, Told{40000, 39000, 10 * time.Second}, tokens)
}

// A provider lets two requests a second in and says so by refusing others, without headers.
func TestPaceIsLearnedFromRefusalsWithoutHeaders(t *testing.T) {
	b := open()
	refused, asked := 0, 0 // after ten seconds
	allowed := 2.
	at := b.now
	for end := b.now + Instant(3*time.Minute); b.now < end; {
		state, until := b.State(b.now, 0)
		if state != Open {
			b.now = until
			continue
		}
		allowed = math.Min(allowed+2*time.Duration(b.now-at).Seconds(), 2)
		at = b.now
		if b.now > Instant(10*time.Second) {
			asked++
		}
		if allowed < 1 {
			if b.now > Instant(10*time.Second) {
				refused++
			}
			b.ask(limited(100 * time.Millisecond))
			continue
		}
		allowed--
		b.ask(answered)
		b.pass(time.Millisecond)
	}
	require.Positive(t, refused)
	require.Less(t, float64(refused), 0.1*float64(asked), "%d of %d", refused, asked)
	require.Greater(t, asked-refused, 300, "of 340 that would be let in")
}

// Who refuses at random, whatever the rate, is not asked less and less.
func TestPaceIsNotLearnedFromRefusalsAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	b := open()
	answers := 0
	for end := b.now + Instant(10*time.Minute); b.now < end; {
		state, until := b.State(b.now, 0)
		if state != Open {
			b.now = until
			continue
		}
		if rng.IntN(30) == 0 {
			b.ask(limited(100 * time.Millisecond))
			continue
		}
		b.ask(answered)
		answers++
		b.pass(50 * time.Millisecond)
	}
	require.Greater(t, answers, 8000, "of 12,000 at the most")
}

// change sets new bounds and limits, as the guard does for all its routes.
func (b *bench) change(set func(*Config)) {
	old := *b.Config
	set(b.Config)
	b.Reconfigure(b.now, &old)
}

func TestChangedBoundsKeepWhatWasLearned(t *testing.T) {
	dropped := Outcome{Dropped: true}
	for name, tc := range map[string]struct {
		before    []Outcome
		change    func(*Config)
		want, end float64 // limit after the change, and after many answers
	}{
		"at the maximum":          {nil, func(c *Config) { c.Most = 20 }, 20, 20},
		"at the maximum, lowered": {nil, func(c *Config) { c.Most = 4 }, 4, 4},
		"below it":                {[]Outcome{dropped}, func(c *Config) { c.Most = 20 }, 7, 20},
		"above the new maximum":   {[]Outcome{dropped}, func(c *Config) { c.Most = 4 }, 4, 4},
		"below the new minimum":   {[]Outcome{dropped}, func(c *Config) { c.Least, c.Most = 9, 20 }, 9, 20},
		"no longer adaptive":      {[]Outcome{dropped}, func(c *Config) { c.Least = 10 }, 10, 10},
		"no limit any more":       {[]Outcome{dropped}, func(c *Config) { c.Least, c.Most = math.Inf(1), math.Inf(1) }, math.Inf(1), math.Inf(1)},
		"nothing changes":         {[]Outcome{dropped}, func(c *Config) { c.Quantile = 0.9 }, 7, 10},
		"reopening":               {[]Outcome{{Limited: true, Pause: 1}}, func(c *Config) { c.Most = 20 }, 5, 20},
		"reopening, lowered":      {[]Outcome{{Limited: true, Pause: 1}}, func(c *Config) { c.Most = 4 }, 4, 4},
		"reopening without limit": {[]Outcome{{Limited: true, Pause: 1}}, func(c *Config) { c.Least, c.Most = math.Inf(1), math.Inf(1) }, 5, math.Inf(1)},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(Config{Least: 1, Most: 10, Retries: -1})
			for _, o := range tc.before {
				b.ask(o)
				b.pass(time.Second)
			}
			b.change(tc.change)
			require.InDelta(t, tc.want, b.Limit(), 0.01)
			for range 1000 {
				s := b.send()
				b.Judge(b.now, s, Outcome{Answered: true, Found: true}, true)
				b.Done(b.now, s)
				b.pass(time.Second)
			}
			require.InDelta(t, tc.end, b.Limit(), 0.01)
		})
	}
}

// A limit from before an outage must not come back above the maximum of today.
func TestLoweredMaximumHoldsAfterAnOutage(t *testing.T) {
	b := newBench(Config{Least: 1, Most: 10, Retries: -1})
	for range outageAfter {
		b.ask(Outcome{Lost: true, Dropped: true})
	}
	require.NotZero(t, b.DownSince())
	b.change(func(c *Config) { c.Most = 4 })
	b.pass(time.Minute)
	for range 100 {
		b.ask(Outcome{Answered: true, Found: true})
		require.LessOrEqual(t, b.Limit(), 4.)
	}
	require.EqualValues(t, 4, b.Limit())
}

// Each Update would be a burst of its own otherwise.
func TestChangedPaceIsNoSecondBurst(t *testing.T) {
	b := newBench(Config{Least: math.Inf(1), Most: math.Inf(1), RequestsPerMinute: 600})
	sent := func() (n int) {
		for b.state() == Open {
			b.ask(Outcome{Answered: true, Found: true})
			n++
		}
		return n
	}
	require.Equal(t, 60, sent())
	b.change(func(c *Config) { c.RequestsPerMinute = 1200 })
	require.Zero(t, sent())
	b.pass(time.Second)
	require.Equal(t, 20, sent())
	b.pass(time.Minute)
	b.change(func(c *Config) { c.RequestsPerMinute = 60 })
	require.Equal(t, 6, sent())
	b.change(func(c *Config) { c.RequestsPerMinute = -1 })
	require.Equal(t, Open, b.state())
	b.change(func(c *Config) { c.RequestsPerMinute = 60 })
	require.Equal(t, 6, sent(), "nothing was counted without a limit")
}

func TestChangedRatioKeepsTheTokens(t *testing.T) {
	b := newBench(Config{Least: 1, Most: 1, Retries: 0.5})
	for range 4 {
		b.Budget.Take()
	}
	b.change(func(c *Config) { c.Retries = -1 })
	require.True(t, b.Budget.Has(b.now))
	b.change(func(c *Config) { c.Retries = 0.25 })
	b.Budget.Pay()
	require.InDelta(t, RouteFloor-4+0.25, b.Budget.Tokens(b.now), 1e-9)
}
