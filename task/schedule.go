package task

import (
	"maps"
	"slices"
	"time"

	"github.com/aiguard-go/aiguard"
)

// enter gives x a place, or refuses it.
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

// retryAfter estimates when one of those that wait will have left, from how long operations have run of late.
func (r *Runner) retryAfter(waiting int) time.Duration {
	const least, most = time.Second, time.Minute
	return min(max(r.held*time.Duration(waiting+1)/time.Duration(max(r.cfg.MaxRunning, 1)), least), most)
}

// enqueue makes x, which has a place and is in the store, wait for its turn.
func (r *Runner) enqueue(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Started++
	r.queue = append(r.queue, x)
	r.dispatch()
}

// dispatch runs those whose turn it is, first in first out, and those that have nothing left to do but to end. r.mu is held.
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

// settle notes that nothing more will happen to x's operation.
func (r *Runner) settle(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.active, x.op.ID)
	if r.closing && len(r.active) == 0 {
		close(r.idle)
	}
}

// leave gives back x's place.
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

// stuck counts x until it leaves.
func (r *Runner) stuck(x *execution) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !x.left {
		x.stuck = true
		r.stats.Stuck++
	}
}

// close refuses new operations.
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

// interrupt ends what is active, what waits too.
func (r *Runner) interrupt() {
	for _, x := range r.snapshot() {
		x.end(KindInterrupted)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dispatch()
}

// snapshot returns what is active.
func (r *Runner) snapshot() []*execution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.active))
}

// find returns what is active under this ID, or nil.
func (r *Runner) find(id string) *execution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active[id]
}
