package task_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/internal/typednil"
	"github.com/aiguard-go/aiguard/task"
)

func TestFunctionReturningATypedNilFails(t *testing.T) {
	inVirtualTime(t, task.Config{}, func(t *testing.T, r *task.Runner) {
		for name, nothing := range typednil.Errors() {
			op := wait(t, r, start(t, r, func(context.Context) (any, error) { return nil, nothing }).ID)
			require.Equal(t, task.Failed, op.Status, name)
			require.NotEmpty(t, op.ErrorCode, name)
			require.NotEmpty(t, op.ErrorMessage, name)
		}
	})
}

// nilStore fails with the configured error.
type nilStore struct {
	task.Store
	err error
}

func (s *nilStore) Create(ctx context.Context, op task.Operation) error {
	if s.err != nil {
		return s.err
	}
	return s.Store.Create(ctx, op)
}

func (s *nilStore) Get(ctx context.Context, id string) (task.Operation, error) {
	if s.err != nil {
		return task.Operation{}, s.err
	}
	return s.Store.Get(ctx, id)
}

func TestStoreReturningATypedNilFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &nilStore{Store: newMemory(t)}
		r := newRunner(t, store, task.Config{})
		for name, err := range typednil.Errors() {
			store.err = err
			_, err := r.Start(t.Context(), "test", func(context.Context) (any, error) { return nil, nil })
			require.Error(t, err, name)
			w := httptest.NewRecorder()
			task.Handler(r).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/unknown", nil))
			require.Equal(t, http.StatusServiceUnavailable, w.Code, name)
			store.err = nil
		}
	})
}
