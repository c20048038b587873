// Package indextest checks that a cacheguard.Index keeps its promises. In a test of the index:
//
//	for _, c := range indextest.Checks() {
//		t.Run(c.Name, func(t *testing.T) {
//			if err := c.Run(t.Context(), open(t)); err != nil {
//				t.Fatal(err)
//			}
//		})
//	}
package indextest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/cacheguard"
)

// Dimension is the dimension of most vectors in the checks. A few vectors have half of it. An index with a fixed
// dimension must have this one.
const Dimension = 64

// Check is one property of an Index.
type Check struct {
	Name string
	// Run returns what is wrong with x, which must be empty and have room for 1,000 items. It leaves items in x. A check
	// of the TTL takes a second.
	Run func(ctx context.Context, x cacheguard.Index) error
}

// Checks returns all checks.
func Checks() []Check {
	return []Check{
		{"EmptyIndexHasNoMatch", emptyIndexHasNoMatch},
		{"NearestIsTheMostSimilar", nearestIsTheMostSimilar},
		{"LeastIsExact", leastIsExact},
		{"PartitionsAreApart", partitionsAreApart},
		{"DimensionsAreApart", dimensionsAreApart},
		{"RemovedItemIsNotFound", removedItemIsNotFound},
		{"RemovedItemCanBeAddedAgain", removedItemCanBeAddedAgain},
		{"AddedItemReplacesTheOneWithItsID", addedItemReplacesTheOneWithItsID},
		{"RemovalComesFirst", removalComesFirst},
		{"ExpiredItemIsNotFound", expiredItemIsNotFound},
		{"ConcurrentUsesAreSafe", concurrentUsesAreSafe},
		{"EndedContextIsHeeded", endedContextIsHeeded},
	}
}

// id returns the i-th of a series of IDs.
func id(i int) string { return fmt.Sprintf("%064x", i) }

func part(i int) string { return fmt.Sprintf("%064x", 1<<20+i) }

// direction returns a random vector of length 1.
func direction(r *rand.Rand, dimension int) []float32 {
	v := make([]float32, dimension)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return unit(v)
}

func unit(v []float32) []float32 {
	length := math.Sqrt(dot(v, v))
	for i := range v {
		v[i] = float32(float64(v[i]) / length)
	}
	return v
}

func dot(a, b []float32) (sum float64) {
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// near returns a vector with the cosine similarity s to v.
func near(r *rand.Rand, v []float32, s float64) []float32 {
	aside := direction(r, len(v))
	along := dot(aside, v)
	for i := range aside {
		aside[i] -= float32(along) * v[i]
	}
	unit(aside)
	result := make([]float32, len(v))
	for i := range v {
		result[i] = float32(s*float64(v[i]) + math.Sqrt(1-s*s)*float64(aside[i]))
	}
	return result
}

func item(i, partition int, v []float32) cacheguard.Item {
	return cacheguard.Item{ID: id(i), Partition: part(partition), Vector: v, TTL: time.Hour}
}

// expect searches and says how the match differs.
func expect(ctx context.Context, x cacheguard.Index, partition int, v []float32, least float64, want cacheguard.Match) error {
	got, err := x.Nearest(ctx, part(partition), v, least)
	switch {
	case err != nil:
		return fmt.Errorf("search: %w", err)
	case got.ID != want.ID:
		return fmt.Errorf("found %q with the similarity %v; want %q with %v", got.ID, got.Similarity, want.ID, want.Similarity)
	case math.Abs(got.Similarity-want.Similarity) > 1e-4 || got.Similarity > 1:
		return fmt.Errorf("returned the similarity %v; want %v", got.Similarity, want.Similarity)
	}
	return nil
}

func emptyIndexHasNoMatch(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(1, 1))
	if err := x.Update(ctx, nil, []string{id(1)}); err != nil {
		return fmt.Errorf("update with an unknown ID: %w", err)
	}
	if err := x.Update(ctx, nil, nil); err != nil {
		return fmt.Errorf("update with nothing: %w", err)
	}
	return expect(ctx, x, 0, direction(r, Dimension), 0.1, cacheguard.Match{})
}

// nearestIsTheMostSimilar compares the index with a search of all items.
func nearestIsTheMostSimilar(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(2, 2))
	var items []cacheguard.Item
	for i := range 800 {
		v := direction(r, Dimension)
		if i >= 100 { // around one of the first
			v = near(r, items[i%100].Vector, 0.6+0.4*r.Float64())
		}
		items = append(items, item(i, i%2, v))
	}
	for some := range slices.Chunk(items, 100) {
		if err := x.Update(ctx, some, nil); err != nil {
			return err
		}
	}
	for i := range 100 {
		query := near(r, items[r.IntN(len(items))].Vector, 0.7+0.3*r.Float64())
		least := 0.7 + 0.25*r.Float64()
		var want cacheguard.Match
		for j, it := range items {
			if s := dot(query, it.Vector); j%2 == i%2 && s >= least && s > want.Similarity {
				want = cacheguard.Match{ID: it.ID, Similarity: s}
			}
		}
		if err := expect(ctx, x, i%2, query, least, want); err != nil {
			return fmt.Errorf("search %d: %w", i, err)
		}
	}
	return nil
}

func leastIsExact(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(3, 3))
	v := direction(r, Dimension)
	if err := x.Update(ctx, []cacheguard.Item{item(1, 0, v)}, nil); err != nil {
		return err
	}
	return errors.Join(
		expect(ctx, x, 0, v, 0.9999, cacheguard.Match{ID: id(1), Similarity: 1}),
		expect(ctx, x, 0, near(r, v, 0.9), 0.8999, cacheguard.Match{ID: id(1), Similarity: 0.9}),
		expect(ctx, x, 0, near(r, v, 0.9), 0.9001, cacheguard.Match{}),
		expect(ctx, x, 0, near(r, v, -0.9), 0.1, cacheguard.Match{}),
	)
}

func partitionsAreApart(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(4, 4))
	v := direction(r, Dimension)
	if err := x.Update(ctx, []cacheguard.Item{item(1, 1, v), item(2, 2, near(r, v, 0.8))}, nil); err != nil {
		return err
	}
	return errors.Join(
		expect(ctx, x, 1, v, 0.5, cacheguard.Match{ID: id(1), Similarity: 1}),
		expect(ctx, x, 2, v, 0.5, cacheguard.Match{ID: id(2), Similarity: 0.8}),
		expect(ctx, x, 3, v, 0.5, cacheguard.Match{}),
	)
}

// dimensionsAreApart accepts an index that rejects vectors of another dimension.
func dimensionsAreApart(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(5, 5))
	v := direction(r, Dimension)
	if err := x.Update(ctx, []cacheguard.Item{item(1, 0, v)}, nil); err != nil {
		return err
	}
	short := unit(slices.Clone(v[:Dimension/2]))
	if got, err := x.Nearest(ctx, part(0), short, 0.1); err == nil && got != (cacheguard.Match{}) {
		return fmt.Errorf("matched vectors of different dimensions: %v", got)
	}
	_ = x.Update(ctx, []cacheguard.Item{item(2, 0, short)}, nil) // may fail
	return expect(ctx, x, 0, v, 0.1, cacheguard.Match{ID: id(1), Similarity: 1})
}

func removedItemIsNotFound(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(6, 6))
	v := direction(r, Dimension)
	best := []float64{0.95, 0.9, 0.85, 0.8}
	for i, s := range best {
		if err := x.Update(ctx, []cacheguard.Item{item(i, 0, near(r, v, s))}, nil); err != nil {
			return err
		}
	}
	for i, s := range best {
		if err := expect(ctx, x, 0, v, 0.5, cacheguard.Match{ID: id(i), Similarity: s}); err != nil {
			return err
		}
		if err := x.Update(ctx, nil, []string{id(i)}); err != nil {
			return err
		}
	}
	return expect(ctx, x, 0, v, 0.5, cacheguard.Match{})
}

func removedItemCanBeAddedAgain(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(7, 7))
	v := direction(r, Dimension)
	for range 3 {
		if err := x.Update(ctx, []cacheguard.Item{item(1, 0, v)}, nil); err != nil {
			return err
		}
		if err := expect(ctx, x, 0, v, 0.5, cacheguard.Match{ID: id(1), Similarity: 1}); err != nil {
			return err
		}
		if err := x.Update(ctx, nil, []string{id(1)}); err != nil {
			return err
		}
		if err := expect(ctx, x, 0, v, 0.5, cacheguard.Match{}); err != nil {
			return err
		}
	}
	return nil
}

func addedItemReplacesTheOneWithItsID(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(8, 8))
	a, b := direction(r, Dimension), direction(r, Dimension)
	for _, it := range []cacheguard.Item{item(1, 0, a), item(1, 0, b), item(1, 1, a)} {
		if err := x.Update(ctx, []cacheguard.Item{it}, nil); err != nil {
			return err
		}
		if err := expect(ctx, x, 0, a, 0.9, match(it, 0, a)); err != nil {
			return err
		}
		if err := expect(ctx, x, 0, b, 0.9, match(it, 0, b)); err != nil {
			return err
		}
	}
	return expect(ctx, x, 1, a, 0.9, cacheguard.Match{ID: id(1), Similarity: 1})
}

// match returns the match of the only item for a search with its vector or another.
func match(it cacheguard.Item, partition int, v []float32) cacheguard.Match {
	if it.Partition != part(partition) || dot(it.Vector, v) < 0.9 {
		return cacheguard.Match{}
	}
	return cacheguard.Match{ID: it.ID, Similarity: dot(it.Vector, v)}
}

func removalComesFirst(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(9, 9))
	v := direction(r, Dimension)
	if err := x.Update(ctx, []cacheguard.Item{item(1, 0, v)}, []string{id(1), id(1)}); err != nil {
		return err
	}
	return expect(ctx, x, 0, v, 0.5, cacheguard.Match{ID: id(1), Similarity: 1})
}

func expiredItemIsNotFound(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(10, 10))
	v := direction(r, Dimension)
	soon, later := item(1, 0, v), item(2, 0, near(r, v, 0.8))
	soon.TTL = 500 * time.Millisecond
	if err := x.Update(ctx, []cacheguard.Item{soon, later}, nil); err != nil {
		return err
	}
	if err := expect(ctx, x, 0, v, 0.5, cacheguard.Match{ID: id(1), Similarity: 1}); err != nil {
		return err
	}
	time.Sleep(time.Second)
	return expect(ctx, x, 0, v, 0.5, cacheguard.Match{ID: id(2), Similarity: 0.8})
}

func concurrentUsesAreSafe(ctx context.Context, x cacheguard.Index) error {
	const workers, rounds = 8, 20
	r := rand.New(rand.NewPCG(11, 11))
	stays := direction(r, Dimension)
	if err := x.Update(ctx, []cacheguard.Item{item(0, 0, stays)}, nil); err != nil {
		return err
	}
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		r := rand.New(rand.NewPCG(12, uint64(w)))
		wg.Go(func() {
			for i := range rounds {
				it := item(1+w*rounds+i, 0, near(r, stays, 0.5))
				errs[w] = errors.Join(errs[w],
					x.Update(ctx, []cacheguard.Item{it}, nil),
					expect(ctx, x, 0, stays, 0.9, cacheguard.Match{ID: id(0), Similarity: 1}),
					x.Update(ctx, nil, []string{it.ID}))
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, expect(ctx, x, 0, stays, 0.1, cacheguard.Match{ID: id(0), Similarity: 1}))...)
}

// endedContextIsHeeded accepts an index that is too fast to look at its context.
func endedContextIsHeeded(ctx context.Context, x cacheguard.Index) error {
	r := rand.New(rand.NewPCG(13, 13))
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	start := time.Now()
	_, searched := x.Nearest(ctx, part(0), direction(r, Dimension), 0.5)
	updated := x.Update(ctx, []cacheguard.Item{item(1, 0, direction(r, Dimension))}, nil)
	if took := time.Since(start); took > time.Second {
		return fmt.Errorf("uses with an ended context took %v", took)
	}
	for _, err := range []error{searched, updated} {
		if err != nil && !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "cancel") {
			return fmt.Errorf("a use with an ended context failed for another reason: %w", err)
		}
	}
	return nil
}
