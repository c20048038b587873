package task

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/errtree"
)

// Status is where an operation is in its life. It only moves forward: from Pending to Running, and from both to one of
// the three final ones, of which it never changes.
type Status string

// The statuses.
const (
	Pending   Status = "pending"   // waits for its turn
	Running   Status = "running"   // its function runs
	Succeeded Status = "succeeded" // with a result
	Failed    Status = "failed"    // with an error code and a message
	Cancelled Status = "cancelled" // by Cancel
)

// Final reports whether an operation with this status is over.
func (s Status) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// MayBecome reports whether an operation may go from s to next. Staying Pending or Running is allowed, for progress.
func (s Status) MayBecome(next Status) bool {
	switch s {
	case Pending:
		return next == Pending || next == Running || next == Failed || next == Cancelled
	case Running:
		return next == Running || next.Final()
	}
	return false
}

// The error codes beside the kinds of package aiguard.
const (
	KindInternal    aiguard.Kind = "internal"    // the function panicked, or failed with an error that has no kind
	KindInterrupted aiguard.Kind = "interrupted" // the process ended before the operation did
	KindCancelled   aiguard.Kind = "cancelled"   // by Cancel
)

// Operation is a snapshot of a background operation. Its JSON form is for clients: it has neither Owner nor Input.
type Operation struct {
	ID           string          `json:"id"`
	Name         string          `json:"name"`
	Status       Status          `json:"status"`
	ErrorCode    aiguard.Kind    `json:"error_code"`    // "" unless Failed or Cancelled
	ErrorMessage string          `json:"error_message"` // safe to show to a user
	Progress     int             `json:"progress"`      // percent
	ProgressNote string          `json:"progress_note"`
	Result       json.RawMessage `json:"result"` // null unless Succeeded
	CreatedAt    time.Time       `json:"created_at"`
	StartedAt    time.Time       `json:"started_at"`  // zero: not yet; in JSON null
	FinishedAt   time.Time       `json:"finished_at"` // zero: not yet; in JSON null
	Attempts     int             `json:"attempts"`    // how often its function was started
	Revision     int64           `json:"revision"`    // 1 at first, one more with each change

	CancelRequested bool `json:"cancel_requested"` // its owner has been asked to cancel it

	Owner string          `json:"-"` // the Runner that has it; "": nobody's, to be taken over
	Input json.RawMessage `json:"-"` // of Submit, in what Store.Orphans returns; nil: only its owner can run it
}

// MarshalJSON writes null for what an operation does not have yet.
func (o Operation) MarshalJSON() ([]byte, error) {
	type plain Operation
	return json.Marshal(struct {
		plain
		ErrorCode    *aiguard.Kind `json:"error_code"`
		ErrorMessage *string       `json:"error_message"`
		ProgressNote *string       `json:"progress_note"`
		StartedAt    *time.Time    `json:"started_at"`
		FinishedAt   *time.Time    `json:"finished_at"`
	}{plain(o), orNil(o.ErrorCode), orNil(o.ErrorMessage), orNil(o.ProgressNote), orNil(o.StartedAt), orNil(o.FinishedAt)})
}

// LogValue returns the facts that are fit for a log: neither Input nor Result nor ProgressNote.
func (o Operation) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("id", o.ID), slog.String("name", o.Name), slog.String("status", string(o.Status))}
	if o.ErrorCode != "" {
		attrs = append(attrs, slog.String("error_code", string(o.ErrorCode)))
	}
	return slog.GroupValue(append(attrs, slog.Int("progress", o.Progress), slog.Int("attempts", o.Attempts),
		slog.Int64("revision", o.Revision))...)
}

// Format prints the facts of LogValue for every verb.
func (o Operation) Format(f fmt.State, verb rune) {
	fmt.Fprintf(f, fmt.FormatString(f, verb), fmt.Sprint(o.LogValue()))
}

func orNil[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// Err is nil unless the operation failed or was cancelled: then an *aiguard.Error with ErrorCode as its Kind.
func (o Operation) Err() error {
	if o.Status != Failed && o.Status != Cancelled {
		return nil
	}
	return &aiguard.Error{Kind: o.ErrorCode, Op: o.Name, Phase: "task"}
}

// Result returns what the function of a Succeeded operation returned. For one that failed or was cancelled the
// error is its Err.
func Result[T any](o Operation) (T, error) {
	var v T
	if err := o.Err(); err != nil {
		return v, err
	}
	if o.Status != Succeeded {
		return v, fmt.Errorf("task: operation %s has no result: it is %s", o.ID, o.Status)
	}
	if err := json.Unmarshal(o.Result, &v); err != nil {
		return v, fmt.Errorf("task: the result of operation %s is no %T", o.ID, v)
	}
	return v, nil
}

// failure is how an operation ends that did not succeed.
type failure struct {
	status  Status
	code    aiguard.Kind
	message string
}

var (
	interrupted = failure{Failed, KindInterrupted, "The service was restarted before this was done. Please try again."}
	cancelled   = failure{Cancelled, KindCancelled, "This was cancelled."}
)

// failed is how an operation ends whose function returned err.
func failed(err error) failure {
	switch {
	case aiguard.KindOf(err) != "":
	case errtree.Is(err, context.DeadlineExceeded): // of its own making: its context has a cause
		err = aiguard.ErrTimeout
	default:
		err = KindInternal
	}
	return failure{Failed, aiguard.KindOf(err), aiguard.UserMessage(err)}
}

// end makes o final.
func (f failure) end(o *Operation) {
	o.Status, o.ErrorCode, o.ErrorMessage, o.FinishedAt = f.status, f.code, f.message, now()
}

// now is as precise as every store can keep.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
