package bymodel_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/bymodel"
)

func TestExactNameWinsAndThenTheLongestPrefix(t *testing.T) {
	m := bymodel.New(map[string]int{"gpt-4o": 1, "gpt-*": 2, "gpt-4*": 3, "*": 4})
	for model, want := range map[string]struct {
		value int
		key   string
	}{"gpt-4o": {1, "gpt-4o"}, "gpt-4o-mini": {3, "gpt-4*"}, "gpt-5": {2, "gpt-*"}, "o3": {4, "*"}, "": {4, "*"}} {
		value, key, ok := m.Find(model)
		require.True(t, ok, model)
		require.Equal(t, want.value, value, model)
		require.Equal(t, want.key, key, model)
	}
}

func TestEmptyMapFindsNothing(t *testing.T) {
	m := bymodel.New[int](nil)
	require.True(t, m.Empty())
	_, _, ok := m.Find("gpt-4o")
	require.False(t, ok)
	m = bymodel.New(map[string]int{"o3*": 1})
	require.False(t, m.Empty())
	_, _, ok = m.Find("o1")
	require.False(t, ok)
}

func TestStarEndsAKey(t *testing.T) {
	for key, want := range map[string]bool{"gpt-4o": true, "gpt-*": true, "*": true, "": false, "gpt-*-mini": false, "**": false} {
		require.Equal(t, want, bymodel.IsKey(key), key)
	}
}
