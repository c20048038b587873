package aiguard_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// Each callback at the end of a stream may close or read that stream and use the guard.
func TestCallbacksAtTheEndOfAStreamMayUseIt(t *testing.T) {
	callbacks := map[string]func(called func()) aiguard.Config{
		"Budget": func(called func()) aiguard.Config { return aiguard.Config{Budget: budgetFunc(called)} },
		"Limiter": func(called func()) aiguard.Config {
			return aiguard.Config{Limiter: limiterFunc(func(context.Context, aiguard.Call) (func(), error) { return called, nil })}
		},
		"OnEvent": func(called func()) aiguard.Config {
			return aiguard.Config{OnEvent: func(context.Context, aiguard.Event) { called() }}
		},
		"Logger": func(called func()) aiguard.Config { return aiguard.Config{Logger: slog.New(logFunc(called))} },
	}
	ends := map[string]struct {
		reply aiguardtest.Reply
		end   func(body io.ReadCloser)
		fails bool // so that it is logged
	}{
		"read to its end": {reply: aiguardtest.TextN("one two", 2), end: func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body) }},
		"truncated":       {reply: aiguardtest.Events(hello), end: func(body io.ReadCloser) { _, _ = io.Copy(io.Discard, body) }, fails: true},
		"closed":          {reply: aiguardtest.HangAfter(aiguardtest.Events(hello)), end: func(body io.ReadCloser) { _ = body.Close() }},
		"abandoned":       {reply: aiguardtest.HangAfter(aiguardtest.Events(hello)), end: func(io.ReadCloser) { time.Sleep(11 * time.Minute) }, fails: true},
	}
	for callback, config := range callbacks {
		for end, e := range ends {
			if callback == "Logger" && !e.fails {
				continue
			}
			t.Run(callback+"/"+end, func(t *testing.T) {
				var use atomic.Pointer[func()]
				called := func() {
					if f := use.Swap(nil); f != nil { // once, because f makes a call
						(*f)()
					}
				}
				guardedTransport(t, config(called), func(t *testing.T, g *aiguard.Guard, rt http.RoundTripper, srv *aiguardtest.Server) {
					srv.SetDefault(e.reply)
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/chat/completions",
						strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
					require.NoError(t, err)
					resp, err := rt.RoundTrip(req)
					require.NoError(t, err)
					f := func() {
						_, _ = resp.Body.Read(make([]byte, 100))
						assert.NoError(t, resp.Body.Close())
						g.Stats()
						g.Routes()
						g.Inspect()
						assert.NoError(t, g.Update(g.Config()))
						assert.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
						assert.NoError(t, g.Close())
					}
					use.Store(&f)
					e.end(resp.Body)
					require.NoError(t, resp.Body.Close())
					require.Nil(t, use.Load(), "the callback was called")
				})
			})
		}
	}
}

// logFunc is a slog.Handler that calls a function for each line.
type logFunc func()

func (f logFunc) Enabled(context.Context, slog.Level) bool { return true }

func (f logFunc) Handle(context.Context, slog.Record) error {
	f()
	return nil
}

func (f logFunc) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f logFunc) WithGroup(string) slog.Handler      { return f }
