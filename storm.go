package aiguard

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// storm limits repeated log lines. Lines with the same message, kind, phase and route share a limit of stormLines per
// second. At the end of the second one more line reports how many lines were suppressed.
type storm struct {
	mu     sync.Mutex
	counts map[stormKey]*stormCount
}

type stormKey struct {
	event       EventType
	kind        Kind
	phase       string
	host, model string
}

type stormCount struct {
	until      instant // the end of the second
	lines      int
	suppressed int
}

const (
	stormLines  = 3
	stormSpan   = time.Second
	maxStormKey = 1000 // models may come from users: beyond this number of keys, lines share a limit regardless of route
)

// allow reports whether a line may be written now. At the first suppressed line of a second it starts a timer. The
// timer calls tell with the number of suppressed lines, with no lock held.
func (s *storm) allow(now instant, key stormKey, tell func(suppressed int)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts[key]
	if c == nil && len(s.counts) >= maxStormKey {
		if s.prune(now); len(s.counts) >= maxStormKey {
			key.host, key.model = "", ""
			c = s.counts[key]
		}
	}
	if c == nil {
		if s.counts == nil {
			s.counts = make(map[stormKey]*stormCount)
		}
		c = new(stormCount)
		s.counts[key] = c
	}
	if now >= c.until && c.suppressed == 0 {
		*c = stormCount{until: now.add(stormSpan)}
	}
	if c.lines < stormLines {
		c.lines++
		return true
	}
	if c.suppressed++; c.suppressed == 1 {
		time.AfterFunc(max(time.Duration(c.until-now), 1), func() { tell(s.end(key)) })
	}
	return false
}

// end deletes a key and returns how many lines were suppressed.
func (s *storm) end(key stormKey) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.counts[key].suppressed
	delete(s.counts, key)
	return n
}

// prune deletes expired keys that have no suppressed lines. A timer deletes the others.
func (s *storm) prune(now instant) {
	for key, c := range s.counts {
		if now >= c.until && c.suppressed == 0 {
			delete(s.counts, key)
		}
	}
}

// mayLog reports whether a line about e may be written now.
func (h *history) mayLog(ctx context.Context, level slog.Level, t EventType, msg string, e *Error) bool {
	key := stormKey{t, e.Kind, e.Phase, short(e.Host), short(e.Model)}
	logger := h.cfg.Logger
	return h.storm.allow(h.now(), key, func(suppressed int) {
		logger.LogAttrs(context.WithoutCancel(ctx), level, "aiguard: similar lines suppressed", slog.String("line", msg),
			slog.String("kind", short(string(e.Kind))), slog.String("phase", short(e.Phase)), slog.String("host", key.host),
			slog.String("model", key.model), slog.Int("suppressed", suppressed))
	})
}
