package budget

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard"
)

// Limit limits what may be spent in a window of time. Set exactly one of Calls, Tokens and Cost.
type Limit struct {
	Name string // in errors, events and the Store: unique, at most 64 bytes, without a slash. Required

	Calls  int64
	Tokens int64 // input and output
	Cost   Money

	// Per returns the key of a call. Each key has a limit of its own. Examples are Tenant and Model. If applies is false, the
	// limit does not apply to the call. Per is called for each attempt and should not wait. Default nil: all calls share the
	// limit
	Per func(ctx context.Context, call aiguard.Call) (key string, applies bool)

	Window  Window  // required
	Sliding bool    // the window ends now and moves in steps of 1/60 of its length, and a month has 30 days. Default: the calendar in Config.Location
	Soft    float64 // fraction of the limit at which OnSoft is called, once per window. Default 0.8; Off: never
}

// Off as Limit.Soft turns OnSoft off.
const Off = -1

const defaultSoft = 0.8

// Window is the length of a window.
type Window int8

// The windows.
const (
	Minute Window = iota + 1
	Hour
	Day
	Month
)

// Tenant divides a limit by Call.Tenant. All calls without a tenant share one limit.
func Tenant(_ context.Context, call aiguard.Call) (key string, applies bool) {
	return call.Tenant, true
}

// Model divides a limit by Call.Model.
func Model(_ context.Context, call aiguard.Call) (key string, applies bool) { return call.Model, true }

func (l *Limit) mistake() string {
	set := 0
	for _, n := range []int64{l.Calls, l.Tokens, int64(l.Cost)} {
		if n < 0 {
			return "Calls, Tokens and Cost must not be negative"
		}
		if n > 0 {
			set++
		}
	}
	switch {
	case l.Name == "" || len(l.Name) > 64 || strings.ContainsAny(l.Name, "/\x00") || !utf8.ValidString(l.Name):
		return fmt.Sprintf("Name is %q; want at most 64 bytes of text without a slash", clip(l.Name, 80))
	case set != 1:
		return "want exactly one of Calls, Tokens and Cost"
	case l.Cost > maxLimit:
		return fmt.Sprintf("Cost is %v; want at most %v", l.Cost, Money(maxLimit))
	case l.Window < Minute || l.Window > Month:
		return fmt.Sprintf("Window is %d; want Minute, Hour, Day or Month", l.Window)
	case math.IsNaN(l.Soft) || l.Soft > 1 || l.Soft < 0 && l.Soft != Off:
		return fmt.Sprintf("Soft is %v; want a fraction up to 1, 0 for %v, or Off", l.Soft, defaultSoft)
	}
	return ""
}

// unit is what the limit counts.
func (l *Limit) unit() unit {
	switch {
	case l.Calls > 0:
		return calls
	case l.Tokens > 0:
		return tokens
	}
	return cost
}

func (l *Limit) max() int64 { return max(l.Calls, l.Tokens, int64(l.Cost)) }

// reached reports whether so much is spent that OnSoft is called.
func (l *Limit) reached(spent int64) bool {
	return l.Soft != Off && float64(spent)/float64(l.max()) >= cmp.Or(l.Soft, defaultSoft)
}

// charge is an amount of the limit that is spent now.
func (l *Limit) charge(key string, amount int64, now time.Time, loc *time.Location) Charge {
	c := Charge{Key: l.Name + "/" + storable(key), Amount: amount, Max: l.max()}
	if l.Sliding {
		step, length := l.Window.step(), l.Window.length()
		c.Slot = floor(now.Unix(), step)
		c.Since = floor(now.Unix()-length, step)
		c.Until = c.Slot + step + length
		return c
	}
	start, end := l.Window.calendar(now.In(loc))
	c.Slot, c.Since, c.Until = start.Unix(), start.Unix(), end.Unix()
	return c
}

// next returns when there may be more room in the window. oldest is the first slot in use.
func (l *Limit) next(c *Charge, oldest int64) time.Time {
	if l.Sliding && oldest != 0 {
		return time.Unix(oldest+l.Window.step()+l.Window.length(), 0)
	}
	return time.Unix(c.Until, 0)
}

// length is that of a sliding window, in seconds.
func (w Window) length() int64 {
	switch w {
	case Minute:
		return 60
	case Hour:
		return 60 * 60
	case Day:
		return 24 * 60 * 60
	}
	return 30 * 24 * 60 * 60
}

func (w Window) step() int64 { return w.length() / 60 }

// calendar returns the current window of the calendar. A day in which the clocks change has 23 or 25 hours.
func (w Window) calendar(now time.Time) (start, end time.Time) {
	y, m, d := now.Date()
	if w < Day {
		_, offset := now.Zone()
		begin := floor(now.Unix()+int64(offset), w.length()) - int64(offset)
		return time.Unix(begin, 0), time.Unix(begin+w.length(), 0)
	}
	next := time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC)
	if w == Month {
		d, next = 1, time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC)
	}
	start, _ = midnight(time.Date(y, m, d, 0, 0, 0, 0, time.UTC), now.Location())
	end, again := midnight(next, now.Location())
	if !end.After(now) { // clocks were set back from the new day into the old one
		end = again
	}
	return start, end
}

// midnight returns the first and the last time at which a day begins in loc. date is its midnight in UTC. In some zones
// clocks change at midnight, so that it comes twice, or the day begins at 1:00. time.Date then returns any such time, or
// even one in the day before.
func midnight(date time.Time, loc *time.Location) (first, last time.Time) {
	y, m, d := date.Date()
	t := time.Date(y, m, d, 0, 0, 0, 0, loc)
	begin, end := t.ZoneBounds() // of the time without a change around t
	_, offset := t.Zone()
	switch clock := t.Unix() + int64(offset); {
	case clock < date.Unix():
		return end, end
	case clock > date.Unix():
		return begin, begin
	}
	in := func(zone time.Time) time.Time { // when clocks show the same in another zone
		_, other := zone.Zone()
		return t.Add(time.Duration(offset-other) * time.Second)
	}
	first, last = t, t
	if before := in(begin.Add(-1)); !begin.IsZero() && before.Before(begin) {
		first = before
	}
	if after := in(end); !end.IsZero() && !after.Before(end) {
		last = after
	}
	return first, last
}

func floor(n, step int64) int64 {
	rest := n % step
	if rest < 0 {
		rest += step
	}
	return n - rest
}

// maxKey is how many bytes of a key a Store must keep.
const maxKey = 256

// storable returns key if a database can keep it, else a hash of it.
func storable(key string) string {
	if len(key) <= maxKey && utf8.ValidString(key) && !strings.Contains(key, "\x00") {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// clip shortens a text, which may be invalid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
