package aiguard_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/typednil"
)

// eachTypedNil runs f for every error of package typednil.
func eachTypedNil(t *testing.T, f func(t *testing.T, err error)) {
	for name, err := range typednil.Errors() {
		t.Run(name, func(t *testing.T) { require.NotPanics(t, func() { f(t, err) }) })
	}
}

func TestTypedNilsAreClassifiedAndPrinted(t *testing.T) {
	eachTypedNil(t, func(t *testing.T, err error) {
		aiguard.KindOf(err)
		require.NotEmpty(t, aiguard.UserMessage(err))
		require.GreaterOrEqual(t, aiguard.HTTPStatus(err), 400)
		if e := aiguard.Explain(err); e != nil {
			printed(e)
		}
		e := &aiguard.Error{Kind: aiguard.ErrUnavailable, Err: err}
		printed(e)
		printed(aiguard.Event{Err: err})
	})
	var none *aiguard.Error
	require.Nil(t, aiguard.Explain(none))
	require.Empty(t, aiguard.KindOf(none))
	require.False(t, none.Timeout())
	require.NotErrorIs(t, none, aiguard.ErrTimeout)
	require.NoError(t, none.Unwrap())
	require.Equal(t, "<nil>", none.Error())
	printed(none)
	printed(aiguard.Error{})
	printed(aiguard.Event{})
}

func TestErrorHidesATypedNilFromErrorsIsAndAs(t *testing.T) {
	for name, err := range typednil.Errors() {
		if strings.Contains(name, ", ") {
			continue // what wraps a typed nil is not in our hands
		}
		e := &aiguard.Error{Kind: aiguard.ErrUnavailable, Err: err}
		require.False(t, errors.Is(e, io.EOF), name)
		require.False(t, errors.As(e, new(net.Error)), name)
		require.ErrorIs(t, e, aiguard.ErrUnavailable, name)
	}
}

func TestDoSurvivesTypedNils(t *testing.T) {
	slow := newGuard(t, aiguard.Config{CallTimeout: time.Nanosecond, Retry: aiguard.Retry{MaxAttempts: 1}})
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
	eachTypedNil(t, func(t *testing.T, nothing error) {
		require.Error(t, do(t.Context(), g, func(context.Context) error { return nothing }))
		require.Error(t, do(t.Context(), g, func(context.Context) error { return aiguard.Final(nothing) }))
		require.Error(t, do(t.Context(), slow, func(ctx context.Context) error {
			<-ctx.Done()
			return nothing
		}))
		_, err := aiguard.Fallback(t.Context(),
			func(context.Context) (int, error) { return 0, nothing },
			func(context.Context) (int, error) { return 0, nothing })
		require.Error(t, err)
		require.Error(t, g.RunTask(t.Context(), func(context.Context) error { return nothing }))
	})
}

func TestCallerWhoLeavesWithATypedNilAsTheCauseEndsTheCall(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	eachTypedNil(t, func(t *testing.T, nothing error) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(nothing)
		require.Error(t, do(ctx, g, func(context.Context) error { return nil }))
	})
}

func TestBaseThatFailsWithATypedNilIsAFailure(t *testing.T) {
	eachTypedNil(t, func(t *testing.T, nothing error) {
		g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}})
		send := func(base http.RoundTripper) error {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example/v1/chat/completions",
				strings.NewReader(`{"model":"m","messages":[]}`))
			require.NoError(t, err)
			resp, err := g.Transport(base).RoundTrip(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.ReadAll(resp.Body)
			return err
		}
		require.NotEmpty(t, aiguard.KindOf(send(roundTripper(func(*http.Request) (*http.Response, error) { return nil, nothing }))))

		for contentType, begin := range map[string]string{
			"application/json":  `{"choices":[`,
			"text/event-stream": "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n",
		} {
			err := send(roundTripper(func(req *http.Request) (*http.Response, error) {
				return &http.Response{
					StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {contentType}}, ContentLength: -1, Request: req,
					Body: io.NopCloser(io.MultiReader(strings.NewReader(begin), iotest.ErrReader(nothing))),
				}, nil
			}))
			require.Equal(t, aiguard.ErrTruncated, aiguard.KindOf(err), contentType)
		}
	})
}
