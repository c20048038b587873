package task_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/task"
	"github.com/aiguard-go/aiguard/task/storetest"
)

func TestMemoryIsAStore(t *testing.T) {
	for _, c := range storetest.Checks() {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { require.NoError(t, c.Run(t.Context(), newMemory(t))) })
		})
	}
}

func TestMemoryConfigErrorsNameTheField(t *testing.T) {
	_, err := task.NewMemory(task.MemoryConfig{MaxOperations: -2})
	require.ErrorContains(t, err, "MaxOperations is -2")
	_, err = task.NewMemory(task.MemoryConfig{MaxAge: -time.Second})
	require.ErrorContains(t, err, "MaxAge is -1s")
}

// remembered returns the IDs of the operations that m still has, newest first.
func remembered(t *testing.T, m *task.Memory) (ids []string) {
	t.Helper()
	ops, err := m.List(t.Context(), task.Query{Limit: 1_000_000})
	require.NoError(t, err)
	for _, op := range ops {
		ids = append(ids, op.ID)
	}
	return ids
}

func create(t *testing.T, m *task.Memory, id string) task.Operation {
	t.Helper()
	op := task.Operation{ID: id, Name: "test", Status: task.Running, CreatedAt: time.Now().UTC(), Revision: 1}
	require.NoError(t, m.Create(t.Context(), op))
	return op
}

func finish(t *testing.T, m *task.Memory, op task.Operation) {
	t.Helper()
	op.Status, op.FinishedAt, op.Revision = task.Succeeded, time.Now().UTC(), op.Revision+1
	require.NoError(t, m.Update(t.Context(), op))
}

func TestMemoryRemovesOldestFinishedBeyondMaxOperations(t *testing.T) {
	m, err := task.NewMemory(task.MemoryConfig{MaxOperations: 3})
	require.NoError(t, err)
	a, b, c := create(t, m, "a"), create(t, m, "b"), create(t, m, "c")
	finish(t, m, b)
	finish(t, m, a)
	require.Equal(t, []string{"c", "b", "a"}, remembered(t, m))
	create(t, m, "d")
	require.Equal(t, []string{"d", "c", "a"}, remembered(t, m), "b finished first")
	_, err = m.Get(t.Context(), "b")
	require.ErrorIs(t, err, task.ErrNotFound)
	finish(t, m, c)
	create(t, m, "e")
	create(t, m, "f")
	require.Equal(t, []string{"f", "e", "d"}, remembered(t, m))
}

func TestMemoryKeepsUnfinishedOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := task.NewMemory(task.MemoryConfig{MaxOperations: 2, MaxAge: time.Minute})
		require.NoError(t, err)
		for i := range 10 {
			create(t, m, fmt.Sprint(i))
		}
		time.Sleep(time.Hour)
		require.Len(t, remembered(t, m), 10)
	})
}

func TestMemoryRemovesFinishedAfterMaxAge(t *testing.T) {
	for name, row := range map[string]struct {
		maxAge, kept time.Duration
		forgets      bool
	}{
		"default": {0, task.DefaultMaxAge, true},
		"minute":  {time.Minute, time.Minute, true},
		"off":     {aiguard.Off, 1000 * time.Hour, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, err := task.NewMemory(task.MemoryConfig{MaxAge: row.maxAge})
				require.NoError(t, err)
				op := create(t, m, "a")
				time.Sleep(24 * time.Hour)
				finish(t, m, op)
				time.Sleep(row.kept)
				require.Equal(t, []string{"a"}, remembered(t, m))
				time.Sleep(time.Microsecond)
				if row.forgets {
					_, err := m.Get(t.Context(), "a")
					require.ErrorIs(t, err, task.ErrNotFound)
					require.Empty(t, remembered(t, m))
					return
				}
				require.Equal(t, []string{"a"}, remembered(t, m))
			})
		})
	}
}

func TestMemoryLimitsFinishedOperations(t *testing.T) {
	for _, row := range []struct{ max, kept int }{{5, 5}, {0, task.DefaultMaxOperations}, {aiguard.Off, task.DefaultMaxOperations + 10}} {
		m, err := task.NewMemory(task.MemoryConfig{MaxOperations: row.max})
		require.NoError(t, err)
		for i := range task.DefaultMaxOperations + 10 {
			finish(t, m, create(t, m, fmt.Sprint(i)))
		}
		require.Len(t, remembered(t, m), row.kept)
	}
}

// The wall clock may be set while operations run, so their timestamps do not show their age.
func TestMemoryMeasuresAgeWithoutTheWallClock(t *testing.T) {
	for name, set := range map[string]time.Duration{"back": -24 * time.Hour, "forward": 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, err := task.NewMemory(task.MemoryConfig{MaxAge: time.Minute})
				require.NoError(t, err)
				op := create(t, m, "a")
				op.Status, op.FinishedAt = task.Failed, time.Now().Add(-set) // according to the clock before it was set
				op.Revision++
				require.NoError(t, m.Update(t.Context(), op))
				time.Sleep(time.Minute)
				require.Equal(t, []string{"a"}, remembered(t, m))
				time.Sleep(time.Microsecond)
				require.Empty(t, remembered(t, m))
			})
		})
	}
}
