package sqlstore_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/sqlstore"
	"github.com/aiguard-go/aiguard/task"
)

const (
	lease = 2 * time.Second // much longer than a write on a busy machine
	beat  = lease / 3
	slack = 2 * time.Second // for a busy machine
)

func get(t *testing.T, s task.Store, id string) task.Operation {
	t.Helper()
	op, err := s.Get(t.Context(), id)
	require.NoError(t, err)
	return op
}

// ends waits until the operation is over, at most until deadline.
func ends(t *testing.T, r *task.Runner, id string, deadline time.Time) task.Operation {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	op, err := r.Wait(ctx, id)
	require.NoError(t, err, "%+v", op)
	return op
}

func TestOperationsOfAKilledProcessAreMarkedOrTakenOver(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		r := newRunner(t, s, task.Config{Lease: lease})
		var ran atomic.Int64
		task.Register(r, "known", func(_ context.Context, in string) (string, error) {
			ran.Add(1)
			return in + " done", nil
		})
		p := startChild(t, order{Database: d, Lease: lease, Blocked: true})
		ids := p.blocked(t)
		before := map[string]task.Operation{}
		for what, id := range ids {
			before[what] = get(t, s, id)
		}
		time.Sleep(lease + beat)
		for what, id := range ids {
			require.Equal(t, before[what], get(t, s, id), "%s: its process is alive and renews its lease", what)
		}

		require.NoError(t, p.cmd.Process.Kill())
		deadline := time.Now().Add(lease + beat + slack)
		for _, what := range []string{"running closure", "running blocked", "pending closure"} {
			op := ends(t, r, ids[what], deadline)
			require.Equal(t, task.Failed, op.Status, what)
			require.Equal(t, task.KindInterrupted, op.ErrorCode, what)
			require.Contains(t, op.ErrorMessage, "restarted")
			require.Equal(t, before[what].Revision+1, op.Revision, what)
		}
		for _, what := range []string{"pending known", "pending known 2"} {
			op := ends(t, r, ids[what], deadline)
			require.Equal(t, task.Succeeded, op.Status, what)
			require.Equal(t, 1, op.Attempts)
			result, err := task.Result[string](op)
			require.NoError(t, err)
			require.Equal(t, what+" done", result)
		}
		require.EqualValues(t, 2, ran.Load())
		require.Eventually(t, func() bool { return r.Stats().Interrupted == 3 }, slack, time.Millisecond, "counted after the store has them")
		require.Equal(t, before["pending unknown"], get(t, s, ids["pending unknown"]), "no live process has its handler")

		late := newRunner(t, s, task.Config{Lease: lease})
		task.Register(late, "unknown", func(context.Context, string) (any, error) { return nil, nil })
		op := ends(t, late, ids["pending unknown"], time.Now().Add(beat+slack))
		require.Equal(t, task.Succeeded, op.Status)
	})
}

func TestCancelReachesOtherProcesses(t *testing.T) {
	onEach(t, func(t *testing.T, d database) {
		s := openStore(t, d)
		r := newRunner(t, s, task.Config{Lease: lease})
		ids := startChild(t, order{Database: d, Lease: lease, Blocked: true}).blocked(t)

		op, err := r.Cancel(t.Context(), ids["pending known"])
		require.NoError(t, err)
		require.Equal(t, task.Cancelled, op.Status, "at once")

		for _, what := range []string{"running blocked", "running closure"} {
			op, err = r.Cancel(t.Context(), ids[what])
			require.NoError(t, err)
			require.Equal(t, task.Running, op.Status)
			require.True(t, op.CancelRequested)
		}
		deadline := time.Now().Add(beat + slack)
		for _, what := range []string{"running blocked", "running closure"} {
			op = ends(t, r, ids[what], deadline)
			require.Equal(t, task.Cancelled, op.Status, what)
			require.Equal(t, task.KindCancelled, op.ErrorCode, what)
		}
		require.Eventually(t, func() bool { return get(t, s, ids["pending known 2"]).Status == task.Running }, slack, 10*time.Millisecond,
			"the slots are free again")
		require.Zero(t, get(t, s, ids["pending known"]).Attempts, "next in line, but cancelled")
	})
}

// history holds the last seen version of each operation.
type history map[string]task.Operation

// look compares the stored operations with the history and reports whether all are final.
func (h history) look(t *testing.T, s *sqlstore.Store) (over bool) {
	t.Helper()
	ops, err := s.List(t.Context(), task.Query{Limit: 10_000})
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(ops), len(h), "no operation disappears")
	over = true
	for _, op := range ops {
		before, ok := h[op.ID]
		switch {
		case !ok:
		case before.Revision == op.Revision || before.Status.Final():
			require.Equal(t, before, op)
		default:
			require.Greater(t, op.Revision, before.Revision)
			require.False(t, before.Status == task.Running && op.Status == task.Pending, "%+v", op)
			require.GreaterOrEqual(t, op.Attempts, before.Attempts)
		}
		h[op.ID] = op
		over = over && op.Status.Final()
	}
	return over
}

func TestSharedDatabaseRunsEachOperationOnce(t *testing.T) {
	const each = 50
	onEach(t, func(t *testing.T, d database) {
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		children := make([]*process, 3)
		for i := range children {
			children[i] = startChild(t, order{Database: d, Lease: lease, Seed: seed + uint64(i), Count: each, Hurry: i == 0})
		}
		reports := make(chan report, 10*each*len(children))
		said := make(chan struct{}, len(children))
		for _, p := range children {
			go func() {
				for r, ok := p.next(); ok; r, ok = p.next() {
					reports <- r
				}
				said <- struct{}{}
			}()
		}

		s := openStore(t, d)
		seen := history{}
		for deadline := time.Now().Add(30 * time.Second); !seen.look(t, s) || len(seen) < each*len(children); {
			require.True(t, time.Now().Before(deadline), "%d operations: %+v", len(seen), seen)
			time.Sleep(100 * time.Millisecond)
		}
		for _, p := range children {
			require.NoError(t, p.stdin.Close())
		}
		for range children {
			<-said
		}
		for _, p := range children {
			require.NoError(t, p.cmd.Wait(), "%s", &p.err)
		}
		close(reports)
		require.True(t, seen.look(t, s))
		require.Len(t, seen, each*len(children))

		ran := map[string]int{}
		var sum task.Stats
		for r := range reports {
			switch {
			case r.Stats != nil:
				require.Equal(t, r.Stats.Started, r.Stats.Succeeded+r.Stats.Failed+r.Stats.Cancelled+r.Stats.Released, "%+v", r.Stats)
				sum.Succeeded += r.Stats.Succeeded
				sum.Released += r.Stats.Released
				sum.Interrupted += r.Stats.Interrupted
				sum.StoreErrors += r.Stats.StoreErrors
			default:
				ran[r.Ran]++
			}
		}
		ends := map[task.Status]int{}
		for _, op := range seen {
			ends[op.Status]++
			in := input{Token: op.Name}
			var given sql.NullString
			require.NoError(t, s.DB().QueryRowContext(t.Context(), "SELECT input FROM aiguard_operations WHERE id = $1", op.ID).Scan(&given))
			if given.Valid {
				require.NoError(t, json.Unmarshal([]byte(given.String), &in))
			}
			require.LessOrEqual(t, op.Attempts, 1, "%+v", op)
			require.LessOrEqual(t, ran[in.Token], op.Attempts, "%+v", op)
			if op.Status == task.Succeeded {
				require.Equal(t, 1, ran[in.Token], "%+v", op)
				result, err := task.Result[string](op)
				require.NoError(t, err)
				require.Equal(t, in.Token, result)
			}
		}
		require.EqualValues(t, ends[task.Succeeded], sum.Succeeded)
		t.Logf("ends: %v; %d released, %d marked for another process, %d errors of the store", ends, sum.Released, sum.Interrupted, sum.StoreErrors)
	})
}
