package cacheguard_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/internal/rttest"
)

const contractAnswer = `{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello!"},"finish_reason":"stop"}]}`

func TestTransportKeepsTheContractOfARoundTripper(t *testing.T) {
	o := rttest.Options{Path: "/v1/chat/completions", Body: certain, Answer: contractAnswer}
	for _, c := range append(rttest.Cases(o), rttest.BaseCases(o.Path, o.Body)...) {
		t.Run("over net/http/"+c.Name, func(t *testing.T) {
			c.Run(t, func(base http.RoundTripper) http.RoundTripper { return newTransport(t, base, cacheguard.Config{}) })
		})
	}
	o.MaxHeaderBytes, o.NoRedirects, o.ReadsBodies = 64<<10, true, true
	for _, c := range append(rttest.Cases(o), rttest.BaseCases("/v1/files/f/content", o.Body)...) {
		t.Run("over a guard/"+c.Name, func(t *testing.T) {
			g, err := aiguard.New(aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1, Budget: aiguard.Off}})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, g.Close()) })
			c.Run(t, func(base http.RoundTripper) http.RoundTripper {
				return newTransport(t, g.Transport(base), cacheguard.Config{})
			})
		})
	}
}
