// Package storetest checks that a budget.Store keeps its promises. In a test of the store:
//
//	for _, c := range storetest.Checks() {
//		t.Run(c.Name, func(t *testing.T) {
//			if err := c.Run(t.Context(), open(t)); err != nil {
//				t.Fatal(err)
//			}
//		})
//	}
package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard/budget"
)

// Check is one property of a Store.
type Check struct {
	Name string
	// Run returns what is wrong with s, which must be empty. It takes less than a second, unless s is slow, and leaves things in s.
	Run func(ctx context.Context, s budget.Store) error
}

// Checks returns all checks.
func Checks() []Check {
	return []Check{
		{"SumsAreThoseAfterwards", sumsAreThoseAfterwards},
		{"MaxIsExact", maxIsExact},
		{"AllChargesOrNone", allChargesOrNone},
		{"OnlySlotsSinceCount", onlySlotsSinceCount},
		{"WhatIsGivenBackIsThereAgain", whatIsGivenBackIsThereAgain},
		{"NoSlotFallsBelowZero", noSlotFallsBelowZero},
		{"WithoutMaxAnyAmountFits", withoutMaxAnyAmountFits},
		{"KeysAreApart", keysAreApart},
		{"LargeAmountsAddUp", largeAmountsAddUp},
		{"NothingIsSpentTwice", nothingIsSpentTwice},
		{"ChargesInAnyOrderEnd", chargesInAnyOrderEnd},
	}
}

// now is a slot that no store may have forgotten yet.
var now = time.Now().Unix()

// charge is an amount in the slot of now.
func charge(key string, amount, most int64) budget.Charge {
	return budget.Charge{Key: key, Slot: now, Since: now, Until: now + 3600, Amount: amount, Max: most}
}

// unbounded is a charge without a limit.
func unbounded(key string, amount int64) budget.Charge { return charge(key, amount, math.MaxInt64) }

// expect spends the charges, and says how the outcome differs: sums are what was spent afterwards.
func expect(ctx context.Context, s budget.Store, spent bool, charges []budget.Charge, sums ...int64) error {
	got, ok, err := s.Spend(ctx, charges)
	if err != nil {
		return fmt.Errorf("spend %+v: %w", charges, err)
	}
	all := make([]int64, len(got))
	for i := range got {
		all[i] = got[i].Spent
	}
	if ok != spent || !slices.Equal(all, sums) {
		return fmt.Errorf("spend %+v: got %v %v, want %v %v", charges, ok, all, spent, sums)
	}
	return nil
}

func one(c budget.Charge) []budget.Charge { return []budget.Charge{c} }

// The checks evaluate their steps as the arguments of errors.Join: in order, each whatever became of the ones before.

func sumsAreThoseAfterwards(ctx context.Context, s budget.Store) error {
	return errors.Join(
		expect(ctx, s, true, one(charge("a", 0, 10)), 0),
		expect(ctx, s, true, one(charge("a", 3, 10)), 3),
		expect(ctx, s, true, []budget.Charge{charge("b", 2, 10), charge("a", 4, 10)}, 2, 7),
		expect(ctx, s, true, one(charge("a", 0, 10)), 7),
	)
}

func maxIsExact(ctx context.Context, s budget.Store) error {
	return errors.Join(
		expect(ctx, s, false, one(charge("a", 11, 10)), 0),
		expect(ctx, s, true, one(charge("a", 10, 10)), 10),
		expect(ctx, s, false, one(charge("a", 1, 10)), 10),
		expect(ctx, s, true, one(charge("a", 0, 5)), 10),
		expect(ctx, s, true, one(charge("a", 1, 11)), 11),
	)
}

func allChargesOrNone(ctx context.Context, s budget.Store) error {
	return errors.Join(
		expect(ctx, s, true, one(charge("full", 10, 10)), 10),
		expect(ctx, s, false, []budget.Charge{charge("a", 1, 10), charge("full", 1, 10), charge("b", 1, 10)}, 0, 10, 0),
		expect(ctx, s, true, []budget.Charge{charge("a", 0, 10), charge("b", 0, 10)}, 0, 0),
		expect(ctx, s, true, nil),
	)
}

func onlySlotsSinceCount(ctx context.Context, s budget.Store) error {
	at := func(slot, since, amount int64) budget.Charge {
		return budget.Charge{Key: "a", Slot: now + slot, Since: now + since, Until: now + slot + 3600, Amount: amount, Max: 10}
	}
	sums, _, err := s.Spend(ctx, one(at(0, -5, 4)))
	err = errors.Join(err, expect(ctx, s, true, one(at(2, -3, 6)), 10), expect(ctx, s, false, one(at(3, 0, 1)), 10))
	if err != nil || len(sums) != 1 || sums[0].Oldest != now {
		return errors.Join(err, fmt.Errorf("first slot: got %+v", sums))
	}
	sums, spent, err := s.Spend(ctx, one(at(6, 1, 4)))
	if err != nil || !spent || sums[0] != (budget.Sum{Spent: 10, Oldest: now + 2}) {
		return errors.Join(err, fmt.Errorf("the first slot counts no more: got %v %+v", spent, sums))
	}
	return expect(ctx, s, true, one(at(10, 10, 10)), 10)
}

func whatIsGivenBackIsThereAgain(ctx context.Context, s budget.Store) error {
	return errors.Join(
		expect(ctx, s, true, one(charge("a", 10, 10)), 10),
		expect(ctx, s, true, one(unbounded("a", -4)), 6),
		expect(ctx, s, true, one(charge("a", 4, 10)), 10),
		expect(ctx, s, true, one(unbounded("a", 5)), 15),
		expect(ctx, s, true, one(charge("a", -1, 10)), 14),
		expect(ctx, s, false, one(charge("a", 1, 10)), 14),
	)
}

func noSlotFallsBelowZero(ctx context.Context, s budget.Store) error {
	return errors.Join(
		expect(ctx, s, true, one(unbounded("a", -4)), 0),
		expect(ctx, s, true, one(unbounded("a", 3)), 3),
		expect(ctx, s, true, one(unbounded("a", -5)), 0),
		expect(ctx, s, true, one(unbounded("a", 1)), 1),
	)
}

func withoutMaxAnyAmountFits(ctx context.Context, s budget.Store) error {
	return errors.Join(
		expect(ctx, s, true, one(charge("a", 10, 10)), 10),
		expect(ctx, s, true, one(unbounded("a", 1e15)), 1e15+10),
	)
}

func keysAreApart(ctx context.Context, s budget.Store) error {
	var errs []error
	for i, key := range []string{"a", "A", " a", "a ", "a/b", "ä", "a%", "a'\"\\", strings.Repeat("漢", 133), "\n", "a\u0301", "á"} {
		errs = append(errs, expect(ctx, s, true, one(unbounded(key, int64(i+1))), int64(i+1)))
	}
	return errors.Join(errs...)
}

func largeAmountsAddUp(ctx context.Context, s budget.Store) error {
	const amount, n = 1e15, 1000
	for range n - 1 {
		if _, _, err := s.Spend(ctx, one(unbounded("a", amount))); err != nil {
			return err
		}
	}
	return expect(ctx, s, true, one(unbounded("a", amount)), n*amount)
}

// nothingIsSpentTwice lets many spend at once, in two slots of the same window: as much as fits is spent, and no more.
func nothingIsSpentTwice(ctx context.Context, s budget.Store) error {
	const callers, most = 60, 20
	var mu sync.Mutex
	var spent int64
	var errs []error
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			c := charge("a", 1, most)
			c.Slot, c.Until = now+int64(i%2), now+3600+int64(i%2)
			_, ok, err := s.Spend(ctx, []budget.Charge{c, charge("b", 1, math.MaxInt64)})
			mu.Lock()
			defer mu.Unlock()
			if ok {
				spent++
			}
			errs = append(errs, err)
		})
	}
	all.Wait()
	if spent != most {
		errs = append(errs, fmt.Errorf("%d of %d callers have spent, want %d", spent, callers, most))
	}
	return errors.Join(append(errs, expect(ctx, s, true, []budget.Charge{charge("a", 0, most), unbounded("b", 0)}, most, most))...)
}

func chargesInAnyOrderEnd(ctx context.Context, s budget.Store) error {
	const callers = 20
	errs := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			charges := []budget.Charge{unbounded("a", 1), unbounded("b", 1), unbounded("c", 1)}
			if i%2 == 0 {
				slices.Reverse(charges)
			}
			_, _, errs[i] = s.Spend(ctx, charges)
		})
	}
	all.Wait()
	return errors.Join(append(errs, expect(ctx, s, true, []budget.Charge{unbounded("b", 0)}, callers))...)
}
