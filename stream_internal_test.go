package aiguard

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// pieces is a body of which each Read returns one more.
type pieces struct{ rest []string }

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[0])
	p.rest = p.rest[1:]
	return n, nil
}

func (p *pieces) Close() error { return nil }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestOnlyAWaitForTheProviderArmsTheIdleTimer(t *testing.T) {
	event := `data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}` + "\n\n"
	body := &pieces{[]string{event + event + event, ": ping\n\n", event, "data: [DONE]\n\n"}}
	g, err := New(Config{})
	require.NoError(t, err)
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Request: r, Body: body, Header: http.Header{"Content-Type": {"text/event-stream"}}}, nil
	})
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider/v1/chat/completions", strings.NewReader(`{"stream":true}`))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	resp, err := g.Transport(base).RoundTrip(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	s := resp.Body.(*stream)
	buf := make([]byte, 1024)
	for i, armed := range []bool{false, false, false, true} {
		n, err := s.Read(buf)
		require.NoError(t, err)
		require.Equal(t, event, string(buf[:n]))
		require.Equal(t, armed, s.w.idle != nil, "event %d", i)
		require.False(t, s.source.reading.Load())
	}
	require.False(t, s.w.idle.Stop(), "it does not run while the reader is busy")
}
