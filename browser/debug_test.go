package browser

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
)

func TestLiveViewFollowsTheGuard(t *testing.T) {
	t.Parallel()
	needChromium(t)
	guard, err := aiguard.New(aiguard.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, guard.Close()) })
	handler, err := httpguard.Debug(guard, nil)
	require.NoError(t, err)
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)

	b := open(t, srv.URL+"/")
	b.see("main", "No call is in progress.")
	call := func(op string, f func(context.Context) (string, error)) {
		_, _ = aiguard.Do(aiguard.WithCall(t.Context(), aiguard.Call{Op: op, Tenant: "a tenant"}), guard, f)
	}
	call("failing", func(context.Context) (string, error) { return "", aiguard.Final(errors.New("broken")) })
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		call("working", func(context.Context) (string, error) { <-end; return "", nil })
	}()
	t.Cleanup(func() { close(end); <-ended })
	b.see("main", "working")
	b.see("#state", "Updated every second")
	b.shoot("live")
}
