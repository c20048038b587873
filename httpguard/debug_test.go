package httpguard_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

func debugOf(t *testing.T, g *aiguard.Guard, allow func(*http.Request) bool) http.Handler {
	t.Helper()
	h, err := httpguard.Debug(g, allow)
	require.NoError(t, err)
	return h
}

func debugRequest(peer, host, accept string) *http.Request {
	r := httptest.NewRequest("GET", "http://"+host+"/debug/aiguard", nil)
	r.RemoteAddr = peer
	r.Header.Set("Accept", accept)
	return r
}

func TestDebugAcceptsOnlyItsOwnMachine(t *testing.T) {
	h := debugOf(t, newGuard(t, aiguard.Config{}), nil)
	for name, c := range map[string]struct {
		peer, host, header string
		want               int
	}{
		"IPv4":                  {"127.0.0.1:1234", "127.0.0.1:8080", "", 200},
		"IPv6":                  {"[::1]:1234", "[::1]:8080", "", 200},
		"IPv6 without a port":   {"[::1]:1234", "[::1]", "", 200},
		"by name":               {"127.0.0.1:1234", "localhost:8080", "", 200},
		"another machine":       {"192.0.2.1:1234", "localhost:8080", "", 403},
		"DNS rebinding":         {"127.0.0.1:1234", "evil.example", "", 403},
		"through a proxy":       {"127.0.0.1:1234", "localhost", "X-Forwarded-For", 403},
		"through another proxy": {"127.0.0.1:1234", "localhost", "Forwarded", 403},
		"no peer":               {"", "localhost", "", 403},
	} {
		r := debugRequest(c.peer, c.host, "*/*")
		if c.header != "" {
			r.Header.Set(c.header, "192.0.2.1")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		assert.Equal(t, c.want, w.Code, name)
	}
	w := httptest.NewRecorder()
	debugOf(t, newGuard(t, aiguard.Config{}), func(*http.Request) bool { return true }).ServeHTTP(w, debugRequest("192.0.2.1:1", "a.example", "*/*"))
	assert.Equal(t, 200, w.Code, "allowed by the user's function")

	r := debugRequest("127.0.0.1:1", "localhost", "*/*")
	r.Proto, r.ProtoMinor = "HTTP/1.0", 0
	w = httptest.NewRecorder()
	h.ServeHTTP(w, r)
	assert.Equal(t, 403, w.Code, "through a proxy that sends no header")

	r = debugRequest("127.0.0.1:1", "localhost", "*/*")
	r.Method = "POST"
	w = httptest.NewRecorder()
	h.ServeHTTP(w, r)
	assert.Equal(t, 405, w.Code)

	_, err := httpguard.Debug(nil, nil)
	assert.EqualError(t, err, "httpguard: Debug: nil Guard; make it with aiguard.New")
	assert.PanicsWithValue(t, "httpguard: Var: nil Guard; make it with aiguard.New", func() { httpguard.Var(nil) })
}

func TestDebugShowsCallsAndFailuresAsPageAndJSON(t *testing.T) {
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	h := debugOf(t, g, nil)
	get := func(accept string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, debugRequest("127.0.0.1:1", "localhost", accept))
		require.Equal(t, 200, w.Code)
		assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		return w
	}
	get("application/json")
	_, _ = aiguard.Do(t.Context(), g.With(aiguard.Call{Op: "write", Model: "<b>", Tenant: "acme", Priority: aiguard.Critical}),
		func(context.Context) (int, error) {
			return 0, &aiguard.Error{Kind: aiguard.ErrRejected, StatusCode: 422}
		})
	_, err := aiguard.Do(t.Context(), g.With(aiguard.Call{Op: "read"}), func(context.Context) (int, error) {
		var report struct {
			Stats    struct{ Calls int }
			Calls    []struct{ Op, State string }
			Failures []struct {
				Op, Model, Tenant, Kind string
				StatusCode              int `json:"status_code"`
			}
			Tenants []struct{ Tenant string }
			Routes  []struct{ Name, State string }
		}
		require.NoError(t, json.Unmarshal(get("application/json").Body.Bytes(), &report))
		assert.Equal(t, 2, report.Stats.Calls)
		require.Len(t, report.Calls, 1)
		assert.Equal(t, "in_flight", report.Calls[0].State)
		require.Len(t, report.Failures, 1)
		assert.Equal(t, "rejected", report.Failures[0].Kind)
		assert.Equal(t, 422, report.Failures[0].StatusCode)
		assert.Len(t, report.Routes, 2)
		assert.NotEmpty(t, report.Tenants)
		assert.JSONEq(t, `"<b>"`, `"`+report.Failures[0].Model+`"`)

		w := get("text/html,*/*;q=0.8")
		page := w.Body.String()
		assert.Contains(t, w.Header().Get("Content-Security-Policy"), "default-src 'none'")
		assert.Contains(t, page, "<td>read</td>")
		assert.Contains(t, page, "<td>rejected</td>")
		assert.Contains(t, page, "&lt;b&gt;")
		assert.NotContains(t, page, "<b>")
		return 0, nil
	})
	require.NoError(t, err)
	assert.True(t, json.Valid([]byte(httpguard.Var(g).String())))
	assert.True(t, strings.HasPrefix(get("text/html").Body.String(), "<!doctype html>"))
}
