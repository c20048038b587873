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
type sketch [sketchWords]uint64

const (
	sketchWords = 8
	sketchBits  = 64 * sketchWords
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
	for i := range sketchBits {
		k[i/64] |= uint64(math.Float32bits(turned[i])>>31) << (i % 64)
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

// bounds are the most bits in which the sketches of two similar vectors differ, in the first half and in all.
type bounds struct{ half, all int }

// deviations is how far above its mean the number of different bits may be. With 5, a search misses one in three million
// items whose similarity is just the least, and fewer of the more similar ones.
const deviations = 5

func boundsOf(least float64) bounds {
	differ := math.Acos(max(-1, min(least, 1))) / math.Pi // probability for a bit
	most := func(n float64) int { return int(n*differ + deviations*math.Sqrt(n*differ*(1-differ))) }
	return bounds{most(sketchBits / 2), most(sketchBits)}
}

// admit reports whether two sketches may belong to similar vectors.
func (b bounds) admit(k, l *sketch) bool {
	d := bits.OnesCount64(k[0]^l[0]) + bits.OnesCount64(k[1]^l[1]) + bits.OnesCount64(k[2]^l[2]) + bits.OnesCount64(k[3]^l[3])
	if d > b.half {
		return false
	}
	d += bits.OnesCount64(k[4]^l[4]) + bits.OnesCount64(k[5]^l[5]) + bits.OnesCount64(k[6]^l[6]) + bits.OnesCount64(k[7]^l[7])
	return d <= b.all
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
