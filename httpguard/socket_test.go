package httpguard_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

// overSockets runs f over real sockets, with TCP and with HTTP/2 over TLS.
func overSockets(t *testing.T, h http.Handler, f func(t *testing.T, ask func(body io.Reader) (*http.Response, error))) {
	t.Helper()
	for name, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewUnstartedServer(h)
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			if srv.EnableHTTP2 = http2; http2 {
				srv.StartTLS()
			} else {
				srv.Start()
			}
			t.Cleanup(srv.Close)
			f(t, func(body io.Reader) (*http.Response, error) {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, body)
				if err != nil {
					return nil, err
				}
				return srv.Client().Do(req)
			})
		})
	}
}

func TestClientStillSendingGetsTheTimeoutResponse(t *testing.T) {
	handler := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, cfg := range map[string]httpguard.Config{
		"time":      {Timeout: 20 * time.Millisecond, MaxBodyBytes: aiguard.Off},
		"body size": {},
	} {
		t.Run(name, func(t *testing.T) {
			edge := limited(t, newGuard(t, aiguard.Config{}), http.HandlerFunc(handler), cfg)
			overSockets(t, edge, func(t *testing.T, ask func(io.Reader) (*http.Response, error)) {
				for range 5 {
					resp, err := ask(bytes.NewReader(make([]byte, 8<<20)))
					require.NoError(t, err)
					b, err := io.ReadAll(resp.Body)
					require.NoError(t, err)
					resp.Body.Close()
					assert.Contains(t, string(b), `"request_id"`)
					assert.Contains(t, []int{http.StatusGatewayTimeout, http.StatusRequestEntityTooLarge}, resp.StatusCode)
				}
			})
		})
	}
}

func TestSlotIsFreedWhenTheClientDoesNotRead(t *testing.T) {
	returned := map[int]chan error{1: make(chan error, 1), 2: make(chan error, 1)} // by protocol version
	handler := func(w http.ResponseWriter, r *http.Request) {
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 1<<20))
		}
		returned[r.ProtoMajor] <- err
	}
	edge := limited(t, newGuard(t, aiguard.Config{}), http.HandlerFunc(handler), httpguard.Config{Timeout: 500 * time.Millisecond})
	overSockets(t, edge, func(t *testing.T, ask func(io.Reader) (*http.Response, error)) {
		resp, err := ask(nil)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Error(t, <-returned[resp.ProtoMajor])
		_, err = io.Copy(io.Discard, resp.Body)
		require.Error(t, err, "the response does not look complete")
		assert.NotErrorIs(t, err, context.DeadlineExceeded)
	})
}
