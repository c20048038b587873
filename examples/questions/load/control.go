package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"time"
)

// control is a server that does no work. Its latency shows how busy the machine is.
type control struct {
	*client
	srv *httptest.Server
}

func newControl() *control {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"status":503,"detail":"no"}`))
	}))
	return &control{newClient(srv.URL), srv}
}

func (c *control) ask(ctx context.Context, due time.Time) answer {
	a := c.client.ask(ctx, due)
	if a.kind == refused {
		a.kind = controlled
	}
	return a
}

func (c *control) close() {
	c.client.close()
	c.srv.Close()
}
