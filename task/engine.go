package task

import (
	"context"
	"encoding/json"
	"fmt"
)

// Engine runs the operations of Register and Submit. Runner is the Engine of this package: it runs operations in its own
// process. The Runner of module riverguard runs them as jobs of River, in any of several processes. A service that uses
// Register, Submit and Handler can replace one by the other.
type Engine interface {
	// Handle sets the function that runs the operations with this name. Use Register instead.
	Handle(name string, fn Handle)

	// Submit starts an operation. See Runner.Submit.
	Submit(ctx context.Context, name string, input any) (Operation, error)

	// Get returns an operation without its Input, or ErrNotFound.
	Get(ctx context.Context, id string) (Operation, error)

	// List returns the operations that q selects, newest first, without their Input.
	List(ctx context.Context, q Query) ([]Operation, error)

	// Wait waits until the operation is over and returns it. It returns ctx's error if ctx ends first.
	Wait(ctx context.Context, id string) (Operation, error)

	// Next waits until the operation has a later revision or is final, and returns it.
	Next(ctx context.Context, id string, revision int64) (Operation, error)

	// Cancel cancels the operation and returns its new state. See Runner.Cancel.
	Cancel(ctx context.Context, id string) (Operation, error)

	// Stats returns a snapshot of this process.
	Stats() Stats

	// Shutdown rejects new operations and waits for those that run in this process. See Runner.Shutdown.
	Shutdown(ctx context.Context) error

	// StoreFailed counts and logs a failure of the store at a step. Handler reports failed requests with it.
	StoreFailed(step string, op Operation, err error)
}

var _ Engine = (*Runner)(nil)

// Handle is a function that runs an operation of Submit. input is the JSON of Submit's input.
type Handle func(ctx context.Context, input json.RawMessage) (any, error)

// Register sets the function that runs the operations that Submit starts with this name. Their input is kept in the
// store, so that every process that registers the name can run them. Register panics if fn is nil or the name is
// already registered.
func Register[In, Out any](e Engine, name string, fn func(context.Context, In) (Out, error)) {
	if fn == nil {
		panic("task: Register: nil fn")
	}
	e.Handle(name, func(ctx context.Context, input json.RawMessage) (any, error) {
		var in In
		if err := json.Unmarshal(input, &in); err != nil {
			return nil, fmt.Errorf("task: the input of %q cannot be decoded as %T", name, in)
		}
		return fn(ctx, in)
	})
}
