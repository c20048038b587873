package httpguard

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"time"

	"github.com/aiguard-go/aiguard"
)

//go:embed debug.html
var debugHTML string

var debugPage = template.Must(template.New("debug").Parse(debugHTML))

// Debug returns a handler that shows the current state of g: gauges, routes, tenants, calls in progress, and the last
// 50 failures. Each list has at most 100 entries. It serves an HTML page that refreshes itself every second. It serves
// the same data as JSON for "Accept: application/json" or "?format=json". Neither form contains a prompt, an answer, a
// key or provider text. Both contain the names of operations, models, hosts and tenants.
//
// If allow is nil, Debug accepts only requests from this machine. The peer and the Host header must be loopback
// addresses, no header may show a proxy, and the protocol must be newer than HTTP/1.0, which only proxies use. Pass allow to
// check requests in another way, such as by a session. Do so if a proxy on this machine passes requests on in HTTP/1.1
// without such a header and with a loopback address as the Host. New versions of nginx do so by default.
// Rejected requests get 403.
//
// The handler works on any path. Its first request makes the guard record failures. Debug returns an error if g is
// nil.
func Debug(g *aiguard.Guard, allow func(*http.Request) bool) (http.Handler, error) {
	if g == nil {
		return nil, errors.New("httpguard: Debug: nil Guard; make it with aiguard.New")
	}
	if allow == nil {
		allow = fromThisMachine
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "want GET", http.StatusMethodNotAllowed)
		case !allow(r):
			http.Error(w, "This page answers requests from its own machine only.", http.StatusForbidden)
		case r.URL.Query().Get("format") == "json" || !prefersHTML(r.Header.Values("Accept")):
			report(w, http.StatusOK, newDebugReport(g.Inspect()))
		default:
			serveDebugPage(w, newDebugReport(g.Inspect()))
		}
	}), nil
}

// Var returns the JSON of Debug as an expvar.Var:
//
//	expvar.Publish("aiguard", httpguard.Var(guard))
//
// This package does not import expvar, because expvar adds a handler to http.DefaultServeMux. Var panics if g is nil.
func Var(g *aiguard.Guard) fmt.Stringer {
	if g == nil {
		panic("httpguard: Var: nil Guard; make it with aiguard.New")
	}
	return debugVar{g}
}

type debugVar struct{ guard *aiguard.Guard }

func (v debugVar) String() string {
	text, err := json.Marshal(newDebugReport(v.guard.Inspect()))
	if err != nil {
		return "null"
	}
	return string(text)
}

// fromThisMachine also checks the Host header. Otherwise a page of another site could read this one by DNS rebinding.
func fromThisMachine(r *http.Request) bool {
	if !r.ProtoAtLeast(1, 1) { // nginx's default was HTTP/1.0 without a header that shows it
		return false
	}
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return false
		}
	}
	peer, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil || !isLoopback(peer) {
		return false
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return host == "localhost" || isLoopback(host)
}

func isLoopback(host string) bool {
	if n := len(host); n > 2 && host[0] == '[' && host[n-1] == ']' {
		host = host[1 : n-1]
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func serveDebugPage(w http.ResponseWriter, report debugReport) {
	report.Nonce = rand.Text()
	var page bytes.Buffer
	if err := debugPage.Execute(&page, report); err != nil {
		http.Error(w, "The page could not be built.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'nonce-"+report.Nonce+"'; script-src 'nonce-"+report.Nonce+
		"'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, _ = page.WriteTo(w)
}

// debugReport is the JSON form of an aiguard.Inspection. Durations are in seconds.
type debugReport struct {
	Time     time.Time      `json:"time"`
	Stats    *stats         `json:"stats"`
	Classes  []debugClass   `json:"priorities"`
	Tenants  []debugTenant  `json:"tenants"`
	Routes   []debugRoute   `json:"routes"`
	Calls    []debugCall    `json:"calls"`
	Failures []debugFailure `json:"failures"`

	Nonce string `json:"-"`
}

type debugClass struct {
	Priority string `json:"priority"`
	InFlight int64  `json:"in_flight"`
	Waiting  int64  `json:"waiting"`
	Refused  int64  `json:"refused"`
}

type debugTenant struct {
	Tenant   string `json:"tenant"`
	InFlight int64  `json:"in_flight"`
	Waiting  int64  `json:"waiting"`
	Calls    int64  `json:"calls"`
	Refused  int64  `json:"refused"`
}

type debugRoute struct {
	Host              string     `json:"host"`
	Name              string     `json:"name"`
	State             string     `json:"state"` // open, paused or down
	InFlight          int64      `json:"in_flight"`
	Waiting           int64      `json:"waiting"`
	Limit             int64      `json:"limit,omitempty"`
	PausedUntil       *time.Time `json:"paused_until,omitempty"`
	DownSince         *time.Time `json:"down_since,omitempty"`
	RetryTokens       float64    `json:"retry_tokens"`
	RequestsPerMinute float64    `json:"requests_per_minute,omitempty"`
	Held              float64    `json:"held"`
}

type debugCall struct {
	Op       string  `json:"op"`
	Model    string  `json:"model"`
	Host     string  `json:"host"`
	Tenant   string  `json:"tenant"`
	Priority string  `json:"priority"`
	State    string  `json:"state"`
	Age      float64 `json:"age"`
}

type debugFailure struct {
	Time       time.Time    `json:"time"`
	Op         string       `json:"op"`
	Model      string       `json:"model"`
	Host       string       `json:"host"`
	Tenant     string       `json:"tenant"`
	Kind       aiguard.Kind `json:"kind"`
	Phase      string       `json:"phase,omitempty"`
	StatusCode int          `json:"status_code,omitempty"`
	Attempts   int          `json:"attempts"`
	Elapsed    float64      `json:"elapsed"`
	RetryAfter float64      `json:"retry_after,omitempty"`
}

// most is the maximum length of each table. Tenants and routes are in order of use.
const most = 100

func newDebugReport(in aiguard.Inspection) debugReport {
	d := debugReport{
		Time: in.Time, Stats: newStats(in.Stats),
		Tenants: []debugTenant{}, Routes: []debugRoute{}, Calls: []debugCall{}, Failures: []debugFailure{},
	}
	for _, c := range []struct {
		priority aiguard.Priority
		stats    aiguard.PriorityStats
	}{{aiguard.Critical, in.Stats.Critical}, {aiguard.Normal, in.Stats.Normal}, {aiguard.Background, in.Stats.Background}} {
		d.Classes = append(d.Classes, debugClass{c.priority.String(), c.stats.InFlight, c.stats.Waiting, c.stats.Refused})
	}
	for _, t := range in.Stats.Tenants[:min(most, len(in.Stats.Tenants))] {
		d.Tenants = append(d.Tenants, debugTenant{t.Tenant, t.InFlight, t.Waiting, t.Calls, t.Refused})
	}
	for _, r := range in.Routes[:min(most, len(in.Routes))] {
		d.Routes = append(d.Routes, newDebugRoute(r, in.Time))
	}
	for _, c := range in.Calls[:min(most, len(in.Calls))] {
		d.Calls = append(d.Calls, debugCall{c.Op, c.Model, c.Host, c.Tenant, c.Priority.String(), string(c.State), c.Age.Seconds()})
	}
	for _, f := range in.Failures {
		d.Failures = append(d.Failures, debugFailure{f.Time, f.Op, f.Model, f.Host, f.Tenant, f.Kind, f.Phase, f.StatusCode, f.Attempts,
			f.Elapsed.Seconds(), f.RetryAfter.Seconds()})
	}
	return d
}

func newDebugRoute(r aiguard.RouteStats, now time.Time) debugRoute {
	d := debugRoute{Host: r.Host, Name: r.Name, State: "open", InFlight: r.InFlight, Waiting: r.Waiting, Limit: max(r.Limit, 0),
		RetryTokens: r.RetryTokens, RequestsPerMinute: r.RequestsPerMinute, Held: r.Held.Seconds()}
	if r.PausedUntil.After(now) {
		d.State, d.PausedUntil = "paused", &r.PausedUntil
	}
	if !r.DownSince.IsZero() {
		d.State, d.DownSince = "down", &r.DownSince
	}
	return d
}
