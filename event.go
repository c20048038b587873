package aiguard

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

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
