package aiguardtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

func TestJSONAndRawSendWhatTheyAreGiven(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(
			aiguardtest.JSON(201, `{"a":1}`, "X-A", "1", "X-B", "2"),
			aiguardtest.JSON(200, "{}", "Content-Type", "application/problem+json"),
			aiguardtest.JSON(204, ""),
			aiguardtest.Raw(502, "text/html", "<html>"),
		)
		resp, body, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, 201, resp.StatusCode)
		assert.Equal(t, `{"a":1}`, body)
		assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
		assert.Equal(t, "12", resp.Header.Get("X-A")+resp.Header.Get("X-B"))

		resp, _, err = post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))

		resp, body, err = post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, 204, resp.StatusCode)
		assert.Empty(t, body)

		resp, body, err = post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, 502, resp.StatusCode)
		assert.Equal(t, "text/html", resp.Header.Get("Content-Type"))
		assert.Equal(t, "<html>", body)
		assert.Zero(t, s.Disconnects())
	})
	alone := []string{"X-Alone"}
	assert.Panics(t, func() { aiguardtest.JSON(200, "", alone...) })
}

func TestErrorHasOpenAIForm(t *testing.T) {
	s := aiguardtest.NewServer(t)
	hc := newHTTP(t, s)
	for _, tt := range []struct {
		status int
		code   string
		typ    string
	}{
		{429, "rate_limit_exceeded", "rate_limit_error"},
		{429, "insufficient_quota", "insufficient_quota"},
		{500, "", "server_error"},
		{401, "invalid_api_key", "invalid_request_error"},
	} {
		s.Enqueue(aiguardtest.Error(tt.status, tt.code, "Retry-After", "2"))
		_, err := newClient(s, hc).CreateChatCompletion(t.Context(), chatRequest())
		var e *openai.APIError
		require.ErrorAs(t, err, &e)
		assert.Equal(t, tt.status, e.HTTPStatusCode)
		assert.Equal(t, tt.typ, e.Type)
		assert.Contains(t, e.Message, aiguardtest.ProviderText)
		assert.Nil(t, e.Param)
		if tt.code == "" {
			assert.Zero(t, e.Code) // go-openai decodes null as zero
		} else {
			assert.Equal(t, tt.code, e.Code)
		}
	}
	s.Enqueue(aiguardtest.Error(429, "", "Retry-After", "2"))
	resp, body, err := post(t.Context(), s, hc, chatBody)
	require.NoError(t, err)
	assert.Equal(t, "2", resp.Header.Get("Retry-After"))
	assert.Contains(t, body, `"param":null,"code":null}}`)
	assert.True(t, json.Valid([]byte(body)))
}

func TestEventsAndBytesAreSentOneByOneAndExactly(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(
			aiguardtest.Events(`{"a":1}`, "[DONE]"),
			aiguardtest.Bytes(": ping\n", "da", "ta:x"),
			aiguardtest.Events(),
		)
		resp, body, err := post(t.Context(), s, c, streamBody)
		require.NoError(t, err)
		assert.Equal(t, "data: {\"a\":1}\n\ndata: [DONE]\n\n", body)
		assert.Contains(t, resp.Header.Get("Content-Type"), "text/event-stream")
		_, body, err = post(t.Context(), s, c, streamBody)
		require.NoError(t, err)
		assert.Equal(t, ": ping\ndata:x", body)
		resp, body, err = post(t.Context(), s, c, streamBody)
		require.NoError(t, err)
		assert.Empty(t, body)
		assert.Contains(t, resp.Header.Get("Content-Type"), "text/event-stream")

		// Events are sent one by one: the first arrives while the second is held back.
		second := make(chan struct{})
		s.Enqueue(func(w http.ResponseWriter, r *aiguardtest.Request) {
			aiguardtest.Events("first")(w, r)
			<-second
			_, _ = io.WriteString(w, "data: second\n\n")
		})
		res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
		require.NoError(t, err)
		defer res.Body.Close()
		readUntil(t, res.Body, "first")
		close(second)
		readUntil(t, res.Body, "second")
	})
}

func TestHeadersThenSendsHeadersAndOnlyTheBodyOfNext(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		for body, contentType := range map[string]string{chatBody: "application/json", streamBody: "text/event-stream"} {
			s.Enqueue(aiguardtest.HeadersThen(time.Millisecond, aiguardtest.Raw(500, "text/html", "oops")))
			resp, got, err := post(t.Context(), s, c, body)
			require.NoError(t, err)
			assert.Equal(t, 200, resp.StatusCode)
			assert.Contains(t, resp.Header.Get("Content-Type"), contentType)
			assert.Equal(t, "oops", got)
		}
		s.Enqueue(aiguardtest.HeadersThen(time.Hour, aiguardtest.Text("never")))
		res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
		require.NoError(t, err, "headers come at once")
		require.NoError(t, res.Body.Close())
		eventually(t, func() bool { return s.Disconnects() == 1 && s.Active() == 0 }, "a client that leaves is noticed")
	})
}

func TestHangAfterSendsEverythingAndNeverEnds(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		for i, body := range []string{streamBody, chatBody} {
			s.Enqueue(aiguardtest.HangAfter(aiguardtest.Text("Hi")))
			res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(body))
			require.NoError(t, err)
			readUntil(t, res.Body, "stop")
			assert.Equal(t, 1, s.Active())
			require.NoError(t, res.Body.Close())
			eventually(t, func() bool { return s.Active() == 0 && s.Disconnects() == i+1 }, "disconnect")
		}
	})
}

func TestCutSendsExactlyNBytes(t *testing.T) {
	const body = "0123456789"
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		for n, want := range map[int]string{0: "", 1: "0", 5: "01234", 10: body, 11: body} {
			for name, next := range map[string]aiguardtest.Reply{
				"bytes":          aiguardtest.Bytes("01", "2345", "6789"),
				"raw":            aiguardtest.Raw(200, "text/plain", body),
				"content length": aiguardtest.JSON(200, body, "Content-Length", "10"),
				"slowly":         aiguardtest.Slowly(time.Microsecond, aiguardtest.Bytes("01", "2345", "6789")),
			} {
				s.Enqueue(aiguardtest.Cut(n, next))
				resp, got, err := post(t.Context(), s, c, streamBody)
				require.NotNil(t, resp, "%s %d: headers arrive: %v", name, n, err)
				assert.Equal(t, want, got)
				require.Error(t, err, "%s %d", name, n)
				if resp.ProtoMajor == 1 {
					assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
				} else {
					assert.ErrorContains(t, err, "stream error")
				}
			}
		}
		assert.Zero(t, s.Disconnects(), "a server error is no disconnect")
	})
}

func TestResetConnAndDropAnswerNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		pipe, http2 := strings.Contains(s.URL, "fake.openai"), strings.HasPrefix(s.URL, "https")

		s.Enqueue(aiguardtest.ResetConn())
		_, _, err := post(t.Context(), s, c, chatBody)
		switch {
		case http2:
			assert.ErrorContains(t, err, "stream error")
			open, total := s.Conns()
			assert.Equal(t, []int{1, 1}, []int{open, total}, "the connection stays")
		case pipe:
			assert.ErrorIs(t, err, io.EOF)
		default:
			assert.ErrorIs(t, err, syscall.ECONNRESET)
		}

		s.Enqueue(aiguardtest.Drop())
		_, _, err = post(t.Context(), s, c, chatBody)
		require.Error(t, err)
		if !http2 {
			assert.ErrorIs(t, err, io.EOF)
		}
		eventually(t, func() bool { open, _ := s.Conns(); return open == 0 }, "the connection is closed")

		_, _, err = post(t.Context(), s, c, chatBody)
		require.NoError(t, err, "the next one works")
		assert.Zero(t, s.Disconnects())
	})
}

func TestResetConnOverTLSWithHTTP1(t *testing.T) {
	s := aiguardtest.NewServer(t, aiguardtest.TLS())
	tr := s.Transport()
	tr.ForceAttemptHTTP2 = false
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	_, _, err := post(t.Context(), s, c, chatBody)
	require.NoError(t, err)
	assert.Equal(t, "HTTP/1.1", s.Requests()[0].Proto)
	s.Enqueue(aiguardtest.ResetConn(), aiguardtest.Drop())
	_, _, err = post(t.Context(), s, c, chatBody)
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	_, _, err = post(t.Context(), s, c, chatBody)
	assert.ErrorIs(t, err, io.EOF)
}

func TestThenAndFailFirstCountEveryRequest(t *testing.T) {
	s := aiguardtest.NewServer(t)
	c := newHTTP(t, s)
	ask := func(want int) {
		t.Helper()
		resp, _, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Equal(t, want, resp.StatusCode)
	}
	s.SetDefault(aiguardtest.Then(aiguardtest.Error(500, ""), aiguardtest.Error(429, ""), aiguardtest.Text("ok")))
	for _, want := range []int{500, 429, 200, 200} {
		ask(want)
	}

	s.SetDefault(aiguardtest.FailFirst(10, aiguardtest.Error(503, ""), aiguardtest.Text("ok")))
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[int]int{}
	for range 30 {
		wg.Go(func() {
			resp, _, err := post(t.Context(), s, c, chatBody)
			if assert.NoError(t, err) {
				mu.Lock()
				got[resp.StatusCode]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	assert.Equal(t, map[int]int{503: 10, 200: 20}, got)
}

func TestEveryWaitEndsWhenTheClientLeaves(t *testing.T) {
	waits := map[string]aiguardtest.Reply{
		"Hang":        aiguardtest.Hang(),
		"After":       aiguardtest.After(time.Hour, aiguardtest.Text("x")),
		"HeadersThen": aiguardtest.HeadersThen(time.Hour, aiguardtest.Text("x")),
		"Slowly":      aiguardtest.Slowly(time.Hour, aiguardtest.Text("x")),
		"HangAfter":   aiguardtest.HangAfter(aiguardtest.Events("x")),
	}
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		n := 0
		for name, reply := range waits {
			n++
			s.Enqueue(reply)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for s.Count() < n { // until the whole request has arrived
					time.Sleep(time.Millisecond)
				}
				cancel()
			}()
			_, _, err := post(ctx, s, c, streamBody)
			require.ErrorIs(t, err, context.Canceled, name)
			eventually(t, func() bool { return s.Active() == 0 && s.Disconnects() == n }, name)
		}
	})
}

func TestEveryWaitEndsWithClose(t *testing.T) {
	for mode, opts := range modes {
		for name, reply := range map[string]aiguardtest.Reply{
			"Hang":      aiguardtest.Hang(),
			"After":     aiguardtest.After(time.Hour, aiguardtest.Text("x")),
			"Slowly":    aiguardtest.Slowly(time.Hour, aiguardtest.Text("x")),
			"HangAfter": aiguardtest.HangAfter(aiguardtest.Text("x")),
			"returns":   func(_ http.ResponseWriter, r *aiguardtest.Request) { <-r.Context().Done() },
			"writes for ever": func(w http.ResponseWriter, r *aiguardtest.Request) {
				for r.Context().Err() == nil {
					_, _ = w.Write(make([]byte, 1<<20))
				}
			},
		} {
			t.Run(mode+"/"+name, func(t *testing.T) {
				s := aiguardtest.Start(opts...)
				s.SetDefault(reply)
				tr := s.Transport()
				defer tr.CloseIdleConnections()
				errs := make(chan error, 1)
				go func() {
					res, err := (&http.Client{Transport: tr}).Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
					if err == nil {
						if name == "writes for ever" { // and nothing reads it
							<-t.Context().Done()
						}
						_, err = io.Copy(io.Discard, res.Body)
						_ = res.Body.Close()
					}
					errs <- err
				}()
				eventually(t, func() bool { return s.Active() == 1 }, "in progress")
				start := time.Now()
				s.Close()
				assert.Less(t, time.Since(start), 2*time.Second)
				assert.Zero(t, s.Active())
				if name != "writes for ever" {
					assert.Error(t, <-errs, "an answer that Close ended looks complete")
				}
				assert.Zero(t, s.Disconnects())
			})
		}
	}
}

// A Reply is a plain function that works without a server.
func TestRepliesWorkOnARecorder(t *testing.T) {
	r := &aiguardtest.Request{Method: "POST", Path: "/v1/chat/completions", Stream: true, Body: []byte(streamBody)}
	w := httptest.NewRecorder()
	aiguardtest.Slowly(time.Microsecond, aiguardtest.Text("Hi"))(w, r)
	assert.True(t, strings.HasSuffix(w.Body.String(), "data: [DONE]\n\n"))

	w = httptest.NewRecorder()
	assert.PanicsWithValue(t, http.ErrAbortHandler, func() { aiguardtest.Cut(3, aiguardtest.Raw(200, "text/plain", "12345"))(w, r) })
	assert.Equal(t, "123", w.Body.String())
	for _, reply := range []aiguardtest.Reply{aiguardtest.Drop(), aiguardtest.ResetConn()} {
		assert.PanicsWithValue(t, http.ErrAbortHandler, func() { reply(httptest.NewRecorder(), r) })
	}
}

func TestAPanicInAReplyBreaksOnlyItsOwnConnection(t *testing.T) {
	eachMode(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(func(http.ResponseWriter, *aiguardtest.Request) { panic(errors.New("bug")) })
		_, _, err := post(t.Context(), s, c, chatBody)
		require.Error(t, err)
		_, _, err = post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Zero(t, s.Active())
		assert.Zero(t, s.Disconnects())
	})
}
