package task_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/linear"
	"github.com/aiguard-go/aiguard/task"
)

// The cost of everything that users can send to operations must be linear in its size.
func TestInputCostIsLinear(t *testing.T) {
	r := newRunner(t, newMemory(t), task.Config{})
	task.Register(r, "any", func(context.Context, json.RawMessage) (any, error) { return nil, nil })
	for name, input := range map[string]func(size int) string{
		"text":               func(size int) string { return `"` + strings.Repeat("x", size) + `"` },
		"escapes":            func(size int) string { return `"` + strings.Repeat(`\u0041`, size/6) + `"` },
		"nested arrays":      func(size int) string { n := min(size/2, 9_000); return strings.Repeat("[", n) + strings.Repeat("]", n) },
		"flat array":         func(size int) string { return `[` + strings.Repeat("1,", size/2) + `1]` },
		"many members":       func(size int) string { return `{` + strings.Repeat(`"a":1,`, size/6) + `"b":1}` },
		"control characters": func(size int) string { return `["` + strings.Repeat(`\u0000`, size/6) + `"]` },
		"invalid UTF-8":      func(size int) string { return `"` + strings.Repeat("\xff", size) + `"` },
		"invalid JSON":       func(size int) string { return strings.Repeat("[", size) },
	} {
		t.Run(name, func(t *testing.T) {
			linear.Check(t, 30, func(size int) (int, func()) {
				text := input(size)
				return len(text), func() {
					op, err := r.Submit(t.Context(), "any", json.RawMessage(text))
					if err == nil {
						wait(t, r, op.ID)
					}
				}
			})
		})
	}
}

func TestIDCostIsLinear(t *testing.T) {
	h := task.Handler(newRunner(t, newMemory(t), task.Config{}))
	for name, unit := range map[string]string{"letters": "A", "dots": "..", "escaped slashes": "%2f", "not printable": "%00", "not UTF-8": "%ff"} {
		for _, behind := range []string{"", "/events"} {
			t.Run(name+behind, func(t *testing.T) {
				linear.Check(t, 30, func(size int) (int, func()) {
					req := httptest.NewRequest(http.MethodGet, "/", nil)
					path, err := url.PathUnescape("/" + strings.Repeat(unit, size/len(unit)) + behind)
					require.NoError(t, err)
					req.URL = &url.URL{Path: path, RawPath: "/" + strings.Repeat(unit, size/len(unit)) + behind}
					req.Header.Set("Last-Event-ID", strings.Repeat("9", size))
					return 2 * size, func() {
						w := httptest.NewRecorder()
						h.ServeHTTP(w, req)
						require.GreaterOrEqual(t, w.Code, 300)
					}
				})
			})
		}
	}
}
