package aiguard

import (
	"sync"
	"sync/atomic"
	"time"
)

// Inspection is a snapshot of a Guard for an operator. httpguard.Debug shows it. It contains no prompt, answer, key
// or provider text. Names of operations, models and tenants are cut to 128 bytes.
type Inspection struct {
	Time   time.Time
	Stats  Stats
	Routes []RouteStats
	Calls  []CallStats // the 1,000 oldest active calls and tasks, oldest first

	// Failures are the last 50 calls that failed or were rejected since the first Inspect, newest first.
	Failures []Failure
}

// CallStats describes one active call.
type CallStats struct {
	Op, Model, Host, Tenant string
	Priority                Priority
	State                   CallState
	Age                     time.Duration // since the call began
}

// CallState is the current state of a call.
type CallState string

// States of an active call.
const (
	CallWaiting  CallState = "waiting"   // waits for a slot, for its route, or for its next attempt
	CallInFlight CallState = "in_flight" // an attempt is in progress, or its stream is open
	CallTask     CallState = "task"      // a RunTask, which holds no slot
)

// Failure describes a call that failed or was rejected.
type Failure struct {
	Time                    time.Time
	Op, Model, Host, Tenant string
	Kind                    Kind // "": the error of a Do function that has no kind
	Phase                   string
	StatusCode              int
	Attempts                int // 0: rejected before the first attempt
	Elapsed                 time.Duration
	RetryAfter              time.Duration
}

const (
	maxInspected = 1000
	maxFailures  = 50
)

// Inspect returns a snapshot of the active calls and the last failures. The Guard records failures from the first
// Inspect on. Inspect is safe for concurrent use.
func (g *Guard) Inspect() Inspection {
	g.must("Inspect")
	g.recent.on.Store(true)
	return Inspection{Time: time.Now(), Stats: g.Stats(), Routes: g.Routes(), Calls: g.activeCalls(), Failures: g.recent.list()}
}

// activeCalls lists the calls in the ring. It reads only fields that do not change while a call is in the ring.
func (c *core) activeCalls() (calls []CallStats) {
	now := c.now()
	c.ring.mu.Lock()
	defer c.ring.mu.Unlock()
	for o := c.ring.head.next; o != &c.ring.head && len(calls) < maxInspected; o = o.next {
		s := CallStats{Op: short(o.Op), Model: short(o.Model), Host: short(o.host), Tenant: short(o.Tenant), Priority: o.Priority,
			State: CallWaiting, Age: time.Duration(now - o.start)}
		switch {
		case o.task:
			s.State = CallTask
		case o.permit.held.Load():
			s.State = CallInFlight
		}
		calls = append(calls, s)
	}
	return calls
}

// recent holds the last failures, from the first Inspect on.
type recent struct {
	on atomic.Bool

	mu   sync.Mutex
	last [maxFailures]Failure
	n    int // recorded so far
}

// record stores the facts of a call's failure. It leaves out the cause, which may be large.
func (r *recent) record(h *history, e *Error) {
	if !r.on.Load() {
		return
	}
	if e == nil { // an error without a kind
		e = new(Error)
		h.fill(e)
	}
	f := Failure{Time: time.Now(), Op: short(e.Op), Model: short(e.Model), Host: short(e.Host), Tenant: short(h.Tenant), Kind: e.Kind,
		Phase: e.Phase, StatusCode: e.StatusCode, Attempts: e.Attempts, Elapsed: h.since(h.start), RetryAfter: e.RetryAfter}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[r.n%maxFailures] = f
	r.n++
}

// list returns the failures, newest first.
func (r *recent) list() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Failure, 0, min(r.n, maxFailures))
	for i := r.n - 1; i >= 0 && i >= r.n-maxFailures; i-- {
		all = append(all, r.last[i%maxFailures])
	}
	return all
}
