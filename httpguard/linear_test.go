package httpguard

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aiguard-go/aiguard/internal/linear"
)

// The cost of reading headers must be linear in their size, because clients send them before any authentication.
func TestHeaderCostIsLinear(t *testing.T) {
	for name, unit := range map[string]string{
		"ranges": "text/html;q=0.5,", "empty ranges": ",", "parameters": ";", "weights": ";q=1", "spaces": " ", "letters": "x", "numbers": "9", "units": "1h",
	} {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 1, func(size int) (int, func()) {
				r := httptest.NewRequest("GET", "/", nil)
				for _, header := range []string{"Accept", TimeoutHeader, "X-Request-Id"} {
					r.Header.Set(header, strings.Repeat(unit, size/len(unit)))
				}
				w := httptest.NewRecorder()
				return 3 * size, func() {
					newExchange(w, r)
					patience(r, time.Minute)
				}
			})
		})
	}
}
