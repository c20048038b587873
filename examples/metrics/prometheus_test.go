package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

const dashboards = "../../otelguard/dashboards/"

// panel is one panel of the dashboard.
type panel struct {
	ID          int
	Title       string
	Description string
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct{ RefID, Expr, LegendFormat string }
	GridPos     struct{ X, Y, W, H int }
}

func readPanels(t *testing.T) []panel {
	t.Helper()
	data, err := os.ReadFile(dashboards + "aiguard.json")
	require.NoError(t, err)
	var dashboard struct{ Panels []panel }
	require.NoError(t, json.Unmarshal(data, &dashboard))
	return dashboard.Panels
}

func TestEachPanelIsComplete(t *testing.T) {
	ids, places := map[int]bool{}, map[string]bool{}
	panels := readPanels(t)
	require.NotEmpty(t, panels)
	for _, p := range panels {
		require.False(t, ids[p.ID], "two panels have the id %d", p.ID)
		ids[p.ID] = true
		place := fmt.Sprint(p.GridPos.X, p.GridPos.Y)
		require.False(t, places[place], "two panels are at %s", place)
		places[place] = true
		require.NotEmpty(t, p.Title)
		require.NotEmpty(t, p.Description, p.Title)
		require.NotEmpty(t, p.FieldConfig.Defaults.Unit, p.Title)
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			require.NotEmpty(t, target.LegendFormat, p.Title)
		}
	}
}

// need returns the path of a program, or skips the test.
func need(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("needs %s, of Debian's package prometheus", program)
	}
	return path
}

func TestPromtoolAcceptsTheAlertRules(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), need(t, "promtool"), "check", "rules", dashboards+"alerts.yml").CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// A real Prometheus scrapes the service. The intervals are shorter than in production. The thresholds are the same.
func TestDashboardAndAlertsWorkInPrometheus(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two minutes with Prometheus")
	}
	path := need(t, "prometheus")
	provider := aiguardtest.NewServer(t)
	oc := openai.DefaultConfig("any key")
	oc.BaseURL = provider.URL
	s, err := newService(oc)
	require.NoError(t, err)
	t.Cleanup(s.close)
	web := httptest.NewServer(s.handler())
	t.Cleanup(web.Close)
	prom := startPrometheus(t, path, strings.TrimPrefix(web.URL, "http://"))

	t.Run("each query of each panel returns data", func(t *testing.T) {
		provider.Handle(moody())
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		stop := inBackground(func() { play(ctx, s) })
		defer stop()
		defer cancel()
		var queries []string
		for _, p := range readPanels(t) {
			for _, target := range p.Targets {
				queries = append(queries, strings.NewReplacer("$__rate_interval", "5s", "$job", ".*").Replace(target.Expr))
			}
		}
		for _, query := range queries {
			for !prom.hasData(t, query) {
				require.NoError(t, ctx.Err(), "no data: %s", query)
				time.Sleep(200 * time.Millisecond)
			}
		}
	})

	answer := aiguardtest.TextN("It is the moon's work.", 4)
	calm := func(*aiguardtest.Request) aiguardtest.Reply { return aiguardtest.Slowly(5*time.Millisecond, answer) }
	slow := func(*aiguardtest.Request) aiguardtest.Reply { return aiguardtest.After(300*time.Millisecond, answer) }
	broken := func(*aiguardtest.Request) aiguardtest.Reply {
		return aiguardtest.Error(http.StatusInternalServerError, "")
	}
	const fine = "Why are there tides?"
	for _, fault := range []struct {
		alert    string
		provider func(*aiguardtest.Request) aiguardtest.Reply
		users    int
		question string // asked as every third question
		tenant   string // of the request
	}{
		{"AiguardSaturated", slow, 12, fine, ""},
		{"AiguardRefusing", calm, 1, strings.Repeat("Why? ", 5000), ""},
		{"AiguardTimeouts", func(r *aiguardtest.Request) aiguardtest.Reply {
			if strings.Contains(string(r.Body), hangs) {
				return aiguardtest.Hang()
			}
			return calm(r)
		}, 2, hangs, ""},
		{"AiguardRouteDown", broken, 1, fine, ""},
		{"AiguardBudget", calm, 1, fine, trialTenant}, // last: it is on until a minute after the load
	} {
		// fires causes the fault, ends it, and returns how often the alert has fired.
		fires := func(t *testing.T) int {
			var mu sync.Mutex
			users, third := 1, question{text: fine}
			playing := func(n int, q question, behave func(*aiguardtest.Request) aiguardtest.Reply) {
				mu.Lock()
				users, third = n, q
				mu.Unlock()
				provider.Handle(behave)
			}
			playing(1, question{text: fine}, calm)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // a budget's window is a minute
			stop := inBackground(func() {
				var all sync.WaitGroup
				defer all.Wait()
				for user := range 12 {
					all.Go(func() {
						for n := 0; ctx.Err() == nil; n++ {
							time.Sleep(20 * time.Millisecond)
							mu.Lock()
							q, idle := third, user >= users
							mu.Unlock()
							if n%3 != 0 {
								q = question{text: fine}
							}
							q.stream = n%2 == 0
							switch { // the guard counts the results
							case idle:
							case n%5 == 4: // a route that is down recovers only if somebody calls it
								_, _ = s.model("gpt-4o-mini", question{text: fine})(ctx)
							default:
								_, _ = s.ask(ctx, q)
							}
						}
					})
				}
			})
			defer stop()
			defer cancel()
			prom.await(t, ctx, "no alert before the fault", func(firing map[string]int) bool { return firing[fault.alert] == 0 })
			fired := prom.count(fault.alert)
			playing(fault.users, question{text: fault.question, tenant: fault.tenant}, fault.provider)
			prom.await(t, ctx, fault.alert+" fires", func(firing map[string]int) bool { return firing[fault.alert] > 0 })
			playing(1, question{text: fine}, calm)
			prom.await(t, ctx, fault.alert+" resolves", func(firing map[string]int) bool { return firing[fault.alert] == 0 })
			return prom.count(fault.alert) - fired
		}
		t.Run(fault.alert, func(t *testing.T) {
			for tries := 3; ; tries-- {
				n := fires(t)
				if n == 1 {
					return
				}
				require.Greater(t, tries, 1, "it fires %d times", n)
				t.Logf("it fires %d times; again, because on a busy machine scrapes and calls may be late", n)
			}
		})
	}
}

// inBackground runs f in a goroutine. stop waits until f ends.
func inBackground(f func()) (stop func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	return func() { <-done }
}

// prometheusServer is a running Prometheus.
type prometheusServer struct {
	url string

	mu    sync.Mutex
	on    map[string]bool
	fired map[string]int // number of times that each alert started to fire
}

func startPrometheus(t *testing.T, path, target string) *prometheusServer {
	t.Helper()
	dir := t.TempDir()
	rules, err := os.ReadFile(dashboards + "alerts.yml")
	require.NoError(t, err)
	quick := strings.NewReplacer("[5m]", "[3s]", "for: 5m", "for: 1s", "for: 1m", "for: 1s").Replace(string(rules))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "alerts.yml"), []byte(quick), 0o600))
	config := fmt.Sprintf("global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\nrule_files: [alerts.yml]\n"+
		"scrape_configs:\n  - job_name: metrics\n    static_configs:\n      - targets: [%q]\n", target)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600))
	for range 3 { // another process may take the port
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addr := ln.Addr().String()
		require.NoError(t, ln.Close())
		if p, ok := runPrometheus(t, path, dir, addr); ok {
			return p
		}
	}
	t.Fatal("Prometheus does not start")
	return nil
}

func runPrometheus(t *testing.T, path, dir, addr string) (*prometheusServer, bool) {
	var out bytes.Buffer
	cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	exited := make(chan struct{})
	go func() { defer close(exited); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if t.Failed() {
			t.Logf("prometheus: %s", out.String())
		}
		http.DefaultClient.CloseIdleConnections()
	})
	p := &prometheusServer{url: "http://" + addr, on: map[string]bool{}, fired: map[string]int{}}
	for range 300 {
		select {
		case <-exited:
			return nil, false
		case <-time.After(100 * time.Millisecond):
		}
		if resp, err := http.Get(p.url + "/-/ready"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return p, true
			}
		}
	}
	t.Fatal("Prometheus is not ready after 30 seconds")
	return nil, false
}

// get requests path from the API.
func (p *prometheusServer) get(t *testing.T, path string, data any) {
	t.Helper()
	resp, err := http.Get(p.url + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&answer))
	require.Equal(t, "success", answer.Status, "%s: %s", path, answer.Error)
}

// hasData reports whether a query returns a number.
func (p *prometheusServer) hasData(t *testing.T, query string) bool {
	t.Helper()
	var data struct{ Result []struct{ Value [2]any } }
	p.get(t, "/api/v1/query?query="+url.QueryEscape(query), &data)
	for _, r := range data.Result {
		if r.Value[1] != "NaN" {
			return true
		}
	}
	return false
}

// firing returns the number of firing alerts by name and counts new ones.
func (p *prometheusServer) firing(t *testing.T) map[string]int {
	t.Helper()
	var data struct {
		Alerts []struct {
			Labels map[string]string
			State  string
		}
	}
	p.get(t, "/api/v1/alerts", &data)
	firing := map[string]int{}
	for _, a := range data.Alerts {
		if a.State == "firing" {
			firing[a.Labels["alertname"]]++
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range firing {
		if !p.on[name] {
			p.fired[name]++
		}
	}
	p.on = map[string]bool{}
	for name := range firing {
		p.on[name] = true
	}
	return firing
}

func (p *prometheusServer) count(alert string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fired[alert]
}

// await polls the alerts until ok holds for one second.
func (p *prometheusServer) await(t *testing.T, ctx context.Context, what string, ok func(firing map[string]int) bool) {
	t.Helper()
	for since := (time.Time{}); ; time.Sleep(100 * time.Millisecond) {
		firing := p.firing(t)
		switch {
		case !ok(firing):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) >= time.Second:
			return
		}
		require.NoError(t, ctx.Err(), "%s: %v", what, firing)
	}
}
