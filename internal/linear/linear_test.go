package linear

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// verdict notes whether a check has failed.
type verdict struct{ failed bool }

func (*verdict) Helper()                 {}
func (*verdict) Logf(string, ...any)     {}
func (v *verdict) Errorf(string, ...any) { v.failed = true }

var sink int

func TestQuadraticWorkFails(t *testing.T) {
	for name, tc := range map[string]struct {
		work func(text string)
		fail bool
	}{
		"linear": {func(text string) { sink = strings.Count(text, "x") }, false},
		"quadratic in time": {func(text string) {
			for i := range len(text) / 64 {
				sink += strings.Count(text[i:], "y")
			}
		}, true},
		"quadratic in bytes": {func(text string) {
			for i := range len(text) / 1024 {
				sink += len(strings.Clone(text[i:]))
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			v := &verdict{}
			Check(v, 2, func(size int) (int, func()) {
				text := strings.Repeat("x", size)
				return size, func() { tc.work(text) }
			})
			if v.failed != tc.fail {
				t.Errorf("failed is %v; want %v", v.failed, tc.fail)
			}
		})
	}
}

func TestSlowWorkFails(t *testing.T) {
	for name, tc := range map[string]struct {
		late int // runs that take longer
		fail bool
	}{"always in time": {0, false}, "in time at last": {9, false}, "never in time": {10, true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, runs := &verdict{}, 0
				Within(v, time.Second, func() {
					if runs++; runs <= tc.late {
						time.Sleep(time.Second)
					}
				})
				if v.failed != tc.fail {
					t.Errorf("failed is %v; want %v", v.failed, tc.fail)
				}
			})
		})
	}
}
