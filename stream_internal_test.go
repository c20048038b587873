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

const finishedEvent = `data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}` + "\n\n"

// openStream returns a stream of three events that arrive together, and of one that arrives later.
func openStream(t *testing.T) *stream {
	return openPieces(t, &pieces{[]string{strings.Repeat(finishedEvent, 3), ": ping\n\n", finishedEvent, "data: [DONE]\n\n"}})
}

func openPieces(t *testing.T, body *pieces) *stream {
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
	t.Cleanup(func() { resp.Body.Close() })
	return resp.Body.(*stream)
}

func TestReadReturnsAllEventsThatHaveArrivedAndFit(t *testing.T) {
	for size, want := range map[int][]string{
		1 << 10:                   {strings.Repeat(finishedEvent, 3), finishedEvent},
		2*len(finishedEvent) + 10: {finishedEvent + finishedEvent + finishedEvent[:10], finishedEvent[10:], finishedEvent},
		len(finishedEvent):        {finishedEvent, finishedEvent, finishedEvent, finishedEvent},
	} {
		s := openStream(t)
		for _, want := range want {
			buf := make([]byte, size)
			n, err := s.Read(buf)
			require.NoError(t, err)
			require.Equal(t, want, string(buf[:n]), size)
		}
	}
}

const (
	toolEvent  = `data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}}]}` + "\n\n"
	emptyEvent = `data: {"choices":[{"index":0,"delta":{"content":""}}]}` + "\n\n"
)

func TestReadReturnsTheEventsBeforeAFlawWithoutAWait(t *testing.T) {
	for _, flaw := range []string{"data: {\n\n", "data: {}}\n\n", "data: {\"error\":{}", "data: {\"error\":{}}\n\n", "data: [DONE]\n\n", ""} {
		body := &pieces{[]string{finishedEvent + toolEvent + emptyEvent + toolEvent + flaw, "data: 1"}}
		s := openPieces(t, body)
		buf := make([]byte, 1<<10)
		n, err := s.Read(buf)
		require.NoError(t, err)
		require.Equal(t, finishedEvent+toolEvent+emptyEvent+toolEvent, string(buf[:n]), flaw)
		require.Len(t, body.rest, 1, flaw)
	}
}

func TestEventWithoutContentStaysForTheNextRead(t *testing.T) {
	s := openPieces(t, &pieces{[]string{toolEvent + emptyEvent, emptyEvent + finishedEvent, "data: [DONE]\n\n"}})
	buf := make([]byte, 1<<10)
	for _, want := range []string{toolEvent, emptyEvent + emptyEvent + finishedEvent} {
		n, err := s.Read(buf)
		require.NoError(t, err)
		require.Equal(t, want, string(buf[:n]))
	}
}

func TestOnlyAWaitForTheProviderArmsTheIdleTimer(t *testing.T) {
	s := openStream(t)
	buf := make([]byte, len(finishedEvent))
	for i, armed := range []bool{false, false, false, true} {
		n, err := s.Read(buf)
		require.NoError(t, err)
		require.Equal(t, finishedEvent, string(buf[:n]))
		require.Equal(t, armed, s.w.idle != nil, "event %d", i)
		require.False(t, s.source.reading.Load())
	}
	require.False(t, s.w.idle.Stop(), "it does not run while the reader is busy")
}
