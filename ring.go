package aiguard

import (
	"context"
)

// register puts the call into the ring, so that Close can cancel it and Shutdown can wait for it. It reports false if
// the guard accepts no more calls.
func (c *call) register() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enlist()
}

// enlist is register with mu held. During a shutdown it accepts only calls inside a Do or RunTask that is still in
// the ring, so an empty ring stays empty.
func (c *call) enlist() bool {
	if c.next != nil {
		return true
	}
	if c.killed || c.closing.Load() && !c.inside() {
		return false
	}
	head := &c.active
	c.prev, c.next = head.prev, head
	c.prev.next, head.prev = c, c
	return true
}

// inside reports whether the call is inside a Do or RunTask of the same Guard that is in the ring.
func (c *call) inside() bool {
	for o := c.outer; o != nil; o = o.outer {
		if o.core == c.core {
			return o.next != nil
		}
	}
	return false
}

func (c *call) unregister() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.strike()
}

// strike is unregister with mu held.
func (c *call) strike() {
	if c.next == nil {
		return
	}
	c.prev.next, c.next.prev = c.next, c.prev
	c.next, c.prev, c.cancel = nil, nil, nil
	if c.closing.Load() && c.active.next == &c.active {
		close(c.idle)
	}
}

// onKill makes Close and lose call cancel from now on. If the guard is already closed, onKill calls it at once.
func (c *call) onKill(cancel context.CancelFunc) {
	c.mu.Lock()
	killed := c.killed || c.lost
	if c.next != nil {
		c.cancel = cancel
	}
	c.mu.Unlock()
	if killed && cancel != nil {
		cancel()
	}
}

func (c *core) refuseNew() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing.Load() {
		return
	}
	c.closing.Store(true)
	if c.active.next == &c.active {
		close(c.idle)
	}
}

func (c *core) kill() {
	c.limiter.close()
	for _, cancel := range c.cancels() {
		cancel()
	}
	c.pool.close()
}

// cancels marks the guard as killed and returns the functions that cancel the active calls. Call them with no lock
// held.
func (c *core) cancels() (cancels []context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	for call := c.active.next; call != &c.active; call = call.next {
		if call.cancel != nil {
			cancels = append(cancels, call.cancel)
		}
	}
	return cancels
}
