// Package storm limits how often similar lines are written to a log.
package storm

import (
	"sync"
	"time"
)

// Limit limits similar lines, those with the same key, to a few per second. It is safe for concurrent use. The zero
// Limit is ready for use. It keeps at most 1,000 keys, plus those with suppressed lines.
type Limit[K comparable] struct {
	mu     sync.Mutex
	counts map[K]*count
}

type count struct {
	until      time.Time // the end of the second
	lines      int
	suppressed int
}

const (
	lines   = 3
	span    = time.Second
	maxKeys = 1000 // users may choose a part of the key, such as the model
)

// Allow reports whether a line may be written now. If there are too many keys, it counts the line for coarse instead of
// key. One second after the first line of a key of which some are suppressed, it calls tell in another goroutine, with
// that key and the number of suppressed lines.
func (s *Limit[K]) Allow(key, coarse K, tell func(key K, suppressed int)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	c := s.counts[key]
	if c == nil && len(s.counts) >= maxKeys {
		if s.prune(now); len(s.counts) >= maxKeys {
			key = coarse
			c = s.counts[key]
		}
	}
	if c == nil {
		if s.counts == nil {
			s.counts = make(map[K]*count)
		}
		c = new(count)
		s.counts[key] = c
	}
	if !now.Before(c.until) && c.suppressed == 0 {
		*c = count{until: now.Add(span)}
	}
	if c.lines < lines {
		c.lines++
		return true
	}
	if c.suppressed++; c.suppressed == 1 {
		time.AfterFunc(max(c.until.Sub(now), 1), func() { tell(key, s.end(key)) })
	}
	return false
}

// end deletes a key and returns how many lines were suppressed.
func (s *Limit[K]) end(key K) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.counts[key].suppressed
	delete(s.counts, key)
	return n
}

// prune deletes expired keys that have no suppressed lines. A timer deletes the others.
func (s *Limit[K]) prune(now time.Time) {
	for key, c := range s.counts {
		if !now.Before(c.until) && c.suppressed == 0 {
			delete(s.counts, key)
		}
	}
}
