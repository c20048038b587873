package aiguard

import (
	"math"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever a provider writes into its headers, the wait is zero or a positive duration, and honest numbers are kept.
func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"", "0", "1", "1.5", "-1", "1e9", "1e300", "NaN", "Inf", "-Inf", "0x10", "soon", " 7 ", "Wed, 21 Oct 2099 07:28:00 GMT", "9223372036", "9223372037"} {
		f.Add(v, v)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, seconds, millis string) {
		d := retryAfter(http.Header{"Retry-After": {seconds}, "Retry-After-Ms": {millis}}, now)
		require.GreaterOrEqual(t, d, time.Duration(0))
		r := &Retry{BaseDelay: time.Second, MaxDelay: 8 * time.Second}
		require.GreaterOrEqual(t, r.delay(1, d), min(d, math.MaxInt64/2), "never less than asked")
	})
}

// The longest delay that may be configured is doubled without an overflow.
func TestBackoffNeverOverflows(t *testing.T) {
	for _, base := range []time.Duration{time.Hour, 30 * 24 * time.Hour, math.MaxInt64} {
		for n := 1; n < 100; n++ {
			for _, longest := range []time.Duration{Off, base} {
				r := &Retry{BaseDelay: base, MaxDelay: longest}
				require.GreaterOrEqual(t, r.delay(n, 0), base/2)
			}
		}
	}
}
