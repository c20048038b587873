package httpguard

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// The cost of reading headers must be linear in their size, because clients send them before any authentication.
func TestHeaderCostIsLinear(t *testing.T) {
	for name, unit := range map[string]string{
		"ranges": "text/html;q=0.5,", "empty ranges": ",", "parameters": ";", "weights": ";q=1", "spaces": " ", "letters": "x", "numbers": "9", "units": "1h",
	} {
		t.Run(name, func(t *testing.T) {
			var took []time.Duration
			for _, size := range []int{16 << 10, 32 << 10, 64 << 10, 128 << 10} {
				r := httptest.NewRequest("GET", "/", nil)
				for _, header := range []string{"Accept", TimeoutHeader, "X-Request-Id"} {
					r.Header.Set(header, strings.Repeat(unit, size/len(unit)))
				}
				best := time.Hour
				for range 5 {
					start := time.Now()
					newExchange(httptest.NewRecorder(), r)
					patience(r, time.Minute)
					best = min(best, time.Since(start))
				}
				took = append(took, best)
			}
			t.Logf("16 to 128 KiB: %v", took)
			assert.Less(t, took[3], 4*8*took[0]+10*time.Millisecond, "quadratic would be 64 times")
		})
	}
}
