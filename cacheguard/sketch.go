package cacheguard

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"sync"
)

// A sketch is a short summary of a vector. Each bit is the side of a random plane on which the vector lies. The angle
// between two vectors shows in the number of bits that differ (Charikar, "Similarity Estimation Techniques from Rounding
// Algorithms", STOC 2002). So a search reads 64 bytes of most items, and not their vectors.
type sketch struct{ head, tail half }

// half is one half of a sketch. Most searches need only the first halves, which are side by side in memory.
type half [4]uint64

const (
	halfBits   = 64 * len(half{})
	sketchBits = 2 * halfBits
)

// rotations is the number of times that sketchOf turns a vector. Three make any vector look random.
const rotations = 3

// flips has random signs. Longer vectors use them again.
var flips = sync.OnceValue(func() (signs [rotations][4096]float32) {
	r := rand.New(rand.NewPCG(1, 1)) // sketches stay in the process, so the seed does not matter
	for i := range signs {
		for j := range signs[i] {
			signs[i][j] = float32(1 - 2*int(r.Uint64()>>63))
		}
	}
	return signs
})

// sketchOf returns the sketch of v. Instead of multiplying v with random planes, it turns v at random, in n log n steps,
// and takes the signs of the coordinates.
func sketchOf(v []float32) (k sketch) {
	turned := make([]float32, max(sketchBits, 1<<bits.Len(uint(max(len(v), 1)-1))))
	copy(turned, v)
	signs := flips()
	for i := range signs {
		for j := range turned {
			turned[j] *= signs[i][j%len(signs[i])]
		}
		hadamard(turned)
	}
	for i := range halfBits {
		k.head[i/64] |= uint64(math.Float32bits(turned[i])>>31) << (i % 64)
		k.tail[i/64] |= uint64(math.Float32bits(turned[halfBits+i])>>31) << (i % 64)
	}
	return k
}

// hadamard multiplies v by a Hadamard matrix. The length of v is a power of two.
func hadamard(v []float32) {
	for half := 1; half < len(v); half *= 2 {
		for from := 0; from < len(v); from += 2 * half {
			a, b := v[from:from+half], v[from+half:from+2*half]
			for i, x := range a {
				y := b[i]
				a[i], b[i] = x+y, x-y
			}
		}
	}
}

// differing returns the number of bits in which two halves differ.
func (h *half) differing(g *half) int {
	return bits.OnesCount64(h[0]^g[0]) + bits.OnesCount64(h[1]^g[1]) + bits.OnesCount64(h[2]^g[2]) + bits.OnesCount64(h[3]^g[3])
}

// bounds are the most bits in which the sketches of two similar vectors differ, in the first half and in all.
type bounds struct{ head, all int }

// deviations is how far above its mean the number of different bits may be. With 5, a search misses one in three million
// items whose similarity is just the least, and fewer of the more similar ones.
const deviations = 5

func boundsOf(least float64) bounds {
	differ := math.Acos(max(-1, min(least, 1))) / math.Pi // probability for a bit
	most := func(n float64) int { return int(n*differ + deviations*math.Sqrt(n*differ*(1-differ))) }
	return bounds{most(float64(halfBits)), most(float64(sketchBits))}
}

// admit reports whether a sketch with these halves may belong to a vector that is similar to the one of k.
func (b bounds) admit(k *sketch, head, tail *half) bool {
	d := k.head.differing(head)
	return d <= b.head && d+k.tail.differing(tail) <= b.all
}

// similarity returns the cosine similarity of two vectors of length 1 and of the same dimension.
func similarity(a, b []float32) float64 {
	var s0, s1, s2, s3 float32 // four sums, because each addition waits for the one before
	b = b[:len(a)]
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return min(float64(s0+s1)+float64(s2+s3), 1)
}
