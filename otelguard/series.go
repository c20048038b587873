package otelguard

import (
	"cmp"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// values limits the values of a label. The first maxValues are kept, and all others become "other".
type values struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (v *values) bound(value string) string {
	if value == "" {
		return ""
	}
	if value = clean(value); !v.has(value) {
		return other
	}
	return value
}

// has reports whether value is one of the first maxValues.
func (v *values) has(value string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.seen[value]:
	case len(v.seen) >= maxValues:
		return false
	default:
		if v.seen == nil {
			v.seen = make(map[string]bool)
		}
		v.seen[value] = true
	}
	return true
}

const maxValueBytes = 128

// clean returns s as a valid attribute value of at most maxValueBytes. s may come from a user.
func clean(s string) string {
	if len(s) > maxValueBytes {
		s = s[:maxValueBytes]
	}
	return strings.Clone(strings.ToValidUTF8(s, "?"))
}

// subject is what the calls of one series have in common.
type subject struct{ endpoint, op, model, host string }

// series holds the attributes of a subject, which cost more to make than to record with.
type series struct {
	operation string // "": a Do
	span      string // its name
	start     []trace.SpanStartOption
	attrs     []attribute.KeyValue
	model     string // as in attrs

	record []metric.RecordOption
	add    []metric.AddOption
	tokens []metric.AddOption
	failed sync.Map // error.type → []metric.RecordOption

	estimated []metric.AddOption // as tokens, for an estimate
}

// maxSeries limits the series that are kept. Further subjects share a series named "other".
const maxSeries = 2000

// all finds the series of a subject.
type all struct {
	guard string // Config.Name

	mu                    sync.RWMutex
	m                     map[subject]*series
	endpoints, ops        values
	models, hosts, phases values
}

func (a *all) of(s subject) *series {
	a.mu.RLock()
	found := a.m[s]
	a.mu.RUnlock()
	if found != nil {
		return found
	}
	bounded := subject{a.endpoints.bound(s.endpoint), a.ops.bound(s.op), a.models.bound(s.model), a.hosts.bound(s.host)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if found := a.m[bounded]; found != nil {
		return found
	}
	if len(a.m) >= maxSeries {
		for _, field := range []*string{&bounded.endpoint, &bounded.op, &bounded.model, &bounded.host} {
			if *field != "" {
				*field = other
			}
		}
		if found := a.m[bounded]; found != nil {
			return found
		}
	}
	made := a.newSeries(bounded)
	a.m[bounded] = made
	return made
}

// newSeries returns the series of a bounded subject, which is a request to a provider or a Do.
func (a *all) newSeries(s subject) *series {
	var attrs []attribute.KeyValue
	if a.guard != "" {
		attrs = append(attrs, attribute.String(attrGuard, a.guard))
	}
	made := &series{model: s.model}
	name := cmp.Or(s.endpoint, s.op, "do")
	name = cmp.Or(operations[name], name)
	if s.host != "" {
		made.operation = name
		address, port := splitHost(s.host)
		attrs = append(attrs, attribute.String(attrOperation, name), attribute.String(attrProvider, providerOf(address, s.endpoint)),
			attribute.String(attrAddress, address), attribute.Int(attrPort, port))
	} else {
		attrs = append(attrs, attribute.String(attrOp, name))
	}
	if s.model != "" {
		attrs = append(attrs, attribute.String(attrModel, s.model))
	}
	made.span = strings.TrimSpace(name + " " + s.model)
	made.attrs = attrs
	made.start = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attrs...)}
	if s.host == "" {
		made.start[0] = trace.WithSpanKind(trace.SpanKindInternal)
	}
	made.record, made.add = recordOptions(attrs), addOptions(attrs)
	made.tokens = addOptions(attrs, attribute.String(attrModality, modalityUnknown))
	made.estimated = addOptions(attrs, attribute.String(attrModality, modalityUnknown), attribute.Bool(attrEstimated, true))
	return made
}

// failure returns the attributes of the series together with an error type. There are few error types.
func (s *series) failure(errorType string) []metric.RecordOption {
	if found, ok := s.failed.Load(errorType); ok {
		return found.([]metric.RecordOption)
	}
	found, _ := s.failed.LoadOrStore(errorType, recordOptions(s.attrs, attribute.String(attrErrorType, errorType)))
	return found.([]metric.RecordOption)
}

func recordOptions(attrs []attribute.KeyValue, more ...attribute.KeyValue) []metric.RecordOption {
	return []metric.RecordOption{metric.WithAttributeSet(newSet(attrs, more))}
}

func addOptions(attrs []attribute.KeyValue, more ...attribute.KeyValue) []metric.AddOption {
	return []metric.AddOption{metric.WithAttributeSet(newSet(attrs, more))}
}

func newSet(attrs, more []attribute.KeyValue) attribute.Set {
	return attribute.NewSet(append(attrs[:len(attrs):len(attrs)], more...)...)
}
