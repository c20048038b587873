package storm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

type report struct{ key, suppressed int }

func TestSimilarLinesAreLimitedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Limit[int]
		var reports []report
		allowed := 0
		for range 10 {
			if s.Allow(1, 0, func(key, suppressed int) { reports = append(reports, report{key, suppressed}) }) {
				allowed++
			}
		}
		assert.Equal(t, lines, allowed)
		assert.True(t, s.Allow(2, 0, nil), "another key has its own limit")
		time.Sleep(span)
		synctest.Wait()
		assert.Equal(t, []report{{1, 10 - lines}}, reports)
		assert.True(t, s.Allow(1, 0, nil), "a new second")
	})
}

func TestManyKeysShareALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Limit[int]
		var reports []report
		allowed := 0
		for key := range 3 * maxKeys {
			if s.Allow(key+1, 0, func(key, suppressed int) { reports = append(reports, report{key, suppressed}) }) {
				allowed++
			}
		}
		assert.Equal(t, maxKeys+lines, allowed)
		assert.LessOrEqual(t, s.keys(), maxKeys+1)
		time.Sleep(span)
		synctest.Wait()
		assert.Equal(t, []report{{0, 2*maxKeys - lines}}, reports)
		assert.True(t, s.Allow(3*maxKeys, 0, nil))
		assert.LessOrEqual(t, s.keys(), 1, "what is over is forgotten")
	})
}

func (s *Limit[K]) keys() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.counts)
}
