package cacheguard_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/cacheguard/indextest"
)

func newMemoryIndex(t testing.TB, most int) *cacheguard.MemoryIndex {
	t.Helper()
	x, err := cacheguard.NewMemoryIndex(most)
	require.NoError(t, err)
	return x
}

func TestMemoryIndexKeepsThePromisesOfAnIndex(t *testing.T) {
	for _, c := range indextest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				require.NoError(t, c.Run(t.Context(), newMemoryIndex(t, 0)))
			})
		})
	}
}

func TestFullMemoryIndexRemovesTheOldestItem(t *testing.T) {
	x := newMemoryIndex(t, 3)
	found := func(i int) bool {
		m, err := x.Nearest(t.Context(), fmt.Sprint(i%2), axis(i), 0.9)
		require.NoError(t, err)
		return m.ID != ""
	}
	add := func(i int) {
		require.NoError(t, x.Update(t.Context(), []cacheguard.Item{{fmt.Sprint(i), fmt.Sprint(i % 2), axis(i), time.Hour}}, nil))
	}
	for i := range 5 {
		add(i)
		assert.Equal(t, min(i+1, 3), x.Len())
	}
	assert.Equal(t, []bool{false, false, true, true, true}, []bool{found(0), found(1), found(2), found(3), found(4)})
	add(2) // is now the newest
	add(5)
	assert.Equal(t, []bool{true, false, true, true}, []bool{found(2), found(3), found(4), found(5)})
	require.NoError(t, x.Update(t.Context(), nil, []string{"2", "4", "5"}))
	assert.Zero(t, x.Len())
	add(6)
	assert.True(t, found(6))
}

// axis returns the i-th of ten orthogonal vectors.
func axis(i int) []float32 {
	v := make([]float32, 10)
	v[i] = 1
	return v
}
