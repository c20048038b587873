package budget

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCalendarWindows(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	santiago, err := time.LoadLocation("America/Santiago")
	require.NoError(t, err)
	amman, err := time.LoadLocation("Asia/Amman")
	require.NoError(t, err)
	kathmandu := time.FixedZone("+05:45", 5*3600+45*60)
	for _, tc := range []struct {
		window     Window
		now        string
		loc        *time.Location
		start, end string
	}{
		{Minute, "2026-03-01T12:30:15Z", time.UTC, "2026-03-01T12:30:00Z", "2026-03-01T12:31:00Z"},
		{Hour, "2026-03-01T12:30:15Z", time.UTC, "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"},
		{Hour, "2026-03-01T12:30:15Z", kathmandu, "2026-03-01T12:15:00Z", "2026-03-01T13:15:00Z"},
		{Day, "2026-03-01T23:30:00Z", berlin, "2026-03-02T00:00:00+01:00", "2026-03-03T00:00:00+01:00"},
		{Day, "2026-03-29T12:00:00Z", berlin, "2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00"}, // 23 hours
		{Day, "2026-10-25T12:00:00Z", berlin, "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"}, // 25 hours
		{Hour, "2026-10-25T00:30:00Z", berlin, "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"},          // 2:30, the first time
		{Hour, "2026-10-25T01:30:00Z", berlin, "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"},          // 2:30 again
		{Day, "2026-09-06T03:30:00Z", santiago, "2026-09-05T04:00:00Z", "2026-09-06T04:00:00Z"},         // the next day begins at 1:00
		{Day, "2026-09-06T04:00:00Z", santiago, "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"},
		{Day, "2021-10-28T21:30:00Z", amman, "2021-10-28T21:00:00Z", "2021-10-29T22:00:00Z"}, // midnight comes twice
		{Day, "2021-10-28T20:30:00Z", amman, "2021-10-27T21:00:00Z", "2021-10-28T21:00:00Z"},
		{Month, "2026-12-31T23:30:00Z", time.UTC, "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
		{Month, "2026-12-31T23:30:00Z", berlin, "2027-01-01T00:00:00+01:00", "2027-02-01T00:00:00+01:00"},
	} {
		now, err := time.Parse(time.RFC3339, tc.now)
		require.NoError(t, err)
		start, end := tc.window.calendar(now.In(tc.loc))
		for want, got := range map[string]time.Time{tc.start: start, tc.end: end} {
			at, err := time.Parse(time.RFC3339, want)
			require.NoError(t, err)
			require.Equal(t, at.Unix(), got.Unix(), "%+v: got %v", tc, got.In(tc.loc))
		}
	}
}

// A window of the calendar holds its own time and ends where the next begins, whenever clocks change.
func TestCalendarWindowsFollowOneAnother(t *testing.T) {
	for _, zone := range []string{
		"America/Santiago", "America/Havana", "Atlantic/Azores", "Africa/Cairo", "Asia/Amman", "America/St_Johns", // at midnight
		"Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Antarctica/Troll", "Pacific/Apia", // which once left out a day
	} {
		loc, err := time.LoadLocation(zone)
		require.NoError(t, err)
		for _, w := range []Window{Hour, Day, Month} {
			var start, end time.Time
			last := time.Date(2012, 3, 1, 0, 0, 0, 0, time.UTC)
			for now := time.Date(2009, 1, 1, 0, 0, 0, 0, time.UTC); now.Before(last); now = now.Add(30 * time.Minute) {
				begin, until := w.calendar(now.In(loc))
				if begin.After(now) || !until.After(now) {
					t.Fatalf("%s, window %d: %v is in the window from %v to %v", zone, w, now.In(loc), begin.In(loc), until.In(loc))
				}
				if w >= Day && !end.IsZero() && !begin.Equal(start) && begin.After(end) {
					t.Fatalf("%s, window %d: nothing holds the time from %v to %v", zone, w, end.In(loc), begin.In(loc))
				}
				start, end = begin, until
			}
		}
	}
}

// In no span of the window's length is more spent than the limit, and what was spent is free again a step after it.
func TestSlidingWindowHoldsInEverySpan(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, w := range []Window{Minute, Hour, Day, Month} {
		l := &Limit{Name: "l", Tokens: 100, Window: w, Sliding: true}
		m := NewMemory()
		now := time.Date(2026, 3, 1, 12, 30, 15, 0, time.UTC)
		type use struct{ at, amount int64 }
		var uses []use
		refused := 0
		for range 3000 {
			now = now.Add(time.Duration(random.Int64N(w.length()/10+1)) * time.Second)
			c := l.charge("", 1+random.Int64N(40), now, time.UTC)
			_, ok, err := m.Spend(t.Context(), []Charge{c})
			require.NoError(t, err)
			strict, loose := c.Amount, c.Amount
			for _, u := range uses {
				if u.at > now.Unix()-w.length() {
					strict += u.amount
				}
				if u.at > now.Unix()-w.length()-2*w.step() {
					loose += u.amount
				}
			}
			switch {
			case ok:
				require.LessOrEqual(t, strict, l.Tokens)
				uses = append(uses, use{now.Unix(), c.Amount})
			default:
				refused++
				require.Greater(t, loose, l.Tokens, "refused although there was room")
			}
		}
		require.Positive(t, refused)
		require.LessOrEqual(t, len(m.counters["l/"].slots), 62)
	}
}

func TestSoftFractionIsExact(t *testing.T) {
	for _, tc := range []struct {
		soft         float64
		most, spent  int64
		before, from bool
	}{
		{0, 10, 8, false, true}, {0.07, 100, 7, false, true}, {0.55, 100, 55, false, true}, {1, 1, 1, false, true}, {0.1, 3, 1, false, true},
		{1, math.MaxInt64, math.MaxInt64 / 2, false, false}, {0.5, math.MaxInt64, math.MaxInt64/2 + 1, true, true}, {Off, 10, 10, false, false},
	} {
		l := &Limit{Tokens: tc.most, Soft: tc.soft}
		require.Equal(t, tc.before, l.reached(tc.spent-1), "%+v", tc)
		require.Equal(t, tc.from, l.reached(tc.spent), "%+v", tc)
	}
}

func TestStorableKeysAreShortAndUnlike(t *testing.T) {
	seen := map[string]string{}
	for _, key := range []string{"", "acme", strings.Repeat("x", 256), strings.Repeat("x", 257), strings.Repeat("x", 258), "a\x00b", "a\xffb", "a?b"} {
		got := storable(key)
		require.LessOrEqual(t, len(got), maxKey)
		require.NotContains(t, got, "\x00")
		require.NotContains(t, seen, got, "%q and %q", key, seen[got])
		seen[got] = key
	}
}

func TestMemoryKeepsTheBusiestKeys(t *testing.T) {
	m := NewMemory()
	now := time.Now().Unix()
	spend := func(key string, until int64) {
		_, _, err := m.Spend(t.Context(), []Charge{{Key: key, Slot: now, Since: now, Until: until, Amount: 1, Max: 1e9}})
		require.NoError(t, err)
	}
	for range 5 {
		spend("busy", now+3600)
	}
	for range 10 {
		spend("over", now)
	}
	for i := range 5 * maxKeys {
		spend(fmt.Sprint(i), now+3600)
		require.LessOrEqual(t, len(m.counters), 2*maxKeys)
	}
	require.EqualValues(t, 5, m.counters["busy"].sum(now).Spent)
	require.NotContains(t, m.counters, "over")
}
