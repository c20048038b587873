package riverguard_test

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
	"github.com/aiguard-go/aiguard/riverguard"
	"github.com/aiguard-go/aiguard/task"
)

const (
	taskTimeout = 2 * time.Second
	grace       = 500 * time.Millisecond

	// Rescue is the documented time after which the operations of a dead process are over or run again: their age, the
	// interval of River's rescuer, and the election of a new leader.
	rescue = taskTimeout + grace + 10*time.Second + 30*time.Second + 21*time.Second
)

// await waits for the operation, however long that takes, and returns it and its earlier states.
func await(t *testing.T, r *riverguard.Runner, id string, limit time.Duration) task.Operation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	op, err := r.Wait(ctx, id)
	require.NoError(t, err, "%+v", op)
	return op
}

// The leader of River's clients is the first process here, so that its death also needs the election of another.
func TestOperationsOfAKilledProcessEndInOneFinalState(t *testing.T) {
	if testing.Short() {
		t.Skip("River rescues the jobs of a dead process only twice a minute; runs without -short")
	}
	t.Parallel()
	for name, test := range map[string]struct {
		attempts int
		status   task.Status
		code     aiguard.Kind
		runs     int
	}{
		"interrupted": {1, task.Failed, task.KindInterrupted, 1},
		"repeated":    {2, task.Succeeded, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := newDatabase(t)
			cfg := riverguard.Config{MaxRunning: 2, MaxAttempts: test.attempts, Grace: grace}
			p := startChild(t, order{DSN: dsn, TaskTimeout: taskTimeout, Config: cfg})
			submitter := cfg
			submitter.SubmitOnly = true
			s := newRunner(t, dsn, aiguard.Config{TaskTimeout: taskTimeout}, submitter)
			task.Register(s, "work", func(context.Context, string) (any, error) { return nil, nil })
			submitted := func(token string) string {
				op, err := s.Submit(t.Context(), "work", token)
				require.NoError(t, err)
				return op.ID
			}
			running := submitted("running")
			p.says("running")
			require.Equal(t, task.Running, get(t, s, running).Status)

			// A second worker runs when the first is killed.
			var ran atomic.Int64
			r := newRunner(t, dsn, aiguard.Config{TaskTimeout: taskTimeout}, cfg)
			task.Register(r, "work", func(_ context.Context, token string) (string, error) { ran.Add(1); return token + " again", nil })
			p.kill()
			killed := time.Now()
			next := submitted("next")
			require.Equal(t, task.Succeeded, ends(t, s, next).Status, "the second worker takes new operations at once")

			op := await(t, s, running, rescue+patience)
			t.Logf("the operation was %s %v after the kill", op.Status, time.Since(killed).Round(time.Second))
			require.Less(t, time.Since(killed), rescue)
			require.Equal(t, test.status, op.Status)
			require.Equal(t, test.code, op.ErrorCode)
			require.Equal(t, test.runs, op.Attempts)
			require.EqualValues(t, test.runs, ran.Load(), "the next operation ran, and perhaps the rescued one")
			time.Sleep(2 * time.Second) // nothing tells that an operation does not change
			require.Equal(t, op, get(t, s, running))
		})
	}
}

// A frozen process goes on after River has given its job to another. Its late end must not change anything.
func TestFrozenProcessDoesNotChangeTheEndOfAnother(t *testing.T) {
	if testing.Short() {
		t.Skip("River rescues the jobs of a dead process only twice a minute; runs without -short")
	}
	t.Parallel()
	dsn := newDatabase(t)
	cfg := riverguard.Config{MaxRunning: 2, MaxAttempts: 2, Grace: grace}
	p := startChild(t, order{DSN: dsn, TaskTimeout: taskTimeout, Config: cfg})
	submitter := cfg
	submitter.SubmitOnly = true
	s := newRunner(t, dsn, aiguard.Config{TaskTimeout: taskTimeout}, submitter)
	task.Register(s, "work", func(context.Context, string) (any, error) { return nil, nil })
	op, err := s.Submit(t.Context(), "work", "token")
	require.NoError(t, err)
	p.says("token")
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGSTOP))

	r := newRunner(t, dsn, aiguard.Config{TaskTimeout: taskTimeout}, cfg)
	block := make(chan struct{})
	open := sync.OnceFunc(func() { close(block) })
	defer open()
	started := make(chan struct{})
	task.Register(r, "work", func(context.Context, string) (string, error) {
		close(started)
		<-block
		return "second", nil
	})
	select {
	case <-started:
	case <-time.After(rescue + patience):
		require.Fail(t, "the operation was not rescued")
	}
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGCONT))
	p.says("token ended") // it has timed out, while the second run goes on
	require.Equal(t, task.Running, get(t, s, op.ID).Status)
	open()
	op = ends(t, s, op.ID)
	require.Equal(t, task.Succeeded, op.Status)
	require.JSONEq(t, `"second"`, string(op.Result))
	require.NoError(t, p.stdin.Close())
	time.Sleep(2 * time.Second) // for the late end of the first run
	require.Equal(t, op, get(t, s, op.ID))
}

func TestCancelReachesOtherProcesses(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	cfg := riverguard.Config{MaxRunning: 1}
	p := startChild(t, order{DSN: dsn, TaskTimeout: time.Minute, Config: cfg})
	cfg.SubmitOnly = true
	s := newRunner(t, dsn, aiguard.Config{TaskTimeout: time.Minute}, cfg)
	task.Register(s, "work", func(context.Context, string) (any, error) { return nil, nil })
	running, err := s.Submit(t.Context(), "work", "running")
	require.NoError(t, err)
	p.says("running")
	pending, err := s.Submit(t.Context(), "work", "pending")
	require.NoError(t, err)

	op, err := s.Cancel(t.Context(), pending.ID)
	require.NoError(t, err)
	require.Equal(t, task.Cancelled, op.Status, "at once")
	start := time.Now()
	op, err = s.Cancel(t.Context(), running.ID)
	require.NoError(t, err)
	require.Contains(t, []task.Status{task.Running, task.Cancelled}, op.Status)
	op = ends(t, s, running.ID)
	t.Logf("cancelled after %v", time.Since(start).Round(time.Millisecond))
	require.Equal(t, task.Cancelled, op.Status)
	require.Equal(t, task.KindCancelled, op.ErrorCode)
	require.Less(t, time.Since(start), 10*time.Second)
}

func TestPendingOperationsSurviveTheirProcess(t *testing.T) {
	t.Parallel()
	dsn := newDatabase(t)
	first := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{SubmitOnly: true})
	task.Register(first, "work", func(context.Context, string) (any, error) { return nil, nil })
	op, err := first.Submit(t.Context(), "work", "token")
	require.NoError(t, err)
	require.NoError(t, first.Shutdown(t.Context()))
	r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{})
	task.Register(r, "work", func(_ context.Context, token string) (string, error) { return token + " done", nil })
	op = ends(t, r, op.ID)
	require.Equal(t, task.Succeeded, op.Status)
	require.JSONEq(t, `"token done"`, string(op.Result))
}

func TestProcessesShareTheWorkAndRunEachOperationOnce(t *testing.T) {
	t.Parallel()
	const count = 60
	dsn := newDatabase(t)
	var mu sync.Mutex
	ran := map[int]int{}
	byRunner := make([]int, 3)
	var runners []*riverguard.Runner
	for i := range byRunner {
		r := newRunner(t, dsn, aiguard.Config{}, riverguard.Config{MaxRunning: 2, MaxPending: aiguard.Off})
		task.Register(r, "work", func(_ context.Context, n int) (int, error) {
			mu.Lock()
			ran[n]++
			byRunner[i]++
			mu.Unlock()
			time.Sleep(20 * time.Millisecond)
			return n, nil
		})
		runners = append(runners, r)
	}
	ids := map[string]int{}
	for n := range count {
		op, err := runners[n%len(runners)].Submit(t.Context(), "work", n)
		require.NoError(t, err)
		ids[op.ID] = n
	}
	require.Len(t, ids, count, "IDs are unique")
	owners := map[string]bool{}
	for id, n := range ids {
		op := ends(t, runners[0], id)
		got, err := task.Result[int](op)
		require.NoError(t, err)
		require.Equal(t, n, got)
		owners[op.Owner] = true
	}
	require.Len(t, owners, len(runners), "the IDs of River's clients are unique")
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, ran, count)
	for n, times := range ran {
		require.Equal(t, 1, times, "%d", n)
	}
	for _, n := range byRunner {
		require.Positive(t, n, "%v", byRunner)
	}
}
