package budget

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCalendarWindows(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
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
