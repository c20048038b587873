package cacheguard_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
	"github.com/aiguard-go/aiguard/internal/callctx"
)

// longest is the longest delay of a call that the package comment promises.
const longest = cacheguard.DefaultSimilarTimeout + 2*cacheguard.DefaultLookupTimeout

// ways are the variants of a question that may share an answer.
var ways = []string{original, similar, other, "How does one reset the password?", "What is the best way to reset my password?"}

func broken(context.Context, []string) ([][]float32, error) { return nil, errors.New("broken") }

func TestFailingEmbedderDoesNotFailOrDelayCalls(t *testing.T) {
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		embed func(ctx context.Context, texts []string) ([][]float32, error)
		delay time.Duration // of one call
	}{
		"broken":       {broken, 0},
		"no vector":    {func(context.Context, []string) ([][]float32, error) { return nil, nil }, 0},
		"two vectors":  {func(context.Context, []string) ([][]float32, error) { return [][]float32{{1}, {1}}, nil }, 0},
		"empty vector": {func(context.Context, []string) ([][]float32, error) { return [][]float32{{}}, nil }, 0},
		"zero vector":  {func(context.Context, []string) ([][]float32, error) { return [][]float32{{0, 0}}, nil }, 0},
		"not a number": {func(context.Context, []string) ([][]float32, error) { return [][]float32{{nan, 1}}, nil }, 0},
		"infinite": {func(context.Context, []string) ([][]float32, error) {
			return [][]float32{{float32(math.Inf(1)), 1}}, nil
		}, 0},
		"slow": {func(ctx context.Context, _ []string) ([][]float32, error) { <-ctx.Done(); return nil, ctx.Err() }, cacheguard.DefaultSimilarTimeout},
		"deaf": {func(context.Context, []string) ([][]float32, error) {
			time.Sleep(time.Minute)
			return [][]float32{{1}}, nil
		}, cacheguard.DefaultSimilarTimeout},
		"ends by Goexit": {func(context.Context, []string) ([][]float32, error) { runtime.Goexit(); return nil, nil }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cacheguard.Config{Similar: cacheguard.Similar{Embed: c.embed, Threshold: 0.9}}, func(t *testing.T, w *world) {
				for i, question := range ways {
					start := time.Now()
					require.Equal(t, "miss", w.chat(t.Context(), chatOf(question)).source)
					require.LessOrEqual(t, time.Since(start), c.delay, i)
				}
				synctest.Wait()
				require.Equal(t, len(ways), w.srv.Count())
				if name != "ends by Goexit" {
					require.Positive(t, w.cache.Stats().SimilarFailures)
				}
				for _, question := range ways {
					require.Equal(t, "hit", w.chat(t.Context(), chatOf(question)).source)
				}
			})
		})
	}
}

func TestFailedEmbedderIsPausedThenProbed(t *testing.T) {
	uses, fails := 0, true
	cfg := similarity()
	cfg.Similar.Embed = func(ctx context.Context, texts []string) ([][]float32, error) {
		uses++
		if fails {
			return broken(ctx, texts)
		}
		return directions.embed(ctx, texts)
	}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		w.question(t, t.Context(), similar)
		assert.Equal(t, 1, uses)
		fails = false
		time.Sleep(time.Second)
		refresh := cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true})
		w.question(t, refresh, original)
		assert.Equal(t, 2, uses)
		w.question(t, t.Context(), other)
		assert.Equal(t, 3, uses)
		assert.EqualValues(t, 1, w.cache.Stats().SimilarFailures)
	})
}

// The vector of the first question arrives long after its answer.
func TestAnswerOfASlowEmbeddingIsFoundLater(t *testing.T) {
	cfg := similarity()
	takes := 5 * time.Second
	cfg.Similar.Embed = func(ctx context.Context, texts []string) ([][]float32, error) {
		time.Sleep(takes)
		return directions.embed(ctx, texts)
	}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		start := time.Now()
		require.Equal(t, "miss", w.chat(t.Context(), chatOf(original)).source)
		assert.Equal(t, cacheguard.DefaultSimilarTimeout, time.Since(start))
		time.Sleep(takes)
		synctest.Wait()
		takes = 100 * time.Millisecond
		start = time.Now()
		require.Equal(t, "similar", w.chat(t.Context(), chatOf(similar)).source)
		assert.Equal(t, takes, time.Since(start))
		assert.EqualValues(t, 1, w.cache.Stats().SimilarFailures)
	})
}

func TestEmbeddingsInTheBackgroundAreBounded(t *testing.T) {
	const calls = 300
	var running, most atomic.Int64
	cfg := cacheguard.Config{Similar: cacheguard.Similar{Threshold: 0.9}}
	cfg.Similar.Embed = func(ctx context.Context, _ []string) ([][]float32, error) {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		time.Sleep(5 * time.Second)
		return [][]float32{{1, 0}}, nil
	}
	synctest.Test(t, func(t *testing.T) {
		w := newGuardedWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cfg, aiguard.Config{MaxConcurrent: calls})
		start := time.Now()
		for _, a := range all(calls, func(i int) answer { return w.chat(t.Context(), chatOf("What is "+strings.Repeat("x", i+1)+"?")) }) {
			require.NoError(t, a.err)
			require.Equal(t, "miss", a.source)
		}
		assert.Equal(t, cacheguard.DefaultSimilarTimeout, time.Since(start))
		assert.EqualValues(t, 64, most.Load())
		assert.EqualValues(t, calls, w.cache.Stats().SimilarFailures, "late or left out")
	})
}

func TestCloseEndsEmbeddings(t *testing.T) {
	ended := false
	cfg := similarity()
	cfg.Similar.Embed = func(ctx context.Context, _ []string) ([][]float32, error) {
		<-ctx.Done()
		ended = true
		return nil, ctx.Err()
	}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		require.Equal(t, "miss", w.chat(t.Context(), chatOf(original)).source)
		start := time.Now()
		require.NoError(t, w.cache.Close())
		assert.Zero(t, time.Since(start))
		assert.True(t, ended, "Close waits for it")
		assert.EqualValues(t, 1, w.cache.Stats().SimilarFailures, "the timeout alone")
	})
}

func TestLeavingCallerDoesNotEndTheEmbedding(t *testing.T) {
	cfg := similarity()
	cfg.Similar.Embed = func(ctx context.Context, texts []string) ([][]float32, error) {
		select {
		case <-time.After(200 * time.Millisecond):
			return directions.embed(ctx, texts)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, w.chat(ctx, chatOf(original)).err, context.DeadlineExceeded)
		time.Sleep(time.Second)
		st := w.cache.Stats()
		assert.Zero(t, st.SimilarFailures)
		assert.Zero(t, st.SimilarMisses)
		assert.Zero(t, st.Misses)
		assert.Zero(t, w.srv.Count())
	})
}

type valueKey struct{}

// The embedder may use the cache and the guard: no lock is held, and the slot of the caller is not its own.
func TestEmbedderRunsWithTheCallersValuesAndNoLock(t *testing.T) {
	var w *world
	cfg := similarity()
	cfg.Similar.Embed = func(ctx context.Context, texts []string) ([][]float32, error) {
		if ctx.Value(valueKey{}) != "v" {
			return nil, errors.New("no value")
		}
		if callctx.HoldsSlot(ctx) {
			return nil, errors.New("has the slot of the caller")
		}
		if a := w.ask(ctx, "/embeddings", `{"input":"x"}`); a.err != nil || w.cache.Stats().InFlight == 0 {
			return nil, fmt.Errorf("cannot use the cache: %w", a.err)
		}
		return directions.embed(ctx, texts)
	}
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cfg)
		ctx := context.WithValue(t.Context(), valueKey{}, "v")
		sources, err := aiguard.Do(ctx, w.guard, func(ctx context.Context) ([]string, error) {
			return []string{w.question(t, ctx, original).source, w.question(t, ctx, similar).source}, nil
		})
		require.NoError(t, err)
		assert.Equal(t, []string{"miss", "similar"}, sources)
		assert.Zero(t, w.cache.Stats().SimilarFailures)
	})
}

// index is an Index with hooks.
type index struct {
	cacheguard.Index
	before func(ctx context.Context, use string) error
	match  func(m cacheguard.Match) cacheguard.Match
}

func (x *index) Nearest(ctx context.Context, partition string, vector []float32, least float64) (cacheguard.Match, error) {
	if err := x.before(ctx, "nearest"); err != nil {
		return cacheguard.Match{}, err
	}
	m, err := x.Index.Nearest(ctx, partition, vector, least)
	return x.match(m), err
}

func (x *index) Update(ctx context.Context, add []cacheguard.Item, remove []string) error {
	if err := x.before(ctx, "update"); err != nil {
		return err
	}
	return x.Index.Update(ctx, add, remove)
}

func newIndex(t testing.TB) *index {
	return &index{newMemoryIndex(t, 0), func(context.Context, string) error { return nil }, func(m cacheguard.Match) cacheguard.Match { return m }}
}

func TestFailingIndexDoesNotFailOrDelayCalls(t *testing.T) {
	for name, before := range map[string]func(context.Context, string) error{
		"broken": func(context.Context, string) error { return errors.New("broken") },
		"slow":   func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() },
		"deaf":   func(context.Context, string) error { time.Sleep(time.Minute); return nil },
		"slow updates": func(ctx context.Context, use string) error {
			if use == "update" {
				<-ctx.Done()
			}
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndex(t)
			x.before = before
			cfg := similarity()
			cfg.Similar.Index = x
			inVirtualTime(t, cfg, func(t *testing.T, w *world) {
				start := time.Now()
				for range 20 {
					for _, question := range []string{original, similar, other} {
						before := time.Now()
						refresh := cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Refresh: true})
						require.Equal(t, "miss", w.chat(refresh, chatOf(question)).source)
						require.NoError(t, w.chat(t.Context(), chatOf(question)).err)
						require.Equal(t, "miss", w.chat(t.Context(), chatOf(question+strings.Repeat(" x", int(time.Since(start)/time.Millisecond)+1))).source)
						require.LessOrEqual(t, time.Since(before), longest)
						time.Sleep(10 * time.Millisecond)
					}
				}
				time.Sleep(2 * time.Minute)
				assert.Positive(t, w.cache.Stats().SimilarFailures)
				assert.LessOrEqual(t, w.cache.Stats().SimilarFailures, int64(200))
				start = time.Now()
				reject := w.cache.Reject(t.Context(), strings.Repeat("0", 64))
				require.Error(t, reject)
				assert.LessOrEqual(t, time.Since(start), time.Second)
			})
		})
	}
}

func TestUnusableMatchIsAMiss(t *testing.T) {
	for name, match := range map[string]func(m cacheguard.Match) cacheguard.Match{
		"short ID":       func(m cacheguard.Match) cacheguard.Match { m.ID = m.ID[:len(m.ID)/2]; return m },
		"no ID":          func(m cacheguard.Match) cacheguard.Match { m.ID = ""; return m },
		"not hex":        func(m cacheguard.Match) cacheguard.Match { m.ID = strings.Repeat("x", 64); return m },
		"unknown ID":     func(m cacheguard.Match) cacheguard.Match { m.ID = strings.Repeat("0", 64); return m },
		"too dissimilar": func(m cacheguard.Match) cacheguard.Match { m.Similarity = 0.8999; return m },
		"not a number":   func(m cacheguard.Match) cacheguard.Match { m.Similarity = math.NaN(); return m },
	} {
		t.Run(name, func(t *testing.T) {
			x := newIndex(t)
			x.match = match
			cfg := similarity()
			cfg.Similar.Index = x
			inVirtualTime(t, cfg, func(t *testing.T, w *world) {
				w.question(t, t.Context(), original)
				require.Equal(t, "miss", w.question(t, t.Context(), similar).source)
			})
		})
	}
}

// A store that fails does not mean that the answers are gone.
func TestFailingStoreDoesNotEmptyTheIndex(t *testing.T) {
	s := &store{}
	x := newMemoryIndex(t, 0)
	cfg := similarity()
	cfg.Store, cfg.Similar.Index = s, x
	cfg.Similar.Embed = func(context.Context, []string) ([][]float32, error) { return [][]float32{{1, 0}}, nil }
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		s.setBefore(func(context.Context, string) error { return errors.New("broken") })
		require.Equal(t, "miss", w.question(t, t.Context(), similar).source)
		s.setBefore(nil)
		time.Sleep(time.Second)
		require.Equal(t, "similar", w.question(t, t.Context(), similar).source)

		// An answer that is gone takes its question with it.
		clear(s.entries)
		require.Equal(t, "miss", w.question(t, t.Context(), similar, cacheguard.ExactHeader, "1").source)
		require.Equal(t, 1, x.Len())
		clear(s.entries)
		require.Equal(t, "miss", w.question(t, t.Context(), "How does one reset the password?").source)
		require.Equal(t, 1, x.Len(), "the new question alone")
	})
}

func TestNothingOfAQuestionIsInTheHeaders(t *testing.T) {
	inVirtualTime(t, similarity(), func(t *testing.T, w *world) {
		w.question(t, t.Context(), original)
		for name, values := range w.question(t, t.Context(), similar).header {
			assert.NotContains(t, strings.ToLower(name+fmt.Sprint(values)), "password")
		}
	})
}

// Many callers, accounts, evictions, reports and failures at once: every answer is one for the caller's own account and
// subject, and nothing is left.
func TestSimilarQuestionsUnderLoad(t *testing.T) {
	subjects := []string{"password", "username", "address"}
	var n atomic.Int64
	cfg := cacheguard.Config{MaxBytes: 16 << 10, TTL: 10 * time.Second}
	cfg.Similar = cacheguard.Similar{Threshold: 0.9, Embed: func(ctx context.Context, texts []string) ([][]float32, error) {
		i := n.Add(1)
		time.Sleep(time.Duration(i%7) * 60 * time.Millisecond)
		if i%31 == 0 {
			return broken(ctx, texts)
		}
		return [][]float32{{1, float32(i%3) / 10}}, nil
	}}
	synctest.Test(t, func(t *testing.T) {
		w := newGuardedWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cfg, aiguard.Config{MaxConcurrent: 50})
		w.srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			for _, subject := range subjects {
				if strings.Contains(string(r.Body), subject) {
					return aiguardtest.After(20*time.Millisecond, aiguardtest.Text(subject+" of "+r.Header.Get("Authorization")))
				}
			}
			return aiguardtest.Text("what?")
		})
		all(40, func(i int) answer {
			account := fmt.Sprint("Bearer ", i%3)
			for j := range 40 {
				subject := subjects[(i+j)%len(subjects)]
				question := strings.Replace(ways[(i*7+j*3)%len(ways)], "password", subject, 1)
				resp, err := w.open(t.Context(), "/chat/completions", chatOf(question), "Authorization", account)
				a := read(resp, err)
				if assert.NoError(t, a.err) && assert.Contains(t, a.body, subject+" of "+account) && a.source == "similar" && j%10 == 0 {
					assert.NoError(t, cacheguard.Reject(resp))
				}
				time.Sleep(time.Duration(i*j%50) * time.Millisecond)
			}
			return answer{}
		})
		synctest.Wait()
		st := w.cache.Stats()
		assert.Positive(t, st.SimilarHits)
		assert.Positive(t, st.Rejected)
	})
}
