package aiguard_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// ofProxies is what every fault of a proxy becomes. Without a connection there is no request that the provider could have got.
var ofProxies = promise{
	kind: aiguard.ErrTimeout, phase: "call|connect", again: always, unseen: true,
	cfg:  aiguard.Config{CallTimeout: shortCall, Retry: aiguard.Retry{BaseDelay: time.Millisecond, Budget: aiguard.Off}},
	each: shortCall, control: hangs,
}

// throughProxy makes a client whose guard connects through a proxy that plays the fault. A second after the test's calls no
// connection may be left.
func throughProxy(t *testing.T, fault aiguardtest.ProxyFault) (*aiguard.Client, *aiguardtest.Proxy) {
	t.Helper()
	proxy := aiguardtest.NewProxy(t, fault)
	left := leavesNoGoroutine()
	c := clientOf(t, ofProxies.cfg, "https://provider.invalid/v1", nil)
	aiguard.Pool(c.Guard()).Proxy = http.ProxyURL(proxy.URL)
	t.Cleanup(func() {
		over := time.Now()
		settles(t, "no connection is left", func() bool { open, _ := proxy.Conns(); return open == 0 })
		settles(t, "no goroutine is left", func() bool { return left() == "" })
		require.Less(t, time.Since(over), time.Second)
	})
	return c, proxy
}

func TestFaultsOfProxies(t *testing.T) {
	together(t, func(run func(string, func(*testing.T))) {
		for _, fault := range aiguardtest.ProxyFaults() {
			run(string(fault), func(t *testing.T) {
				p := ofProxies
				alone("guarded", t, func(t *testing.T) {
					c, proxy := throughProxy(t, fault)
					_, err := bounded(t, 3*shortCall, 3*shortCall+slack, p.call(c, false))
					p.failsAsPromised(t, err, 3)
					_, total := proxy.Conns()
					require.Equal(t, 3, total, "connections")
				})
				alone("streamed", t, func(t *testing.T) {
					c, _ := throughProxy(t, fault)
					p := p
					p.phase = "first_event|connect"
					_, err := bounded(t, shortCall, shortCall+slack, p.call(c.With(aiguard.Call{Attempts: 1}), true))
					p.failsAsPromised(t, err, 1)
				})
				alone("what creates something", t, func(t *testing.T) {
					c, _ := throughProxy(t, fault)
					_, err := bounded(t, 2*shortCall, 2*shortCall+slack, func(ctx context.Context) (answer, error) {
						_, err := c.With(aiguard.Call{Attempts: 2}).CreateThread(ctx, openai.ThreadRequest{})
						return answer{}, err
					})
					p.failsAsPromised(t, err, 2)
				})
				alone("control", t, func(t *testing.T) {
					proxy := aiguardtest.NewProxy(t, fault)
					oc := openai.DefaultConfig("sk-secret-key")
					oc.BaseURL = "https://provider.invalid/v1"
					oc.HTTPClient = &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy.URL)}}
					p.control(t, &bare{call: p.rawCall(openai.NewClientWithConfig(oc), false)})
					open, _ := proxy.Conns()
					require.Equal(t, 1, open, "the connection stays when the caller has left")
				})
			})
		}
	})
}
