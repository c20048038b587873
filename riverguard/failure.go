package riverguard

import (
	"context"
	"errors"
	"fmt"

	"github.com/riverqueue/river"

	"github.com/aiguard-go/aiguard"
)

// failure is an error with a text that River may store. River's error handlers find the original error with errors.Is
// and errors.As.
type failure struct {
	text string
	err  error
}

func (f *failure) Error() string { return f.text }

func (f *failure) Unwrap() error { return f.err }

// storable returns err with a text that is safe to store.
func storable(err error) error { return &failure{storableText(err), err} }

func storableText(err error) string {
	if e := aiguard.Explain(err); e != nil {
		return e.Error() // has no text of a provider, and no prompt or key
	}
	for _, known := range []error{context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return fmt.Sprintf("an error of type %T, whose text is not stored", err)
}

// rivers reports whether err tells River itself what to do.
func rivers(err error) bool {
	var snooze *river.JobSnoozeError
	var cancel *river.JobCancelError
	return errors.As(err, &snooze) || errors.As(err, &cancel)
}
