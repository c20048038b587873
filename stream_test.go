package aiguard_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// Pieces of streams.
const (
	hello    = `{"id":"1","choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}`
	finished = `{"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`
)

func TestStreamIsHandedOverAtItsFirstEvent(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Slowly(10*time.Second, aiguardtest.Events(hello, hello, finished, "[DONE]")))
		start := time.Now()
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		defer s.Close()
		took(t, start, 10*time.Second)
		require.EqualValues(t, 1, c.Guard().Stats().InFlight, "a stream holds its slot")
		text, err := recvAll(s)
		require.Equal(t, io.EOF, err)
		require.Equal(t, "HelloHello", text)
		took(t, start, 40*time.Second)
		require.Zero(t, c.Guard().Stats().InFlight, "until it ends")
		require.EqualValues(t, 1, c.Guard().Stats().Succeeded)
	})
}

func TestStreamsThatStallTimeOut(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reply aiguardtest.Reply
		cfg   aiguard.Config
		phase string
		after time.Duration
	}{
		{"no headers", aiguardtest.Hang(), aiguard.Config{}, "first_event", 30 * time.Second},
		{"no event", aiguardtest.HangAfter(aiguardtest.Bytes("")), aiguard.Config{}, "first_event", 30 * time.Second},
		{"pings only", pings(), aiguard.Config{}, "first_event", 30 * time.Second},
		{"blank lines only", every(time.Second, "\n\n"), aiguard.Config{}, "first_event", 30 * time.Second},
		{"silence", aiguardtest.HangAfter(aiguardtest.Events(hello)), aiguard.Config{}, "stream_idle", 30 * time.Second},
		{"pings after an event", pings(hello), aiguard.Config{}, "stream_idle", 30 * time.Second},
		{"half an event", aiguardtest.HangAfter(aiguardtest.Bytes("data: "+hello+"\n\n", "data: {")), aiguard.Config{}, "stream_idle", 30 * time.Second},
		{"never ends", every(time.Second, "data: "+hello+"\n\n"), aiguard.Config{}, "stream", 10 * time.Minute},
		{"shorter stream timeout", every(time.Second, "data: "+hello+"\n\n"), aiguard.Config{StreamTimeout: time.Minute}, "stream", time.Minute},
		{"shorter idle timeout", aiguardtest.HangAfter(aiguardtest.Events(hello)), aiguard.Config{StreamIdleTimeout: time.Second}, "stream_idle", time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inVirtualTime(t, tc.cfg, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				start := time.Now()
				_, err := streamChat(t.Context(), c)
				took(t, start, tc.after)
				e := facts(t, err, aiguard.ErrTimeout)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Equal(t, tc.phase, e.Phase)
				require.Equal(t, tc.after, e.Limit)
				require.Equal(t, tc.after, e.InFlight)
				require.Equal(t, 1, srv.Count())
				synctest.Wait()
				require.Equal(t, 1, srv.Disconnects(), "the provider is told")
			})
		})
	}
}

// every writes text again and again until the client leaves.
func every(d time.Duration, text string, before ...string) aiguardtest.Reply {
	return func(w http.ResponseWriter, r *aiguardtest.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w).Flush
		for _, ev := range before {
			fmt.Fprintf(w, "data: %s\n\n", ev)
		}
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, text); err != nil {
				return
			}
			_ = flush()
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
	}
}

func pings(before ...string) aiguardtest.Reply { return every(time.Second, ": ping\n\n", before...) }

func TestHealthyStreamMayBeLongAndItsReaderSlow(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Slowly(20*time.Second, aiguardtest.TextN("Hello, hello, hello!", 15)))
		start := time.Now()
		text, err := streamChat(t.Context(), c)
		require.NoError(t, err, "longer than CallTimeout and TotalTimeout")
		require.Equal(t, "Hello, hello, hello!", text)
		require.Greater(t, time.Since(start), 5*time.Minute)

		srv.SetDefault(aiguardtest.TextN("Hello, hello, hello!", 5))
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		defer s.Close()
		for range 5 {
			_, err := s.Recv()
			require.NoError(t, err)
			time.Sleep(time.Minute) // a slow reader is not an idle stream
		}
		_, err = recvAll(s)
		require.Equal(t, io.EOF, err)
	})
}

func TestManyPingsDoNotHarmAGoodAnswer(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		ping := strings.Repeat(": ping\n\n\n\n", 400)
		srv.SetDefault(aiguardtest.Bytes(ping, "data: "+hello+"\n\n", ping, "data:\n\nevent: keep-alive\ndata:\n\n", "data: "+finished+"\n\n", ping, "data: [DONE]\n\n"))
		text, err := streamChat(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "Hello", text)
	})
}

func TestEndOfStream(t *testing.T) {
	second := strings.ReplaceAll(hello, `"index":0`, `"index":1`)
	text := func(s string) string { return strings.ReplaceAll(hello, "Hello", s) } // like hello but for that
	for _, tc := range []struct {
		name  string
		reply aiguardtest.Reply
		kind  aiguard.Kind // "": a good end
		text  string
	}{
		{"finish and done", aiguardtest.Events(hello, finished, "[DONE]"), "", "Hello"},
		{"done without newline", aiguardtest.Bytes("data: " + hello + "\n\ndata: " + finished + "\n\ndata: [DONE]"), "", "Hello"},
		{"done missing", aiguardtest.Events(hello, finished), "", "Hello"},
		{"done missing, hangs", aiguardtest.HangAfter(aiguardtest.Events(hello, finished)), "", "Hello"},
		{"done missing, cut", aiguardtest.Cut(1<<20, aiguardtest.Events(hello, finished)), "", "Hello"},
		{"done, then hangs", aiguardtest.HangAfter(aiguardtest.Events(hello, finished, "[DONE]")), "", "Hello"},
		{"done without finish", aiguardtest.Events(hello, "[DONE]"), "", "Hello"},
		{"usage last", aiguardtest.Events(hello, finished, `{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}`, "[DONE]"), "", "Hello"},
		{"CRLF", aiguardtest.Bytes("data: " + hello + "\r\n\r\ndata: " + finished + "\r\n\r\ndata: [DONE]\r\n\r\n"), "", "Hello"},
		{"JSON over lines", aiguardtest.Bytes("data: {\"choices\":\ndata: [{\"delta\":{\"content\":\"Hello\"},\ndata: \"finish_reason\":\"stop\"}]}\n\n"), "", "Hello"},
		{"text like JSON", aiguardtest.Events(hello, text(`\"},\"error\":{`), text(`\\`), text(""), text("日本"), finished), "", `Hello"},"error":{\日本`},
		{"as text/plain", func(w http.ResponseWriter, r *aiguardtest.Request) {
			_, _ = io.WriteString(w, "data: "+hello+"\n\ndata: "+finished+"\n\n")
		}, "", "Hello"},

		{"no finish", aiguardtest.Events(hello), aiguard.ErrTruncated, "Hello"},
		{"last line complete without newline", aiguardtest.Bytes("data: " + hello + "\n\ndata: " + hello), aiguard.ErrTruncated, "HelloHello"},
		{"one of two choices finished", aiguardtest.Events(hello, second, finished), aiguard.ErrTruncated, "HelloHello"},
		{"cut in an event", aiguardtest.Cut(len("data: "+hello+"\n\n")+20, aiguardtest.Events(hello, hello, finished)), aiguard.ErrTruncated, "Hello"},
		{"ends in an event", aiguardtest.Bytes("data: "+hello+"\n\n", `data: {"choices":[{"de`), aiguard.ErrTruncated, "Hello"},
		{"cut between", aiguardtest.Cut(len("data: "+hello+"\n\n"), aiguardtest.Events(hello, finished)), aiguard.ErrTruncated, "Hello"},
		{"empty", aiguardtest.Bytes(""), aiguard.ErrTruncated, ""},
		{"only done", aiguardtest.Events("[DONE]"), aiguard.ErrInvalidResponse, ""},
		{"malformed event", aiguardtest.Events(hello, "{]", finished), aiguard.ErrInvalidResponse, "Hello"},
		{"junk behind the event", aiguardtest.Events(hello, hello+"x", finished), aiguard.ErrInvalidResponse, "Hello"},
		{"malformed text", aiguardtest.Events(hello, text(`\x`), finished), aiguard.ErrInvalidResponse, "Hello"},
		{"text that ends early", aiguardtest.Events(hello, text(`"`), finished), aiguard.ErrInvalidResponse, "Hello"},
		{"junk behind the text", aiguardtest.Events(hello, text("x")+"x", finished), aiguard.ErrInvalidResponse, "Hello"},
		{"text event", aiguardtest.Events(hello, "oops", finished), aiguard.ErrInvalidResponse, "Hello"},
		{"JSON", aiguardtest.JSON(200, hello), aiguard.ErrInvalidResponse, ""},
		{"JSON error", aiguardtest.JSON(200, `{"error":{"message":"x","code":"rate_limit_exceeded"}}`), aiguard.ErrRateLimited, ""},
		{"HTML", aiguardtest.Raw(200, "text/html", "<h1>Log in</h1>"), aiguard.ErrInvalidResponse, ""},
		{"plain text", aiguardtest.Raw(200, "text/plain", "upstream error"), aiguard.ErrInvalidResponse, ""},

		{"error first", aiguardtest.Events(`{"error":{"message":"x","code":"insufficient_quota"}}`), aiguard.ErrQuota, ""},
		{"error", aiguardtest.Events(hello, `{"error":{"message":"x","type":"server_error"}}`), aiguard.ErrUnavailable, "Hello"},
		{"error, spaced", aiguardtest.Bytes("data: "+hello+"\n\n", "data:   { \"error\" : { \"code\" : \"rate_limit_exceeded\" } }  \n\n"), aiguard.ErrRateLimited, "Hello"},
		{"error, no space", aiguardtest.Bytes("data: "+hello+"\n\n", "data:{\"error\":{\"code\":\"rate_limit_exceeded\"}}\n"), aiguard.ErrRateLimited, "Hello"},
		{"error after a ping, then hangs", aiguardtest.HangAfter(aiguardtest.Bytes("data: "+hello+"\n\n", ": ping\n\ndata: {\"error\":{\"code\":\"rate_limit_exceeded\"}}\n")), aiguard.ErrRateLimited, "Hello"},
		{"error without newline", aiguardtest.Bytes("data: "+hello+"\n\n", `data: {"error":{"code":"rate_limit_exceeded"}}`), aiguard.ErrRateLimited, "Hello"},
		{"error text", aiguardtest.Events(hello, `{"error":"overloaded"}`), aiguard.ErrUnavailable, "Hello"},
		{"error event of text", aiguardtest.Bytes("data: "+hello+"\n\n", "event: error\ndata: overloaded\n\n"), aiguard.ErrUnavailable, "Hello"},
		{"error as bare JSON", aiguardtest.Bytes("data: "+hello+"\n\n", "{\n  \"error\": {\n    \"code\": \"rate_limit_exceeded\"\n  }\n}\n"), aiguard.ErrRateLimited, "Hello"},
		{"error in the name of an event like others", aiguardtest.Bytes("data: "+hello+"\n\n", "event: error\ndata: "+text("x")+"\n\n"), aiguard.ErrUnavailable, "Hello"},
		{"numeric code", aiguardtest.Events(hello, `{"error":{"message":"x","code":429}}`), aiguard.ErrRateLimited, "Hello"},

		{"line too long", aiguardtest.Bytes("data: "+hello+"\n\n", "data: \""+strings.Repeat("x", 1<<20)), aiguard.ErrResponseTooLarge, "Hello"},
		{"too many objects", aiguardtest.Events(hello, `{"choices":[`+strings.Repeat("{},", 100_000)+`{}]}`), aiguard.ErrResponseTooLarge, "Hello"},
		{"too deep", aiguardtest.Events(hello, strings.Repeat(`{"a":`, 101)+"1"+strings.Repeat("}", 101)), aiguard.ErrResponseTooLarge, "Hello"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{MaxEventBytes: 1 << 20, Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(tc.reply)
				text, err := streamChat(t.Context(), c)
				require.Equal(t, tc.text, text)
				if tc.kind == "" {
					require.NoError(t, err)
					require.EqualValues(t, 1, c.Guard().Stats().Succeeded)
					return
				}
				e := facts(t, err, tc.kind)
				require.Equal(t, 1, e.Attempts)
				require.Equal(t, "chat.completions", e.Op)
				require.EqualValues(t, 1, c.Guard().Stats().Failed)
			})
		})
	}
}

func TestFailureBeforeTheFirstEventIsRetried(t *testing.T) {
	for name, reply := range map[string]aiguardtest.Reply{
		"empty":       aiguardtest.Bytes(""),
		"cut":         aiguardtest.Cut(10, aiguardtest.Events(hello)),
		"malformed":   aiguardtest.Events("{]"),
		"error event": aiguardtest.Events(`{"error":{"type":"server_error"}}`),
		"JSON":        aiguardtest.JSON(200, `{"choices":[]}`),
		"HTML":        aiguardtest.Raw(200, "text/html", "<p>"),
		"503":         aiguardtest.Error(503, ""),
		"closed":      aiguardtest.Drop(),
	} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.Enqueue(reply)
				text, err := streamChat(t.Context(), c)
				require.NoError(t, err)
				require.Equal(t, "Hello!", text)
				require.Equal(t, 2, srv.Count())
			})
		})
	}
}

func TestLeavingAStreamFreesItsSlotAtOnce(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		start := time.Now()
		open := func(ctx context.Context) *openai.ChatCompletionStream {
			s, err := c.CreateChatCompletionStream(ctx, chatRequest)
			require.NoError(t, err)
			_, err = s.Recv()
			require.NoError(t, err)
			return s
		}
		s := open(t.Context())
		require.NoError(t, s.Close())
		synctest.Wait()
		require.Zero(t, c.Guard().Stats().InFlight)
		require.Equal(t, 1, srv.Disconnects())
		_, err := s.Recv()
		require.Error(t, err)
		require.NotEqual(t, io.EOF, err, "a closed stream is not a complete one")

		ctx, cancel := context.WithCancel(t.Context())
		s = open(ctx)
		cancel()
		synctest.Wait()
		require.Zero(t, c.Guard().Stats().InFlight, "before anybody reads or closes")
		require.Equal(t, 2, srv.Disconnects())
		_, err = s.Recv()
		require.ErrorIs(t, err, context.Canceled)
		require.Empty(t, aiguard.KindOf(err))

		ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		s = open(ctx)
		_, err = s.Recv()
		require.Equal(t, context.DeadlineExceeded, err, "the caller's own, while it waits")

		s = open(t.Context())
		go s.Close() // from another goroutine, while one reads
		_, err = s.Recv()
		require.Error(t, err)
		took(t, start, 3*time.Second)
		st := c.Guard().Stats()
		require.EqualValues(t, 4, st.Calls)
		require.Zero(t, st.Failed+st.Succeeded+st.Refused)
	})
}

func TestAbandonedStreamIsEndedByStreamTimeout(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		time.Sleep(10*time.Minute - time.Second)
		require.EqualValues(t, 1, c.Guard().Stats().InFlight)
		time.Sleep(2 * time.Second)
		require.Zero(t, c.Guard().Stats().InFlight)
		require.Len(t, rec.all(aiguard.EventAbandoned), 1)
		done := rec.all(aiguard.EventDone)
		require.Len(t, done, 1)
		require.Equal(t, "stream", facts(t, done[0].Err, aiguard.ErrTimeout).Phase)
		_, _ = s.Recv() // what had come
		_, err = s.Recv()
		require.Equal(t, done[0].Err, err, "who comes back late is told")
	})
}

func TestReaderOfAnEndedStreamFindsItCountedWhileOnEventRuns(t *testing.T) {
	var over chan struct{}
	slow := func(_ context.Context, e aiguard.Event) {
		if e.Type == aiguard.EventAbandoned {
			<-over
		}
	}
	inVirtualTime(t, aiguard.Config{OnEvent: slow}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		over = make(chan struct{})
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Events(hello)))
		s, err := c.CreateChatCompletionStream(t.Context(), chatRequest)
		require.NoError(t, err)
		time.Sleep(11 * time.Minute)
		_, _ = s.Recv() // what had come
		_, err = s.Recv()
		require.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(err))
		require.EqualValues(t, 1, c.Guard().Stats().Failed)
		close(over)
	})
}

func TestResponsesStreamEndsWithItsLastEvent(t *testing.T) {
	created := `{"type":"response.created","response":{"id":"r","status":"in_progress"}}`
	delta := `{"type":"response.output_text.delta","delta":"Hello"}`
	for _, tc := range []struct {
		name string
		last string
		kind aiguard.Kind
	}{
		{"completed", `{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3,"output_tokens":4}}}`, ""},
		{"incomplete", `{"type":"response.incomplete","response":{"id":"r","incomplete_details":{"reason":"max_output_tokens"}}}`, ""},
		{"failed", `{"type":"response.failed","response":{"id":"r","status":"failed","error":{"code":"server_error","message":"x"}}}`, aiguard.ErrUnavailable},
		{"failed by limit", `{"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"x"}}}`, aiguard.ErrRateLimited},
		{"error", `{"type":"error","code":"insufficient_quota","message":"x","param":null}`, aiguard.ErrQuota},
		{"cut", delta, aiguard.ErrTruncated},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &recorder{}
			inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(aiguardtest.Events(created, delta, tc.last))
				s, err := c.CreateResponseStream(t.Context(), openai.CreateResponseRequest{Model: "m", Input: "x"})
				require.NoError(t, err)
				defer s.Close()
				var types []openai.ResponseStreamEventType
				for {
					var ev openai.ResponseStreamEvent
					if ev, err = s.Recv(); err != nil {
						break
					}
					types = append(types, ev.Type)
				}
				require.Contains(t, types, openai.ResponseStreamEventOutputTextDelta)
				if tc.kind == "" {
					require.Equal(t, io.EOF, err)
				} else {
					facts(t, err, tc.kind)
				}
				if tc.name == "completed" {
					require.Equal(t, aiguard.Usage{Input: 3, Output: 4}, rec.all(aiguard.EventDone)[0].Usage)
				}
			})
		})
	}
}

func TestEventLinesReachOtherSDKsOnly(t *testing.T) {
	stream := "event: message_start\nid: 7\ndata: {\"type\":\"message_start\"}\n\n: ping\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Bytes(stream))
		base := srv.Transport()
		defer base.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/messages", strings.NewReader(`{"model":"claude","stream":true}`))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Guard().Transport(base).RoundTrip(req)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, "event: message_start\nid: 7\ndata: {\"type\":\"message_start\"}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", string(body))

		srv.SetDefault(aiguardtest.Bytes("event: x\n" + strings.Repeat("event: y\n", 500) + "data: " + hello + "\n\ndata: " + finished + "\n\n"))
		text, err := streamChat(t.Context(), c)
		require.NoError(t, err, "go-openai gives up at 300 of them")
		require.Equal(t, "Hello", text)
	})
}

func TestStreamPassesUnchangedHoweverItArrives(t *testing.T) {
	want := "event: x\ndata: " + hello + "\n\ndata: " + finished + "\n\ndata: [DONE]\n\n"
	for size := range byte(len(want)) {
		g := fuzzGuard(t)
		resp, err := ask(t, g, "/chat/completions", `{"stream":true}`, 200, "text/event-stream", &chunks{Reader: strings.NewReader(want), sizes: []byte{size}})
		require.NoError(t, err)
		got, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want, string(got), "%d bytes at a time", size+1)
		require.NoError(t, g.Close())
	}
}

func TestUsageOfAStreamIsReported(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		r := chatRequest
		r.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
		s, err := c.CreateChatCompletionStream(t.Context(), r)
		require.NoError(t, err)
		defer s.Close()
		_, err = recvAll(s)
		require.Equal(t, io.EOF, err)
		require.Positive(t, rec.all(aiguard.EventDone)[0].Usage.Output)
		require.Len(t, rec.all(aiguard.EventFirstEvent), 1)
	})
}

func TestMaxResponseBytesHoldsForStreams(t *testing.T) {
	for name, text := range map[string]string{"events": "data: " + hello + "\n\n", "comments": ": " + strings.Repeat("x", 1000) + "\n"} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, aiguard.Config{MaxResponseBytes: 100_000, StreamTimeout: time.Hour}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
				srv.SetDefault(every(time.Millisecond, text, hello))
				_, err := streamChat(t.Context(), c)
				e := facts(t, err, aiguard.ErrResponseTooLarge)
				require.EqualValues(t, 100_000, e.Max)
			})
		})
	}
}

func TestPlainBodiesStreamThroughUnderTheBounds(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxResponseBytes: 1000}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		speech := func() ([]byte, error) {
			resp, err := c.CreateSpeech(t.Context(), openai.CreateSpeechRequest{Model: openai.TTSModel1, Input: "x"})
			if err != nil {
				return nil, err
			}
			defer resp.Close()
			require.EqualValues(t, 1, c.Guard().Stats().InFlight)
			return io.ReadAll(resp)
		}
		srv.SetDefault(aiguardtest.Raw(200, "audio/mpeg", "sound"))
		b, err := speech()
		require.NoError(t, err)
		require.Equal(t, "sound", string(b))

		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.Raw(200, "audio/mpeg", "sou")))
		b, err = speech()
		require.Equal(t, "stream_idle", facts(t, err, aiguard.ErrTimeout).Phase)
		require.Equal(t, "sou", string(b))

		srv.SetDefault(aiguardtest.Cut(3, aiguardtest.Raw(200, "audio/mpeg", "sound")))
		_, err = speech()
		facts(t, err, aiguard.ErrTruncated)

		srv.SetDefault(every(time.Millisecond, strings.Repeat("x", 100)))
		b, err = speech()
		facts(t, err, aiguard.ErrResponseTooLarge)
		require.LessOrEqual(t, len(b), 1000)

		srv.SetDefault(aiguardtest.Raw(200, "audio/mpeg", strings.Repeat("x", 1001)))
		_, err = speech()
		facts(t, err, aiguard.ErrResponseTooLarge)
	})
}

func TestStreamIsWellFormedHoweverItIsRead(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		srv.SetDefault(aiguardtest.Events(hello, finished, "[DONE]"))
		body, _ := json.Marshal(map[string]any{"model": "m", "stream": true})
		req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/chat/completions", strings.NewReader(string(body)))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Guard().Transport(base).RoundTrip(req)
		require.NoError(t, err)
		var got []byte
		for one := make([]byte, 1); ; {
			n, err := resp.Body.Read(one)
			got = append(got, one[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
		}
		require.Equal(t, "data: "+hello+"\n\ndata: "+finished+"\n\ndata: [DONE]\n\n", string(got))
		require.NoError(t, resp.Body.Close())
	})
}

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
