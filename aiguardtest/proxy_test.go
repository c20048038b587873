package aiguardtest_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestProxyAcceptsAndFallsSilent(t *testing.T) {
	require.NotEmpty(t, aiguardtest.ProxyFaults())
	for _, fault := range aiguardtest.ProxyFaults() {
		t.Run(string(fault), func(t *testing.T) {
			proxy := aiguardtest.NewProxy(t, fault)
			base := &http.Transport{Proxy: http.ProxyURL(proxy.URL)}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://provider.invalid/v1/models", nil)
			require.NoError(t, err)
			_, err = (&http.Client{Transport: base}).Do(req)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			open, total := proxy.Conns()
			require.Equal(t, 1, open, "net/http keeps the connection open")
			require.Equal(t, 1, total)
		})
	}
	require.Panics(t, func() { aiguardtest.NewProxy(t, "proxy/unknown") })
}
