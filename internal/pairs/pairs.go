// Package pairs has labelled pairs of questions, and measures how well similarity predicts their labels. It has an
// embedder that needs no model, so that the result is always the same.
package pairs

import (
	"context"
	_ "embed"
	"hash/fnv"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard/internal/marks"
)

//go:embed pairs.txt
var text string

// Paraphrase is the kind of the pairs whose questions have the same answer.
const Paraphrase = "paraphrase"

// Pair is a pair of questions. Kind tells how they differ.
type Pair struct{ Kind, A, B string }

// Same reports whether the questions have the same answer.
func (p Pair) Same() bool { return p.Kind == Paraphrase }

// Guarded reports whether the questions have equal marks.
func (p Pair) Guarded() bool { return marks.Of(p.A) == marks.Of(p.B) }

// Similarity returns the cosine similarity of the questions' vectors.
func (p Pair) Similarity() float64 {
	a, b := Vector(p.A), Vector(p.B)
	sum := 0.
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// All returns all pairs.
func All() (all []Pair) {
	for line := range strings.Lines(text) {
		if parts := strings.SplitN(strings.TrimSpace(line), " | ", 3); len(parts) == 3 && line[0] != '#' {
			all = append(all, Pair{parts[0], parts[1], parts[2]})
		}
	}
	return all
}

// Dimension is the dimension of the vectors.
const Dimension = 256

// Embed is an embedder of Vectors.
func Embed(_ context.Context, texts []string) (vectors [][]float32, err error) {
	for _, text := range texts {
		vectors = append(vectors, Vector(text))
	}
	return vectors, nil
}

// Vector returns the vector of a text: the hashed words and the hashed groups of three characters, scaled to length 1.
// Texts with the same spelling are near each other, whatever they mean.
func Vector(text string) []float32 {
	v := make([]float32, Dimension)
	count := func(feature string, weight float32) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(feature))
		sum := h.Sum32()
		if sum>>31 == 0 {
			weight = -weight
		}
		v[sum%Dimension] += weight
	}
	between := func(r rune) bool { return strings.ContainsRune(" \t\n?!.,;:¿？", r) }
	for _, word := range strings.FieldsFunc(strings.ToLower(text), between) {
		count(word, 2)
		padded := "^" + word + "$"
		for i := range padded {
			end := i
			for n := 0; n < 3 && end < len(padded); n++ {
				_, size := utf8.DecodeRuneInString(padded[end:])
				end += size
			}
			count(padded[i:end], 1)
			if end == len(padded) {
				break
			}
		}
	}
	sum := 0.
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	if sum > 0 {
		for i := range v {
			v[i] = float32(float64(v[i]) / math.Sqrt(sum))
		}
	}
	return v
}

// Score is the result of a threshold. Precision is the share of hits that are right, 1 if there are none. Recall is the
// share of the paraphrases that are hits.
type Score struct {
	Threshold, Precision, Recall float64
	Hits, FalseHits              int
}

// Measure returns the score of a threshold over all pairs, with or without the marks.
func Measure(threshold float64, guarded bool) Score {
	s := Score{Threshold: threshold, Precision: 1}
	same := 0
	for _, p := range All() {
		if p.Same() {
			same++
		}
		if p.Similarity() < threshold || guarded && !p.Guarded() {
			continue
		}
		s.Hits++
		if !p.Same() {
			s.FalseHits++
		}
	}
	if s.Hits > 0 {
		s.Precision = float64(s.Hits-s.FalseHits) / float64(s.Hits)
	}
	s.Recall = float64(s.Hits-s.FalseHits) / float64(same)
	return s
}
