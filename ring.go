package aiguard

import (
	"context"
	"sync"
	"sync/atomic"
)

// ring holds the active calls and tasks of a guard, so that Close can cancel them and Shutdown can wait for them.
type ring struct {
	mu      sync.Mutex  // also guards the limiter, because a call enters and leaves both at once
	head    call        // its next is the oldest
	closing atomic.Bool // new calls are rejected; set with mu held
	killed  bool        // active calls are canceled
	idle    chan struct{}
}

func (r *ring) init() {
	r.idle = make(chan struct{})
	r.head.next, r.head.prev = &r.head, &r.head
}

// add puts a call into the ring. It reports false if the guard accepts no more calls.
func (r *ring) add(c *call) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.enlist(c)
}

// enlist is add with mu held. During a shutdown it accepts only calls inside a Do or RunTask that is still in the
// ring, so an empty ring stays empty.
func (r *ring) enlist(c *call) bool {
	if c.next != nil {
		return true
	}
	if r.killed || r.closing.Load() && !r.around(c) {
		return false
	}
	c.prev, c.next = r.head.prev, &r.head
	c.prev.next, r.head.prev = c, c
	return true
}

// around reports whether a Do or RunTask around the call is in the ring.
func (r *ring) around(c *call) bool {
	for o := c.outer; o != nil; o = o.outer {
		if &o.core.ring == r {
			return o.next != nil
		}
	}
	return false
}

// remove takes a call out of the ring. For a call that is not in the ring it does nothing.
func (r *ring) remove(c *call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.strike(c)
}

// strike is remove with mu held.
func (r *ring) strike(c *call) {
	if c.next == nil {
		return
	}
	c.prev.next, c.next.prev = c.next, c.prev
	c.next, c.prev, c.work = nil, nil, nil
	if r.closing.Load() && r.head.next == &r.head {
		close(r.idle)
	}
}

// killer is work of a call that Close and lose can end.
type killer interface{ kill() }

type killFunc context.CancelFunc

func (f killFunc) kill() { f() }

// onKill sets the work that Close and lose end. If the guard is already closed, onKill ends it at once.
func (r *ring) onKill(c *call, work killer) {
	r.mu.Lock()
	killed := r.killed || c.lost
	if c.next != nil {
		c.work = work
	}
	r.mu.Unlock()
	if killed {
		work.kill()
	}
}

// lose cancels the call's current work, or its next work, as Close does. A canceled attempt says nothing about its
// provider.
func (r *ring) lose(c *call) {
	r.mu.Lock()
	c.lost = true
	work := c.work
	r.mu.Unlock()
	if work != nil {
		work.kill()
	}
}

// close rejects new calls.
func (r *ring) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing.Load() {
		return
	}
	r.closing.Store(true)
	if r.head.next == &r.head {
		close(r.idle)
	}
}

// kill cancels the active calls, with no lock held.
func (r *ring) kill() {
	for _, work := range r.works() {
		work.kill()
	}
}

// works marks the guard as killed and returns the work of the active calls.
func (r *ring) works() (works []killer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killed = true
	for c := r.head.next; c != &r.head; c = c.next {
		if c.work != nil {
			works = append(works, c.work)
		}
	}
	return works
}
