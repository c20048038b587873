package task_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/pipe"
	"github.com/aiguard-go/aiguard/task"
)

// browser sends requests to task.Handler(r) under /operations/ in virtual time.
type browser struct {
	t      *testing.T
	client http.Client
	served atomic.Int64 // requests in the handler
}

func browse(t *testing.T, r *task.Runner, http2 bool) *browser {
	b := &browser{t: t}
	inner := http.StripPrefix("/operations", task.Handler(r))
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.served.Add(1)
		defer b.served.Add(-1)
		inner.ServeHTTP(w, r)
	})
	tr, stop := pipe.Serve(&http.Server{Handler: outer}, http2)
	t.Cleanup(stop)
	b.client.Transport = tr
	return b
}

func (b *browser) do(ctx context.Context, method, path, lastEventID string) *http.Response {
	b.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://service/operations/"+path, nil)
	require.NoError(b.t, err)
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := b.client.Do(req)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// answer returns a complete response whose body is a JSON object.
func (b *browser) answer(method, path string, status int) (http.Header, map[string]any) {
	b.t.Helper()
	resp := b.do(b.t.Context(), method, path, "")
	require.Equal(b.t, status, resp.StatusCode)
	require.Equal(b.t, "no-store", resp.Header.Get("Cache-Control"))
	var v map[string]any
	require.NoError(b.t, json.NewDecoder(resp.Body).Decode(&v))
	return resp.Header, v
}

// event is one server-sent event.
type event struct {
	id, name string
	op       map[string]any
}

// read reads the next event. A comment is an event without a name. At the end, read returns io.EOF.
func read(t *testing.T, lines *bufio.Reader) (e event, err error) {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if err != nil || line == "\n" {
			return e, err
		}
		switch field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); field {
		case "id":
			e.id = value
		case "event":
			e.name = value
		case "data":
			require.NoError(t, json.Unmarshal([]byte(value), &e.op))
		}
	}
}

// events reads all events until the stream ends.
func (b *browser) events(id, lastEventID string) (all []event) {
	b.t.Helper()
	resp := b.do(b.t.Context(), "GET", id+"/events", lastEventID)
	require.Equal(b.t, http.StatusOK, resp.StatusCode)
	require.Equal(b.t, "text/event-stream", resp.Header.Get("Content-Type"))
	require.Equal(b.t, "no-store", resp.Header.Get("Cache-Control"))
	lines := bufio.NewReader(resp.Body)
	for {
		e, err := read(b.t, lines)
		if err != nil {
			require.ErrorIs(b.t, err, io.EOF, "the stream is complete")
			return all
		}
		if e.name != "" {
			all = append(all, e)
		}
	}
}

// eachProtocol runs f over HTTP/1.1 and HTTP/2, in virtual time.
func eachProtocol(t *testing.T, cfg task.Config, f func(t *testing.T, r *task.Runner, b *browser)) {
	for name, http2 := range map[string]bool{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			inVirtualTime(t, cfg, func(t *testing.T, r *task.Runner) { f(t, r, browse(t, r, http2)) })
		})
	}
}

// sleep sleeps until d has passed or ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// steps reports progress twice, one minute apart.
func steps(ctx context.Context) (any, error) {
	sleep(ctx, 30*time.Second)
	task.SetProgress(ctx, 40, "reading\nslowly")
	sleep(ctx, time.Minute)
	return map[string]string{"answer": "yes\nno"}, nil
}

func TestGetReturnsTheOperation(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, steps)
		time.Sleep(time.Minute)
		header, v := b.answer("GET", op.ID, http.StatusOK)
		require.Equal(t, "application/json", header.Get("Content-Type"))
		require.Equal(t, "running", v["status"])
		require.EqualValues(t, 40, v["progress"])
		require.Nil(t, v["result"])
		require.Nil(t, v["error_code"])
		wait(t, r, op.ID)
		_, v = b.answer("GET", op.ID, http.StatusOK)
		require.Equal(t, "succeeded", v["status"])
		require.Equal(t, map[string]any{"answer": "yes\nno"}, v["result"])
		require.NotContains(t, v, "Owner")
		require.NotContains(t, v, "Input")
	})
}

func TestUnknownOperationIsNotFound(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		for _, request := range [][2]string{{"GET", "nobody"}, {"DELETE", "nobody"}, {"GET", "nobody/events"}} {
			header, v := b.answer(request[0], request[1], http.StatusNotFound)
			require.Equal(t, "application/problem+json", header.Get("Content-Type"))
			require.Equal(t, map[string]any{"type": "about:blank", "title": "Not Found", "status": 404.0,
				"detail": "There is no operation with this id."}, v)
		}
		require.Zero(t, r.Stats().StoreErrors)
	})
}

func TestDeleteCancels(t *testing.T) {
	eachProtocol(t, task.Config{MaxRunning: 1}, func(t *testing.T, r *task.Runner, b *browser) {
		running := start(t, r, func(ctx context.Context) (any, error) {
			<-ctx.Done()
			time.Sleep(time.Second)
			return nil, ctx.Err()
		})
		pending := start(t, r, untilEnd)
		synctest.Wait()
		_, v := b.answer("DELETE", pending.ID, http.StatusOK)
		require.Equal(t, "cancelled", v["status"])
		b.answer("DELETE", running.ID, http.StatusAccepted)
		op := wait(t, r, running.ID)
		require.Equal(t, task.Cancelled, op.Status)
		_, v = b.answer("DELETE", running.ID, http.StatusOK)
		require.Equal(t, "This was cancelled.", v["error_message"])
		require.EqualValues(t, op.Revision, v["revision"], "a final operation does not change")
	})
}

func TestEventsReportEachChangeUntilTheEnd(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, steps)
		synctest.Wait()
		began := time.Now()
		all := b.events(op.ID, "")
		require.Equal(t, 90*time.Second, time.Since(began), "the stream ends with the operation")
		require.Len(t, all, 3)
		for i, want := range []struct {
			name, status string
			progress     float64
		}{{"progress", "running", 0}, {"progress", "running", 40}, {"finished", "succeeded", 100}} {
			require.Equal(t, want.name, all[i].name)
			require.Equal(t, want.status, all[i].op["status"])
			require.Equal(t, want.progress, all[i].op["progress"])
		}
		require.Equal(t, "reading\nslowly", all[1].op["progress_note"])
		require.Equal(t, map[string]any{"answer": "yes\nno"}, all[2].op["result"])
	})
}

func TestFailedOperationEndsItsEventsWithTheMessage(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, func(context.Context) (any, error) {
			return nil, &aiguard.Error{Kind: aiguard.ErrUnavailable, Err: errors.New("the provider's words")}
		})
		all := b.events(op.ID, "")
		last := all[len(all)-1]
		require.Equal(t, "finished", last.name)
		require.Equal(t, "unavailable", last.op["error_code"])
		require.Equal(t, "The AI service is temporarily unavailable. Please try again in a moment.", last.op["error_message"])
	})
}

func TestReconnectedClientGetsNewChanges(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, steps)
		time.Sleep(time.Minute) // after two changes: Running, and its progress
		resp := b.do(t.Context(), "GET", op.ID+"/events", "")
		lines := bufio.NewReader(resp.Body)
		_, err := read(t, lines) // skip the opening comment
		require.NoError(t, err)
		e, err := read(t, lines)
		require.NoError(t, err)
		require.Equal(t, "3", e.id)
		resp.Body.Close()

		all := b.events(op.ID, e.id)
		require.Len(t, all, 1, "it has seen the other events")
		require.Equal(t, "finished", all[0].name)
		last := all[0].id

		resp = b.do(t.Context(), "GET", op.ID+"/events", last)
		require.Equal(t, http.StatusNoContent, resp.StatusCode, "204 stops an EventSource")
		for _, odd := range []string{"", e.id, "4711", "-1", "x", "99999999999999999999"} {
			all = b.events(op.ID, odd)
			require.Len(t, all, 1, "Last-Event-ID %q", odd)
			require.Equal(t, last, all[0].id)
		}
	})
}

func TestFutureLastEventIDStartsOver(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, steps)
		synctest.Wait()
		all := b.events(op.ID, "4711") // as after a restore of the store
		require.Len(t, all, 3)
	})
}

func TestQuietEventStreamStaysOpen(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, func(context.Context) (any, error) {
			time.Sleep(100 * time.Second)
			return "done", nil
		})
		synctest.Wait()
		resp := b.do(t.Context(), "GET", op.ID+"/events", "")
		lines := bufio.NewReader(resp.Body)
		began := time.Now()
		comments := 0
		for {
			e, err := read(t, lines)
			require.NoError(t, err)
			if e.name == "finished" {
				break
			}
			if e.name == "" {
				comments++
			}
		}
		require.Equal(t, 100*time.Second, time.Since(began))
		require.Equal(t, 1+6, comments, "one at the start, then one every 15 seconds")
	})
}

func TestDisconnectEndsTheEventStream(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, steps)
		ctx, leave := context.WithCancel(t.Context())
		b.do(ctx, "GET", op.ID+"/events", "")
		synctest.Wait()
		require.EqualValues(t, 1, b.served.Load())
		leave()
		synctest.Wait()
		require.Zero(t, b.served.Load())
		require.Equal(t, task.Succeeded, wait(t, r, op.ID).Status, "the operation continues")
	})
}

func TestEventWriteTimesOut(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		b := browse(t, r, false)
		op := start(t, r, func(ctx context.Context) (any, error) {
			for i := range 100 {
				task.SetProgress(ctx, i, strings.Repeat("x", 200))
				sleep(ctx, time.Second)
			}
			return nil, nil
		})
		b.do(t.Context(), "GET", op.ID+"/events", "") // the pipe buffers nothing, and the client 4 KiB
		time.Sleep(40 * time.Second)
		synctest.Wait()
		require.Zero(t, b.served.Load(), "the write has timed out")
	})
}

func TestHeadGetsNoEvents(t *testing.T) {
	eachProtocol(t, task.Config{}, func(t *testing.T, r *task.Runner, b *browser) {
		op := start(t, r, steps)
		resp := b.do(t.Context(), "HEAD", op.ID+"/events", "")
		require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
		synctest.Wait()
		require.Zero(t, b.served.Load())
		require.Equal(t, http.StatusOK, b.do(t.Context(), "HEAD", op.ID, "").StatusCode)
	})
}

// flakyStore fails reads on demand.
type flakyStore struct {
	*task.Memory
	reads atomic.Int64
	err   atomic.Pointer[error]
}

func (s *flakyStore) Get(ctx context.Context, id string) (task.Operation, error) {
	s.reads.Add(1)
	if err := s.err.Load(); err != nil {
		return task.Operation{}, *err
	}
	return s.Memory.Get(ctx, id)
}

func TestFailedStoreGets503WithRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l logs
		store := &flakyStore{Memory: newMemory(t)}
		r := newRunner(t, store, task.Config{Logger: l.logger()})
		b := browse(t, r, false)
		op := start(t, r, steps)
		broken := errors.New("the database is unavailable")
		store.err.Store(&broken)
		defer store.err.Store(nil)
		for _, request := range [][2]string{{"GET", op.ID}, {"GET", op.ID + "/events"}} {
			header, v := b.answer(request[0], request[1], http.StatusServiceUnavailable)
			require.Equal(t, "application/problem+json", header.Get("Content-Type"))
			require.Equal(t, "1", header.Get("Retry-After"))
			require.NotContains(t, v["detail"], "database")
		}
		require.EqualValues(t, 2, r.Stats().StoreErrors)
		require.Contains(t, l.String(), "the database is unavailable")
	})
}

func TestFailedStoreEndsTheEventStream(t *testing.T) {
	for name, broken := range map[string]error{"away": errors.New("away"), "forgotten": task.ErrNotFound} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &flakyStore{Memory: newMemory(t)}
				r := newRunner(t, store, task.Config{})
				b := browse(t, r, false)
				op := start(t, r, steps)
				synctest.Wait()
				resp := b.do(t.Context(), "GET", op.ID+"/events", "")
				synctest.Wait()
				before := store.reads.Load()
				store.err.Store(&broken)
				defer store.err.Store(nil)
				_, err := io.ReadAll(resp.Body)
				require.NoError(t, err, "the stream ends early; the client reconnects")
				require.LessOrEqual(t, store.reads.Load(), before+2)
			})
		})
	}
}

func TestWrappingCheckGetsTheID(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		mine := wait(t, r, start(t, r, func(context.Context) (any, error) { return 1, nil }).ID)
		other := wait(t, r, start(t, r, func(context.Context) (any, error) { return 2, nil }).ID)
		onlyOwner := func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if req.PathValue("id") != mine.ID {
					http.NotFound(w, req)
					return
				}
				next.ServeHTTP(w, req)
			})
		}
		mux := http.NewServeMux() // as in Handler's documentation
		operations := http.StripPrefix("/operations", onlyOwner(task.Handler(r)))
		mux.Handle("/operations/{id}", operations)
		mux.Handle("/operations/{id}/events", operations)
		status := func(method, path string) int {
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
			return w.Code
		}
		for _, request := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"GET", "/events"}} {
			require.Equal(t, http.StatusOK, status(request[0], "/operations/"+mine.ID+request[1]))
			require.Equal(t, http.StatusNotFound, status(request[0], "/operations/"+other.ID+request[1]))
		}
	})
}
