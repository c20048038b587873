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
	bare := func(t *testing.T, base http.RoundTripper) http.RoundTripper {
		return newTransport(t, base, cacheguard.Config{})
	}
	guarded := func(t *testing.T, base http.RoundTripper) http.RoundTripper {
		g, err := aiguard.New(aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1, Budget: aiguard.Off}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, g.Close()) })
		return newTransport(t, g.Transport(base), cacheguard.Config{})
	}
	o := rttest.Options{Path: "/v1/chat/completions", Body: certain, Answer: contractAnswer}
	t.Run("over net/http", func(t *testing.T) {
		rttest.Run(t, o, bare)
		rttest.RunOver(t, o.Path, o.Body, bare)
	})
	o.MaxHeaderBytes, o.NoRedirects = 64<<10, true
	t.Run("over a guard", func(t *testing.T) {
		rttest.Run(t, o, guarded)
		rttest.RunOver(t, "/v1/files/f/content", certain, guarded)
	})
}
