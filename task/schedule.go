package task

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// scheduler gives a Runner's executions their places and their turns. It also counts them.
type scheduler struct {
	maxRunning, maxPending int

	mu      sync.Mutex
	active  map[string]*execution // by ID, until final in the store
	waiting []*execution
	places  int // taken by running, waiting and starting operations
	running int
	closing bool
	idle    chan struct{} // closed when closing is set and active is empty
	held    time.Duration // moving average of how long operations run
	counts  Stats
}

func newScheduler(maxRunning, maxPending int) *scheduler {
	return &scheduler{maxRunning: maxRunning, maxPending: maxPending,
		active: make(map[string]*execution), idle: make(chan struct{})}
}

// enter takes a place for x among the running and pending operations, or returns an error.
func (s *scheduler) enter(x *execution) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return &aiguard.Error{Kind: aiguard.ErrClosed, Op: x.op.Name, Phase: aiguard.PhaseTask}
	}
	if !s.room() {
		s.counts.Refused++
		waiting := s.places - s.running
		return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: x.op.Name, Phase: aiguard.PhaseQueue,
			Size: int64(waiting), Max: int64(s.maxPending), RetryAfter: s.retryAfter(waiting)}
	}
	s.places++
	s.active[x.op.ID] = x
	return nil
}

// accepts reports whether another operation would get a place now.
func (s *scheduler) accepts() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room() && !s.closing
}

// room reports whether a place is free. The caller holds s.mu.
func (s *scheduler) room() bool {
	unbounded := s.maxRunning == aiguard.Off || s.maxPending == aiguard.Off
	return unbounded || s.places-s.maxRunning < s.maxPending
}

// retryAfter estimates when a waiting operation will start, from the average time that operations run.
func (s *scheduler) retryAfter(waiting int) time.Duration {
	const least, most = time.Second, time.Minute
	return min(max(s.held*time.Duration(waiting+1)/time.Duration(max(s.maxRunning, 1)), least), most)
}

// enqueue adds x to the queue. x must have a place and be in the store.
func (s *scheduler) enqueue(x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Started++
	s.waiting = append(s.waiting, x)
	s.dispatchLocked()
}

// dispatch starts waiting operations in first-in, first-out order while slots are free. It also runs operations whose
// context has ended, so that they can finish.
func (s *scheduler) dispatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dispatchLocked()
}

// dispatchLocked is dispatch for a caller that holds s.mu.
func (s *scheduler) dispatchLocked() {
	s.waiting = slices.DeleteFunc(s.waiting, func(x *execution) bool {
		switch {
		case s.maxRunning == aiguard.Off || s.running < s.maxRunning:
			x.turn = true
			s.running++
		case x.ctx.Err() == nil:
			return false
		}
		go x.run()
		return true
	})
}

// settle removes x from the active operations after its last change in the store.
func (s *scheduler) settle(x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, x.op.ID)
	if s.closing && len(s.active) == 0 {
		close(s.idle)
	}
}

// leave releases x's place.
func (s *scheduler) leave(x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places--
	if x.turn {
		s.running--
		s.held += (time.Since(x.since) - s.held) / 8
	}
	if x.stuck {
		s.counts.Stuck--
	}
	x.left = true
	s.dispatchLocked()
}

// stuck counts x as stuck until it leaves.
func (s *scheduler) stuck(x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !x.left {
		x.stuck = true
		s.counts.Stuck++
	}
}

// count adds one to n, which is a counter of s.counts.
func (s *scheduler) count(n *int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

// stats returns a snapshot.
func (s *scheduler) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.counts
	stats.Running, stats.Pending = s.running, s.places-s.running
	return stats
}

// close makes the scheduler reject new operations.
func (s *scheduler) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.closing = true
		if len(s.active) == 0 {
			close(s.idle)
		}
	}
}

// interrupt ends the contexts of all active operations. Those in the queue come first: a slot of a running operation
// would otherwise start one of them when it becomes free.
func (s *scheduler) interrupt() {
	s.mu.Lock()
	waiting := slices.Clone(s.waiting)
	s.mu.Unlock()
	for _, x := range append(waiting, s.snapshot()...) {
		x.end(KindInterrupted)
	}
	s.dispatch()
}

// snapshot returns the active operations.
func (s *scheduler) snapshot() []*execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.active))
}

// find returns the active operation with this ID, or nil.
func (s *scheduler) find(id string) *execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[id]
}
