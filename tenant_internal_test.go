package aiguard

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// The busiest tenants and those in use are kept, whatever names users send.
func TestTenantsAreForgottenTheLeastBusyFirst(t *testing.T) {
	g, err := New(Config{})
	require.NoError(t, err)
	defer g.Close()
	call := func(tenant string, f func()) {
		_, err := Do(WithCall(t.Context(), Call{Tenant: tenant}), g, func(context.Context) (int, error) { f(); return 0, nil })
		require.NoError(t, err)
	}
	nothing := func() {}
	known := g.limiter.tenants.m
	for range 3 {
		call("busy", nothing)
	}
	call("in use", func() {
		for i := range 10 * maxTenants {
			call(fmt.Sprint(i), nothing)
			require.LessOrEqual(t, len(known), 2*maxTenants)
		}
		require.Contains(t, known, "in use")
	})
	require.Contains(t, known, "busy")
}
