package task

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard"
)

var errLost = errors.New("the response was lost")

// This file is a model checker. The processes that may change one operation are goroutines that stop at each call of
// the store. The checker runs every order of these calls, and in each order also loses the response of each single
// call.

// schedule is one run of the model. After the recorded choices it always takes the first option.
type schedule struct {
	choices, options []int
	at               int
}

// choose picks one of n options.
func (s *schedule) choose(n int) int {
	if s.at == len(s.choices) {
		s.choices, s.options = append(s.choices, 0), append(s.options, n)
	}
	s.options[s.at] = n
	s.at++
	return s.choices[s.at-1]
}

// next advances to the next schedule and returns false after the last.
func (s *schedule) next() bool {
	s.at = 0
	for last := len(s.choices) - 1; last >= 0; last-- {
		if s.choices[last]+1 < s.options[last] {
			s.choices, s.options = s.choices[:last+1], s.options[:last+1]
			s.choices[last]++
			return true
		}
	}
	return false
}

// gated is the store of one process. Get and Update wait for the checker.
type gated struct {
	*Memory
	world *world
	calls chan *gatedCall // has capacity 1
}

type gatedCall struct {
	lose bool // perform the call but return an error
	run  chan struct{}
}

func (g *gated) wait(f func() error) error {
	c := &gatedCall{run: make(chan struct{})}
	g.calls <- c
	<-c.run
	err := f()
	if c.lose && err == nil {
		return errLost
	}
	return err
}

func (g *gated) Get(ctx context.Context, id string) (op Operation, err error) {
	err = g.wait(func() error { op, err = g.Memory.Get(ctx, id); return err })
	return op, err
}

func (g *gated) Update(ctx context.Context, op Operation) error {
	return g.wait(func() error {
		old, err := g.Memory.Get(ctx, op.ID)
		if err != nil {
			return err
		}
		if err := g.Memory.Update(ctx, op); err != nil {
			return err
		}
		g.world.stored(old, op)
		return nil
	})
}

// world is the model: one operation and the processes that change it.
type world struct {
	t      *testing.T
	memory *Memory
	actors []*gated
	busy   sync.WaitGroup
	done   chan struct{}
	ran    int
	trace  []string
}

func (w *world) stored(old, op Operation) {
	w.trace = append(w.trace, fmt.Sprintf("%s -> %s", old.Status, op.Status))
	allowed := map[Status][]Status{Pending: {Pending, Running, Failed, Cancelled}, Running: {Running, Succeeded, Failed, Cancelled}}
	require.Contains(w.t, allowed[old.Status], op.Status, "%v", w.trace)
	require.Equal(w.t, old.Revision+1, op.Revision)
}

func (w *world) process() *Runner {
	g, err := aiguard.New(aiguard.Config{})
	require.NoError(w.t, err)
	store := &gated{Memory: w.memory, world: w, calls: make(chan *gatedCall, 1)}
	w.actors = append(w.actors, store)
	r, err := NewRunner(g, store, Config{Lease: 24 * time.Hour})
	require.NoError(w.t, err)
	synctest.Wait() // waits for the first lease round
	return r
}

func (w *world) act(f func()) { w.busy.Go(f) }

// play runs the calls in the order of the schedule.
func (w *world) play(s *schedule, losses int) {
	go func() { w.busy.Wait(); close(w.done) }()
	for {
		synctest.Wait()
		select {
		case <-w.done:
			return
		default:
		}
		var waiting []*gated
		for _, a := range w.actors {
			if len(a.calls) > 0 {
				waiting = append(waiting, a)
			}
		}
		if waiting == nil {
			time.Sleep(10 * time.Millisecond) // a process backs off
			continue
		}
		n := len(waiting)
		if losses > 0 {
			n *= 2
		}
		choice := s.choose(n)
		call := <-waiting[choice%len(waiting)].calls
		if call.lose = choice >= len(waiting); call.lose {
			losses--
		}
		close(call.run)
	}
}

func TestEveryOrderOfEventsEndsInOneFinalState(t *testing.T) {
	ends := map[Status]int{}
	runs := 0
	for s := (&schedule{}); ; {
		synctest.Test(t, func(t *testing.T) {
			memory, err := NewMemory(MemoryConfig{})
			require.NoError(t, err)
			w := &world{t: t, memory: memory, done: make(chan struct{})}
			owner, canceller, reaper := w.process(), w.process(), w.process()
			op := Operation{ID: "1", Name: "test", Status: Pending, Owner: owner.lease.owner, Revision: 1, CreatedAt: now()}
			require.NoError(t, memory.Create(t.Context(), op))
			x := newExecution(context.Background(), owner, op, func(context.Context) (any, error) {
				w.ran++
				return "result", nil
			})
			require.NoError(t, owner.scheduler.enter(x))
			x.turn, owner.scheduler.running = true, 1

			w.act(x.run)
			w.act(func() {
				for { // until the call returns
					if _, err := canceller.Cancel(t.Context(), op.ID); err == nil {
						return
					}
				}
			})
			w.act(func() { _ = reaper.mark(t.Context(), op) }) // uses the version read before the other changes
			w.play(s, 1)

			end, err := memory.Get(t.Context(), op.ID)
			require.NoError(t, err)
			require.True(t, end.Status.Final(), "%v", w.trace)
			require.Equal(t, w.ran, end.Attempts, "statistics do not match the outcome: %v", w.trace)
			require.LessOrEqual(t, w.ran, 1)
			require.Equal(t, end.Status == Succeeded, end.Result != nil)
			require.Equal(t, end.Status == Succeeded, w.ran == 1 && end.ErrorCode == "")
			stats := owner.Stats()
			require.EqualValues(t, 1, stats.Succeeded+stats.Failed+stats.Cancelled, "%+v %v", stats, w.trace)
			require.Equal(t, end.Status, x.operation().Status)
			ends[end.Status]++
			runs++
			for _, r := range []*Runner{owner, canceller, reaper} {
				require.NoError(t, r.Shutdown(t.Context()))
			}
		})
		if t.Failed() || !s.next() {
			break
		}
	}
	t.Logf("%d schedules: %v", runs, ends)
	for _, status := range []Status{Succeeded, Failed, Cancelled} {
		require.Positive(t, ends[status], "every way to end occurs")
	}
	require.Greater(t, runs, 100)
}

func TestStatusOnlyMovesForward(t *testing.T) {
	all := []Status{Pending, Running, Succeeded, Failed, Cancelled, "", "else"}
	rank := map[Status]int{Pending: 1, Running: 2, Succeeded: 3, Failed: 3, Cancelled: 3}
	for _, from := range all {
		for _, to := range all {
			forward := rank[from] > 0 && rank[to] > rank[from] || from == to && (from == Pending || from == Running)
			if from == Pending && to == Succeeded {
				forward = false // impossible: the function did not run
			}
			require.Equal(t, forward, from.MayBecome(to), "%q to %q", from, to)
		}
		require.Equal(t, slices.Contains([]Status{Succeeded, Failed, Cancelled}, from), from.Final())
	}
}
