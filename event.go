package aiguard

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Event describes a moment in the life of a call. Fields that do not apply are zero.
//
// Each call ends with one EventRefused or EventDone. Each attempt begins with one EventAdmitted and ends with one
// EventAttemptDone, before the call continues. This holds for every end of a call: an answer, a failure, a
// cancellation, a panic. The two attempts of a hedged call may overlap.
type Event struct {
	Type       EventType
	ID, Parent CallID // of the call; of the Do or RunTask around it, if that is observed
	Call       Call

	Host, Route string // provider's host; route's name as in RouteStats
	Endpoint    string // name of the API endpoint, such as "chat.completions", even if Call.Op has another
	Alternative int    // index in Fallback; 0: the first alternative, or no Fallback
	Attempt     int    // number of the attempt, from 1; in EventDone the number of attempts

	Queued, Backoff, InFlight, Elapsed time.Duration // so far; for EventRetry and EventPaused, Backoff is the coming wait
	FirstEvent                         time.Duration // of a stream: from the start of the attempt to its first event

	Usage Usage // EventAttemptDone; EventDone: of the last attempt
	Err   error // the cause: an *Error, or the caller's own error

	MayBeBilled bool // with Err: the provider may charge for the attempts so far, see Error.MayBeBilled

	// Sizes for EventMemorySpike: the body of the last request, if its length was known, and the body of its answer.
	// HeapGrowth counts from the admission of the call.
	PromptBytes, AnswerBytes, HeapGrowth int64
}

// EventType names an Event. Ignore types that you do not know, because later versions may add some.
//
// EventMemorySpike has two forms. With an Err, the heap is over MemoryLimit and new calls are rejected. Without an
// Err, the heap grew during this call by a tenth of MemoryLimit (64 MiB if there is no limit). The second form is a
// hint, sent at most once per second. The growth includes garbage and what other goroutines allocated. A call over
// HTTP is measured after EventDone, when its answer has been decoded, and only if prompt and answer have 1/64 of that
// many bytes. A Do is measured only if it took 100 ms.
type EventType string

// Types of Event.
const (
	EventQueued      EventType = "queued"       // no slot is free: waiting
	EventAdmitted    EventType = "admitted"     // a slot is taken; the attempt begins
	EventFirstEvent  EventType = "first_event"  // a stream is returned to its caller
	EventAttemptDone EventType = "attempt_done" // the attempt is over; Err is nil on success
	EventRetry       EventType = "retry"        // the attempt failed with Err; another follows after Backoff
	EventHedge       EventType = "hedge"        // the attempt is slow; a second one begins beside it
	EventPaused      EventType = "paused"       // a 429 pauses the route for Backoff
	EventDown        EventType = "down"         // the route is down with Err; calls fail at once until a probe succeeds
	EventUp          EventType = "up"           // the route answers again
	EventRefused     EventType = "refused"      // rejected before the first attempt
	EventDone        EventType = "done"         // the call is over; Err is nil on success
	EventAbandoned   EventType = "abandoned"    // StreamTimeout ended a stream that nobody read or closed; EventDone follows
	EventTask        EventType = "task"         // RunTask is over
	EventMemorySpike EventType = "memory_spike" // the heap grew over MemoryLimit, or much during one call
)

// Usage counts the tokens of an attempt, as reported by the provider. Input includes cached input, and Output includes
// reasoning. If no answer reported them and the provider may charge for the attempt, they are an estimate: see
// Budget.Reserve.
type Usage struct {
	Input, Output         int64
	CacheRead, CacheWrite int64 // part of Input: read from and written to the provider's cache
	Reasoning             int64 // part of Output
	Estimated             bool  // an estimate, because no answer reported usage
}

// CallID identifies a call or RunTask within the process. It prints as 16 hexadecimal digits.
type CallID uint64

// String returns the 16 digits, or "" for 0.
func (id CallID) String() string {
	if id == 0 {
		return ""
	}
	const zeros = "0000000000000000"
	digits := strconv.FormatUint(uint64(id), 16)
	return zeros[len(digits):] + digits
}

// MarshalText returns String.
func (id CallID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// ErrUnwound is the Err of the events that end a call after a panic or runtime.Goexit. No call returns it.
var ErrUnwound = errors.New("aiguard: a panic or runtime.Goexit ended the call")

// The Err of an Event may be the caller's own error. Its text may quote a prompt or a URL with a key. So all output
// of an Event describes such an error by its type.

// MarshalJSON returns the fields as an object. Durations are in nanoseconds.
func (e Event) MarshalJSON() ([]byte, error) {
	type plain Event
	return json.Marshal(struct {
		plain
		Err any
	}{plain(e), e.safeErr()})
}

// LogValue returns the non-zero fields as a group.
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("type", short(string(e.Type))),
		slog.String("call_id", e.ID.String()),
		slog.String("op", short(e.Call.Op)),
		slog.String("model", short(e.Call.Model)),
		slog.Int("attempt", e.Attempt),
	}
	for _, s := range []struct{ key, value string }{
		{"parent_id", e.Parent.String()}, {"tenant", e.Call.Tenant}, {"host", e.Host}, {"route", e.Route}, {"endpoint", e.Endpoint},
	} {
		if s.value != "" {
			attrs = append(attrs, slog.String(s.key, short(s.value)))
		}
	}
	for _, n := range []struct {
		key   string
		value int64
	}{{"priority", int64(e.Call.Priority)}, {"alternative", int64(e.Alternative)}, {"input_tokens", e.Usage.Input}, {"output_tokens", e.Usage.Output}} {
		if n.value != 0 {
			attrs = append(attrs, slog.Int64(n.key, n.value))
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"queued", e.Queued}, {"backoff", e.Backoff}, {"in_flight", e.InFlight}, {"elapsed", e.Elapsed}, {"first_event", e.FirstEvent}} {
		if d.value != 0 {
			attrs = append(attrs, slog.Duration(d.key, d.value))
		}
	}
	if e.Usage.Estimated {
		attrs = append(attrs, slog.Bool("usage_estimated", true))
	}
	if e.MayBeBilled {
		attrs = append(attrs, slog.Bool("may_be_billed", true))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("error", e.safeErr()))
	}
	return slog.GroupValue(attrs...)
}

// Format prints the fields of LogValue on one line, for every verb.
func (e Event) Format(f fmt.State, verb rune) {
	var b strings.Builder
	for i, a := range e.LogValue().Group() {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%v", a.Key, a.Value)
	}
	fmt.Fprintf(f, fmt.FormatString(f, verb), b.String())
}

// safeErr returns Err as an *Error, or a safe description of any other error.
func (e Event) safeErr() any {
	switch err := e.Err.(type) {
	case nil:
		return nil
	case *Error:
		if err == nil {
			return nil
		}
		return err
	}
	if e.Err == errLeft || e.Err == ErrUnwound {
		return e.Err.Error()
	}
	return describe(e.Err)
}
