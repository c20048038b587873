package cost

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/aiguard-go/aiguard/benchmarks/internal/contender"
)

// BenchmarkChat measures CreateChatCompletion with a provider in memory.
func BenchmarkChat(b *testing.B) {
	compare(b, contender.Chatting, func(b *testing.B, name string) { benchmarkChat(b, name, jsonAnswer(), memoryURL) })
}

// BenchmarkChatLoopback measures CreateChatCompletion over a reused connection.
func BenchmarkChatLoopback(b *testing.B) {
	compare(b, contender.Chatting, func(b *testing.B, name string) {
		srv := newServer(b, jsonAnswer())
		benchmarkChat(b, name, srv.transport, srv.url)
		if conns := srv.conns.Load(); conns > 1 {
			b.Fatalf("%d connections", conns)
		}
	})
}

func benchmarkChat(b *testing.B, name string, base http.RoundTripper, url string) {
	chat, ctx := newChat(b, name, base, url), b.Context()
	for b.Loop() {
		if text, err := chat(ctx); err != nil || text != answerIs {
			b.Fatalf("%q, %v", text, err)
		}
	}
}

// BenchmarkStream measures a stream from a provider in memory.
func BenchmarkStream(b *testing.B) {
	events := crowd(1000)
	compare(b, contender.Streaming, func(b *testing.B, name string) {
		benchmarkStream(b, newStream(b, name, streamAnswer(events), memoryURL), events)
		b.ReportMetric(growthOf(b, events, func(events int) func(context.Context) (int, error) {
			return newStream(b, name, streamAnswer(events), memoryURL)
		}), "allocs/event")
	})
}

// BenchmarkStreamLoopback measures a stream over a connection.
func BenchmarkStreamLoopback(b *testing.B) {
	events := crowd(1000)
	compare(b, contender.Streaming, func(b *testing.B, name string) {
		srv := newServer(b, chunked{streamAnswer(events)})
		benchmarkStream(b, newStream(b, name, srv.transport, srv.url), events)
	})
}

func benchmarkStream(b *testing.B, stream func(context.Context) (int, error), events int) {
	ctx := b.Context()
	for b.Loop() {
		if n, err := stream(ctx); err != nil || n != events {
			b.Fatalf("%d events, %v", n, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(events), "ns/event")
}

// growthOf returns the allocations per event beyond the fixed cost of a stream. It compares a stream with one that is
// twice as long.
func growthOf(b *testing.B, events int, open func(events int) func(context.Context) (int, error)) float64 {
	allocs := func(events int) float64 {
		stream := open(events)
		return testing.AllocsPerRun(3, func() {
			if n, err := stream(b.Context()); err != nil || n != events {
				b.Fatalf("%d events, %v", n, err)
			}
		})
	}
	return (allocs(2*events) - allocs(events)) / float64(events)
}

// BenchmarkConnections counts connections for bodies without a Content-Length: chunked answers, whose last chunk comes
// after the end of the JSON, and streams.
func BenchmarkConnections(b *testing.B) {
	calls := crowd(200)
	count := func(b *testing.B, srv *server, call func() error) {
		for range b.N {
			for range calls {
				if err := call(); err != nil {
					b.Fatal(err)
				}
			}
		}
		perCall := float64(srv.conns.Load()) / float64(calls*b.N)
		b.ReportMetric(perCall, "conns/call")
		b.ReportMetric(100*(1-perCall), "%reused")
	}
	b.Run("answers", func(b *testing.B) {
		compare(b, contender.Chatting, func(b *testing.B, name string) {
			srv := newServer(b, chunked{jsonAnswer()})
			chat := newChat(b, name, srv.transport, srv.url)
			count(b, srv, func() error { _, err := chat(b.Context()); return err })
		})
	})
	b.Run("streams", func(b *testing.B) {
		compare(b, contender.Streaming, func(b *testing.B, name string) {
			srv := newServer(b, chunked{streamAnswer(5)})
			stream := newStream(b, name, srv.transport, srv.url)
			count(b, srv, func() error { _, err := stream(b.Context()); return err })
		})
	})
}

// server answers on 127.0.0.1.
type server struct {
	url       string
	transport *http.Transport
	conns     atomic.Int64 // number since the start
}

func newServer(tb testing.TB, handler http.Handler) *server {
	s := &server{transport: http.DefaultTransport.(*http.Transport).Clone()}
	s.transport.Proxy = nil
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	srv.Start()
	s.url = srv.URL + "/v1"
	tb.Cleanup(func() {
		s.transport.CloseIdleConnections()
		srv.Close()
	})
	return s
}
