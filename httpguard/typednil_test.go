package httpguard_test

import (
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/internal/typednil"
)

func TestTypedNilGetsAnErrorResponse(t *testing.T) {
	for name, err := range typednil.Errors() {
		for _, accept := range []string{"application/json", "text/html"} {
			t.Run(name+", "+accept, func(t *testing.T) {
				r := httptest.NewRequest("GET", "/", nil)
				r.Header.Set("Accept", accept)
				w := httptest.NewRecorder()
				require.NotPanics(t, func() { httpguard.Error(w, r, err) })
				require.GreaterOrEqual(t, w.Code, 500)
			})
		}
	}
}
