package task

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/internal/operation"
)

// Status is the state of an operation. A new operation is Pending and may become Running, Failed or Cancelled. A Running
// operation may become Succeeded, Failed or Cancelled. These three are final and never change.
type Status string

// The statuses.
const (
	Pending   Status = "pending"   // waits for a slot
	Running   Status = "running"   // its function runs
	Succeeded Status = "succeeded" // has a result
	Failed    Status = "failed"    // has an error code and a message
	Cancelled Status = "cancelled" // by Runner.Cancel
)

// Final reports whether s is a final status.
func (s Status) Final() bool { return s == Succeeded || s == Failed || s == Cancelled }

// MayBecome reports whether an operation may change from s to next. A change of progress keeps the status Pending or
// Running.
func (s Status) MayBecome(next Status) bool {
	switch s {
	case Pending:
		return next == Pending || next == Running || next == Failed || next == Cancelled
	case Running:
		return next == Running || next.Final()
	}
	return false
}

// Error codes in addition to the kinds of package aiguard.
const (
	KindInternal    = operation.KindInternal    // the function panicked, or returned an error without a kind
	KindInterrupted = operation.KindInterrupted // the process ended before the operation did
	KindCancelled   = operation.KindCancelled   // by Runner.Cancel
)

// Operation is a snapshot of a background operation. Its JSON form is for clients and omits Owner and Input.
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
	StartedAt    time.Time       `json:"started_at"`  // zero: not started; null in JSON
	FinishedAt   time.Time       `json:"finished_at"` // zero: not finished; null in JSON
	Attempts     int             `json:"attempts"`    // number of times the function was started
	Revision     int64           `json:"revision"`    // 1 at first; each change adds 1

	CancelRequested bool `json:"cancel_requested"` // another process has requested the owner to cancel it

	Owner string          `json:"-"` // ID of the Runner that runs it; "": any Runner may take it over
	Input json.RawMessage `json:"-"` // input of Submit, set only by Store.Orphans; nil: only the owner can run it
}

// MarshalJSON writes null for values that are not set.
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

// LogValue returns the facts that are safe to log. It omits Input, Result and ProgressNote.
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

// Err returns nil unless the operation failed or was cancelled. Then it returns an *aiguard.Error with ErrorCode as
// its Kind.
func (o Operation) Err() error {
	if o.Status != Failed && o.Status != Cancelled {
		return nil
	}
	return &aiguard.Error{Kind: o.ErrorCode, Op: o.Name, Phase: aiguard.PhaseTask}
}

// Result decodes the result of a Succeeded operation. For a failed or cancelled operation it returns Operation.Err.
func Result[T any](o Operation) (T, error) {
	var v T
	if err := o.Err(); err != nil {
		return v, err
	}
	if o.Status != Succeeded {
		return v, fmt.Errorf("task: operation %s has no result: it is %s", o.ID, o.Status)
	}
	if err := json.Unmarshal(o.Result, &v); err != nil {
		return v, fmt.Errorf("task: the result of operation %s cannot be decoded as %T", o.ID, v)
	}
	return v, nil
}

// failure is the final state of an operation that did not succeed.
type failure struct {
	status Status
	operation.Failure
}

func interrupted() failure { return failure{Failed, operation.Interrupted()} }

func cancelled() failure { return failure{Cancelled, operation.Cancelled()} }

// failed returns the failure for a function that returned err.
func failed(err error) failure { return failure{Failed, operation.Failed(err)} }

// end makes o final.
func (f failure) end(o *Operation) {
	o.Status, o.ErrorCode, o.ErrorMessage, o.FinishedAt = f.status, f.Code, f.Message, now()
}

// now has microsecond precision, which every store can keep.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
