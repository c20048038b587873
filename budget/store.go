package budget

import (
	"cmp"
	"context"
	"math"
	"slices"
	"sync"
	"time"
)

// Store keeps what was spent in the windows of limits. It must be safe for concurrent use. Package storetest checks one.
type Store interface {
	// Spend atomically adds each charge's Amount to what was spent in its Slot under its Key, or adds none of them. It adds
	// none if the sum of a charge with a positive Amount would exceed its Max. A sum covers the slots from Since on. A
	// slot never falls below zero. Spend returns the sums after it, in the order of charges, and whether it added the
	// amounts. No two charges have the same Key.
	//
	// After an error it is unknown whether the amounts were added.
	Spend(ctx context.Context, charges []Charge) (sums []Sum, spent bool, err error)
}

// Charge is an amount to be spent. Slot, Since and Until are in seconds since 1970.
type Charge struct {
	Key    string // valid UTF-8 without a zero byte, at most 400 bytes
	Slot   int64  // the time that the amount belongs to
	Since  int64  // the first slot that counts against Max
	Until  int64  // when the slot stops counting and may be deleted
	Amount int64  // at most 1e15; negative to give it back
	Max    int64  // math.MaxInt64: no limit
}

// Sum is the amount spent under a Key in the slots from Since on.
type Sum struct {
	Spent  int64
	Oldest int64 // the first of these slots with an amount; 0: there is none
}

// maxKeys is how many keys a Memory keeps.
const maxKeys = 10_000

// Memory is a Store in the memory of one process. If it has more than 20,000 keys, it keeps the 10,000 busiest ones and
// forgets what the others have spent. The zero Memory is empty.
type Memory struct {
	mu       sync.Mutex
	counters map[string]*counter
}

// counter is what was spent under a key.
type counter struct {
	slots []slot // the oldest first
	uses  int64
}

type slot struct{ at, until, spent int64 }

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return new(Memory) }

// Spend implements Store. It never waits and never fails.
func (m *Memory) Spend(_ context.Context, charges []Charge) (sums []Sum, spent bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sums = make([]Sum, len(charges))
	spent = true
	for i := range charges {
		c := &charges[i]
		sums[i] = m.counters[c.Key].sum(c.Since)
		if c.Amount > 0 && sums[i].Spent > c.Max-c.Amount {
			spent = false
		}
	}
	if !spent {
		return sums, false, nil
	}
	for i := range charges {
		c := &charges[i]
		if c.Amount == 0 {
			continue
		}
		of := m.counters[c.Key]
		if of == nil {
			if c.Amount < 0 {
				continue // it has been forgotten
			}
			of = m.add(c.Key)
		}
		of.spend(c)
		sums[i] = of.sum(c.Since)
	}
	return sums, true, nil
}

func (m *Memory) add(key string) *counter {
	if len(m.counters) >= 2*maxKeys {
		m.prune(time.Now().Unix())
	}
	if m.counters == nil {
		m.counters = make(map[string]*counter)
	}
	c := &counter{}
	m.counters[key] = c
	return c
}

// prune removes keys whose windows are over, and then the least busy keys. It runs once for every maxKeys new keys.
func (m *Memory) prune(now int64) {
	keys := make([]string, 0, len(m.counters))
	for key, c := range m.counters {
		if n := len(c.slots); n == 0 || c.slots[n-1].until <= now {
			delete(m.counters, key)
		} else {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Compare(m.counters[a].uses, m.counters[b].uses) })
	for _, key := range keys[:max(len(keys)-maxKeys, 0)] {
		delete(m.counters, key)
	}
}

func (c *counter) sum(since int64) (s Sum) {
	if c == nil {
		return s
	}
	for i := range c.slots {
		if of := &c.slots[i]; of.at >= since && of.spent > 0 {
			if s.Oldest == 0 {
				s.Oldest = of.at
			}
			s.Spent = addUp(s.Spent, of.spent)
		}
	}
	return s
}

// addUp returns a+b, or math.MaxInt64 if the sum overflows. a and b must not be negative.
func addUp(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

func (c *counter) spend(ch *Charge) {
	if ch.Amount > 0 {
		c.uses++
	}
	i, found := slices.BinarySearchFunc(c.slots, ch.Slot, func(s slot, at int64) int { return cmp.Compare(s.at, at) })
	switch {
	case found:
		of := &c.slots[i]
		if ch.Amount < 0 {
			of.spent = max(of.spent+ch.Amount, 0)
		} else {
			of.spent = addUp(of.spent, ch.Amount)
		}
		return
	case ch.Amount < 0:
		return
	}
	c.slots = slices.Insert(c.slots, i, slot{ch.Slot, ch.Until, ch.Amount})
	for len(c.slots) > 0 && c.slots[0].at < ch.Since {
		c.slots = slices.Delete(c.slots, 0, 1)
	}
}
