package httpguard

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/aiguard-go/aiguard"
)

// A handler that returns at the limit may be noticed before or after the timer: the outcome is the same.
func TestReturnAfterTheLimitIsNoAnswer(t *testing.T) {
	late := limit{at: time.Now(), err: &aiguard.Error{Kind: aiguard.ErrTimeout}}
	for _, begun := range []bool{false, true} {
		w := httptest.NewRecorder()
		a := newAnswer(w, late)
		if begun {
			a.limit.at = time.Now().Add(time.Hour)
			_, err := a.Write([]byte("half"))
			assert.NoError(t, err)
			a.limit = late
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
