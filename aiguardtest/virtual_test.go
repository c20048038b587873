package aiguardtest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/aiguardtest"
)

// eachPipe runs test in a bubble for HTTP/1.1 and HTTP/2. The bubble ends only if nothing is left running.
func eachPipe(t *testing.T, test func(t *testing.T, s *aiguardtest.Server, c *http.Client)) {
	for name, opts := range map[string][]aiguardtest.Option{
		"http1": {aiguardtest.Pipe()},
		"http2": {aiguardtest.Pipe(), aiguardtest.TLS()},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := aiguardtest.NewServer(t, opts...)
				test(t, s, newHTTP(t, s))
			})
		})
	}
}

func TestVirtualAfterAnswersOnTheSecond(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(aiguardtest.After(29*time.Second, aiguardtest.Text("x")))
		start := time.Now()
		_, body, err := post(t.Context(), s, c, chatBody)
		require.NoError(t, err)
		assert.Contains(t, body, `"content":"x"`)
		assert.Equal(t, 29*time.Second, time.Since(start))
		assert.True(t, s.Requests()[0].Time.Equal(start))
	})
}

func TestVirtualHangEndsWithTheClientsDeadline(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(aiguardtest.Hang())
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		start := time.Now()
		_, _, err := post(ctx, s, c, chatBody)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 30*time.Second, time.Since(start))
		synctest.Wait()
		assert.Equal(t, 1, s.Disconnects())
		assert.Zero(t, s.Active())
	})
}

func TestVirtualSlowStreamTakesItsTime(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, hc *http.Client) {
		const chunks = 100
		s.Enqueue(aiguardtest.Slowly(10*time.Second, aiguardtest.TextN("x", chunks)))
		start := time.Now()
		stream, err := newClient(s, hc).CreateChatCompletionStream(t.Context(), chatRequest())
		require.NoError(t, err)
		for n := 1; ; n++ {
			_, err := stream.Recv()
			assert.Equal(t, time.Duration(n)*10*time.Second, time.Since(start), "event %d", n)
			if errors.Is(err, io.EOF) {
				assert.Equal(t, chunks+2, n)
				break
			}
			require.NoError(t, err)
		}
		require.NoError(t, stream.Close())
		synctest.Wait()
		assert.Zero(t, s.Disconnects())
	})
}

func TestVirtualHeadersThenSendsHeadersAtOnce(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(aiguardtest.HeadersThen(time.Minute, aiguardtest.Text("x")))
		start := time.Now()
		res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
		_, err = io.Copy(io.Discard, res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.Equal(t, time.Minute, time.Since(start))
	})
}

func TestVirtualCloseEndsAReplyThatHangs(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(aiguardtest.HangAfter(aiguardtest.Events("x")))
		time.AfterFunc(time.Hour, s.Close)
		start := time.Now()
		_, body, err := post(t.Context(), s, c, streamBody)
		require.Error(t, err)
		assert.Equal(t, "data: x\n\n", body)
		assert.Equal(t, time.Hour, time.Since(start))
		assert.Zero(t, s.Disconnects())
	})
}

func TestVirtualSlowReaderIsWaitedFor(t *testing.T) {
	eachPipe(t, func(t *testing.T, s *aiguardtest.Server, c *http.Client) {
		s.Enqueue(aiguardtest.TextN(strings.Repeat("word ", 20_000), 1000))
		res, err := c.Post(s.URL+"/chat/completions", "application/json", strings.NewReader(streamBody))
		require.NoError(t, err)
		time.Sleep(time.Hour)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		assert.True(t, strings.HasSuffix(string(body), "data: [DONE]\n\n"))
		assert.Zero(t, s.Disconnects())
	})
}
