package httpguard_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/internal/pipe"
)

// A client that never finishes its request body must not keep its connection or a goroutine of the server, even if
// the server has no timeouts.
func TestUnfinishedBodyClosesTheConnection(t *testing.T) {
	const timeout, afterwards = 10 * time.Second, 6 * time.Second
	decode := func(w http.ResponseWriter, r *http.Request) {
		var v any
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			httpguard.Error(w, r, &aiguard.Error{Kind: aiguard.ErrRejected, Err: err})
		}
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		body    string // the part that arrives
		length  int
		refused bool
		status  int
		within  time.Duration
	}{
		"read":                        {decode, `{"a"`, 100, false, 504, timeout + afterwards},
		"read repeatedly":             {func(w http.ResponseWriter, r *http.Request) { readOn(r.Body) }, `{"a"`, 100, false, 504, timeout + afterwards},
		"not read, context respected": {func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, `{"a"`, 100, false, 504, timeout + afterwards},
		"not read, context ignored": {func(w http.ResponseWriter, r *http.Request) { time.Sleep(20 * time.Second) }, `{"a"`, 100, false, 504,
			timeout + afterwards},
		"response at once":                     {func(w http.ResponseWriter, r *http.Request) {}, `{"a"`, 100, false, 200, afterwards},
		"rejected at its first byte":           {decode, `x`, 100, false, 400, afterwards},
		"rejected unread":                      {decode, `{`, 100, true, 503, afterwards},
		"rejected unread, huge Content-Length": {decode, `{`, 100 << 20, false, 413, afterwards},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGuard(t, aiguard.Config{})
				if tc.refused {
					require.NoError(t, g.Shutdown(t.Context()))
				}
				tr, stop := pipe.Serve(&http.Server{Handler: limited(t, g, tc.handler, httpguard.Config{Timeout: timeout})}, false)
				defer stop()
				conn, err := tr.DialContext(t.Context(), "tcp", "site")
				require.NoError(t, err)
				defer conn.Close()
				start := time.Now()
				_, err = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: site\r\nContent-Length: %d\r\n\r\n%s", tc.length, tc.body)
				require.NoError(t, err)
				require.NoError(t, conn.SetReadDeadline(start.Add(time.Hour)))
				answer, err := io.ReadAll(conn)
				require.NoError(t, err, "the connection is still open after an hour")
				require.Contains(t, string(answer), fmt.Sprintf("HTTP/1.1 %d ", tc.status))
				require.LessOrEqual(t, time.Since(start), tc.within)
				time.Sleep(20 * time.Second) // the handler returns
			})
		})
	}
}

// The bound for the rest of a body is none for the next request.
func TestConnectionIsUsedAgainHoweverLateTheNextRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
		tr, stop := pipe.Serve(&http.Server{Handler: limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{})}, false)
		defer stop()
		conn, err := tr.DialContext(t.Context(), "tcp", "site")
		require.NoError(t, err)
		defer conn.Close()
		answers := bufio.NewReader(conn)
		for range 3 {
			_, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 5\r\n\r\nHello")
			require.NoError(t, err)
			resp, err := http.ReadResponse(answers, nil)
			require.NoError(t, err)
			text, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, "Hello", string(text))
			time.Sleep(time.Minute)
		}
	})
}

// readOn reads whatever errors come.
func readOn(r io.Reader) {
	for range 1000 {
		if _, err := r.Read(make([]byte, 10)); err != nil {
			time.Sleep(time.Millisecond)
		}
	}
}
