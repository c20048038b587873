// Package operation has the rules of package task that all its engines share: names, inputs, results, progress and the
// final states of operations.
package operation

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

const (
	maxNameBytes = 100
	maxNoteRunes = 200
	maxJSONBytes = 1 << 20 // for an input, and for a result
	maxIDBytes   = 128
)

// Error codes in addition to the kinds of package aiguard.
const (
	KindInternal    aiguard.Kind = "internal"
	KindInterrupted aiguard.Kind = "interrupted"
	KindCancelled   aiguard.Kind = "cancelled"
)

// CheckName returns an error if name is not a valid name of an operation.
func CheckName(name string) error {
	if name == "" || len(name) > maxNameBytes {
		return fmt.Errorf("task: the name has %d bytes; want 1 to %d", len(name), maxNameBytes)
	}
	for _, c := range name {
		if !unicode.IsPrint(c) || c == unicode.ReplacementChar {
			return fmt.Errorf("task: the name %q contains unprintable characters", name)
		}
	}
	return nil
}

// IsID reports whether id may be the ID of an operation. IDs come from clients, and some stores reject bytes such as
// NUL.
func IsID(id string) bool {
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return id != "" && len(id) <= maxIDBytes
}

// EncodeInput returns the JSON of the input of an operation.
func EncodeInput(name string, input any) (json.RawMessage, error) {
	in, err := json.Marshal(input)
	if err != nil {
		return nil, fmt.Errorf("task: Submit: a %T cannot be encoded as JSON", input)
	}
	if len(in) > maxJSONBytes {
		return nil, &aiguard.Error{Kind: aiguard.ErrPromptTooLarge, Op: name, Phase: aiguard.PhaseTask, Size: int64(len(in)), Max: maxJSONBytes}
	}
	return in, nil
}

// Call calls fn and returns the JSON of its result. It recovers a panic of fn or of its result's MarshalJSON, so that
// the process continues. It reports the panic and its stack, and returns KindInternal.
func Call(fn func() (any, error), panicked func(what, stack string)) (result json.RawMessage, err error) {
	returned := false
	defer func() {
		if returned {
			return
		}
		p := recover() // nil: runtime.Goexit
		panicked(PanicText(p), string(debug.Stack()))
		result, err = nil, KindInternal
	}()
	v, err := fn()
	if err == nil {
		result, err = encodeResult(v)
	}
	returned = true
	return result, err
}

// PanicText describes the value of a panic. Only the text of a runtime error is included, because other values may
// quote a prompt.
func PanicText(p any) string {
	if e, ok := p.(runtime.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("%T", p)
}

func encodeResult(v any) (json.RawMessage, error) {
	b, err := json.Marshal(v)
	switch {
	case err != nil:
		return nil, fmt.Errorf("task: a %T cannot be encoded as JSON", v)
	case len(b) > maxJSONBytes:
		return nil, &aiguard.Error{Kind: aiguard.ErrResponseTooLarge, Phase: aiguard.PhaseTask, Size: int64(len(b)), Max: maxJSONBytes}
	case !utf8.Valid(b): // possible with a json.RawMessage
		return nil, fmt.Errorf("task: the JSON of a %T is not UTF-8", v)
	}
	return b, nil
}

// Failure is why an operation did not succeed: an error code, and a message for the user.
type Failure struct {
	Code    aiguard.Kind
	Message string
}

// Interrupted is the failure of an operation whose process ended first.
func Interrupted() Failure {
	return Failure{KindInterrupted, "The service was restarted before this was done. Please try again."}
}

// Cancelled is the failure of an operation that was cancelled.
func Cancelled() Failure { return Failure{KindCancelled, "This was cancelled."} }

// Failed returns the failure of an operation whose function returned err.
func Failed(err error) Failure {
	switch {
	case aiguard.KindOf(err) != "":
	case errtree.Is(err, context.DeadlineExceeded): // from the function's own timeout; the guard's has a cause with a kind
		err = aiguard.ErrTimeout
	default:
		err = KindInternal
	}
	return Failure{aiguard.Kind(clean(string(aiguard.KindOf(err)))), aiguard.UserMessage(err)} // a function may make its own kinds
}

// ProgressKey is the context key of a Progress.
type ProgressKey struct{}

// Progress receives the progress of an operation. SetProgress must not wait.
type Progress interface {
	SetProgress(percent int, note string)
}

// SetProgress reports the progress of the operation that ctx belongs to. With any other ctx it does nothing.
func SetProgress(ctx context.Context, percent int, note string) {
	if p, ok := ctx.Value(ProgressKey{}).(Progress); ok {
		p.SetProgress(min(max(percent, 0), 100), clean(note))
	}
}

// clean removes what some stores reject: NUL characters and invalid UTF-8. It stops reading after maxNoteRunes
// characters.
func clean(s string) string {
	var kept strings.Builder
	n := 0
	for i, r := range s {
		_, size := utf8.DecodeRuneInString(s[i:])
		if r == 0 || r == utf8.RuneError && size == 1 {
			continue
		}
		if n++; n > maxNoteRunes {
			break
		}
		kept.WriteRune(r)
	}
	return kept.String()
}
