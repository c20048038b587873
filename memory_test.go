package aiguard_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// answerOf is a good answer of about n bytes, its length announced or not.
func answerOf(n int, announced bool) aiguardtest.Reply {
	body := honest(strings.Repeat("x", n))
	if announced {
		return aiguardtest.JSON(200, body, "Content-Length", strconv.Itoa(len(body)))
	}
	return aiguardtest.JSON(200, body)
}

// get makes a call whose answer stays with the test.
func get(t *testing.T, g *aiguard.Guard, srv *aiguardtest.Server) (*http.Response, error) {
	t.Helper()
	return getWith(t.Context(), t, g, srv)
}

func getWith(ctx context.Context, t *testing.T, g *aiguard.Guard, srv *aiguardtest.Server) (*http.Response, error) {
	t.Helper()
	base := srv.Transport()
	t.Cleanup(base.CloseIdleConnections)
	req, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/chat/completions", strings.NewReader(`{"model":"m"}`))
	require.NoError(t, err)
	return g.Transport(base).RoundTrip(req)
}

func TestBufferedAnswersCountUntilTheirCallerHasDoneWithThem(t *testing.T) {
	for name, done := range map[string]func(*testing.T, io.ReadCloser){
		"read to the end": func(t *testing.T, body io.ReadCloser) {
			n, err := io.Copy(io.Discard, body)
			require.NoError(t, err)
			require.Greater(t, n, int64(300_000))
		},
		"closed":       func(t *testing.T, body io.ReadCloser) { require.NoError(t, body.Close()) },
		"closed twice": func(t *testing.T, body io.ReadCloser) { require.NoError(t, errors.Join(body.Close(), body.Close())) },
		"read in part, and closed": func(t *testing.T, body io.ReadCloser) {
			_, err := body.Read(make([]byte, 10))
			require.NoError(t, err)
			require.NoError(t, body.Close())
			_, err = body.Read(make([]byte, 10))
			require.Equal(t, http.ErrBodyReadAfterClose, err, "not io.EOF: it was not read to its end")
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := aiguardtest.NewServer(t)
			g := newGuard(t, aiguard.Config{})
			for i, announced := range []bool{true, false} {
				srv.Enqueue(answerOf(300_000, announced))
				resp, err := get(t, g, srv)
				require.NoError(t, err)
				require.Zero(t, g.Stats().InFlight)
				require.GreaterOrEqual(t, g.Stats().BufferedBytes, resp.ContentLength, "case %d", i)
				done(t, resp.Body)
				require.Zero(t, g.Stats().BufferedBytes, "case %d", i)
				require.NoError(t, resp.Body.Close())
				require.Zero(t, g.Stats().BufferedBytes, "case %d", i)
			}
		})
	}
}

// crowdedRoom is a guard whose room is taken by one huge answer, which its caller keeps until it is closed.
func crowdedRoom(t *testing.T, srv *aiguardtest.Server, announced bool) (g *aiguard.Guard, first io.Closer) {
	g = newGuard(t, aiguard.Config{})
	aiguard.SetRoom(g, 5<<19)
	srv.SetDefault(answerOf(1_500_000, announced))
	resp, err := get(t, g, srv)
	require.NoError(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	return g, resp.Body
}

func eachLength(t *testing.T, f func(t *testing.T, srv *aiguardtest.Server, announced bool)) {
	for name, announced := range map[string]bool{"announced": true, "unannounced": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, aiguardtest.NewServer(t, aiguardtest.Pipe()), announced) })
		})
	}
}

func TestBufferedAnswerWaitsUntilOthersMakeRoom(t *testing.T) {
	eachLength(t, func(t *testing.T, srv *aiguardtest.Server, announced bool) {
		g, first := crowdedRoom(t, srv, announced)
		start := time.Now()
		time.AfterFunc(10*time.Second, func() { first.Close() })
		second, err := get(t, g, srv)
		took(t, start, 10*time.Second)
		require.NoError(t, err)
		require.NoError(t, second.Body.Close())
	})
}

func TestBufferedAnswerWithoutRoomIsRefusedWhenItsTimeIsOver(t *testing.T) {
	eachLength(t, func(t *testing.T, srv *aiguardtest.Server, announced bool) {
		g, _ := crowdedRoom(t, srv, announced)
		held := g.Stats().BufferedBytes
		start := time.Now()
		_, err := get(t, g, srv)
		took(t, start, aiguard.DefaultCallTimeout)
		e := facts(t, err, aiguard.ErrOverloaded)
		require.Equal(t, "memory", e.Phase)
		require.Equal(t, 1, e.Attempts, "sent, and not sent again")
		require.EqualValues(t, 5<<19, e.Max)
		require.Positive(t, e.RetryAfter)
		require.Equal(t, held, g.Stats().BufferedBytes, "what was read of it is given back")
		require.Zero(t, g.Stats().Timeouts, "it is not the provider that was slow")
	})
}

func TestBufferedAnswerOfOrdinarySizeHasRoom(t *testing.T) {
	eachLength(t, func(t *testing.T, srv *aiguardtest.Server, announced bool) {
		g, _ := crowdedRoom(t, srv, announced)
		aiguard.SetRoom(g, 1)
		srv.SetDefault(answerOf(30_000, announced))
		start := time.Now()
		resp, err := get(t, g, srv)
		took(t, start, 0)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		srv.SetDefault(aiguardtest.JSON(500, strings.Repeat("x", 200_000)))
		facts(t, failureOf(get(t, g, srv)), aiguard.ErrUnavailable)
	})
}

func TestBufferedAnswerAboveTheRoomIsRefusedAtOnce(t *testing.T) {
	eachLength(t, func(t *testing.T, srv *aiguardtest.Server, announced bool) {
		g := newGuard(t, aiguard.Config{})
		aiguard.SetRoom(g, 1<<20)
		srv.SetDefault(answerOf(1_500_000, announced))
		start := time.Now()
		_, err := get(t, g, srv)
		took(t, start, 0)
		require.Equal(t, "memory", facts(t, err, aiguard.ErrOverloaded).Phase)
	})
}

// Two that have taken what each other needs would wait for ever: the later one makes room.
func TestBufferedAnswersDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := aiguardtest.NewServer(t, aiguardtest.Pipe())
		g := newGuard(t, aiguard.Config{})
		aiguard.SetRoom(g, 5<<20) // 2 MiB for each, and 1 that is not enough for either
		srv.SetDefault(newStep(2, 1_000_000).reply(answerOf(3_000_000, false)))
		ends := make(chan error, 2)
		start := time.Now()
		for range 2 {
			go func() {
				resp, err := get(t, g, srv)
				if err == nil {
					defer resp.Body.Close()
					time.Sleep(time.Second)
				}
				ends <- err
			}()
		}
		facts(t, <-ends, aiguard.ErrOverloaded)
		took(t, start, 100*time.Millisecond) // that the step takes
		require.NoError(t, <-ends)
	})
}

func TestBufferedAnswerThatWaitsEndsWithItsCallerAndItsGuard(t *testing.T) {
	eachLength(t, func(t *testing.T, srv *aiguardtest.Server, announced bool) {
		g, _ := crowdedRoom(t, srv, announced)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := getWith(ctx, t, g, srv)
		took(t, start, time.Second)
		require.Equal(t, context.DeadlineExceeded, err, "the caller's own")
		time.AfterFunc(time.Second, func() { _ = g.Close() })
		_, err = get(t, g, srv)
		took(t, start, 2*time.Second)
		facts(t, err, aiguard.ErrClosed)
	})
}

func TestBufferedAnswersHaveNoBoundWithoutAMemoryLimit(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	g := newGuard(t, aiguard.Config{MemoryLimit: aiguard.Off})
	srv.SetDefault(answerOf(1_000_000, true))
	for range 3 {
		resp, err := get(t, g, srv)
		require.NoError(t, err)
		defer resp.Body.Close()
	}
	require.Greater(t, g.Stats().BufferedBytes, int64(3_000_000))
	require.False(t, g.Stats().OverMemory)
}

func TestBufferedEventsOfAStreamCountAndHaveABound(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{})
	g := c.Guard()
	events := func(n int) aiguardtest.Reply {
		event := "data: " + strings.Replace(hello, "Hello", strings.Repeat("x", n), 1) + "\n\n"
		return aiguardtest.Raw(200, "text/event-stream", event+event+"data: [DONE]\n\n")
	}
	srv.Enqueue(events(400_000))
	s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
	require.NoError(t, err)
	require.Greater(t, g.Stats().BufferedBytes, int64(400_000))
	require.NoError(t, s.Close())
	require.Zero(t, g.Stats().BufferedBytes)

	aiguard.SetRoom(g, 200_000)
	srv.Enqueue(events(400_000))
	_, err = streamChat(t.Context(), c)
	require.Equal(t, "memory", facts(t, err, aiguard.ErrOverloaded).Phase)
	require.Zero(t, g.Stats().BufferedBytes)
	srv.Enqueue(events(4000))
	_, err = streamChat(t.Context(), c)
	require.NoError(t, err)
}

// A stream holds a large event only until its reader comes for the next one.
func TestLargeEventIsGivenBackAtTheNext(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{})
	small := "data: " + hello + "\n\n"
	large := strings.Replace(small, "Hello", strings.Repeat("x", 400_000), 1)
	srv.Enqueue(aiguardtest.Raw(200, "text/event-stream", large+small+"data: [DONE]\n\n"))
	s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
	require.NoError(t, err)
	defer s.Close()
	r, err := s.Recv()
	require.NoError(t, err)
	require.Len(t, r.Choices[0].Delta.Content, 400_000)
	require.Greater(t, c.Guard().Stats().BufferedBytes, int64(400_000))
	r, err = s.Recv()
	require.NoError(t, err)
	require.Equal(t, "Hello", r.Choices[0].Delta.Content)
	require.Less(t, c.Guard().Stats().BufferedBytes, int64(100_000))
}

// Whatever becomes of a call, what its answer took is given back: newGuard looks when the test is over.
func TestBufferedAnswersAreGivenBackAfterAPanic(t *testing.T) {
	for name, cfg := range map[string]aiguard.Config{
		"in OnEvent": {OnEvent: func(_ context.Context, e aiguard.Event) {
			if e.Type == aiguard.EventDone || e.Type == aiguard.EventFirstEvent {
				panic("boom")
			}
		}},
		"in a Middleware": {Middleware: []aiguard.Middleware{func(ctx context.Context, _ aiguard.Call, next func(context.Context) error) error {
			if err := next(ctx); err != nil {
				return err
			}
			panic("boom")
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := aiguardtest.NewServer(t)
			c := newClient(t, srv, cfg)
			srv.SetDefault(answerOf(300_000, true))
			require.PanicsWithValue(t, "boom", func() { _, _ = chat(t.Context(), c) })
			require.Zero(t, c.Guard().Stats().BufferedBytes)
			srv.SetDefault(aiguardtest.Events(hello, finished))
			require.PanicsWithValue(t, "boom", func() { _, _ = streamChat(t.Context(), c) })
			require.Zero(t, c.Guard().Stats().BufferedBytes)
		})
	}
}

// withoutGC lets the heap only grow, so that what is measured of it is what was allocated.
func withoutGC(t *testing.T) {
	runtime.GC()
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
}

func TestMemorySpikeNamesTheCallAndItsSizes(t *testing.T) {
	withoutGC(t)
	rec := &recorder{}
	var log bytes.Buffer
	cfg := aiguard.Config{OnEvent: rec.OnEvent, Logger: slog.New(slog.NewJSONHandler(&log, nil))}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		aiguard.SetSpike(c.Guard(), 2<<20)
		srv.SetDefault(aiguardtest.After(time.Second, answerOf(1_000_000, true)))
		_, err := chat(t.Context(), c)
		require.NoError(t, err)

		require.Len(t, rec.all(aiguard.EventMemorySpike), 1)
		spike := rec.events[len(rec.events)-1]
		require.Equal(t, aiguard.EventMemorySpike, spike.Type, "after EventDone: decoding is in it")
		require.Equal(t, "chat.completions", spike.Call.Op)
		require.NoError(t, spike.Err)
		require.EqualValues(t, len(srv.Requests()[0].Body), spike.PromptBytes)
		require.EqualValues(t, len(honest(""))+1_000_000, spike.AnswerBytes)
		require.Greater(t, spike.HeapGrowth, int64(2<<20))

		require.Contains(t, log.String(), `"op":"chat.completions"`)
		for _, name := range []string{"prompt_bytes", "answer_bytes", "heap_growth"} {
			require.Contains(t, log.String(), name)
		}
		require.NotContains(t, log.String(), "xxx")
		require.NotContains(t, log.String(), "hello")
	})
}

func TestMemorySpikesAreToldOnceASecond(t *testing.T) {
	withoutGC(t)
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		aiguard.SetSpike(c.Guard(), 100_000)
		srv.SetDefault(aiguardtest.After(200*time.Millisecond, answerOf(50_000, true)))
		start := time.Now()
		for time.Since(start) < 3*time.Second {
			_, err := chat(t.Context(), c)
			require.NoError(t, err)
		}
		require.Len(t, rec.all(aiguard.EventMemorySpike), 3)
	})
}

func TestMemorySpikeOfADoOrAStreamOrAFailure(t *testing.T) {
	withoutGC(t)
	grow := func(d time.Duration) func(context.Context) error {
		return func(ctx context.Context) error { garbage.Store(new([8 << 20]byte)); return sleep(ctx, d) }
	}
	defer func() { garbage.Store(nil) }()
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		g := newGuard(t, aiguard.Config{OnEvent: rec.OnEvent})
		aiguard.SetSpike(g, 4<<20)
		require.NoError(t, do(t.Context(), g, grow(time.Millisecond)))
		require.Empty(t, rec.all(aiguard.EventMemorySpike), "over before the next sample")
		time.Sleep(time.Second)
		require.NoError(t, do(t.Context(), g.With(aiguard.Call{Op: "summary"}), grow(time.Second)))
		spikes := rec.all(aiguard.EventMemorySpike)
		require.Len(t, spikes, 1)
		require.Equal(t, "summary", spikes[0].Call.Op)
		require.Zero(t, spikes[0].AnswerBytes, "unknown")
		require.NoError(t, do(t.Context(), g, func(ctx context.Context) error { return sleep(ctx, 20*time.Second) }))
		require.Len(t, rec.all(aiguard.EventMemorySpike), 1, "nothing has grown")
	})

	rec := &recorder{}
	srv := aiguardtest.NewServer(t)
	c := newClient(t, srv, aiguard.Config{OnEvent: rec.OnEvent, MaxResponseBytes: 1_000_000, Retry: aiguard.Retry{MaxAttempts: 1}})
	aiguard.SetSpike(c.Guard(), 500_000)
	srv.Enqueue(aiguardtest.FaultHugeAnswer.Reply())
	_, err := chat(t.Context(), c)
	facts(t, err, aiguard.ErrResponseTooLarge)
	require.Len(t, rec.all(aiguard.EventMemorySpike), 1)
	require.EqualValues(t, 1_000_000, rec.all(aiguard.EventMemorySpike)[0].AnswerBytes, "as far as it was read")
}

// garbage keeps what a test allocates from the stack.
var garbage atomic.Pointer[[8 << 20]byte]

// A call that has moved next to nothing did not make the heap grow, whatever it was that did.
func TestMemorySpikeIsNotLaidAtTheDoorOfASmallCall(t *testing.T) {
	withoutGC(t)
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		aiguard.SetSpike(c.Guard(), 4<<20)
		srv.SetDefault(aiguardtest.After(time.Second, aiguardtest.Text("Hello!")))
		time.AfterFunc(time.Second/2, func() { garbage.Store(new([8 << 20]byte)) })
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		garbage.Store(nil)
		require.Empty(t, rec.all(aiguard.EventMemorySpike))
	})
}

// Programs keep responses for their headers. A closed stream must not keep its buffers, whoever reads or has read it.
func TestClosedStreamLetsGoOfItsBuffers(t *testing.T) {
	const streams, size = 20, 500 << 10
	srv := aiguardtest.NewServer(t)
	event := `{"choices":[{"index":0,"delta":{"content":"` + strings.Repeat("x", size) + `"}}]}`
	srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(event, event)))
	g := newGuard(t, aiguard.Config{MaxConcurrent: streams})
	client := &http.Client{Transport: g.Transport(nil)}
	for name, leave := range map[string]func(body io.ReadCloser){
		"read": func(body io.ReadCloser) {
			_, err := io.CopyN(io.Discard, body, size+size/2)
			require.NoError(t, err)
			require.NoError(t, body.Close())
		},
		"unread": func(body io.ReadCloser) { require.NoError(t, body.Close()) },
		"being read": func(body io.ReadCloser) {
			read := make(chan error)
			go func() { _, err := io.Copy(io.Discard, body); read <- err }()
			settles(t, "the reader waits for a third event", func() bool { return g.Stats().InFlight > 0 })
			require.NoError(t, body.Close())
			require.Error(t, <-read)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var kept []io.ReadCloser
			before := liveHeap()
			for range streams {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/chat/completions", strings.NewReader(`{"model":"m","stream":true,"messages":[]}`))
				require.NoError(t, err)
				req.Header.Set("Content-Type", "application/json")
				resp, err := client.Do(req)
				require.NoError(t, err)
				leave(resp.Body)
				kept = append(kept, resp.Body)
			}
			client.CloseIdleConnections()
			settles(t, "the server is done", func() bool { return srv.Active() == 0 })
			require.Less(t, liveHeap()-before, int64(2*size), "of %d streams", len(kept))
			runtime.KeepAlive(kept)
		})
	}
}

func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestMemoryLimitRefusesNewCalls(t *testing.T) {
	rec := &recorder{}
	g := newGuard(t, aiguard.Config{MemoryLimit: 1, OnEvent: rec.OnEvent})
	for range 3 {
		e := facts(t, do(t.Context(), g, func(context.Context) error { panic("not reached") }), aiguard.ErrOverloaded)
		require.Equal(t, "memory", e.Phase)
		require.Greater(t, e.Size, e.Max)
		require.Positive(t, e.RetryAfter)
	}
	require.Len(t, rec.all(aiguard.EventMemorySpike), 1, "told once, until it is below again")
	require.Len(t, rec.all(aiguard.EventRefused), 3)
	require.EqualValues(t, 1, g.Stats().MemoryLimit)
	require.Positive(t, g.Stats().HeapBytes)
	g = newGuard(t, aiguard.Config{MemoryLimit: 1 << 50})
	require.NoError(t, do(t.Context(), g, func(context.Context) error { return nil }))
}
