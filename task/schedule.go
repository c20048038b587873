package task

import (
	"maps"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard"
)

// enter takes a place for x among the running and pending operations, or returns an error.
func (r *Runner) enter(x *execution) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return &aiguard.Error{Kind: aiguard.ErrClosed, Op: x.op.Name, Phase: "task"}
	}
	if !r.room() {
		r.stats.Refused++
		waiting := r.places - r.running
		return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: x.op.Name, Phase: "queue",
			Size: int64(waiting), Max: int64(r.cfg.MaxPending), RetryAfter: r.retryAfter(waiting)}
	}
	r.places++
	r.active[x.op.ID] = x
	return nil
}

func (r *Runner) room() bool {
	unbounded := r.cfg.MaxRunning == aiguard.Off || r.cfg.MaxPending == aiguard.Off
	return unbounded || r.places < r.cfg.MaxRunning+r.cfg.MaxPending
}

// retryAfter estimates when a waiting operation will start, from the average time that operations run.
func (r *Runner) retryAfter(waiting int) time.Duration {
	const least, most = time.Second, time.Minute
	return min(max(r.held*time.Duration(waiting+1)/time.Duration(max(r.cfg.MaxRunning, 1)), least), most)
}

// enqueue adds x to the queue. x must have a place and be in the store.
func (r *Runner) enqueue(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Started++
	r.queue = append(r.queue, x)
	r.dispatch()
}

// dispatch starts waiting operations in first-in, first-out order while slots are free. It also runs operations whose
// context has ended, so that they can finish. The caller holds r.mu.
func (r *Runner) dispatch() {
	r.queue = slices.DeleteFunc(r.queue, func(x *execution) bool {
		switch {
		case r.cfg.MaxRunning == aiguard.Off || r.running < r.cfg.MaxRunning:
			x.turn = true
			r.running++
		case x.ctx.Err() == nil:
			return false
		}
		go x.run()
		return true
	})
}

// settle removes x from the active operations after its last change in the store.
func (r *Runner) settle(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.active, x.op.ID)
	if r.closing && len(r.active) == 0 {
		close(r.idle)
	}
}

// leave releases x's place.
func (r *Runner) leave(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.places--
	if x.turn {
		r.running--
		r.held += (time.Since(x.since) - r.held) / 8
	}
	if x.stuck {
		r.stats.Stuck--
	}
	x.left = true
	r.dispatch()
}

// stuck counts x as stuck until it leaves.
func (r *Runner) stuck(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !x.left {
		x.stuck = true
		r.stats.Stuck++
	}
}

// close makes the Runner reject new operations.
func (r *Runner) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closing {
		r.closing = true
		if len(r.active) == 0 {
			close(r.idle)
		}
	}
}

// interrupt ends the contexts of all active operations. Those in the queue come first: a slot of a running operation
// would otherwise start one of them when it becomes free.
func (r *Runner) interrupt() {
	r.mu.Lock()
	queue := slices.Clone(r.queue)
	r.mu.Unlock()
	for _, x := range append(queue, r.snapshot()...) {
		x.end(KindInterrupted)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dispatch()
}

// snapshot returns the active operations.
func (r *Runner) snapshot() []*execution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.active))
}

// find returns the active operation with this ID, or nil.
func (r *Runner) find(id string) *execution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active[id]
}
