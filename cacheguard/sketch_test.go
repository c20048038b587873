package cacheguard

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/procmem"
)

// crowd returns vectors of length 1 that have about the similarity common to each other, as embeddings of unrelated
// texts do.
func crowd(r *rand.Rand, n, dimension int, common float64) [][]float32 {
	vectors := make([][]float32, n)
	for i := range vectors {
		vectors[i] = make([]float32, dimension)
		for j := range vectors[i] {
			vectors[i][j] = float32(r.NormFloat64() * math.Sqrt((1-common)/float64(dimension)))
		}
		vectors[i][0] += float32(math.Sqrt(common))
		normalize(vectors[i])
	}
	return vectors
}

func normalize(v []float32) {
	length := math.Sqrt(similarityExactly(v, v))
	for i := range v {
		v[i] = float32(float64(v[i]) / length)
	}
}

func similarityExactly(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// around returns a vector with the similarity s to v.
func around(r *rand.Rand, v []float32, s float64) []float32 {
	aside := crowd(r, 1, len(v), 0)[0]
	along := similarityExactly(aside, v)
	for i := range aside {
		aside[i] -= float32(along) * v[i]
	}
	normalize(aside)
	for i := range aside {
		aside[i] = float32(s*float64(v[i]) + math.Sqrt(1-s*s)*float64(aside[i]))
	}
	return aside
}

// Sparse vectors are the hardest to summarize: without a good rotation their sketches would have equal bits.
func TestSketchesAdmitSimilarVectorsAndFewOthers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, vectors := range map[string][][]float32{
		"dense, 256":     crowd(r, 200, 256, 0.3),
		"dense, 1536":    crowd(r, 50, 1536, 0.3),
		"dense, 5000":    crowd(r, 10, 5000, 0.3),
		"sparse, 256":    axes(256),
		"one coordinate": {{1}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, least := range []float64{0.7, 0.8, 0.9, 0.99} {
				most := boundsOf(least)
				admitted := 0
				for i, v := range vectors {
					k := sketchOf(v)
					if len(v) > 1 {
						near := sketchOf(around(r, v, least))
						require.True(t, most.admit(&k, &near.head, &near.tail), "%v", least)
					}
					require.True(t, most.admit(&k, &k.head, &k.tail))
					other := sketchOf(vectors[(i+1)%len(vectors)])
					if most.admit(&k, &other.head, &other.tail) {
						admitted++
					}
				}
				if len(vectors) > 1 {
					assert.LessOrEqual(t, admitted, 1+len(vectors)/20, "%v", least)
				}
			}
		})
	}
}

func axes(dimension int) [][]float32 {
	vectors := make([][]float32, dimension)
	for i := range vectors {
		vectors[i] = make([]float32, dimension)
		vectors[i][i] = 1
	}
	return vectors
}

func TestSimilarityIsTheScalarProduct(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, dimension := range []int{0, 1, 2, 3, 4, 5, 63, 64, 65, 1536} {
		for range 20 {
			v := crowd(r, 2, max(dimension, 1), 0.5)
			a, b := v[0][:dimension], v[1][:dimension]
			require.InDelta(t, similarityExactly(a, b), similarity(a, b), 1e-5)
			require.LessOrEqual(t, similarity(a, a), 1.)
		}
	}
}

// filled returns an index of n vectors in one partition.
func filled(tb testing.TB, n, dimension int) (*MemoryIndex, *rand.Rand, [][]float32) {
	r := rand.New(rand.NewPCG(5, 6))
	vectors := crowd(r, n, dimension, 0.3)
	x, err := NewMemoryIndex(n)
	require.NoError(tb, err)
	for i, v := range vectors {
		require.NoError(tb, x.Update(context.Background(), []Item{{fmt.Sprintf("%064x", i), "p", v, time.Hour}}, nil))
	}
	return x, r, vectors
}

func TestLargePartitionIsSearchedCompletely(t *testing.T) {
	const n = 3_000
	x, r, vectors := filled(t, n, 256)
	for range 100 {
		i := r.IntN(n)
		m, err := x.Nearest(t.Context(), "p", around(r, vectors[i], 0.85), 0.85-1e-5)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("%064x", i), m.ID)
		require.InDelta(t, 0.85, m.Similarity, 1e-4)
		m, err = x.Nearest(t.Context(), "p", around(r, vectors[i], 0.8), 0.85)
		require.NoError(t, err)
		require.Zero(t, m)
	}
}

// itemBytes is the memory of an item beside its vector: the sketch, the ID and the bookkeeping.
const itemBytes = 600

// A child process adds 12,500 items to an index for 5,000, so that the measured memory includes that of removed items.
func TestMemoryOfAnIndexedQuestionIsBounded(t *testing.T) {
	const n, dimension, variable = 5_000, 256, "AIGUARD_TEST_INDEX_CHILD"
	if os.Getenv(variable) != "" {
		x, err := NewMemoryIndex(n)
		require.NoError(t, err)
		r := rand.New(rand.NewPCG(7, 8))
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		sketchOf([]float32{1})
		before := heap()
		for i := range n * 5 / 2 {
			item := Item{fmt.Sprintf("%064x", i), fmt.Sprintf("%064x", i/2), crowd(r, 1, dimension, 0)[0], time.Hour}
			require.NoError(t, x.Update(t.Context(), []Item{item}, nil))
		}
		after := heap()
		require.Equal(t, n, x.Len())
		_, peak, _ := procmem.Of("self")
		require.NoError(t, json.NewEncoder(os.Stdout).Encode(map[string]uint64{"item": (after - before) / n, "peak": uint64(peak)}))
		runtime.KeepAlive(x)
		os.Exit(0)
	}
	if testing.Short() {
		t.Skip("measures memory in a child process")
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), variable+"=1")
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	var measured struct{ Item, Peak int64 }
	require.NoError(t, json.Unmarshal(out, &measured), "%s", out)
	t.Logf("%d bytes for each item, %d of them the vector; peak of the process %d kB", measured.Item, 4*dimension, measured.Peak)
	assert.LessOrEqual(t, measured.Item, int64(4*dimension+itemBytes))
	assert.GreaterOrEqual(t, measured.Item, int64(4*dimension))
}

func BenchmarkNearest(b *testing.B) {
	for _, c := range []struct{ n, dimension int }{{100_000, 256}, {100_000, 1536}, {10_000, 256}, {10_000, 1536}} {
		b.Run(fmt.Sprintf("%d/%d", c.n, c.dimension), func(b *testing.B) {
			x, r, vectors := filled(b, c.n, c.dimension)
			queries := make([][]float32, 256)
			for i := range queries {
				queries[i] = around(r, vectors[r.IntN(c.n)], 0.8+0.2*float64(i%2))
			}
			for i := 0; b.Loop(); i++ {
				if _, err := x.Nearest(b.Context(), "p", queries[i%len(queries)], 0.9); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
