package cacheguard_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/internal/typednil"
)

func TestNextReturningATypedNilFails(t *testing.T) {
	for name, nothing := range typednil.Errors() {
		for where, next := range map[string]roundTripper{
			"before the response": func(*http.Request) (*http.Response, error) { return nil, nothing },
			"in the body": func(req *http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, ContentLength: -1, Request: req,
					Body: io.NopCloser(io.MultiReader(strings.NewReader(`{"choices":[`), iotest.ErrReader(nothing))),
				}, nil
			},
		} {
			t.Run(name+", "+where, func(t *testing.T) {
				cache, err := cacheguard.New(next, cacheguard.Config{})
				require.NoError(t, err)
				defer func() { require.NoError(t, cache.Close()) }()
				require.NotPanics(t, func() {
					resp, err := cache.RoundTrip(newRequest(t.Context(), "http://provider.example/v1/chat/completions", certain))
					if err == nil {
						defer resp.Body.Close()
						_, err = io.ReadAll(resp.Body)
					}
					require.Error(t, err)
				})
			})
		}
	}
}
