package main

import (
	"net/http"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// proxied is a guarded client behind a proxy that falls silent. Its provider does not exist.
type proxied struct {
	provider
	proxy *aiguardtest.Proxy
	base  *http.Transport
}

// startProxies returns a client for each fault of a proxy. The clients share the guard.
func startProxies(tb aiguardtest.TB, guard *aiguard.Guard) []*proxied {
	var all []*proxied
	for _, fault := range aiguardtest.ProxyFaults() {
		p := &proxied{proxy: aiguardtest.NewProxy(tb, fault)}
		p.base = limited(&http.Transport{Proxy: http.ProxyURL(p.proxy.URL)})
		host := p.proxy.URL.Port() + ".invalid" // of its own, because an outage takes down the routes of a host
		p.client = guard.Client(clientConfig("https://"+host+"/v1", p.base))
		all = append(all, p)
	}
	return all
}

// cleanups takes the place of a test. Its functions may run twice.
type cleanups []func()

// Helper implements aiguardtest.TB.
func (*cleanups) Helper() {}

// Cleanup implements aiguardtest.TB.
func (c *cleanups) Cleanup(f func()) { *c = append(*c, f) }

func (c *cleanups) run() {
	for _, f := range *c {
		f()
	}
}
