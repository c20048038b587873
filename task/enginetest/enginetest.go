// Package enginetest checks that a task.Engine meets its contract. Use it in the test of an engine:
//
//	enginetest.Run(t, func(t *testing.T, l enginetest.Limits) task.Engine { … })
package enginetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
)

// Limits are the limits of the engine for a check.
type Limits struct {
	TaskTimeout, Grace     time.Duration
	MaxRunning, MaxPending int
}

// T is the part of a *testing.T that the checks use. Self is the type itself. A package that users import must not
// import package testing, which would add its flags to their programs.
type T[Self any] interface {
	tester
	Run(name string, f func(Self)) bool
}

type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Context() context.Context
}

// Run runs all checks as subtests of t. Together they take some seconds. open returns a new engine with these limits,
// over an empty store. A function that fails must not be repeated. The engine is shut down when the test ends.
func Run[Self T[Self]](t Self, open func(t Self, l Limits) task.Engine) {
	long := Limits{TaskTimeout: time.Minute, Grace: time.Second, MaxRunning: 4, MaxPending: 100}
	short := Limits{TaskTimeout: 300 * time.Millisecond, Grace: 300 * time.Millisecond, MaxRunning: 1, MaxPending: 100}
	narrow := Limits{TaskTimeout: time.Minute, Grace: time.Second, MaxRunning: 1, MaxPending: 2}
	for _, c := range []struct {
		name   string
		limits Limits
		run    func(*check)
	}{
		{"SucceededOperationHasItsResult", long, succeededOperationHasItsResult},
		{"InputAndResultComeBackUnchanged", long, inputAndResultComeBackUnchanged},
		{"SizesAreLimited", long, sizesAreLimited},
		{"FailuresHaveCodesAndMessages", long, failuresHaveCodesAndMessages},
		{"TimedOutOperationFails", short, timedOutOperationFails},
		{"StuckFunctionEndsAfterGraceAndKeepsItsSlot", short, stuckFunctionEndsAfterGraceAndKeepsItsSlot},
		{"CancelledOperationEnds", narrow, cancelledOperationEnds},
		{"FunctionThatSucceedsAfterCancelSucceeds", long, functionThatSucceedsAfterCancelSucceeds},
		{"ProgressIsReported", long, progressIsReported},
		{"OperationsBeyondCapacityAreRejected", narrow, operationsBeyondCapacityAreRejected},
		{"UnknownIDsAreNotFound", long, unknownIDsAreNotFound},
		{"InvalidCallsNameTheProblem", long, invalidCallsNameTheProblem},
		{"ListFilters", long, listFilters},
		{"EventsEndWithTheOperation", long, eventsEndWithTheOperation},
		{"ShutdownWaitsForRunning", long, shutdownWaitsForRunning},
		{"ShutdownInterruptsAtItsDeadline", long, shutdownInterruptsAtItsDeadline},
	} {
		t.Run(c.name, func(t Self) { c.run(&check{t, open(t, c.limits)}) })
	}
}

// check is a test of an engine.
type check struct {
	tester
	task.Engine
}

// patience is how long a check waits for what a healthy engine does at once.
const patience = 30 * time.Second

// Secret is a text that checks hide in errors and panics. An engine must never store or log it.
const Secret = "the secret prompt"

func (c *check) want(ok bool, format string, args ...any) {
	c.Helper()
	if !ok {
		c.Fatalf(format, args...)
	}
}

func (c *check) register(name string, fn func(context.Context, json.RawMessage) (any, error)) {
	task.Register(c.Engine, name, fn)
}

func (c *check) submit(name string, input any) task.Operation {
	c.Helper()
	op, err := c.Submit(c.Context(), name, input)
	c.want(err == nil, "Submit(%q): %v", name, err)
	c.want(op.Status == task.Pending && op.Revision == 1 && op.ID != "" && op.Name == name && !op.CreatedAt.IsZero(), "Submit returned %+v", op)
	return op
}

func (c *check) get(id string) task.Operation {
	c.Helper()
	op, err := c.Get(c.Context(), id)
	c.want(err == nil, "Get(%q): %v", id, err)
	return op
}

// until returns the operation as soon as it has the status.
func (c *check) until(id string, status task.Status) task.Operation {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	for revision := int64(0); ; {
		op, err := c.Next(ctx, id, revision)
		c.want(err == nil, "Next(%q): %v", id, err)
		c.want(op.Revision > revision, "Next returned revision %d after %d", op.Revision, revision)
		if op.Status == status {
			return op
		}
		c.want(!op.Status.Final(), "the operation is %s; want %s: %s", op.Status, status, op.ErrorCode)
		revision = op.Revision
	}
}

func (c *check) ends(id string) task.Operation {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	op, err := c.Wait(ctx, id)
	c.want(err == nil, "Wait(%q): %v", id, err)
	c.want(op.Status.Final() && !op.FinishedAt.IsZero(), "Wait returned %+v", op)
	return op
}

func (c *check) failed(op task.Operation, status task.Status, code aiguard.Kind, message string) {
	c.Helper()
	c.want(op.Status == status && op.ErrorCode == code && op.Result == nil, "%+v; want %s with code %s", op, status, code)
	c.want(message == "" || op.ErrorMessage == message, "the message is %q; want %q", op.ErrorMessage, message)
	c.want(errors.Is(op.Err(), code), "Err returned %v", op.Err())
}

// untilEnd is a function that returns when its context ends.
func untilEnd(ctx context.Context, _ json.RawMessage) (any, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// gate is a function that returns when it is opened, or when its context ends.
func gate() (fn func(context.Context, json.RawMessage) (any, error), open func()) {
	opened := make(chan struct{})
	return func(ctx context.Context, _ json.RawMessage) (any, error) {
		select {
		case <-opened:
			return "done", nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, sync.OnceFunc(func() { close(opened) })
}

func succeededOperationHasItsResult(c *check) {
	fn, open := gate()
	defer open()
	c.register("gate", fn)
	op := c.submit("gate", nil)
	running := c.until(op.ID, task.Running)
	c.want(running.Attempts == 1 && !running.StartedAt.IsZero() && running.FinishedAt.IsZero() && running.Result == nil, "%+v", running)
	open()
	op = c.ends(op.ID)
	result, err := task.Result[string](op)
	c.want(err == nil && result == "done", "the result is %q, %v", result, err)
	c.want(op.Status == task.Succeeded && op.Progress == 100 && op.Err() == nil && op.ErrorMessage == "", "%+v", op)
	c.want(op.Revision > running.Revision && !op.FinishedAt.Before(op.StartedAt) && op.Attempts == 1, "%+v after %+v", op, running)
	c.want(fmt.Sprintf("%#v", struct{ v any }{c.get(op.ID)}) == fmt.Sprintf("%#v", struct{ v any }{op}), "Get differs from Wait")
}

func inputAndResultComeBackUnchanged(c *check) {
	c.register("echo", func(_ context.Context, in json.RawMessage) (any, error) { return in, nil })
	for _, text := range []string{
		`null`, `""`, `{"b":1,"a":2,"b":3}`, `[1.50,1e400,123456789012345678901234567890]`, `"\u0000 \ud800 日本語 🙂"`, `"'; DROP TABLE river_job; --"`,
	} {
		op := c.ends(c.submit("echo", json.RawMessage(text)).ID)
		c.want(op.Status == task.Succeeded && string(op.Result) == text, "%s came back as %s, %s", text, op.Result, op.ErrorCode)
		c.want(op.Input == nil, "Wait returned the input")
	}
	task.Register(c.Engine, "typed", func(_ context.Context, in struct{ N int }) (int, error) { return in.N + 1, nil })
	op := c.ends(c.submit("typed", struct{ N int }{41}).ID)
	n, err := task.Result[int](op)
	c.want(err == nil && n == 42, "the result is %d, %v", n, err)
	c.failed(c.ends(c.submit("typed", Secret).ID), task.Failed, task.KindInternal, "")
}

func sizesAreLimited(c *check) {
	const most = 1 << 20
	c.register("result", func(_ context.Context, in json.RawMessage) (any, error) {
		var n int
		err := json.Unmarshal(in, &n)
		return strings.Repeat("x", n), err
	})
	op := c.ends(c.submit("result", most-2).ID)
	c.want(op.Status == task.Succeeded && len(op.Result) == most, "a result of 1 MiB: %s, %s", op.Status, op.ErrorCode)
	c.failed(c.ends(c.submit("result", most-1).ID), task.Failed, aiguard.ErrResponseTooLarge, "")

	var got atomic.Int64
	c.register("input", func(_ context.Context, in json.RawMessage) (any, error) { got.Store(int64(len(in))); return nil, nil })
	c.ends(c.submit("input", strings.Repeat("x", most-2)).ID)
	c.want(got.Load() == most, "an input of %d bytes arrived", got.Load())
	_, err := c.Submit(c.Context(), "input", strings.Repeat("x", most-1))
	c.want(errors.Is(err, aiguard.ErrPromptTooLarge), "Submit with a large input: %v", err)
}

// panicking is a result that cannot be encoded.
type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic(Secret) }

func failuresHaveCodesAndMessages(c *check) {
	const internal = "Something went wrong. Please try again later."
	for i, f := range []struct {
		fn      func(context.Context) (any, error)
		code    aiguard.Kind
		message string
	}{
		{func(context.Context) (any, error) { return nil, errors.New(Secret) }, task.KindInternal, internal},
		{func(context.Context) (any, error) { panic(Secret) }, task.KindInternal, internal},
		{func(context.Context) (any, error) { panic(nil) }, task.KindInternal, internal},
		{func(context.Context) (any, error) { return []int{}[len(Secret)], nil }, task.KindInternal, internal},
		{func(context.Context) (any, error) { runtime.Goexit(); return nil, nil }, task.KindInternal, internal},
		{func(context.Context) (any, error) { return panicking{}, nil }, task.KindInternal, internal},
		{func(context.Context) (any, error) { return func() {}, nil }, task.KindInternal, internal},
		{func(context.Context) (any, error) { return nil, context.Canceled }, task.KindInternal, internal},
		{func(context.Context) (any, error) { return nil, context.DeadlineExceeded }, aiguard.ErrTimeout, ""},
		{func(context.Context) (any, error) { return nil, fmt.Errorf("%s: %w", Secret, aiguard.ErrTruncated) }, aiguard.ErrTruncated,
			"The AI service's answer was cut short. Please try again."},
		{func(context.Context) (any, error) { return nil, aiguard.ErrRejected }, aiguard.ErrRejected, ""},
		{func(context.Context) (any, error) { return nil, aiguard.Kind("own\x00\xff") }, "own", ""}, // no database accepts such a text
		{func(context.Context) (any, error) {
			return nil, &aiguard.Error{Kind: aiguard.ErrRateLimited, RetryAfter: time.Second, Err: errors.New(Secret)}
		}, aiguard.ErrRateLimited, "The AI service is receiving too many requests. Please try again in a second."},
	} {
		name := fmt.Sprintf("fails %d", i)
		c.register(name, func(ctx context.Context, _ json.RawMessage) (any, error) { return f.fn(ctx) })
		op := c.ends(c.submit(name, Secret).ID)
		c.failed(op, task.Failed, f.code, f.message)
		c.want(op.ErrorMessage != "" && op.Attempts == 1, "%+v", op)
		text, err := json.Marshal(op)
		c.want(err == nil && !strings.Contains(string(text), Secret), "the operation has the secret: %s", text)
	}
}

func timedOutOperationFails(c *check) {
	c.register("slow", untilEnd)
	op := c.ends(c.submit("slow", nil).ID)
	c.failed(op, task.Failed, aiguard.ErrTimeout,
		"This took longer than expected and was stopped. Please try again, or try with a smaller request.")
	took := op.FinishedAt.Sub(op.StartedAt)
	c.want(took >= 250*time.Millisecond && took < patience, "it took %v", took)
}

func stuckFunctionEndsAfterGraceAndKeepsItsSlot(c *check) {
	release := make(chan struct{})
	defer sync.OnceFunc(func() { close(release) })()
	c.register("stuck", func(context.Context, json.RawMessage) (any, error) { <-release; return "late", nil })
	c.register("next", func(context.Context, json.RawMessage) (any, error) { return "ran", nil })
	stuck, next := c.submit("stuck", nil), c.submit("next", nil)
	stuck = c.ends(stuck.ID)
	c.failed(stuck, task.Failed, aiguard.ErrTimeout, "")
	time.Sleep(300 * time.Millisecond) // nothing tells that an operation does not start
	c.want(c.get(next.ID).Status == task.Pending, "the next operation has started")
	c.want(c.Stats().Stuck == 1 && c.Stats().Running == 1, "%+v", c.Stats())
	release <- struct{}{}
	c.want(c.ends(next.ID).Status == task.Succeeded, "the next operation does not run")
	c.want(c.get(stuck.ID).Revision == stuck.Revision && c.get(stuck.ID).Status == task.Failed, "the late result changed the operation")
}

func cancelledOperationEnds(c *check) {
	c.register("until end", untilEnd)
	running, pending := c.submit("until end", nil), task.Operation{}
	c.until(running.ID, task.Running)
	pending = c.submit("until end", nil)
	op, err := c.Cancel(c.Context(), pending.ID)
	c.want(err == nil, "Cancel: %v", err)
	c.failed(op, task.Cancelled, task.KindCancelled, "This was cancelled.")
	c.want(op.Attempts == 0 && op.StartedAt.IsZero() && !op.FinishedAt.IsZero() && op.Revision > 1, "%+v", op)

	op, err = c.Cancel(c.Context(), running.ID)
	c.want(err == nil && (op.Status == task.Running || op.Status == task.Cancelled), "Cancel returned %+v, %v", op, err)
	op = c.ends(running.ID)
	c.failed(op, task.Cancelled, task.KindCancelled, "This was cancelled.")
	again, err := c.Cancel(c.Context(), running.ID)
	c.want(err == nil && again.Status == task.Cancelled && again.Revision == op.Revision, "a second Cancel returned %+v, %v", again, err)
}

func functionThatSucceedsAfterCancelSucceeds(c *check) {
	release := make(chan struct{})
	c.register("obstinate", func(ctx context.Context, _ json.RawMessage) (any, error) {
		<-ctx.Done()
		<-release
		return "done", nil
	})
	op := c.submit("obstinate", nil)
	c.until(op.ID, task.Running)
	cancelled, err := c.Cancel(c.Context(), op.ID)
	close(release)
	c.want(err == nil && cancelled.Status == task.Running, "Cancel returned %+v, %v", cancelled, err)
	op = c.ends(op.ID)
	c.want(op.Status == task.Succeeded && string(op.Result) == `"done"`, "%+v", op)
	c.want(op.Revision > cancelled.Revision, "the end has revision %d after %d", op.Revision, cancelled.Revision)
}

func progressIsReported(c *check) {
	steps := make(chan int)
	c.register("steps", func(ctx context.Context, _ json.RawMessage) (any, error) {
		for n := range steps {
			task.SetProgress(ctx, n, fmt.Sprintf("step %d\x00", n))
		}
		return nil, nil
	})
	op := c.submit("steps", nil)
	last := c.until(op.ID, task.Running)
	ctx, cancel := context.WithTimeout(c.Context(), patience)
	defer cancel()
	for _, n := range []int{10, 40, 250} {
		steps <- n
		for want := min(n, 100); last.Progress != want; {
			next, err := c.Next(ctx, op.ID, last.Revision)
			c.want(err == nil && next.Status == task.Running && next.Revision > last.Revision, "Next returned %+v, %v", next, err)
			last = next
		}
		c.want(last.ProgressNote == fmt.Sprintf("step %d", n), "the note is %q", last.ProgressNote)
	}
	close(steps)
	op = c.ends(op.ID)
	c.want(op.Progress == 100 && op.ProgressNote == "step 250" && op.Revision > last.Revision, "%+v", op)
}

func operationsBeyondCapacityAreRejected(c *check) {
	fn, open := gate()
	defer open()
	c.register("gate", fn)
	var accepted []task.Operation
	for range 3 { // one runs and two wait
		accepted = append(accepted, c.submit("gate", nil))
	}
	_, err := c.Submit(c.Context(), "gate", nil)
	facts := aiguard.Explain(err)
	c.want(errors.Is(err, aiguard.ErrOverloaded) && facts.Max == 2 && facts.RetryAfter >= time.Second, "Submit: %v", err)
	c.want(c.Stats().Refused == 1, "%+v", c.Stats())
	open()
	for _, op := range accepted {
		c.want(c.ends(op.ID).Status == task.Succeeded, "an accepted operation failed")
	}
	c.submit("gate", nil)
}

func unknownIDsAreNotFound(c *check) {
	c.register("done", func(context.Context, json.RawMessage) (any, error) { return nil, nil })
	id := c.ends(c.submit("done", nil).ID).ID
	for _, unknown := range []string{"", "unknown", "\x00", "é", id + "0", id[1:], id[:len(id)-1], strings.ToLower(id), strings.Repeat("x", 10_000), "-1", "a-1", "../x"} {
		_, getErr := c.Get(c.Context(), unknown)
		_, waitErr := c.Wait(c.Context(), unknown)
		_, nextErr := c.Next(c.Context(), unknown, 0)
		_, cancelErr := c.Cancel(c.Context(), unknown)
		for _, err := range []error{getErr, waitErr, nextErr, cancelErr} {
			c.want(errors.Is(err, task.ErrNotFound), "the ID %q: %v", unknown, err)
		}
	}
}

func invalidCallsNameTheProblem(c *check) {
	fails := func(want string, err error) {
		c.Helper()
		c.want(err != nil && strings.Contains(err.Error(), want), "%v; want %q", err, want)
	}
	_, err := c.Submit(c.Context(), "nobody", 1)
	fails("no handler", err)
	for _, name := range []string{"", strings.Repeat("x", 101), "a\nb", "\xff"} {
		c.register(name, untilEnd)
		_, err = c.Submit(c.Context(), name, 1)
		fails("name", err)
	}
	c.register("twice", untilEnd)
	_, err = c.Submit(c.Context(), "twice", func() {})
	fails("cannot be encoded", err)
	func() {
		defer func() { c.want(recover() != nil, "a name was registered twice") }()
		c.register("twice", untilEnd)
	}()
	ended, cancel := context.WithCancel(c.Context())
	cancel()
	_, err = c.Submit(ended, "twice", 1)
	c.want(errors.Is(err, context.Canceled), "Submit of a caller who has left: %v", err)
}

func listFilters(c *check) {
	for _, name := range []string{"a", "b"} {
		c.register(name, func(context.Context, json.RawMessage) (any, error) { return 1, nil })
	}
	c.register("fails", func(context.Context, json.RawMessage) (any, error) { return nil, aiguard.ErrTruncated })
	c.register("runs", untilEnd)
	var ids []string
	for _, name := range []string{"a", "b", "fails", "a"} {
		ids = append(ids, c.ends(c.submit(name, nil).ID).ID)
	}
	runs := c.until(c.submit("runs", nil).ID, task.Running)
	ids = append(ids, runs.ID)
	for _, q := range []struct {
		task.Query
		want []int
	}{
		{task.Query{}, []int{4, 3, 2, 1, 0}},
		{task.Query{Limit: 2}, []int{4, 3}},
		{task.Query{Name: "a"}, []int{3, 0}},
		{task.Query{Statuses: []task.Status{task.Failed, task.Running}}, []int{4, 2}},
		{task.Query{Name: "a", Statuses: []task.Status{task.Failed}}, nil},
		{task.Query{Owner: runs.Owner, Limit: 1}, []int{4}},
		{task.Query{Owner: "nobody"}, nil},
	} {
		found, err := c.List(c.Context(), q.Query)
		c.want(err == nil, "List: %v", err)
		var got, want []string
		for _, op := range found {
			got = append(got, op.ID)
			c.want(op.Input == nil, "List returned an input")
		}
		for _, i := range q.want {
			want = append(want, ids[i])
		}
		c.want(slices.Equal(got, want), "List(%+v) returned %q; want %q", q.Query, got, want)
	}
}

func eventsEndWithTheOperation(c *check) {
	fn, open := gate()
	defer open()
	c.register("gate", func(ctx context.Context, in json.RawMessage) (any, error) {
		task.SetProgress(ctx, 50, "half")
		return fn(ctx, in)
	})
	h := task.Handler(c.Engine)
	do := func(method, path, lastEventID string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(c.Context(), method, path, nil)
		r.Header.Set("Last-Event-ID", lastEventID)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	op := c.submit("gate", nil)
	c.want(do("GET", "/"+op.ID, "").Code == http.StatusOK && do("GET", "/unknown", "").Code == http.StatusNotFound, "the handler does not find the operation")
	time.AfterFunc(time.Second, open)
	w := do("GET", "/"+op.ID+"/events", "")
	var types, ids []string
	var last task.Operation
	for lines := bufio.NewScanner(bytes.NewReader(w.Body.Bytes())); lines.Scan(); {
		switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
		case "event":
			types = append(types, value)
		case "id":
			ids = append(ids, value)
		case "data":
			c.want(json.Unmarshal([]byte(value), &last) == nil, "the event is %s", value)
		}
	}
	c.want(len(types) >= 2 && types[len(types)-1] == "finished" && !slices.Contains(types[:len(types)-1], "finished"), "the events are %q", types)
	c.want(last.Status == task.Succeeded && last.ProgressNote == "half", "the last event is %+v", last)
	c.want(do("GET", "/"+op.ID+"/events", ids[len(ids)-1]).Code == http.StatusNoContent, "a client that has the last event does not get 204")
	c.want(do("DELETE", "/"+op.ID, "").Code == http.StatusOK, "DELETE of an operation that is over")
}

func shutdownWaitsForRunning(c *check) {
	fn, open := gate()
	defer open()
	c.register("gate", fn)
	op := c.until(c.submit("gate", nil).ID, task.Running)
	done := make(chan error, 1)
	go func() { done <- c.Shutdown(c.Context()) }()
	deadline := time.Now().Add(patience)
	for closed := false; !closed; {
		_, err := c.Submit(c.Context(), "gate", nil)
		closed = errors.Is(err, aiguard.ErrClosed)
		c.want(time.Now().Before(deadline), "Submit during Shutdown: %v", err)
	}
	open()
	err := <-done
	c.want(err == nil, "Shutdown: %v", err)
	c.want(c.get(op.ID).Status == task.Succeeded, "the running operation is %s", c.get(op.ID).Status)
	c.want(c.Shutdown(c.Context()) == nil, "a second Shutdown failed")
}

func shutdownInterruptsAtItsDeadline(c *check) {
	release := make(chan struct{})
	defer close(release)
	c.register("obedient", untilEnd)
	c.register("stuck", func(context.Context, json.RawMessage) (any, error) { <-release; return nil, nil })
	obedient, stuck := c.submit("obedient", nil), c.submit("stuck", nil)
	c.until(obedient.ID, task.Running)
	c.until(stuck.ID, task.Running)
	ctx, cancel := context.WithTimeout(c.Context(), 200*time.Millisecond)
	defer cancel()
	c.want(errors.Is(c.Shutdown(ctx), context.DeadlineExceeded), "Shutdown did not return its context's error")
	for _, id := range []string{obedient.ID, stuck.ID} {
		c.failed(c.ends(id), task.Failed, task.KindInterrupted, "The service was restarted before this was done. Please try again.")
	}
}
