package httpguard_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/httpguard"
	"github.com/aiguard-go/aiguard/internal/syncbuf"
)

func TestTimeoutBeforeTheFirstByteGets504(t *testing.T) {
	handlers := map[string]func(release chan struct{}) http.Handler{
		"ignores its context": func(release chan struct{}) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })
		},
		"returns without a response": func(chan struct{}) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		},
		"responds too late": func(chan struct{}) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Own", "left over")
				<-r.Context().Done()
				_, _ = io.WriteString(w, "half an answ")
			})
		},
		"passes its error to Error": func(chan struct{}) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				httpguard.Error(w, r, context.Cause(r.Context()))
			})
		},
		"still reads the body": func(chan struct{}) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
		},
	}
	for name, handler := range handlers {
		for _, accept := range []string{browser, "application/json"} {
			t.Run(name+"/"+accept[:9], func(t *testing.T) {
				eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
					release := make(chan struct{})
					defer close(release)
					s := serve(limited(t, newGuard(t, aiguard.Config{}), handler(release), httpguard.Config{Timeout: 10 * time.Second}))
					slow, w := io.Pipe() // the request body never ends
					defer w.Close()
					r := s.do(t.Context(), http.MethodPost, accept, slow)
					require.NoError(t, r.err)
					assert.Equal(t, http.StatusGatewayTimeout, r.StatusCode)
					assert.Equal(t, "10", r.Header.Get("Retry-After"))
					assert.Equal(t, 10*time.Second, r.took)
					assert.Empty(t, r.Header.Get("X-Own"), "the handler's headers are not sent")
					assert.EqualValues(t, len(r.body), r.ContentLength)
					assert.Contains(t, r.body, "longer than expected")
					if accept == browser {
						assert.Equal(t, "text/html; charset=utf-8", r.Header.Get("Content-Type"))
						assert.Contains(t, r.body, "</html>")
					} else {
						problemOf(t, r, http.StatusGatewayTimeout, "timeout")
					}
				})
			})
		}
	}
}

func TestHandlerReturnsAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			deadline, _ := r.Context().Deadline()
			time.Sleep(time.Until(deadline))
		})
		edge := limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{})
		for range 200 { // repeat, because either the handler's return or the timer may come first
			w := httptest.NewRecorder()
			edge.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			require.Equal(t, http.StatusGatewayTimeout, w.Code)
		}
	})
}

func TestHandlerHoldsItsSlotUntilItReturns(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h, logged := newStuck(), &syncbuf.Buffer{}
		cfg := httpguard.Config{Timeout: 10 * time.Second, MaxConcurrent: 1, QueueTimeout: time.Second,
			Logger: slog.New(slog.NewTextHandler(logged, nil))}
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, cfg))
		problemOf(t, s.get(t), http.StatusGatewayTimeout, "timeout")
		r := s.get(t)
		problemOf(t, r, http.StatusServiceUnavailable, "overloaded")
		assert.Equal(t, time.Second, r.took)

		close(h.release)
		require.ErrorIs(t, <-h.wrote, aiguard.ErrTimeout)
		synctest.Wait()
		assert.Contains(t, logged.String(), "handler returned after its time limit")
		r = s.get(t)
		require.NoError(t, r.err)
		assert.Equal(t, "too late", r.body, "the slot is free again")
		require.NoError(t, <-h.wrote)
	})
}

func TestResponseCutAtTheLimitNeverLooksComplete(t *testing.T) {
	handlers := map[string]func(http.ResponseWriter, *http.Request){
		"stuck": func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Minute)
		},
		"returns when its context ends": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"returns a moment later": func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(httpguard.LastWord / 2)
		},
		"continues to write": func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				_, _ = io.WriteString(w, "more")
				time.Sleep(time.Second)
			}
		},
		"passes its error to Error": func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			httpguard.Error(w, r, context.Cause(r.Context()))
		},
		"continues to read": func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
	}
	for name, rest := range handlers {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					assert.NoError(t, http.NewResponseController(w).EnableFullDuplex(), "otherwise HTTP/1 reads the body first")
					_, _ = io.WriteString(w, "half")
					w.(http.Flusher).Flush()
					rest(w, r)
				})
				s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: 10 * time.Second}))
				slow, w := io.Pipe()
				defer w.Close()
				r := s.do(t.Context(), http.MethodPost, "", slow)
				require.Error(t, r.err)
				require.NotNil(t, r.Response)
				assert.NotErrorIs(t, r.err, context.Canceled)
				assert.True(t, strings.HasPrefix(r.body, "half"), "flushed data has arrived")
				assert.GreaterOrEqual(t, r.took, 10*time.Second)
				assert.LessOrEqual(t, r.took, 10*time.Second+httpguard.LastWord)
				time.Sleep(2 * time.Minute) // unblock the handler
			})
		})
	}
}

func TestBlockedWriteEndsAtTheLimit(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		failed := make(chan error, 1)
		start := time.Now()
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			var err error
			for err == nil {
				_, err = w.Write(make([]byte, 64<<10))
			}
			failed <- err
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: 10 * time.Second}))
		resp, err := s.client.Get("http://site/")
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Error(t, <-failed)
		assert.Equal(t, 10*time.Second+httpguard.LastWord, time.Since(start))
		_, err = io.Copy(io.Discard, resp.Body)
		require.Error(t, err)
	})
}

func TestEventStreamMaySendALastEvent(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			assert.NoError(t, http.NewResponseController(w).Flush())
			<-r.Context().Done()
			_, _ = fmt.Fprintf(w, "event: error\ndata: %s\n\n", aiguard.UserMessage(context.Cause(r.Context())))
			w.(http.Flusher).Flush()
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: 10 * time.Second}))
		r := s.get(t)
		require.Error(t, r.err, "the stream does not end as if complete")
		assert.Contains(t, r.body, "event: error\ndata: This took longer than expected")
		assert.Equal(t, 10*time.Second, r.took)
	})
}

func TestEventsArriveWhenTheyAreSent(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 5 {
				assert.NoError(t, rc.SetWriteDeadline(time.Now().Add(6*time.Second)), "an HTTP/2 stream is reset even if nothing is written")
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				assert.NoError(t, rc.Flush())
				time.Sleep(5 * time.Second)
			}
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}))
		start := time.Now()
		resp, err := s.client.Get("http://site/")
		require.NoError(t, err)
		defer resp.Body.Close()
		events := bufio.NewScanner(resp.Body)
		for i := range 5 {
			require.True(t, events.Scan())
			assert.Equal(t, fmt.Sprintf("data: %d", i), events.Text())
			assert.Equal(t, time.Duration(i)*5*time.Second, time.Since(start))
			require.True(t, events.Scan())
		}
		assert.False(t, events.Scan())
		assert.NoError(t, events.Err())
	})
}

func TestDisconnectCancelsTheHandlersContext(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		ended := make(chan error, 1)
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			ended <- context.Cause(r.Context())
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}))
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		r := s.do(ctx, http.MethodGet, "", nil)
		require.ErrorIs(t, r.err, context.DeadlineExceeded)
		require.ErrorIs(t, <-ended, context.Canceled)
		assert.Equal(t, 3*time.Second, r.took)
	})
}

func TestContextHasTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			deadline, ok := r.Context().Deadline()
			assert.True(t, ok)
			assert.Equal(t, time.Now().Add(httpguard.DefaultTimeout), deadline)
			<-r.Context().Done()
			assert.ErrorIs(t, r.Context().Err(), context.DeadlineExceeded)
			assert.Equal(t, aiguard.ErrTimeout, aiguard.KindOf(context.Cause(r.Context())))
		})
		edge := limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{})
		for range 200 { // repeat, because the context's timer races with the handler's time limit
			w := httptest.NewRecorder()
			edge.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			assert.Equal(t, http.StatusGatewayTimeout, w.Code)
			synctest.Wait()
		}
	})
}

func TestResponsesPassUnchanged(t *testing.T) {
	outer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Outer", "set")
			w.Header().Set("X-Unwanted", "set")
			next.ServeHTTP(w, r)
		})
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		assert.Equal(t, "set", w.Header().Get("X-Outer"), "the handler sees headers set before it")
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("X-Unwanted")
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, "whole")
		w.Header().Set("X-Sum", "5")
	})
	for name, timeout := range map[string]time.Duration{"limit": 0, "no limit": aiguard.Off} {
		t.Run(name, func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
				s := serve(outer(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: timeout})))
				var hints textproto.MIMEHeader
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
					hints = h
					return nil
				}})
				r := s.do(ctx, http.MethodGet, "", nil)
				require.NoError(t, r.err)
				assert.Equal(t, http.StatusTeapot, r.StatusCode)
				assert.Equal(t, "whole", r.body)
				assert.Equal(t, "set", r.Header.Get("X-Outer"))
				assert.Empty(t, r.Header.Get("X-Unwanted"))
				assert.Equal(t, "5", r.Trailer.Get("X-Sum"))
				assert.NotEmpty(t, hints["Link"])
			})
		})
	}
}

func TestHeaderAloneStartsTheResponse(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Own", "set") })
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}))
		r := s.get(t)
		require.NoError(t, r.err)
		assert.Equal(t, http.StatusOK, r.StatusCode)
		assert.Equal(t, "set", r.Header.Get("X-Own"))
	})
}

func TestEarlyHintsAreNotInTheTimeoutResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			<-r.Context().Done()
		})
		s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}), false)
		r := s.get(t)
		problemOf(t, r, http.StatusGatewayTimeout, "timeout")
		assert.Empty(t, r.Header.Get("Link"))
	})
}

func TestNoWriteAfterServeHTTPReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kept http.ResponseWriter
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			kept = w
			_, _ = io.WriteString(w, "whole")
		})
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		_, err := io.WriteString(kept, "more")
		require.Error(t, err)
		require.Error(t, http.NewResponseController(kept).Flush())
		require.Error(t, http.NewResponseController(kept).SetWriteDeadline(time.Now()))
		assert.Equal(t, "whole", w.Body.String())
		assert.Zero(t, w.set)
	})
}

// deadlines counts the calls that set a deadline.
type deadlines struct {
	*httptest.ResponseRecorder
	set int
}

func (d *deadlines) SetWriteDeadline(time.Time) error {
	d.set++
	return nil
}

func TestLimitAppliesAfterTheContextEnded(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		for _, begins := range []bool{false, true} {
			h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if begins {
					_, _ = io.WriteString(w, "half")
					w.(http.Flusher).Flush()
				}
				time.Sleep(10*time.Second + httpguard.LastWord/2)
			})
			edge := limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: 10 * time.Second})
			s := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), time.Second) // as during a server shutdown
				defer cancel()
				edge.ServeHTTP(w, r.WithContext(ctx))
			}))
			r := s.get(t)
			if begins {
				require.Error(t, r.err)
				continue
			}
			problemOf(t, r, http.StatusGatewayTimeout, "timeout")
			assert.Equal(t, 10*time.Second, r.took)
		}
		time.Sleep(time.Second)
	})
}

func TestTimeoutResponseIgnoresExpiredDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			assert.NoError(t, http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Second)))
			<-r.Context().Done()
		})
		s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}), false)
		problemOf(t, s.get(t), http.StatusGatewayTimeout, "timeout")
	})
}

func TestEndlessRequestBodyEndsSoonAfterTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: 10 * time.Second}), false)
		conn, err := s.client.Transport.(*http.Transport).DialContext(t.Context(), "", "")
		require.NoError(t, err)
		defer conn.Close()
		start := time.Now()
		_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: site\r\nContent-Length: 100000\r\n\r\n")
		require.NoError(t, err)
		answer := async(func() string {
			b, _ := io.ReadAll(conn)
			return string(b)
		})
		for err == nil {
			time.Sleep(time.Second)
			_, err = conn.Write([]byte("x"))
		}
		assert.Contains(t, <-answer, "504 Gateway Timeout")
		assert.Less(t, time.Since(start), 20*time.Second)
	})
}

func TestHijackedConnectionBelongsToTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if !assert.NoError(t, err) {
				return
			}
			defer conn.Close()
			<-r.Context().Done()
			time.Sleep(time.Minute)
			_, _ = rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nown")
			_ = rw.Flush()
		})
		s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: time.Second}), false)
		r := s.get(t)
		require.NoError(t, r.err)
		assert.Equal(t, "own", r.body)
		assert.Equal(t, time.Minute+time.Second, r.took)
		assert.Empty(t, s.log.String())
	})
}

func TestHandlerCanRespondAfterAFailedHijack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _, err := http.NewResponseController(w).Hijack()
			assert.ErrorIs(t, err, http.ErrNotSupported)
			w.Header().Set("X-Own", "set")
			w.WriteHeader(http.StatusNotImplemented)
		})
		s := serve(t, limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}), true)
		r := s.get(t)
		assert.Equal(t, http.StatusNotImplemented, r.StatusCode)
		assert.Equal(t, "set", r.Header.Get("X-Own"))
	})
}

func TestPanicIsRaisedAgainAndFreesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		var end func()
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { end() })
		for _, timeout := range []time.Duration{time.Minute, aiguard.Off} {
			edge := limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: timeout, MaxConcurrent: 1})
			ask := func() (panicked any) {
				defer func() { panicked = recover() }()
				edge.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
				return nil
			}
			for range 2 { // the second request finds the slot free
				end = func() { panic(broken) }
				err, isError := ask().(error)
				require.True(t, isError)
				require.ErrorIs(t, err, broken)
				if timeout != aiguard.Off {
					assert.Contains(t, err.Error(), "broken\n")
					assert.Contains(t, err.Error(), "handler_test.go", "the original stack")
				}
				end = func() { panic(http.ErrAbortHandler) }
				assert.Equal(t, http.ErrAbortHandler, ask())
			}
			end = func() {}
			require.Nil(t, ask())
			if timeout != aiguard.Off {
				end = func() { runtime.Goexit() }
				require.Equal(t, http.ErrAbortHandler, ask(), "an unanswered request gets no complete response")
				end = func() {}
				require.Nil(t, ask())
			}
		}
	})
}

func TestPanicAfterTheLimitIsLogged(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			time.Sleep(time.Minute)
			panic("broken")
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{Timeout: time.Second}))
		problemOf(t, s.get(t), http.StatusGatewayTimeout, "timeout")
		time.Sleep(2 * time.Minute)
		assert.Contains(t, s.log.String(), "panic after the time limit: broken")
		assert.Contains(t, s.log.String(), "handler_test.go")
	})
}

func TestErrorAfterTheResponseStartedAbortsIt(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			httpguard.Error(w, r, aiguard.ErrTruncated)
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{}))
		r := s.get(t)
		require.Error(t, r.err)
		assert.Equal(t, "half", r.body)
	})
}

func TestOversizeContentLengthIsRejectedUnread(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler ran") })
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{MaxBodyBytes: 2 << 10}))
		r := s.do(t.Context(), http.MethodPost, "", strings.NewReader(strings.Repeat("x", 2<<10+1)))
		p := problemOf(t, r, http.StatusRequestEntityTooLarge, "request_too_large")
		assert.Contains(t, p.Detail, "2 KB")
		assert.Zero(t, p.RetryAfter)
		assert.Zero(t, r.took)
	})
}

func TestOversizeBodyNeedNotArrive(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		s := serve(limited(t, newGuard(t, aiguard.Config{}), ok, httpguard.Config{MaxBodyBytes: 2 << 10}))
		slow, w := io.Pipe()
		defer w.Close()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://site/", slow)
		require.NoError(t, err)
		req.ContentLength = 3 << 10
		start := time.Now()
		resp, err := s.client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		assert.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
		assert.Zero(t, time.Since(start))
	})
}

func TestOversizeChunkedBodyFailsToRead(t *testing.T) {
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				httpguard.Error(w, r, fmt.Errorf("read the question: %w", err))
				return
			}
			_, _ = fmt.Fprint(w, len(b))
		})
		s := serve(limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{MaxBodyBytes: 2 << 10}))
		post := func(n int) reply {
			return s.do(t.Context(), http.MethodPost, "", io.MultiReader(strings.NewReader(strings.Repeat("x", n)))) // of unknown length
		}
		problemOf(t, post(2<<10+1), http.StatusRequestEntityTooLarge, "request_too_large")
		assert.Equal(t, "2048", post(2<<10).body)
	})
}

func TestDrainingAndMemoryRejectRequests(t *testing.T) {
	never := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler ran") })
	eachProtocol(t, func(t *testing.T, serve func(http.Handler) *site) {
		full := serve(limited(t, newGuard(t, aiguard.Config{MemoryLimit: 1}), never, httpguard.Config{}))
		r := full.get(t)
		problemOf(t, r, http.StatusServiceUnavailable, "overloaded")
		assert.Equal(t, "10", r.Header.Get("Retry-After"))

		g := newGuard(t, aiguard.Config{})
		require.NoError(t, g.Close())
		r = serve(limited(t, g, never, httpguard.Config{})).get(t)
		problemOf(t, r, http.StatusServiceUnavailable, "closed")
		assert.Equal(t, "10", r.Header.Get("Retry-After"))
	})
}

func TestQueueIsFirstInFirstOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string // no lock needed: one handler runs at a time
		h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			order = append(order, r.URL.Path)
			time.Sleep(time.Second)
		})
		edge := limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{MaxConcurrent: 1, MaxQueue: 3, QueueTimeout: time.Minute})
		ask := func(ctx context.Context, path string) <-chan *httptest.ResponseRecorder {
			c := async(func() *httptest.ResponseRecorder {
				w := httptest.NewRecorder()
				edge.ServeHTTP(w, httptest.NewRequest("GET", path, nil).WithContext(ctx))
				return w
			})
			synctest.Wait()
			return c
		}
		ctx, leave := context.WithCancel(t.Context())
		a, b, left, c := ask(t.Context(), "/a"), ask(t.Context(), "/b"), ask(ctx, "/left"), ask(t.Context(), "/c")

		full := <-ask(t.Context(), "/full")
		assert.Equal(t, http.StatusServiceUnavailable, full.Code, "no more waiters than MaxQueue")
		assert.NotEmpty(t, full.Header().Get("Retry-After"))

		leave()
		assert.Equal(t, 499, (<-left).Code)
		d := ask(t.Context(), "/d") // takes the place of the waiter that left
		for _, answered := range []<-chan *httptest.ResponseRecorder{a, b, c, d} {
			assert.Equal(t, http.StatusOK, (<-answered).Code)
		}
		assert.Equal(t, []string{"/a", "/b", "/c", "/d"}, order)
	})
}

func TestQueueWaitIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newStuck()
		g := newGuard(t, aiguard.Config{})
		for name, c := range map[string]struct {
			cfg    httpguard.Config
			took   time.Duration
			status int
		}{
			"by QueueTimeout": {httpguard.Config{MaxConcurrent: 1}, httpguard.DefaultQueueTimeout, http.StatusServiceUnavailable},
			"by Timeout":      {httpguard.Config{MaxConcurrent: 1, Timeout: 3 * time.Second}, 3 * time.Second, http.StatusGatewayTimeout},
			"Timeout alone ends the wait": {httpguard.Config{MaxConcurrent: 1, QueueTimeout: aiguard.Off, MaxQueue: aiguard.Off},
				httpguard.DefaultTimeout, http.StatusGatewayTimeout},
		} {
			edge := limited(t, g, h, c.cfg)
			ask := func() int {
				w := httptest.NewRecorder()
				edge.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
				return w.Code
			}
			first := async(ask)
			<-h.entered
			start := time.Now()
			assert.Equal(t, c.status, ask(), name)
			assert.Equal(t, c.took, time.Since(start), name)
			<-first
		}
		close(h.release)
		synctest.Wait()
	})
}

func TestRetryAfterFollowsTheDrainRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(6 * time.Second) })
		edge := limited(t, newGuard(t, aiguard.Config{}), h, httpguard.Config{MaxConcurrent: 1, MaxQueue: 2, QueueTimeout: time.Minute})
		ask := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			edge.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			return w
		}
		ask()
		for range 3 {
			go ask()
			synctest.Wait()
		}
		w := ask()
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.Equal(t, "18", w.Header().Get("Retry-After"), "two waiters and this one, 6 s each")
		time.Sleep(time.Minute)
	})
}

func TestHandlersOfOneLimitShareItsSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newStuck()
		edge, err := httpguard.Limit(newGuard(t, aiguard.Config{}), httpguard.Config{MaxConcurrent: 1})
		require.NoError(t, err)
		a, b := edge(h), edge(ok)
		go a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		<-h.entered
		w := httptest.NewRecorder()
		b.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		close(h.release)
		synctest.Wait()
	})
}

func TestDefaultMaxConcurrentFollowsTheGuard(t *testing.T) {
	for capacity, want := range map[int64]int{3: 12, aiguard.Off: 50} {
		synctest.Test(t, func(t *testing.T) {
			h := newStuck()
			edge := limited(t, newGuard(t, aiguard.Config{MaxConcurrent: capacity}), h, httpguard.Config{})
			for range 50 {
				go edge.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			}
			synctest.Wait()
			assert.Len(t, h.entered, want)
			close(h.release)
			synctest.Wait()
		})
	}
}

func TestConfigErrorsNameFieldAndRange(t *testing.T) {
	g := newGuard(t, aiguard.Config{})
	for field, cfg := range map[string]httpguard.Config{
		"Timeout": {Timeout: -2}, "MaxConcurrent": {MaxConcurrent: -2}, "MaxQueue": {MaxQueue: -2},
		"QueueTimeout": {QueueTimeout: -2}, "MaxBodyBytes": {MaxBodyBytes: -2},
	} {
		_, err := httpguard.Limit(g, cfg)
		assert.ErrorContains(t, err, "httpguard: Config."+field+" is -2")
		assert.ErrorContains(t, err, "want a positive ")
	}
	_, err := httpguard.Limit(nil, httpguard.Config{})
	assert.EqualError(t, err, "httpguard: Limit: nil Guard; make it with aiguard.New")
	assert.Panics(t, func() { limited(t, g, nil, httpguard.Config{}) })
	off := httpguard.Config{Timeout: aiguard.Off, MaxConcurrent: aiguard.Off, MaxQueue: aiguard.Off, QueueTimeout: aiguard.Off, MaxBodyBytes: aiguard.Off}
	w := httptest.NewRecorder()
	limited(t, g, ok, off).ServeHTTP(w, httptest.NewRequest("POST", "/", strings.NewReader("text")))
	assert.Equal(t, "fine", w.Body.String())
}
