package aiguard_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/rttest"
)

const (
	contractBody   = `{"model":"m","messages":[]}`
	contractAnswer = `{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`
)

// The suite runs over net/http's own transport first: what fails there is wrong in the suite.
func TestHTTPTransportKeepsItsContract(t *testing.T) {
	o := rttest.Options{Path: "/v1/chat/completions", Body: contractBody, Answer: contractAnswer}
	for _, c := range rttest.Cases(o) {
		t.Run(c.Name, func(t *testing.T) {
			c.Run(t, func(base http.RoundTripper) http.RoundTripper { return base })
		})
	}
}

func TestTransportKeepsTheContractOfARoundTripper(t *testing.T) {
	o := rttest.Options{Path: "/v1/chat/completions", Body: contractBody, Answer: contractAnswer, MaxHeaderBytes: 64 << 10, NoRedirects: true, ReadsBodies: true}
	for _, c := range append(rttest.Cases(o), rttest.BaseCases("/v1/files/f/content", contractBody)...) {
		t.Run(c.Name, func(t *testing.T) {
			g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1, Budget: aiguard.Off}})
			c.Run(t, g.Transport)
		})
	}
}

// A base may still read the header of one attempt when the next one begins.
func TestHeadersOfAttemptsDoNotShareAddedValues(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1}})
	var headers []http.Header
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		headers = append(headers, req.Header)
		req.Header.Add("X-Hop", fmt.Sprint(len(headers)))
		return &http.Response{StatusCode: 503, Body: http.NoBody, Request: req}, nil
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://provider.example/v1/models", nil)
	require.NoError(t, err)
	req.Header["X-Hop"] = append(make([]string, 0, 4), "0")
	resp, err := g.Transport(base).RoundTrip(req)
	require.NoError(t, err)
	resp.Body.Close()
	for i, h := range headers {
		require.Equal(t, []string{"0", fmt.Sprint(i + 1)}, h["X-Hop"])
	}
	require.Len(t, headers, 3)
	require.Equal(t, []string{"0"}, req.Header["X-Hop"])
}

// A base that edits what it is given must not see its edits again when the guard retries.
func TestEachAttemptHasItsOwnHeaderAndURL(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1}})
	attempts := 0
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		attempts++
		require.Empty(t, req.Header.Values("X-Signature"))
		require.Empty(t, req.URL.RawQuery)
		req.Header.Add("X-Signature", "s")
		req.URL.RawQuery = "signed=1"
		return &http.Response{StatusCode: 503, Body: http.NoBody, Request: req}, nil
	})
	resp, err := post(t.Context(), t, g.Transport(base), "http://provider.example/v1/chat/completions")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, 3, attempts)
}

func TestUpgradedConnectionHoldsItsSlotAndEndsAtStreamTimeout(t *testing.T) {
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		srv.SetDefault(func(w http.ResponseWriter, _ *aiguardtest.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		})
		open := func() io.ReadWriteCloser {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/realtime", nil)
			require.NoError(t, err)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "websocket")
			resp, err := rt.RoundTrip(req)
			require.NoError(t, err)
			require.EqualValues(t, 1, g.Stats().InFlight)
			conn, ok := resp.Body.(io.ReadWriteCloser)
			require.True(t, ok, "%T", resp.Body)
			return conn
		}
		conn, start := open(), time.Now()
		_, err := conn.Read(make([]byte, 1)) // an upgraded connection has no idle timeout
		took(t, start, aiguard.DefaultStreamTimeout)
		require.Equal(t, aiguard.PhaseStream, facts(t, err, aiguard.ErrTimeout).Phase)
		require.Zero(t, g.Stats().InFlight)
		_, err = conn.Write([]byte("x"))
		require.ErrorIs(t, err, aiguard.ErrTimeout)
		require.NoError(t, conn.Close())

		conn = open()
		require.NoError(t, conn.Close())
		require.Zero(t, g.Stats().InFlight)
		require.EqualValues(t, 1, g.Stats().Succeeded, "to hang up is no failure")

		conn = open()
		require.NoError(t, g.Close())
		_, err = conn.Read(make([]byte, 1))
		require.ErrorIs(t, err, aiguard.ErrClosed)
	})
}

// http.Client closes the request's Cancel channel at its Timeout, at the moment when the context's deadline passes.
func TestTimeoutOfTheCallersClientIsTheCallersOwnEnd(t *testing.T) {
	guardedTransport(t, aiguard.Config{}, func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
		client := &http.Client{Transport: rt, Timeout: time.Second}
		for name, reply := range map[string]aiguardtest.Reply{
			"no headers": aiguardtest.Hang(),
			"half":       aiguardtest.HangAfter(aiguardtest.HeadersThen(0, aiguardtest.JSON(200, `{"choi`))),
			"error body": aiguardtest.HangAfter(aiguardtest.Error(500, "")),
		} {
			srv.SetDefault(reply)
			for range 20 {
				start := time.Now()
				_, err := client.Post(srv.URL+"/chat/completions", "application/json", strings.NewReader(contractBody)) //nolint:bodyclose // fails
				took(t, start, time.Second)
				require.ErrorIs(t, err, context.DeadlineExceeded, name)
				require.Empty(t, aiguard.KindOf(err), name)
				require.Equal(t, 504, aiguard.HTTPStatus(err), name)
			}
		}
		st := g.Stats()
		require.Zero(t, st.Failed+st.Retries+st.Timeouts, "%+v", st)

		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		resp, err := client.Post(srv.URL+"/chat/completions", "application/json", strings.NewReader(`{"model":"m","stream":true}`))
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Empty(t, aiguard.KindOf(err), "while a stream is read")
		require.NoError(t, resp.Body.Close())
	})
}
