package httpguard

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/aiguard-go/aiguard"
)

// A handler's return at the limit may be seen before or after the timer. The outcome must be the same.
func TestReturnAfterTheLimitGetsTheErrorResponse(t *testing.T) {
	for _, begun := range []bool{false, true} {
		w := httptest.NewRecorder()
		l := &limit{at: time.Now(), err: &aiguard.Error{Kind: aiguard.ErrTimeout}}
		ctx, cancel := l.context(t.Context())
		defer cancel(nil)
		a := newAnswer(w, l, ctx, newRequestBody(http.NoBody))
		if begun {
			l.at = time.Now().Add(time.Hour)
			_, err := a.Write([]byte("half"))
			assert.NoError(t, err)
			l.at = time.Now()
		}
		end := func() {
			finish(outcome{returned: true, cut: true}, a, newExchange(w, httptest.NewRequest("GET", "/", nil)))
		}
		if begun {
			assert.PanicsWithValue(t, http.ErrAbortHandler, end)
		} else {
			end()
			assert.Equal(t, http.StatusGatewayTimeout, w.Code)
		}
	}
}
