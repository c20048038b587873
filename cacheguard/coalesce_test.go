package cacheguard_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
	"github.com/aiguard-go/aiguard/cacheguard"
)

func TestThousandIdenticalCallersMakeOneRequest(t *testing.T) {
	for name, body := range map[string]string{"answer": certain, "stream": certainStream, "sampled": dice} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
				w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.Text("Hello there")))
				counts := map[string]int{}
				for _, a := range all(1000, func(int) answer { return w.chat(t.Context(), body) }) {
					require.NoError(t, a.err)
					require.Contains(t, a.body, "He")
					require.Contains(t, a.body, "finish_reason")
					counts[a.source]++
				}
				assert.Equal(t, 1, w.srv.Count())
				assert.Equal(t, map[string]int{"miss": 1, "shared": 999}, counts)
				assert.EqualValues(t, 1, w.guard.Stats().Calls)
				st := w.cache.Stats()
				assert.EqualValues(t, 1, st.Misses)
				assert.EqualValues(t, 999, st.Shared)
			})
		})
	}
}

func TestLastOfAThousandCallersIsServed(t *testing.T) {
	for name, body := range map[string]string{"answer": certain, "stream": certainStream} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
				w.srv.SetDefault(aiguardtest.After(10*time.Second, aiguardtest.Slowly(time.Second, aiguardtest.Text("Hello there"))))
				const stays = 500 // not the caller that started the request
				answers := all(1000, func(i int) answer {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					time.Sleep(time.Duration(i) * time.Millisecond)
					if i != stays {
						time.AfterFunc(5*time.Second, cancel)
					}
					return w.chat(ctx, body)
				})
				for i, a := range answers {
					if i == stays {
						require.NoError(t, a.err)
						require.Contains(t, a.body, "finish_reason")
						continue
					}
					require.ErrorIs(t, a.err, context.Canceled)
					require.Empty(t, aiguard.KindOf(a.err))
				}
				assert.Equal(t, 1, w.srv.Count())
				assert.Zero(t, w.srv.Disconnects())
				assert.EqualValues(t, 1, w.guard.Stats().Succeeded)
			})
		})
	}
}

func TestRequestIsCancelledAtOnceWhenTheLastCallerLeaves(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.Hang())
		start := time.Now()
		answers := all(3, func(i int) answer {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*time.Second)
			defer cancel()
			a := w.chat(ctx, certain)
			assert.Equal(t, time.Duration(i+1)*time.Second, time.Since(start))
			return a
		})
		for _, a := range answers {
			require.ErrorIs(t, a.err, context.DeadlineExceeded)
		}
		synctest.Wait()
		assert.Equal(t, 3*time.Second, time.Since(start))
		assert.Equal(t, 1, w.srv.Count())
		assert.Equal(t, 1, w.srv.Disconnects())
		assert.Zero(t, w.guard.Stats().InFlight)
		assert.Zero(t, w.cache.Stats().InFlight)

		a := w.chat(t.Context(), certain)
		require.NoError(t, a.err)
		assert.Equal(t, "miss", a.source)
		assert.Equal(t, 2, w.srv.Count())
	})
}

func TestClosingOneStreamKeepsTheOthers(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		first, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		second, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		require.NoError(t, first.Body.Close())
		_, err = first.Body.Read(make([]byte, 1))
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
		a := read(second, nil)
		require.NoError(t, a.err)
		assert.True(t, strings.HasSuffix(a.body, "data: [DONE]\n\n"))
		assert.Equal(t, 1, w.srv.Count())
	})
}

func TestEndedContextStopsReading(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		resp, err := w.open(ctx, "/chat/completions", certainStream)
		require.NoError(t, err)
		other, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		time.AfterFunc(1500*time.Millisecond, func() { cancel(cause) })
		start := time.Now()
		a := read(resp, nil)
		require.ErrorIs(t, a.err, context.Canceled)
		require.ErrorIs(t, a.err, cause)
		assert.Equal(t, 1500*time.Millisecond, time.Since(start))
		require.NoError(t, read(other, nil).err)
	})
}

func TestEndedContextLeavesWithoutARead(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		ctx, cancel := context.WithCancel(t.Context())
		resp, err := w.open(ctx, "/chat/completions", certainStream)
		require.NoError(t, err)
		defer resp.Body.Close()
		cancel()
		synctest.Wait()
		assert.Equal(t, 1, w.srv.Disconnects())
		assert.Zero(t, w.guard.Stats().InFlight)
	})
}

func TestCloseWakesAConcurrentRead(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"index":0,"delta":{"content":"Hel"}}]}`)))
		other, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		defer other.Body.Close()
		resp, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		start := time.Now()
		time.AfterFunc(time.Second, func() { resp.Body.Close() })
		_, err = io.ReadAll(resp.Body)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
		assert.Equal(t, time.Second, time.Since(start))
		require.NoError(t, resp.Body.Close(), "again")
	})
}

func TestLateCallerReadsTheStreamFromTheStart(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		start := time.Now()
		answers := all(2, func(i int) answer {
			time.Sleep(time.Duration(i) * 4500 * time.Millisecond)
			resp, err := w.open(t.Context(), "/chat/completions", certainStream)
			require.NoError(t, err)
			piece := make([]byte, 1)
			_, err = resp.Body.Read(piece)
			require.NoError(t, err)
			if i == 1 {
				assert.Equal(t, 4500*time.Millisecond, time.Since(start), "received data comes at once")
			}
			a := read(resp, nil)
			a.body = string(piece) + a.body
			return a
		})
		require.NoError(t, errors.Join(answers[0].err, answers[1].err))
		assert.Equal(t, answers[0].body, answers[1].body)
		assert.Equal(t, "shared", answers[1].source)
		assert.Equal(t, 1, w.srv.Count())
	})
}

func TestSlowReaderDelaysNeitherOthersNorTheSlot(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.Slowly(time.Second, aiguardtest.TextN("Hello there", 5)))
		slow, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		quick := w.chat(t.Context(), certainStream)
		require.NoError(t, quick.err)
		assert.Zero(t, w.guard.Stats().InFlight)
		time.Sleep(time.Hour) // longer than any of the guard's timeouts
		a := read(slow, nil)
		require.NoError(t, a.err)
		assert.Equal(t, quick.body, a.body)
	})
}

func TestFailureReachesAllCallersAndIsNotCached(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.Enqueue(aiguardtest.After(time.Second, aiguardtest.Error(401, "invalid_api_key")))
		seen := map[*aiguard.Error]bool{}
		for _, a := range all(100, func(int) answer { return w.chat(t.Context(), certain) }) {
			require.ErrorIs(t, a.err, aiguard.ErrUnauthorized)
			var e *aiguard.Error
			require.ErrorAs(t, a.err, &e)
			e.Op = "mine to change" // the race detector would tell
			seen[e] = true
		}
		assert.Len(t, seen, 100)
		assert.Equal(t, 1, w.srv.Count())
		assert.Equal(t, "miss", w.chat(t.Context(), certain).source)
		assert.Equal(t, 2, w.srv.Count())
	})
}

func TestBrokenStreamFailsForAllAndIsNotCached(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		delta := `{"choices":[{"index":0,"delta":{"content":"Hel"}}]}`
		w.srv.Enqueue(aiguardtest.Slowly(time.Second, aiguardtest.Events(delta, delta)))
		for _, a := range all(10, func(int) answer { return w.chat(t.Context(), certainStream) }) {
			require.ErrorIs(t, a.err, aiguard.ErrTruncated)
			require.Equal(t, 2, strings.Count(a.body, delta))
		}
		assert.Equal(t, 1, w.srv.Count())
		assert.Equal(t, "miss", w.chat(t.Context(), certainStream).source)
	})
}

func TestRequestCarriesTheFirstCallersValuesAndNoDeadline(t *testing.T) {
	type valueKey struct{}
	asked := 0
	next := roundTripper(func(req *http.Request) (*http.Response, error) {
		asked++
		assert.Equal(t, "first", req.Context().Value(valueKey{}))
		_, limited := req.Context().Deadline()
		assert.False(t, limited)
		body, err := io.ReadAll(req.Body)
		assert.NoError(t, err)
		assert.Equal(t, certain, string(body), "sent as it was written")
		return reply("application/json", strings.NewReader(`{"choices":[{"finish_reason":"stop"}]}`)), nil
	})
	cache := newTransport(t, next, cacheguard.Config{})
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), valueKey{}, "first"), time.Minute)
	defer cancel()
	require.NoError(t, read(cache.RoundTrip(newRequest(ctx, "http://x/v1/chat/completions", certain))).err)
	assert.Equal(t, 1, asked)
}

// A Do holds the only slot, and another caller waits for that slot with the same request. If the call inside the Do
// waited for the other caller, both would block until the queue timeout.
func TestCallInsideDoDoesNotWaitForAnotherSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGuardedWorld(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), cacheguard.Config{}, aiguard.Config{MaxConcurrent: 1})
		start := time.Now()
		outside := make(chan answer, 1)
		inside, err := aiguard.Do(t.Context(), w.guard, func(ctx context.Context) (answer, error) {
			go func() { outside <- w.chat(t.Context(), dice) }()
			synctest.Wait()
			require.EqualValues(t, 1, w.guard.Stats().Waiting)
			a := w.chat(ctx, dice)
			return a, a.err
		})
		require.NoError(t, err)
		assert.Equal(t, "miss", inside.source)
		require.NoError(t, (<-outside).err)
		assert.Zero(t, time.Since(start))
		assert.Equal(t, 2, w.srv.Count())
		assert.Equal(t, 1, w.srv.Peak())
	})
}

func TestCallInsideDoIsCached(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		for _, want := range []string{"miss", "hit"} {
			a, err := aiguard.Do(t.Context(), w.guard, func(ctx context.Context) (answer, error) {
				a := w.chat(ctx, certain)
				return a, a.err
			})
			require.NoError(t, err)
			assert.Equal(t, want, a.source)
		}
		assert.Equal(t, "hit", w.chat(t.Context(), certain).source)
	})
}

func TestCallsInsideTasksAreCoalesced(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello")))
		for _, a := range all(10, func(int) (a answer) {
			a.err = w.guard.RunTask(t.Context(), func(ctx context.Context) error {
				a = w.chat(ctx, dice)
				return a.err
			})
			return a
		}) {
			require.NoError(t, a.err)
		}
		assert.Equal(t, 1, w.srv.Count())
	})
}

// Shutdown lets a task finish its calls, including coalesced ones.
func TestTaskFinishesItsCallsDuringShutdown(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		started := make(chan struct{})
		task := make(chan error, 1)
		go func() {
			task <- w.guard.RunTask(t.Context(), func(ctx context.Context) error {
				close(started)
				time.Sleep(time.Second)
				return w.chat(ctx, dice).err
			})
		}()
		<-started
		require.NoError(t, w.guard.Shutdown(t.Context()))
		require.NoError(t, <-task)
		assert.Equal(t, 1, w.srv.Count())
	})
}

func TestBypassIsNotCoalesced(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello")))
		ctx := cacheguard.WithPolicy(t.Context(), cacheguard.Policy{Bypass: true})
		for _, a := range all(3, func(int) answer { return w.chat(ctx, certain) }) {
			require.NoError(t, a.err)
			require.Empty(t, a.source)
		}
		assert.Equal(t, 3, w.srv.Count())
		assert.EqualValues(t, 3, w.cache.Stats().Passed)
		assert.Zero(t, w.cache.Stats().Stored)
	})
}

func TestDifferentRequestsAreNotCoalesced(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello")))
		bodies := []string{certain, dice, certainStream, `{"model":"n","temperature":0,"messages":[]}`}
		for _, a := range all(len(bodies), func(i int) answer { return w.chat(t.Context(), bodies[i]) }) {
			require.NoError(t, a.err)
			require.Equal(t, "miss", a.source)
		}
		assert.Equal(t, len(bodies), w.srv.Count())
	})
}

// long is a complete stream of at least n bytes. It arrives in pieces and records how far it was read.
type long struct {
	text string
	read int
}

func newLong(n int) *long {
	var b strings.Builder
	for i := 0; b.Len() < n-200; i++ {
		fmt.Fprintf(&b, `data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}`+"\n\n", i)
	}
	end := `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	return &long{text: b.String() + ": " + strings.Repeat("x", max(0, n-b.Len()-len(end)-4)) + "\n\n" + end}
}

func (l *long) Read(p []byte) (int, error) {
	if l.read == len(l.text) {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1000)], l.text[l.read:])
	l.read += n
	return n, nil
}

func TestOversizeAnswerIsCompleteButNotCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		start := time.Now()
		for _, n := range []int{limit - 1, limit, limit + 1, limit + 2, 25 * limit} {
			asked := 0
			cache := newTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
				asked++
				return reply("text/event-stream", newLong(n)), nil
			}), cacheguard.Config{MaxEntryBytes: limit})
			for range 2 {
				a := read(cache.RoundTrip(newRequest(t.Context(), "http://x/v1/chat/completions", certainStream)))
				require.NoError(t, a.err)
				require.Equal(t, n, len(a.body))
				require.True(t, newLong(n).text == a.body, "other bytes")
				synctest.Wait()
			}
			require.Equal(t, 2, asked)
			require.Zero(t, cache.Stats().Stored)
		}
		require.Zero(t, time.Since(start))
	})
}

func TestOversizeAnswerWaitsForItsReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		source := newLong(20 * limit)
		cache := newTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
			return reply("text/event-stream", source), nil
		}), cacheguard.Config{MaxEntryBytes: limit})
		resp, err := cache.RoundTrip(newRequest(t.Context(), "http://x/v1/chat/completions", certainStream))
		require.NoError(t, err)
		synctest.Wait()
		assert.LessOrEqual(t, source.read, limit+1)
		piece := make([]byte, limit/2)
		_, err = io.ReadFull(resp.Body, piece)
		require.NoError(t, err)
		synctest.Wait()
		assert.LessOrEqual(t, source.read, limit+limit/2+1)
		time.Sleep(time.Hour) // no other caller waits
		a := read(resp, nil)
		require.NoError(t, a.err)
		assert.True(t, source.text == string(piece)+a.body)
	})
}

func TestOnlyAStalledCallerLosesAnOversizeAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		source := newLong(20 * limit)
		cache := newTransport(t, roundTripper(func(req *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return reply("text/event-stream", source), nil
		}), cacheguard.Config{MaxEntryBytes: limit})
		asleep := make(chan *http.Response, 1)
		answers := all(3, func(i int) answer {
			resp, err := cache.RoundTrip(newRequest(t.Context(), "http://x/v1/chat/completions", certainStream))
			require.NoError(t, err)
			if i == 0 {
				asleep <- resp
				return answer{}
			}
			return read(resp, nil)
		})
		require.NoError(t, errors.Join(answers[1].err, answers[2].err))
		assert.True(t, source.text == answers[1].body)
		assert.True(t, source.text == answers[2].body)
		a := read(<-asleep, nil)
		require.ErrorIs(t, a.err, aiguard.ErrTruncated)
	})
}

func TestCloseEndsCallsInFlight(t *testing.T) {
	inVirtualTime(t, cacheguard.Config{}, func(t *testing.T, w *world) {
		require.NoError(t, w.chat(t.Context(), certain).err)
		w.srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"index":0,"delta":{"content":"Hel"}}]}`)))
		stream, err := w.open(t.Context(), "/chat/completions", certainStream)
		require.NoError(t, err)
		w.srv.SetDefault(aiguardtest.Hang())
		waiting := make(chan answer, 1)
		go func() { waiting <- w.chat(t.Context(), dice) }()
		synctest.Wait()
		require.Equal(t, 2, w.cache.Stats().InFlight)

		start := time.Now()
		require.NoError(t, w.cache.Close())
		assert.Zero(t, time.Since(start))
		assert.Zero(t, w.cache.Stats().InFlight)
		require.ErrorIs(t, (<-waiting).err, aiguard.ErrClosed)
		a := read(stream, nil)
		require.ErrorIs(t, a.err, aiguard.ErrClosed)
		require.ErrorIs(t, w.chat(t.Context(), certain).err, aiguard.ErrClosed)
		require.NoError(t, w.cache.Close())
	})
}

func TestOnAnswerTellsWhoseRequestItIs(t *testing.T) {
	type caller struct{}
	type told struct {
		caller, first any
		source        string
		waited        time.Duration
	}
	var mu sync.Mutex
	got := map[any]told{}
	cfg := cacheguard.Config{OnAnswer: func(ctx context.Context, source string, waited time.Duration, first context.Context) {
		mu.Lock()
		defer mu.Unlock()
		got[ctx.Value(caller{})] = told{ctx.Value(caller{}), first.Value(caller{}), source, waited}
	}}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.After(10*time.Second, aiguardtest.Text("Hello there")))
		ask := func(i int) answer {
			time.Sleep(time.Duration(i) * time.Second)
			return w.chat(context.WithValue(t.Context(), caller{}, i), certain)
		}
		all(3, ask)
		ask(20)
		require.Equal(t, map[any]told{0: {0, 0, "miss", 10 * time.Second}, 1: {1, 0, "shared", 9 * time.Second},
			2: {2, 0, "shared", 8 * time.Second}, 20: {20, 20, "hit", 0}}, got)
	})
}

func TestPanicOfOnAnswerLeavesNothingBehind(t *testing.T) {
	cfg := cacheguard.Config{OnAnswer: func(context.Context, string, time.Duration, context.Context) { panic("boom") }}
	inVirtualTime(t, cfg, func(t *testing.T, w *world) {
		w.srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(`{"choices":[{"index":0,"delta":{"content":"x"}}]}`)))
		require.PanicsWithValue(t, "boom", func() { w.chat(t.Context(), certainStream) })
		synctest.Wait()
		require.Zero(t, w.cache.Stats().InFlight)
		require.Zero(t, w.guard.Stats().InFlight)
	})
}
