package aiguard

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Error returns one line for operators: the call, the limit that was reached or the provider's status, the attempts,
// and where the time went. The status reads "status code: 429", as in go-openai's errors.
func (e *Error) Error() string {
	if e == nil {
		return "<nil>"
	}
	var b strings.Builder
	b.WriteString("aiguard: ")
	if e.Op != "" || e.Model != "" {
		b.WriteString(strings.TrimSpace(short(e.Op) + " " + short(e.Model)))
		b.WriteString(": ")
	}
	b.WriteString(short(string(e.Kind)))
	if d := e.detail(); d != "" {
		b.WriteString(": " + d)
		if e.setting != "" { // allows more
			b.WriteString(" (" + e.setting + ")")
		}
	}
	if e.StatusCode != 0 {
		fmt.Fprintf(&b, ", status code: %d", e.StatusCode)
	}
	if e.Host != "" {
		b.WriteString(", host " + short(e.Host))
	}
	if e.RequestID != "" {
		b.WriteString(", request " + identifier(e.RequestID))
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, ", retry after %v", round(e.RetryAfter))
	}
	if e.Attempts > 0 || e.Queued > 0 {
		fmt.Fprintf(&b, " (attempts %d, queued %v, backoff %v, in flight %v)",
			e.Attempts, round(e.Queued), round(e.Backoff), round(e.InFlight))
	}
	if t := e.causeText(); t != "" {
		b.WriteString(": " + t)
	}
	return b.String()
}

// detail describes the limit of e.Phase.
func (e *Error) detail() string {
	limit := e.Limit.String()
	switch e.Phase {
	case PhasePrompt:
		return fmt.Sprintf("prompt of %d characters, limit %d", e.Size, e.Max)
	case PhasePromptTokens:
		return fmt.Sprintf("prompt of %d tokens, limit %d", e.Size, e.Max)
	case PhaseRequest:
		return fmt.Sprintf("request of %d bytes, limit %d", e.Size, e.Max)
	case PhaseOutput:
		return fmt.Sprintf("the output limit cannot be set to %d tokens in a signed request; set it before signing", e.Max)
	case PhaseWeight:
		return fmt.Sprintf("weight %d is above the capacity %d", e.Size, e.Max)
	case PhaseBudget:
		if e.Limit > 0 {
			return "no decision of the budget within " + limit
		}
	case PhaseQueue:
		switch {
		case e.expected:
			return "no slot expected within " + limit
		case e.hopeless:
			return "overloaded, newer calls are served first"
		case e.Limit > 0:
			return "no slot within " + limit
		}
		return fmt.Sprintf("queue full: %d waiting, limit %d", e.Size, e.Max)
	case PhaseMemory:
		return fmt.Sprintf("memory in use %d bytes, limit %d", e.Size, e.Max)
	case PhasePause:
		return "the provider asked for a pause"
	case PhasePace:
		return "the route's rate limit is used up"
	case PhaseOutage:
		return "the provider is down, the call was not sent"
	case PhaseShare:
		return "no answer within " + limit + ", this alternative's share of the caller's time"
	case PhaseConnect:
		if e.Limit > 0 {
			return "no connection within " + limit
		}
		return "no connection"
	case PhaseHeaders:
		if e.StatusCode >= 300 && e.StatusCode < 400 {
			return "redirects are not followed"
		}
		return "response headers not acceptable"
	case PhaseCall:
		return "no complete answer within " + limit
	case PhaseFirstEvent:
		return "no first event within " + limit
	case PhaseStreamIdle:
		return "no event for " + limit
	case PhaseStream:
		if e.Limit > 0 {
			return "stream longer than " + limit
		}
	case PhaseTotal:
		return "queue, attempts and backoff took longer than " + limit
	case PhaseTask:
		switch {
		case e.Limit > 0:
			return "task ran longer than " + limit
		case e.Max > 0:
			return fmt.Sprintf("JSON of %d bytes, limit %d", e.Size, e.Max)
		}
	case PhaseResponse:
		if e.Max > 0 {
			return fmt.Sprintf("answer of more than %d bytes", e.Max)
		}
	case PhaseEvent:
		return fmt.Sprintf("event of more than %d bytes", e.Max)
	case PhaseJSONShape:
		return "JSON with too many or too deeply nested objects"
	case PhaseErrorBody:
		return fmt.Sprintf("error body of more than %d bytes", e.Max)
	}
	return ""
}

// causeText describes the cause.
func (e *Error) causeText() string {
	if e.Err == nil {
		return ""
	}
	return describe(e.Err)
}

// LogValue returns the facts as a group, without text of the provider, the prompt or keys.
func (e *Error) LogValue() slog.Value {
	if e == nil {
		return slog.Value{}
	}
	return slog.GroupValue(e.attrs()...)
}

// MarshalJSON returns the facts of LogValue as an object. Durations are in nanoseconds.
func (e Error) MarshalJSON() ([]byte, error) {
	facts := make(map[string]any)
	for _, a := range e.attrs() {
		facts[a.Key] = a.Value.Any()
	}
	return json.Marshal(facts)
}

// Format prints the text of Error for every verb. Err is never printed, because it may quote the provider.
func (e Error) Format(f fmt.State, verb rune) {
	fmt.Fprintf(f, fmt.FormatString(f, verb), e.Error())
}

func (e *Error) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 12)
	add := func(key string, v slog.Value, zero bool) {
		if !zero {
			attrs = append(attrs, slog.Attr{Key: key, Value: v})
		}
	}
	add("kind", slog.StringValue(short(string(e.Kind))), false)
	add("op", slog.StringValue(short(e.Op)), e.Op == "")
	add("model", slog.StringValue(short(e.Model)), e.Model == "")
	add("host", slog.StringValue(short(e.Host)), e.Host == "")
	add("phase", slog.StringValue(short(e.Phase)), e.Phase == "")
	add("limit", slog.DurationValue(e.Limit), e.Limit == 0)
	add("size", slog.Int64Value(e.Size), e.Size == 0)
	add("max", slog.Int64Value(e.Max), e.Max == 0)
	add("status", slog.IntValue(e.StatusCode), e.StatusCode == 0)
	add("request_id", slog.StringValue(identifier(e.RequestID)), e.RequestID == "")
	add("retry_after", slog.DurationValue(e.RetryAfter), e.RetryAfter == 0)
	add("attempts", slog.IntValue(e.Attempts), e.Attempts == 0)
	add("may_be_billed", slog.BoolValue(e.MayBeBilled), !e.MayBeBilled)
	add("queued", slog.DurationValue(e.Queued), e.Queued == 0)
	add("backoff", slog.DurationValue(e.Backoff), e.Backoff == 0)
	add("in_flight", slog.DurationValue(e.InFlight), e.InFlight == 0)
	if t := e.causeText(); t != "" {
		add("cause", slog.StringValue(t), false)
	}
	return attrs
}

func codeText(code any) string {
	switch c := code.(type) {
	case nil:
		return ""
	case int:
		if c == 0 {
			return "" // go-openai decodes "code":null to this
		}
		return strconv.Itoa(c)
	case string:
		return c
	default:
		return fmt.Sprint(c)
	}
}

// identifier returns s only if it looks like a provider's code, type or request ID.
func identifier(s string) string {
	if len(s) > 64 {
		return ""
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.' {
			return ""
		}
	}
	return s
}

// short cuts a text to 128 bytes and replaces unprintable characters.
func short(s string) string { return printable(s, 128) }

// printable cuts a text to most bytes and replaces unprintable characters.
func printable(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most-3], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// round rounds a duration for display.
func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Microsecond)
}
