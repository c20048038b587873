package aiguard

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRoutesKeepOnlyTheStartOfALongName(t *testing.T) {
	long := strings.Repeat("m", 1<<20)
	for _, s := range []settings{
		{host: long, Call: Call{Model: long}},
		{host: long, path: long},
		{Call: Call{Op: long, Model: long}},
	} {
		key, ok := s.routeKey()
		require.True(t, ok)
		require.LessOrEqual(t, len(key.host), maxRouteName)
		require.LessOrEqual(t, len(key.name), maxRouteName)
		require.LessOrEqual(t, len(key.model), maxRouteName)
	}
}
