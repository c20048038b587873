package httpguard

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// places limits the requests handled at once. Further requests wait in a bounded first-in, first-out queue.
type places struct {
	capacity, maxQueue int // aiguard.Off: no limit
	timeout            time.Duration

	mu      sync.Mutex
	taken   int
	waiting list.List     // of chan struct{}, closed when the waiter gets a slot
	held    time.Duration // moving average of how long a slot is held
}

func newPlaces(capacity, maxQueue int, timeout time.Duration) *places {
	return &places{capacity: capacity, maxQueue: maxQueue, timeout: timeout}
}

// enter takes a slot and waits for one if necessary. It fails with ErrOverloaded, or with the cause of ctx if ctx
// ends.
func (p *places) enter(ctx context.Context, op string) error {
	turn, waiter, err := p.join(op)
	if turn == nil {
		return err
	}
	var late <-chan time.Time
	if p.timeout != aiguard.Off {
		timer := time.NewTimer(p.timeout)
		defer timer.Stop()
		late = timer.C
	}
	start := time.Now()
	select {
	case <-turn:
		return nil
	case <-late:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-turn:
		p.next() // the slot arrived after the wait had ended
	default:
		p.waiting.Remove(waiter)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: op, Phase: aiguard.PhaseQueue, Limit: p.timeout,
		Queued: time.Since(start), RetryAfter: p.retryAfter()}
}

// join takes a free slot and returns a nil turn, or joins the queue.
func (p *places) join(op string) (turn chan struct{}, waiter *list.Element, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	waiting := p.waiting.Len()
	switch {
	case p.capacity == aiguard.Off, p.taken < p.capacity:
		p.taken++
		return nil, nil, nil
	case p.maxQueue != aiguard.Off && waiting >= p.maxQueue:
		return nil, nil, &aiguard.Error{Kind: aiguard.ErrOverloaded, Op: op, Phase: aiguard.PhaseQueue,
			Size: int64(waiting), Max: int64(p.maxQueue), RetryAfter: p.retryAfter()}
	}
	turn = make(chan struct{})
	return turn, p.waiting.PushBack(turn), nil
}

// leave releases a slot.
func (p *places) leave(held time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == 0 {
		p.held = held
	}
	p.held += (held - p.held) / 8
	p.next()
}

// next gives a released slot to the first waiter. The caller holds mu.
func (p *places) next() {
	if first := p.waiting.Front(); first != nil {
		close(p.waiting.Remove(first).(chan struct{}))
		return
	}
	p.taken--
}

// retryAfter estimates when the queue will have drained, from the average time a slot is held. It returns 0 until a
// slot was released once. The caller holds mu.
func (p *places) retryAfter() time.Duration {
	if p.held == 0 {
		return 0
	}
	return min(max(p.held*time.Duration(p.waiting.Len()+1)/time.Duration(p.capacity), time.Second), time.Minute)
}
