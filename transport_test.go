package aiguard_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	openai "github.com/sashabaranov/go-openai"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/aiguardtest"
)

// persistent is a Config for tests in real time. Its retries do not wait.
var persistent = aiguard.Config{Retry: aiguard.Retry{BaseDelay: time.Millisecond, Budget: aiguard.Off}}

// quick is persistent with a short timeout, for what never answers: on a busy machine an answer may take longer.
var quick = aiguard.Config{CallTimeout: 300 * time.Millisecond, Retry: persistent.Retry}

func clientOf(t *testing.T, cfg aiguard.Config, baseURL string, doer openai.HTTPDoer) *aiguard.Client {
	t.Helper()
	oc := openai.DefaultConfig("sk-secret-key")
	oc.BaseURL = baseURL
	oc.HTTPClient = doer
	return newGuard(t, cfg).Client(oc)
}

func TestConnectionsAreReused(t *testing.T) {
	answer := `{"choices":[{"index":0,"message":{"content":"Hello!"},"finish_reason":"stop"}]}`
	eachProtocol(t, func(t *testing.T, srv *aiguardtest.Server) {
		c := newClient(t, srv, aiguard.Config{})
		for name, reply := range map[string]aiguardtest.Reply{
			"answers":        aiguardtest.Text("Hello!"),
			"chunked":        aiguardtest.Slowly(0, aiguardtest.JSON(200, answer)),
			"trailing bytes": aiguardtest.JSON(200, answer+strings.Repeat(" \n", 5000)+"x"),
			"failures":       aiguardtest.Error(400, "nope"),
		} {
			srv.Reset()
			srv.SetDefault(reply)
			for range 20 {
				_, err := chat(t.Context(), c)
				require.Equal(t, name == "failures", err != nil, "%s: %v", name, err)
			}
			_, total := srv.Conns()
			require.LessOrEqual(t, total, 1, name)
		}
		srv.Reset()
		srv.SetDefault(aiguardtest.TextN("Hello, hello!", 10))
		for range 20 {
			text, err := streamChat(t.Context(), c)
			require.NoError(t, err)
			require.Equal(t, "Hello, hello!", text)
		}
		_, total := srv.Conns()
		require.LessOrEqual(t, total, 1, "streams")
	})
}

func TestBrokenConnectionsHaveTheirKind(t *testing.T) {
	eachProtocol(t, func(t *testing.T, srv *aiguardtest.Server) {
		c := newClient(t, srv, persistent)
		for _, tc := range []struct {
			name  string
			reply aiguardtest.Reply
			kind  aiguard.Kind
		}{
			{"reset", aiguardtest.ResetConn(), aiguard.ErrUnavailable},
			{"closed", aiguardtest.Drop(), aiguard.ErrUnavailable},
			{"cut", aiguardtest.Cut(10, aiguardtest.Text("Hello!")), aiguard.ErrTruncated},
		} {
			srv.Reset()
			srv.SetDefault(tc.reply)
			_, err := chat(t.Context(), c)
			require.Equal(t, 3, facts(t, err, tc.kind).Attempts, tc.name)
			srv.SetDefault(aiguardtest.Text("Hello!"))
			srv.Enqueue(tc.reply)
			_, err = chat(t.Context(), c)
			require.NoError(t, err, tc.name)
		}
		srv.SetDefault(aiguardtest.HangAfter(aiguardtest.HeadersThen(0, aiguardtest.JSON(200, `{"choi`))))
		start := time.Now()
		_, err := chat(t.Context(), c.With(aiguard.Call{Timeout: quick.CallTimeout}))
		e := facts(t, err, aiguard.ErrTimeout)
		require.Equal(t, "call", e.Phase)
		require.GreaterOrEqual(t, time.Since(start), quick.CallTimeout)
		require.Less(t, time.Since(start), 10*quick.CallTimeout)
	})
}

func TestErrorBodyThatStallsKeepsItsStatus(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.HangAfter(func(w http.ResponseWriter, r *aiguardtest.Request) {
			w.Header().Set("Retry-After", "300")
			w.WriteHeader(429)
			_, _ = io.WriteString(w, `{"error":`)
		}))
		start := time.Now()
		_, err := chat(t.Context(), c)
		took(t, start, 5*time.Second)
		e := facts(t, err, aiguard.ErrRateLimited)
		require.Equal(t, 429, e.StatusCode)
		require.Equal(t, 5*time.Minute, e.RetryAfter)
	})
}

func TestAnswersAreCapped(t *testing.T) {
	endless := func(status int, header ...string) aiguardtest.Reply {
		return func(w http.ResponseWriter, r *aiguardtest.Request) {
			w.Header().Set("Content-Type", "application/json")
			var out io.Writer = w
			if len(header) > 0 {
				w.Header().Set("Content-Encoding", header[0])
				z := gzip.NewWriter(w)
				defer z.Close()
				out = z
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(out, `{"error":{"message":"`)
			for zeros := strings.Repeat("0", 64<<10); r.Context().Err() == nil; {
				if _, err := io.WriteString(out, zeros); err != nil {
					return
				}
			}
		}
	}
	eachProtocol(t, func(t *testing.T, srv *aiguardtest.Server) {
		c := newClient(t, srv, aiguard.Config{MaxResponseBytes: 1 << 20, Retry: aiguard.Retry{BaseDelay: time.Millisecond}})
		for _, tc := range []struct {
			name     string
			reply    aiguardtest.Reply
			kind     aiguard.Kind
			attempts int
		}{
			{"long answer", endless(200), aiguard.ErrResponseTooLarge, 1},
			{"gzip bomb", endless(200, "gzip"), aiguard.ErrResponseTooLarge, 1},
			{"gzip bomb in an error", endless(500, "gzip"), aiguard.ErrResponseTooLarge, 1},
			{"long error", endless(500), aiguard.ErrUnavailable, 3},
			{"announced length", aiguardtest.JSON(200, strings.Repeat(" ", 1<<20+1)), aiguard.ErrResponseTooLarge, 1},
			{"amplification", aiguardtest.JSON(200, `{"choices":[`+strings.Repeat("{},", 150_000)+`{}]}`), aiguard.ErrResponseTooLarge, 1},
			{"unknown compression", aiguardtest.JSON(200, "x", "Content-Encoding", "br"), aiguard.ErrInvalidResponse, 1},
		} {
			srv.Reset()
			srv.SetDefault(tc.reply)
			_, err := chat(t.Context(), c)
			e := facts(t, err, tc.kind)
			require.Equal(t, tc.attempts, e.Attempts, tc.name)
			require.Equal(t, tc.attempts, srv.Count(), tc.name)
			require.Less(t, len(err.Error()), 1000, tc.name)
			var ae *openai.APIError
			if errors.As(err, &ae) {
				require.Less(t, len(ae.Message), 70<<10)
			}
		}
		srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			defer z.Close()
			_, _ = io.WriteString(z, `{"choices":[{"message":{"content":"small"}}]}`)
		})
		text, err := chat(t.Context(), c)
		require.NoError(t, err)
		require.Equal(t, "small", text, "honest compression works")
	})
}

func TestHeadersAreCapped(t *testing.T) {
	eachProtocol(t, func(t *testing.T, srv *aiguardtest.Server) {
		srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
			for i := range 100 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("x", 1000))
			}
			aiguardtest.Text("Hello!")(w, r)
		})
		base := srv.Transport() // with net/http's own cap of 10 MB: the guard's pool stops sooner, but nothing slips through
		defer base.CloseIdleConnections()
		for _, limit := range []int64{0, 64 << 10} {
			base = base.Clone()
			base.MaxResponseHeaderBytes = limit
			c := clientOf(t, persistent, srv.URL, &http.Client{Transport: base})
			srv.Reset()
			_, err := chat(t.Context(), c)
			require.Equal(t, 1, facts(t, err, aiguard.ErrInvalidResponse).Attempts)
			require.Equal(t, 1, srv.Count())
			base.CloseIdleConnections()
		}
	})
	srv := aiguardtest.NewServer(t)
	srv.SetDefault(aiguardtest.JSON(200, "{}", "X-Long", strings.Repeat("x", 70<<10)))
	_, err := chat(t.Context(), clientOf(t, persistent, srv.URL, nil))
	require.Equal(t, 1, facts(t, err, aiguard.ErrInvalidResponse).Attempts)
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	eachProtocol(t, func(t *testing.T, srv *aiguardtest.Server) {
		other := aiguardtest.NewServer(t)
		c := newClient(t, srv, aiguard.Config{})
		for _, status := range []int{301, 302, 303, 307, 308} {
			srv.SetDefault(aiguardtest.JSON(status, "", "Location", other.URL))
			_, err := chat(t.Context(), c)
			require.Equal(t, status, facts(t, err, aiguard.ErrInvalidResponse).StatusCode)
		}
		require.Zero(t, other.Count(), "neither prompt nor key went elsewhere")
	})
}

// listen serves raw connections until the test ends.
func listen(t *testing.T, serve func(n int, conn net.Conn)) (baseURL string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go serve(n, conn)
		}
	}()
	return "http://" + ln.Addr().String() + "/v1"
}

func TestStaleConnectionIsReplacedWithoutBackoff(t *testing.T) {
	ok := `{"choices":[{"index":0,"message":{"content":"Hello!"},"finish_reason":"stop"}]}`
	url := listen(t, func(n int, conn net.Conn) {
		defer conn.Close()
		r := bufio.NewReader(conn)
		for i := 0; i < 2; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if n == 0 && i == 1 {
				return // the server's idle timeout, as seen by a client that was just a little late
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(ok), ok)
		}
	})
	rec := &recorder{}
	c := clientOf(t, aiguard.Config{OnEvent: rec.OnEvent, Retry: aiguard.Retry{BaseDelay: time.Minute, MaxDelay: time.Minute}}, url, nil)
	for range 2 {
		_, err := chat(t.Context(), c)
		require.NoError(t, err)
	}
	retries := rec.all(aiguard.EventRetry)
	require.Len(t, retries, 1)
	require.Zero(t, retries[0].Backoff)
}

func TestServerThatNeverReadsOrAnswersTimesOut(t *testing.T) {
	url := listen(t, func(int, net.Conn) {})
	c := clientOf(t, quick, url, nil)
	long := chatRequest
	long.Messages = []openai.ChatCompletionMessage{{Role: "user", MultiContent: []openai.ChatMessagePart{{
		Type: openai.ChatMessagePartTypeImageURL, ImageURL: &openai.ChatMessageImageURL{URL: "data:image/png;base64," + strings.Repeat("A", 8<<20)},
	}}}}
	_, err := c.CreateChatCompletion(t.Context(), long) // more than the kernel's buffers take
	e := facts(t, err, aiguard.ErrTimeout)
	require.Equal(t, "call", e.Phase)
	require.GreaterOrEqual(t, e.InFlight, quick.CallTimeout)
	require.Less(t, e.InFlight, 10*quick.CallTimeout)

	cfg := quick
	cfg.Retry.MaxAttempts = 1
	c = clientOf(t, cfg, strings.Replace(url, "http://", "https://", 1), nil)
	start := time.Now()
	_, err = chat(t.Context(), c) // the TLS handshake stalls
	facts(t, err, aiguard.ErrTimeout)
	require.GreaterOrEqual(t, time.Since(start), quick.CallTimeout)
	require.Less(t, time.Since(start), 10*quick.CallTimeout)
}

func TestNotHTTPIsAnInvalidResponse(t *testing.T) {
	url := listen(t, func(_ int, conn net.Conn) {
		defer conn.Close()
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "SSH-2.0-my secret prompt\r\n\r\n")
	})
	_, err := chat(t.Context(), clientOf(t, persistent, url, nil))
	facts(t, err, aiguard.ErrInvalidResponse)
	require.NotContains(t, err.Error(), "secret")
}

func TestAnswerCutInItsHeadersIsAConnectionLost(t *testing.T) {
	for _, sent := range []string{"", "HT", "HTTP/1.1 200 OK\r\nX-Re", "HTTP/1.1 200 OK\r\nX-Request-Id: 1\r\n"} {
		srv := aiguardtest.NewServer(t)
		srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			_, _ = io.WriteString(conn, sent)
			conn.Close()
		})
		_, err := chat(t.Context(), clientOf(t, persistent, srv.URL, nil))
		require.Equal(t, 3, facts(t, err, aiguard.ErrUnavailable).Attempts, "%q", sent)
	}
}

// The deadline of a Do reaches all calls inside it as one and the same error: they must not write to it.
func TestCallsInADoShareItsDeadlineUnharmed(t *testing.T) {
	inVirtualTime(t, aiguard.Config{CallTimeout: time.Second}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for _, reply := range []aiguardtest.Reply{aiguardtest.Hang(), aiguardtest.HangAfter(aiguardtest.Events(hello))} {
			srv.SetDefault(reply)
			err := do(t.Context(), c.Guard(), func(ctx context.Context) error {
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() { _, _ = streamChat(ctx, c) })
					wg.Go(func() { _ = c.DeleteFile(ctx, "x") })
				}
				wg.Wait()
				<-ctx.Done() // in the same instant as the calls' own deadlines
				return ctx.Err()
			})
			require.Empty(t, facts(t, err, aiguard.ErrTimeout).RequestID)
		}
	})
}

func TestUsersHTTPClientIsRespected(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	var seen []string
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		seen = append(seen, req.Header.Get("Cookie"))
		return http.DefaultTransport.RoundTrip(req)
	})
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	srv.SetDefault(func(w http.ResponseWriter, r *aiguardtest.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
		aiguardtest.Text("Hello!")(w, r)
	})
	hc := &http.Client{Transport: base, Jar: jar}
	c := clientOf(t, aiguard.Config{}, srv.URL, hc)
	for range 2 {
		_, err = chat(t.Context(), c)
		require.NoError(t, err)
	}
	require.Equal(t, []string{"", "session=1"}, seen)
	require.IsType(t, base, hc.Transport, "the caller's client is not touched")

	srv.SetDefault(aiguardtest.Hang())
	c = clientOf(t, aiguard.Config{}, srv.URL, &http.Client{Transport: base, Timeout: 200 * time.Millisecond})
	start := time.Now()
	_, err = chat(t.Context(), c)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(start), 5*time.Second, "its Timeout is the caller's own deadline")

	srv.SetDefault(nil)
	var nilClient *http.Client
	for _, doer := range []openai.HTTPDoer{doerFunc(http.DefaultClient.Do), nil, nilClient, &http.Client{}} {
		_, err = chat(t.Context(), clientOf(t, aiguard.Config{}, srv.URL, doer))
		require.NoError(t, err)
	}
}

// The Client sends requests itself where an http.Client has nothing to add. An hour's Timeout makes an http.Client send
// them.
func TestClientSendsAsAnHTTPClientDoes(t *testing.T) {
	for op, send := range map[string]func(*aiguard.Client) error{
		"Get":    func(c *aiguard.Client) error { _, err := c.ListModels(t.Context()); return err },
		"Post":   func(c *aiguard.Client) error { _, err := c.CreateImage(t.Context(), openai.ImageRequest{}); return err },
		"Delete": func(c *aiguard.Client) error { return c.DeleteFile(t.Context(), "x") },
	} {
		for user, authorization := range map[string]string{"": "", "user:password@": "Basic dXNlcjpwYXNzd29yZA=="} {
			var errs []*url.Error
			for _, timeout := range []time.Duration{0, time.Hour} {
				base := roundTripper(func(req *http.Request) (*http.Response, error) {
					require.Equal(t, authorization, req.Header.Get("Authorization"))
					return nil, io.ErrUnexpectedEOF
				})
				oc := openai.DefaultConfig("")
				oc.BaseURL, oc.HTTPClient = "http://"+user+"provider.invalid/v1", &http.Client{Transport: base, Timeout: timeout}
				var err *url.Error
				require.ErrorAs(t, send(newGuard(t, quick).Client(oc)), &err)
				require.Equal(t, op, err.Op)
				require.Equal(t, aiguard.ErrUnavailable, aiguard.KindOf(err))
				errs = append(errs, err)
			}
			require.Equal(t, errs[1].URL, errs[0].URL)
			require.NotContains(t, errs[0].URL, "password")
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (f roundTripper) CloseIdleConnections() {}

type doerFunc func(*http.Request) (*http.Response, error)

func (f doerFunc) Do(req *http.Request) (*http.Response, error) { return f(req) }

// TestEveryMethodIsBounded calls all of the client's methods, those that go-openai will gain too, while the provider
// is silent.
func TestEveryMethodIsBounded(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Hang())
		v := reflect.ValueOf(c)
		ctxType, errType := reflect.TypeFor[context.Context](), reflect.TypeFor[error]()
		sent := 0
		for i := range v.NumMethod() {
			m, name := v.Method(i), v.Type().Method(i).Name
			mt := m.Type()
			if mt.NumIn() == 0 || mt.In(0) != ctxType || mt.NumOut() == 0 || mt.Out(mt.NumOut()-1) != errType {
				continue
			}
			args := []reflect.Value{reflect.ValueOf(t.Context())}
			for j := 1; j < mt.NumIn(); j++ {
				if mt.IsVariadic() && j == mt.NumIn()-1 {
					break
				}
				arg := reflect.New(mt.In(j)).Elem()
				switch {
				case name == "CreateEmbeddings":
					arg.Set(reflect.ValueOf(openai.EmbeddingRequest{Input: "x"}))
				case mt.In(j).Kind() == reflect.Interface:
					continue
				case mt.In(j).Kind() == reflect.Struct:
					for k := range arg.NumField() {
						switch f := arg.Field(k); {
						case f.Type() == reflect.TypeFor[io.Reader]():
							f.Set(reflect.ValueOf(strings.NewReader("x")))
						case f.Kind() == reflect.Interface && f.NumMethod() == 0:
							f.Set(reflect.ValueOf("x"))
						}
					}
				}
				args = append(args, arg)
			}
			before, start := srv.Count(), time.Now()
			out := m.Call(args)
			err, _ := out[len(out)-1].Interface().(error)
			require.Error(t, err, name)
			if srv.Count() == before {
				continue // go-openai would not send the empty request
			}
			sent++
			require.Equal(t, before+1, srv.Count(), name)
			took(t, start, 30*time.Second)
			e := facts(t, err, aiguard.ErrTimeout)
			require.NotEmpty(t, e.Op, name)
			require.NotContains(t, err.Error(), "secret-key")
		}
		require.Greater(t, sent, 60)
	})
}

func TestRequestIsLimitedHoweverItIsSent(t *testing.T) {
	srv := aiguardtest.NewServer(t)
	g := newGuard(t, aiguard.Config{MaxRequestBytes: 1000})
	hc := &http.Client{Transport: g.Transport(nil)}
	for name, body := range map[string]io.Reader{
		"known length":                        bytes.NewReader(make([]byte, 1001)),
		"unknown length":                      struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 100_000))},
		"unknown length, too long to be kept": struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 2<<20))},
	} {
		resp, err := hc.Post(srv.URL+"/chat/completions", "application/json", body)
		if err == nil {
			resp.Body.Close()
		}
		e := facts(t, err, aiguard.ErrPromptTooLarge)
		require.Equal(t, "request", e.Phase, name)
		require.EqualValues(t, 1000, e.Max)
		require.Greater(t, e.Size, int64(1000))
	}
	for _, r := range srv.Requests() {
		require.LessOrEqual(t, len(r.Body), 1000)
	}
}

func TestBodyThatCannotBeReplayedIsSentOnce(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(503, ""))
		base := srv.Transport()
		defer base.CloseIdleConnections()
		body := &closing{Reader: strings.NewReader(`{"model":"m","x":"` + strings.Repeat("x", 1<<20) + `"}`)}
		req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/chat/completions", body)
		require.NoError(t, err)
		facts(t, failureOf(c.Guard().Transport(base).RoundTrip(req)), aiguard.ErrUnavailable)
		require.Equal(t, 1, srv.Count())
		require.True(t, body.closed)

		body = &closing{Reader: strings.NewReader("{}")}
		req.Body = body
		require.NoError(t, c.Guard().Close())
		_, err = c.Guard().Transport(base).RoundTrip(req) //nolint:bodyclose // fails
		facts(t, err, aiguard.ErrClosed)
		require.True(t, body.closed, "a RoundTripper closes the body, sent or not")
	})
}

func TestSmallBodyWithoutGetBodyIsSentAgain(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		for _, known := range []bool{true, false} { // its length
			srv.Reset()
			srv.Enqueue(aiguardtest.Error(503, ""))
			text := `{"model":"m","messages":[]}`
			body := &closing{Reader: strings.NewReader(text)}
			req, err := http.NewRequestWithContext(t.Context(), "POST", srv.URL+"/chat/completions", body)
			require.NoError(t, err)
			if known {
				req.ContentLength = int64(len(text))
			}
			resp, err := c.Guard().Transport(base).RoundTrip(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.True(t, body.closed)
			require.Same(t, body, req.Body, "the caller's request is left as it is")
			require.Nil(t, req.GetBody)
			require.Equal(t, 2, srv.Count())
			for _, r := range srv.Requests() {
				require.Equal(t, text, string(r.Body))
			}
		}
	})
}

// A body that its caller's own reader cannot provide is no failure of the provider: the caller gets the reader's error,
// nothing is retried, and other calls are not held up by an outage.
func TestBodyThatFailsIsNoFailureOfTheProvider(t *testing.T) {
	broken := errors.New("disk on fire")
	half := func() io.Reader { return io.MultiReader(strings.NewReader(`{"model":"m",`), iotest.ErrReader(broken)) }
	for name, prepare := range map[string]func(*http.Request){
		"unknown length": func(r *http.Request) { r.Body = io.NopCloser(half()) },
		"known length":   func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(half()), 100 },
		"large":          func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(half()), 2<<20 },
		"no second body": func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(`{"model":"m"}`)), 13
			first := true
			r.GetBody = func() (io.ReadCloser, error) {
				if first {
					first = false
					return io.NopCloser(strings.NewReader(`{"model":"m"}`)), nil
				}
				return nil, broken
			}
		},
	} {
		for _, path := range []string{"/chat/completions", "/files"} {
			t.Run(name+path, func(t *testing.T) {
				inVirtualTime(t, aiguard.Config{MaxRequestBytes: 4 << 20}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
					base := srv.Transport()
					defer base.CloseIdleConnections()
					start := time.Now()
					for range 10 {
						req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+path, nil)
						require.NoError(t, err)
						prepare(req)
						_, err = c.Guard().Transport(base).RoundTrip(req) //nolint:bodyclose // fails
						require.ErrorIs(t, err, broken)
						require.Empty(t, aiguard.KindOf(err))
					}
					took(t, start, 0)
					for _, route := range c.Guard().Routes() {
						require.Zero(t, route.DownSince, "an outage")
					}
				})
			})
		}
	}
}

// A body may be the stream of another guarded call. Its failure is not this call's, and the rest of a body is never sent.
func TestBodyThatFailsWithAnotherCallsErrorIsSentOnce(t *testing.T) {
	sent := 0
	base := roundTripper(func(req *http.Request) (*http.Response, error) {
		sent++
		_, err := io.Copy(io.Discard, req.Body)
		return nil, err
	})
	cut := &aiguard.Error{Kind: aiguard.ErrTruncated}
	g := newGuard(t, aiguard.Config{Retry: aiguard.Retry{BaseDelay: 1}})
	for _, path := range []string{"/v1/chat/completions", "/v1/files"} {
		sent = 0
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://provider.example"+path, io.MultiReader(strings.NewReader("{"), iotest.ErrReader(cut)))
		require.NoError(t, err)
		_, err = g.Transport(base).RoundTrip(req) //nolint:bodyclose // fails
		require.ErrorIs(t, err, cut)
		require.Equal(t, aiguard.ErrTruncated, aiguard.KindOf(err))
		require.Equal(t, 1, sent, path)
	}
}

// A body that never comes holds nobody beyond the context.
func TestBodyThatNeverComesIsNotWaitedForWithoutEnd(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		body, w := io.Pipe()
		defer w.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/chat/completions", body)
		require.NoError(t, err)
		start := time.Now()
		_, err = c.Guard().Transport(base).RoundTrip(req) //nolint:bodyclose // fails
		require.Equal(t, context.DeadlineExceeded, err)
		took(t, start, 3*time.Second)
		require.Zero(t, srv.Count())
	})
}

type closing struct {
	io.Reader
	closed bool
}

func (c *closing) Close() error { c.closed = true; return nil }

func TestTransportReadsTheRequestItIsGiven(t *testing.T) {
	rec := &recorder{}
	inVirtualTime(t, aiguard.Config{OnEvent: rec.OnEvent}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		hc := &http.Client{Transport: c.Guard().With(aiguard.Call{Op: "questions"}).Transport(base)}
		resp, err := hc.Post(srv.URL+"/chat/completions", "application/json", strings.NewReader(`{"model":"gpt-x","messages":[]}`))
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.EqualValues(t, len(body), resp.ContentLength)
		require.NoError(t, resp.Body.Close())
		done := rec.all(aiguard.EventDone)[0]
		require.Equal(t, "gpt-x", done.Call.Model)
		require.Equal(t, "questions", done.Call.Op)
		require.Positive(t, done.Usage.Output)

		resp, err = hc.Get(srv.URL + "/models/gpt-4o")
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()

		srv.SetDefault(aiguardtest.Error(404, "model_not_found"))
		require.Equal(t, 404, facts(t, failureOf(hc.Get(srv.URL+"/models/none")), aiguard.ErrMisconfigured).StatusCode)
		srv.SetDefault(aiguardtest.Error(404, ""))
		require.Equal(t, 404, facts(t, failureOf(hc.Get(srv.URL+"/files/none")), aiguard.ErrRejected).StatusCode, "it is the file that is not there")
	})
}

func TestErrorHasTheProvidersFactsAndTheCause(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Error(400, "context_length_exceeded", "X-Request-Id", "req_abc123"))
		_, err := chat(t.Context(), c)
		e := facts(t, err, aiguard.ErrPromptTooLarge)
		require.Equal(t, err, error(e), "not wrapped in net/http's words")
		require.Equal(t, 400, e.StatusCode)
		require.Equal(t, "req_abc123", e.RequestID)
		require.Equal(t, "chat.completions", e.Op)
		require.Equal(t, openai.GPT4oMini, e.Model)
		var ae *openai.APIError
		require.ErrorAs(t, err, &ae)
		require.Equal(t, "context_length_exceeded", ae.Code)
		require.Contains(t, ae.Message, aiguardtest.ProviderText, "kept for who looks for it")
		require.Equal(t, 400, ae.HTTPStatusCode)

		srv.SetDefault(aiguardtest.Raw(502, "text/html", "<h1>secret</h1>"))
		_, err = chat(t.Context(), c)
		var re *openai.RequestError
		require.ErrorAs(t, err, &re)
		require.Equal(t, 502, re.HTTPStatusCode)
		require.NotContains(t, err.Error(), "secret")
	})
}

func TestResponsesThatFailedAreErrors(t *testing.T) {
	inVirtualTime(t, aiguard.Config{Retry: aiguard.Retry{MaxAttempts: 1}}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		for body, kind := range map[string]aiguard.Kind{
			`{"id":"r","status":"failed","error":{"code":"server_error","message":"x"}}`:        aiguard.ErrUnavailable,
			`{"id":"r","status":"failed","error":{"code":"rate_limit_exceeded","message":"x"}}`: aiguard.ErrRateLimited,
			`{"id":"r","status":"failed","error":{"code":"invalid_prompt","message":"x"}}`:      aiguard.ErrRejected,
			`{"id":"r","status":"failed","error":null}`:                                         aiguard.ErrUnavailable,
			`{"hello":"world"}`: aiguard.ErrInvalidResponse,
			`{"id":"r","status":"incomplete","output":[],"incomplete_details":{"reason":"max"}}`: "",
			`{"id":"r","status":"completed","error":null,"output":[]}`:                           "",
		} {
			srv.SetDefault(aiguardtest.JSON(200, body))
			_, err := c.CreateResponse(t.Context(), openai.CreateResponseRequest{Model: "m", Input: "x"})
			require.Equal(t, kind, aiguard.KindOf(err), body)
		}
		srv.SetDefault(aiguardtest.JSON(200, `{"id":"r","object":"response","status":"failed","error":{"code":"server_error","message":"x"}}`))
		r, err := c.GetResponse(t.Context(), "r")
		require.NoError(t, err, "to read about a failure is no failure")
		require.Equal(t, openai.ResponseStatusFailed, r.Status)
	})
}

func TestWrongTypesInAnAnswerAreATypedError(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.JSON(200, `{"choices":[{"index":"zero"}]}`))
		_, err := chat(t.Context(), c)
		e := facts(t, err, aiguard.ErrInvalidResponse)
		require.Equal(t, "chat.completions", e.Op)
	})
}

func TestTranscriptMayBeText(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Raw(200, "text/plain", "Hello there."))
		r, err := c.CreateTranscription(t.Context(), openai.AudioRequest{
			Model: openai.Whisper1, Reader: strings.NewReader("sound"), FilePath: "a.mp3", Format: openai.AudioResponseFormatText,
		})
		require.NoError(t, err)
		require.Equal(t, "Hello there.", r.Text)
	})
}

func TestDeletionNeedsNoWords(t *testing.T) {
	inVirtualTime(t, aiguard.Config{}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		srv.SetDefault(aiguardtest.Raw(204, "application/json", ""))
		require.NoError(t, c.DeleteFile(t.Context(), "file-1"))
		srv.SetDefault(aiguardtest.JSON(200, `{"id":"ft","object":"fine_tuning.job","error":{"code":"invalid_training_file","message":"x"}}`))
		_, err := c.RetrieveFineTuningJob(t.Context(), "ft")
		require.NoError(t, err, "an object that tells of an error is not an error")
	})
}

// net/http's own transport watches the channel while it sends. In the queue only the guard can.
func TestCancelChannelEndsTheWaitInTheQueue(t *testing.T) {
	inVirtualTime(t, aiguard.Config{MaxConcurrent: 1}, func(t *testing.T, c *aiguard.Client, srv *aiguardtest.Server) {
		base := srv.Transport()
		defer base.CloseIdleConnections()
		_, err := aiguard.Do(t.Context(), c.Guard(), func(context.Context) (int, error) {
			req, err := http.NewRequest("POST", srv.URL+"/chat/completions", strings.NewReader("{}"))
			require.NoError(t, err)
			canceled := make(chan struct{})
			req.Cancel = canceled // http.Client uses it for its Timeout
			time.AfterFunc(time.Second, func() { close(canceled) })
			start := time.Now()
			_, err = c.Guard().Transport(base).RoundTrip(req)
			require.ErrorIs(t, err, context.Canceled)
			took(t, start, time.Second)
			return 0, nil
		})
		require.NoError(t, err)
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
