package pairs

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSetIsLargeAndWithoutRepeats(t *testing.T) {
	kinds, seen := map[string]int{}, map[Pair]bool{}
	all := All()
	for _, p := range all {
		kinds[p.Kind]++
		require.NotEqual(t, p.A, p.B)
		require.False(t, seen[Pair{"", p.A, p.B}] || seen[Pair{"", p.B, p.A}], "%+v", p)
		seen[Pair{"", p.A, p.B}] = true
	}
	assert.GreaterOrEqual(t, len(all), 300)
	assert.GreaterOrEqual(t, kinds[Paraphrase], 100)
	for _, kind := range []string{"negation", "number", "name", "unit", "date", "direction", "quantifier", "opposite", "question", "code"} {
		assert.GreaterOrEqual(t, kinds[kind], 10, kind)
	}
	assert.Len(t, kinds, 11)
	lines := 0
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines++
		}
	}
	assert.Equal(t, lines, len(all), "every line has three parts")
}

// The vectors alone find more paraphrases, but most of what they find is wrong.
func TestGuardsLiftPrecisionToOne(t *testing.T) {
	for _, p := range All() {
		if !p.Same() {
			assert.False(t, p.Guarded(), "%s: %q and %q", p.Kind, p.A, p.B)
		}
	}
	for _, c := range []struct{ threshold, alone, recall float64 }{{0.3, 0.40, 0.55}, {0.5, 0.29, 0.48}, {0.7, 0.20, 0.30}} {
		guarded, alone := Measure(c.threshold, true), Measure(c.threshold, false)
		assert.EqualValues(t, 1, guarded.Precision)
		assert.GreaterOrEqual(t, guarded.Recall, c.recall, "%v", c.threshold)
		assert.Less(t, alone.Precision, c.alone, "%v", c.threshold)
	}
}

func TestScoreCountsHits(t *testing.T) {
	same := 0
	for _, p := range All() {
		if p.Same() {
			same++
		}
	}
	all := Measure(-1, false)
	assert.Equal(t, Score{-1, float64(same) / float64(len(All())), 1, len(All()), len(All()) - same}, all)
	assert.Equal(t, Score{Threshold: 2, Precision: 1}, Measure(2, false))
}

func TestVectorsHaveLengthOneAndDependOnTheTextAlone(t *testing.T) {
	for _, text := range []string{"a", "How do I reset my password?", "東京", "\xff"} {
		v := Vector(text)
		sum := 0.
		for _, x := range v {
			sum += float64(x) * float64(x)
		}
		assert.InDelta(t, 1, sum, 1e-6)
		assert.Equal(t, v, Vector(text))
	}
	assert.Zero(t, Vector("")[0])
	assert.InDelta(t, 1, Pair{"", "Hello there", "hello, there!"}.Similarity(), 1e-6)
}
