package aiguard_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// What `make mutants` found that no other test would notice.

func TestIdleTimerIsSetAnewForEachEvent(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Slowly(20*time.Second, aiguardtest.Events(hello, hello, hello))))
		start := time.Now()
		text, err := streamChat(t.Context(), c)
		require.Equal(t, "stream_idle", facts(t, err, aiguard.ErrTimeout).Phase)
		require.Equal(t, "HelloHelloHello", text)
		took(t, start, 3*20*time.Second+30*time.Second)
	})
}

// Events that come together are read one by one, as slowly as the reader likes; then comes the one wait that is bounded.
func TestSilenceAfterBufferedEventsIsBoundedFromItsFirstWait(t *testing.T) {
	together := aiguardtest.Bytes(strings.Repeat("data: "+hello+"\n\n", 4))
	for name, reply := range map[string]aiguardtest.Reply{
		"silence":             aiguardtest.HangAfter(together),
		"comments":            every(time.Second, ": ping\n\n", hello, hello, hello, hello),
		"half an event":       aiguardtest.HangAfter(aiguardtest.Bytes(strings.Repeat("data: "+hello+"\n\n", 4) + `data: {"id":"1",`)),
		"parts of an event":   every(time.Second, "data: 1\n", hello, hello, hello, hello),
		"events without data": every(time.Second, "data:\n\n", hello, hello, hello, hello),
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(reply)
				s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
				require.NoError(t, err)
				defer s.Close()
				for range 4 {
					_, err := s.Recv()
					require.NoError(t, err)
					time.Sleep(time.Minute)
				}
				start := time.Now()
				_, err = s.Recv()
				took(t, start, 30*time.Second)
				require.Equal(t, "stream_idle", facts(t, err, aiguard.ErrTimeout).Phase)
			})
		})
	}
}

func TestCallersDeadlineInTheQueueIsTheirOwn(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.After(20*time.Second, aiguardtest.Text("Hello!")))
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, err := chat(ctx, c)
		took(t, start, 5*time.Second)
		require.Equal(t, context.DeadlineExceeded, err)
		require.Empty(t, aiguard.KindOf(err))
		wg.Wait()
		require.Equal(t, 1, srv.Count())
		require.Zero(t, c.Guard().Stats().Refused+c.Guard().Stats().Failed)
	})
}

func TestPanicFreesItsSlotAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		start := time.Now()
		for range 3 {
			require.PanicsWithValue(t, "boom", func() {
				_ = do(t.Context(), g, func(context.Context) error { panic("boom") })
			})
			require.Zero(t, g.Stats().InFlight)
		}
		took(t, start, 0)
	})
}

func TestSlotIsFreeWhileARequestBacksOff(t *testing.T) {
	cfg := aiguard.Config{MaxConcurrent: 1, Retry: aiguard.Retry{BaseDelay: 8 * time.Second}}
	inVirtualTime(t, cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(503, ""))
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		synctest.Wait()
		require.Zero(t, c.Guard().Stats().InFlight)
		start := time.Now()
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		took(t, start, 0)
		wg.Wait()
		require.Equal(t, 3, srv.Count())
	})
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 2}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		ends := map[string]error{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		under := func(way string, call func() error) {
			wg.Go(func() {
				err := call()
				mu.Lock()
				defer mu.Unlock()
				ends[way] = err
			})
			synctest.Wait()
		}
		srv.Enqueue(aiguardtest.Error(503, "", "Retry-After", "20"), aiguardtest.HangAfter(aiguardtest.Events(hello)))
		srv.SetDefault(aiguardtest.Hang())
		hang := func() error { _, err := chat(t.Context(), c); return err }
		start := time.Now()
		under("backing off", hang)
		under("stream", func() error { _, err := streamChat(t.Context(), c); return err })
		under("in flight", hang)
		under("queued", hang)
		under("task", func() error {
			return g.RunTask(t.Context(), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		})
		require.Empty(t, ends)
		require.EqualValues(t, 2, g.Stats().InFlight)

		require.NoError(t, g.Close())
		wg.Wait()
		took(t, start, 0)
		require.Len(t, ends, 5)
		for way, err := range ends {
			require.ErrorIs(t, err, aiguard.ErrClosed, way)
			require.NotErrorIs(t, err, context.Canceled, "%s: the caller has not left", way)
		}
		synctest.Wait()
		require.Equal(t, 2, srv.Disconnects(), "the provider is told")
		_, err := chat(t.Context(), c)
		facts(t, err, aiguard.ErrClosed)
	})
}

func TestCloseEndsThoseInLineWhoeverHoldsTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(t, aiguard.Config{MaxConcurrent: 1})
		holding, release := make(chan struct{}), make(chan struct{})
		go do(t.Context(), g, func(context.Context) error { close(holding); <-release; return nil })
		<-holding
		start := time.Now()
		go func() {
			time.Sleep(time.Second)
			g.Close()
		}()
		facts(t, do(t.Context(), g, func(context.Context) error { return nil }), aiguard.ErrClosed)
		took(t, start, time.Second)
		close(release)
		synctest.Wait()
	})
}

func TestShutdownRefusesNewCallsAndWaitsForTheOthers(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		g := c.Guard()
		srv.SetDefault(aiguardtest.After(10*time.Second, aiguardtest.Text("Hello!")))
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		wg.Go(func() {
			assert.NoError(t, g.RunTask(t.Context(), func(ctx context.Context) error {
				for range 3 {
					if _, err := chat(ctx, c); err != nil {
						return err
					}
				}
				return nil
			}), "a task under way may finish its calls")
		})
		synctest.Wait()
		wg.Go(func() {
			assert.NoError(t, g.Shutdown(t.Context()))
			assert.Equal(t, 30*time.Second, time.Since(start))
		})
		synctest.Wait()
		_, err := chat(t.Context(), c)
		facts(t, err, aiguard.ErrClosed)
		took(t, start, 0)
		wg.Wait()
		require.Equal(t, 4, srv.Count())
		require.NoError(t, g.Shutdown(t.Context()), "again")
	})
}

func TestShutdownCancelsTheRestWhenItsTimeIsOver(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := chat(t.Context(), c)
			assert.ErrorIs(t, err, aiguard.ErrClosed)
			assert.Equal(t, 5*time.Second, time.Since(start))
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, c.Guard().Shutdown(ctx))
		wg.Wait()
	})
}

func TestGoodTimesSaveUpNoRetriesForAnOutage(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for range 500 {
			_, err := chat(t.Context(), c)
			require.NoError(t, err)
		}
		srv.SetDefault(aiguardtest.Error(500, "server_error"))
		start := time.Now()
		const calls = 50
		for range calls {
			_, err := chat(t.Context(), c)
			facts(t, err, aiguard.ErrUnavailable)
		}
		most := 10 + calls/10 + int(time.Since(start)/(10*time.Second)) + 1
		require.LessOrEqual(t, c.Guard().Stats().Retries, int64(most))
	})
}

func TestCallersThatWereToldToWaitDoNotComeBackTogether(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 8}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Handle(func(r *aiguardtest.Request) aiguardtest.Reply {
			if r.Number <= 8 {
				return aiguardtest.Error(408, "", "Retry-After", "10")
			}
			return aiguardtest.Text("Hello!")
		})
		start := time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _, err := chat(t.Context(), c); assert.NoError(t, err) })
		}
		wg.Wait()
		back := map[time.Duration]bool{}
		for _, r := range srv.Requests()[8:] {
			after := r.Time.Sub(start)
			require.GreaterOrEqual(t, after, 10*time.Second)
			require.LessOrEqual(t, after, 12500*time.Millisecond)
			back[after] = true
		}
		require.Greater(t, len(back), 4, "nearly each at a moment of its own")
	})
}

// Compression is between base and the provider: of bytes that the SDK asked to have compressed, no cap would know the size.
func TestAcceptEncodingOfTheSDKIsNotSent(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/models", nil)
		require.NoError(t, err)
		req.Header.Set("Accept-Encoding", "br, gzip")
		resp, err := c.Guard().Transport(base).RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "gzip", srv.Requests()[0].Header.Get("Accept-Encoding"), "the base's own")
		require.Equal(t, "br, gzip", req.Header.Get("Accept-Encoding"), "the caller's request is left as it is")
	})
}

// chunked writes a body of unannounced length.
func chunked(status int, contentType, body string) aiguardtest.Reply {
	return func(w http.ResponseWriter, r *aiguardtest.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, body)
	}
}

func TestAnswerOverItsCapByOneByteIsRefusedThoughUnannounced(t *testing.T) {
	const most = 10_000
	inVirtualTime(t, aiguard.Config{MaxResponseBytes: most}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		answer := func(size int) string {
			const head, tail = `{"choices":[{"index":0,"message":{"content":"`, `"},"finish_reason":"stop"}]}`
			return head + strings.Repeat("x", size-len(head)-len(tail)) + tail
		}
		srv.SetDefault(chunked(200, "application/json", answer(most)))
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		srv.SetDefault(chunked(200, "application/json", answer(most+1)))
		_, err = chat(t.Context(), c)
		require.EqualValues(t, most, facts(t, err, aiguard.ErrResponseTooLarge).Max)

		stream := func(size int) string {
			end := "data: " + finished + "\n\n"
			return "data: " + hello + "\n\n:" + strings.Repeat("x", size-len("data: "+hello+"\n\n:\n")-len(end)) + "\n" + end
		}
		srv.SetDefault(chunked(200, "text/event-stream", stream(most)))
		_, err = streamChat(t.Context(), c)
		require.NoError(t, err)
		srv.SetDefault(chunked(200, "text/event-stream", stream(most+1)))
		_, err = streamChat(t.Context(), c)
		require.EqualValues(t, most, facts(t, err, aiguard.ErrResponseTooLarge).Max)
	})
}

func TestOfAnErrorBodyNoMoreThan64KiBIsKept(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for name, body := range map[string]string{
			"JSON": `{"error":{"message":"` + strings.Repeat("x", 200_000) + `"}}`,
			"HTML": strings.Repeat("<p>", 100_000),
		} {
			srv.SetDefault(chunked(400, "application/json", body))
			_, err := chat(t.Context(), c)
			e := facts(t, err, aiguard.ErrRejected)
			require.Equal(t, 400, e.StatusCode, name)
			var re *openai.RequestError
			require.ErrorAs(t, err, &re, name)
			require.Len(t, re.Body, 64<<10, name)
		}
	})
}

func TestConnectionIsReusedThoughTheBodyEndsAfterDone(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
			aiguardtest.Events(hello, finished, "[DONE]")(w, r)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(10 * time.Millisecond)
		})
		for range 5 {
			_, err := streamChat(t.Context(), c)
			require.NoError(t, err)
		}
		_, total := srv.Conns()
		require.Equal(t, 1, total)
	})
}

func TestStreamIsOverSoonAfterDoneThoughTheProviderHangs(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for name, reply := range map[string]aiguardtest.Reply{
			"silent":  aiguardtest.HangAfter(aiguardtest.Events(hello, finished, "[DONE]")),
			"talking": pings(hello, finished, "[DONE]"),
		} {
			srv.SetDefault(reply)
			start := time.Now()
			_, err := streamChat(t.Context(), c)
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(start), 100*time.Millisecond, name)
			require.Zero(t, c.Guard().Stats().InFlight, name)
		}
	})
}

func TestRetryOfARequestSendsItsBodyAgain(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.Enqueue(aiguardtest.Error(503, ""), aiguardtest.Drop())
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
		reqs := srv.Requests()
		require.Len(t, reqs, 3)
		for _, r := range reqs {
			require.NotEmpty(t, r.Body)
			require.Equal(t, string(reqs[0].Body), string(r.Body))
		}
	})
}
