// Package panics carries a panic from one goroutine to another.
package panics

import (
	"fmt"
	"net/http"
	"runtime/debug"
)

// WithStack returns the value with which another goroutine should repeat a panic: an error whose text has the value
// and the original stack, and whose Unwrap returns the value if that is an error. nil and http.ErrAbortHandler stay
// unchanged. Call WithStack in the deferred function that recovers, while the stack of the panic still exists.
func WithStack(value any) any {
	if value == nil || value == http.ErrAbortHandler {
		return value
	}
	return &panicked{value, debug.Stack()}
}

type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v\n\n%s", p.value, p.stack) }

func (p *panicked) Unwrap() error {
	err, _ := p.value.(error)
	return err
}
