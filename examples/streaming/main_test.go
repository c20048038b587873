package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// service is the handler on a server between a browser and the fake provider.
type service struct {
	t    *testing.T
	url  string
	fake *aiguardtest.Server
	g    *aiguard.Guard
}

func newService(t *testing.T, callTimeout time.Duration) *service {
	fake := startFake(0)
	t.Cleanup(fake.Close)
	oc := openai.DefaultConfig("key")
	oc.BaseURL = fake.URL
	client, err := aiguard.NewClient(oc, aiguard.Config{
		CallTimeout: callTimeout,
		Retry:       aiguard.Retry{MaxAttempts: 1},
	})
	require.NoError(t, err)
	t.Cleanup(func() { client.Guard().Close() })
	srv := httptest.NewServer(&handler{client: client, model: "any", faults: true})
	t.Cleanup(srv.Close)
	s := &service{t, srv.URL, fake, client.Guard()}
	t.Cleanup(func() { s.eventually(func() bool { return s.g.Stats().InFlight == 0 }, "a slot is still held") })
	return s
}

func (s *service) get(ctx context.Context, fault string) *http.Response {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"?q=Hi&fault="+url.QueryEscape(fault), nil)
	require.NoError(s.t, err)
	transport := &http.Transport{}
	s.t.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (s *service) eventually(ok func() bool, msg string) {
	s.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		require.True(s.t, time.Now().Before(deadline), msg)
	}
}

// relayed returns the text pieces and the last event's name and data.
func relayed(t *testing.T, body io.Reader) (pieces []string, last, data string) {
	lines := bufio.NewScanner(body)
	name := ""
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			last, data = name, value
			if name == "" {
				var p piece
				require.NoError(t, json.Unmarshal([]byte(value), &p))
				pieces = append(pieces, p.Text)
			}
		case "":
			name = ""
		}
	}
	require.NoError(t, lines.Err())
	return pieces, last, data
}

func TestEveryPieceIsRelayedInOrder(t *testing.T) {
	s := newService(t, 0)
	s.fake.SetDefault(aiguardtest.TextN("Hello,\nworld: ≥ 1", 5))
	resp := s.get(t.Context(), "")
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))

	pieces, last, _ := relayed(t, resp.Body)
	require.Len(t, pieces, 5)
	require.Equal(t, "Hello,\nworld: ≥ 1", strings.Join(pieces, ""))
	require.Equal(t, "done", last)
}

func TestPiecesArriveWithoutBuffering(t *testing.T) {
	s := newService(t, 0)
	s.fake.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"delta":{"content":"Hel"}}]}`)))
	resp := s.get(t.Context(), "")
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, `data: {"text":"Hel"}`+"\n", line)
}

func TestFailureBeforeTheFirstPieceSetsTheStatus(t *testing.T) {
	tests := map[string]struct {
		fault      string
		timeout    time.Duration
		reply      aiguardtest.Reply
		status     int
		kind       string
		retryAfter string
	}{
		"timeout":      {fault: "timeout", timeout: 100 * time.Millisecond, status: http.StatusGatewayTimeout, kind: "timeout"},
		"outage":       {fault: "outage", status: http.StatusServiceUnavailable, kind: "unavailable", retryAfter: "1"},
		"rate limited": {reply: aiguardtest.Error(429, "rate_limit_exceeded", "Retry-After-Ms", "1500"), status: http.StatusTooManyRequests, kind: "rate_limited", retryAfter: "2"},
		"unauthorized": {reply: aiguardtest.Error(401, "invalid_api_key"), status: http.StatusBadGateway, kind: "unauthorized"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newService(t, test.timeout)
			s.fake.SetDefault(test.reply)
			resp := s.get(t.Context(), test.fault)
			require.Equal(t, test.status, resp.StatusCode)
			require.Equal(t, test.retryAfter, resp.Header.Get("Retry-After"))

			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			var f failure
			require.NoError(t, json.Unmarshal(body, &f))
			require.Equal(t, test.kind, f.Kind)
			require.NotEmpty(t, f.Message)
			require.NotContains(t, string(body), aiguardtest.ProviderText)
		})
	}
}

func TestCutStreamEndsWithAnErrorEvent(t *testing.T) {
	s := newService(t, 0)
	resp := s.get(t.Context(), "cut")
	require.Equal(t, http.StatusOK, resp.StatusCode)

	pieces, last, data := relayed(t, resp.Body)
	require.NotEmpty(t, pieces)
	require.Equal(t, "error", last)
	require.JSONEq(t, `{"kind":"truncated","message":"The AI service's answer was cut short. Please try again."}`, data)
}

func TestDisconnectCancelsTheCallAndFreesTheSlot(t *testing.T) {
	s := newService(t, 0)
	s.fake.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"delta":{"content":"Hel"}}]}`)))
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	resp := s.get(ctx, "")
	_, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.EqualValues(t, 1, s.g.Stats().InFlight)

	leave()
	s.eventually(func() bool { return s.g.Stats().InFlight == 0 }, "the slot is still held")
	s.eventually(func() bool { return s.fake.Active() == 0 }, "the provider still sends")
	require.Equal(t, 1, s.fake.Disconnects())
}

func TestShutdownSendsAnErrorEvent(t *testing.T) {
	s := newService(t, 0)
	s.fake.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"delta":{"content":"Hel"}}]}`)))
	resp := s.get(t.Context(), "")
	require.NoError(t, s.g.Close())

	pieces, last, data := relayed(t, resp.Body)
	require.Equal(t, []string{"Hel"}, pieces)
	require.Equal(t, "error", last)
	require.Contains(t, data, `"kind":"closed"`)
	require.Equal(t, http.StatusServiceUnavailable, s.get(t.Context(), "").StatusCode)
}
