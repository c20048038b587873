// Package bymodel finds a value by the name of a model.
package bymodel

import (
	"slices"
	"strings"
)

// Map holds values by model. A key is a model's name, or a prefix that ends in "*". The zero Map is empty. A Map does
// not change and is safe for concurrent use.
type Map[T any] struct {
	exact    map[string]T
	prefixes []prefix[T] // longest first
}

type prefix[T any] struct {
	text  string
	value T
}

// New returns a Map of values, which it copies. All keys must be valid.
func New[T any](values map[string]T) (m Map[T]) {
	if len(values) == 0 {
		return m
	}
	m.exact = make(map[string]T)
	for key, value := range values {
		if text, ok := strings.CutSuffix(key, "*"); ok {
			m.prefixes = append(m.prefixes, prefix[T]{text, value})
		} else {
			m.exact[key] = value
		}
	}
	slices.SortFunc(m.prefixes, func(a, b prefix[T]) int { return len(b.text) - len(a.text) })
	return m
}

// Empty reports whether the Map has no values.
func (m *Map[T]) Empty() bool { return m.exact == nil }

// Find returns the value of a model and its key: the model's own, or that of the longest prefix that matches.
func (m *Map[T]) Find(model string) (value T, key string, ok bool) {
	if value, ok = m.exact[model]; ok {
		return value, model, true
	}
	for i := range m.prefixes {
		if p := &m.prefixes[i]; strings.HasPrefix(model, p.text) {
			return p.value, p.text + "*", true
		}
	}
	return value, "", false
}

// WantKey describes a valid key, for error messages.
const WantKey = `a model's name, or a prefix that ends in "*"`

// IsKey reports whether key is valid.
func IsKey(key string) bool {
	return key != "" && !strings.Contains(strings.TrimSuffix(key, "*"), "*")
}
