package task

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/aiguard-go/aiguard"
)

// The defaults of MemoryConfig.
const (
	DefaultMaxOperations = 10_000
	DefaultMaxAge        = time.Hour
)

// MemoryConfig limits the finished operations that a Memory keeps. The Runner limits the unfinished ones. The zero
// value is valid.
type MemoryConfig struct {
	MaxOperations int           // the oldest finished ones are removed first. Default 10,000; aiguard.Off: no limit
	MaxAge        time.Duration // time since they finished. Default 1h; aiguard.Off: no limit
}

// Memory is a Store in the memory of one process. It is safe for concurrent use. Create it with NewMemory.
type Memory struct {
	maxOperations int
	maxAge        time.Duration

	mu         sync.Mutex
	operations map[string]*list.Element // elements of created
	created    list.List                // of *Operation, newest last
	finished   list.List                // of ended: the final operations, last finished last
	leases     map[string]time.Time
}

// ended is a finished operation. It records the time itself, because FinishedAt may come from a wall clock that was
// adjusted later.
type ended struct {
	id string
	at time.Time
}

// NewMemory returns a Memory. It returns an error that names a field of cfg that is out of range.
func NewMemory(cfg MemoryConfig) (*Memory, error) {
	switch {
	case cfg.MaxOperations < aiguard.Off:
		return nil, fmt.Errorf("task: MemoryConfig.MaxOperations is %d; want a positive number, 0 for the default, or aiguard.Off", cfg.MaxOperations)
	case cfg.MaxAge < aiguard.Off:
		return nil, fmt.Errorf("task: MemoryConfig.MaxAge is %v; want a positive duration, 0 for the default, or aiguard.Off", cfg.MaxAge)
	}
	return &Memory{
		maxOperations: cmp.Or(cfg.MaxOperations, DefaultMaxOperations),
		maxAge:        cmp.Or(cfg.MaxAge, DefaultMaxAge),
		operations:    make(map[string]*list.Element),
		leases:        make(map[string]time.Time),
	}, nil
}

// Create implements Store.
func (m *Memory) Create(ctx context.Context, op Operation) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	if _, ok := m.operations[op.ID]; ok {
		return ErrExists
	}
	op = clone(op)
	m.operations[op.ID] = m.created.PushBack(&op)
	if op.Status.Final() {
		m.finished.PushBack(ended{op.ID, time.Now()})
	}
	return nil
}

// Get implements Store.
func (m *Memory) Get(ctx context.Context, id string) (Operation, error) {
	if err := ctx.Err(); err != nil {
		return Operation{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	e, ok := m.operations[id]
	if !ok {
		return Operation{}, ErrNotFound
	}
	return withoutInput(*e.Value.(*Operation)), nil
}

// List implements Store.
func (m *Memory) List(ctx context.Context, q Query) (found []Operation, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	limit := cmp.Or(max(q.Limit, 0), DefaultLimit)
	for e := m.created.Back(); e != nil && len(found) < limit; e = e.Prev() {
		if op := e.Value.(*Operation); q.Match(*op) {
			found = append(found, withoutInput(*op))
		}
	}
	return found, nil
}

// Update implements Store.
func (m *Memory) Update(ctx context.Context, op Operation) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.operations[op.ID]
	if !ok {
		return ErrNotFound
	}
	old := e.Value.(*Operation)
	if old.Revision != op.Revision-1 || !old.Status.MayBecome(op.Status) {
		return ErrConflict
	}
	op = withoutInput(op)
	op.Name, op.CreatedAt = old.Name, old.CreatedAt
	e.Value = &op
	if !op.Status.Final() {
		op.Input = old.Input
	} else {
		m.finished.PushBack(ended{op.ID, time.Now()})
	}
	m.forget()
	return nil
}

// Renew implements Store.
func (m *Memory) Renew(ctx context.Context, owner string, lease time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if lease <= 0 {
		delete(m.leases, owner)
		return nil
	}
	m.leases[owner] = time.Now().Add(lease)
	return nil
}

// Orphans implements Store.
func (m *Memory) Orphans(ctx context.Context, names []string, limit int) (found []Operation, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for e := m.created.Front(); e != nil && len(found) < limit; e = e.Next() {
		op := e.Value.(*Operation)
		if op.Status.Final() || now.Before(m.leases[op.Owner]) {
			continue
		}
		if op.Status == Running || op.Input == nil || slices.Contains(names, op.Name) {
			found = append(found, clone(*op))
		}
	}
	return found, nil
}

// forget removes finished operations beyond MaxOperations or MaxAge.
func (m *Memory) forget() {
	for e := m.finished.Front(); e != nil; e = m.finished.Front() {
		finished := e.Value.(ended)
		over := m.maxOperations != aiguard.Off && len(m.operations) > m.maxOperations
		old := m.maxAge != aiguard.Off && time.Since(finished.at) > m.maxAge
		if !over && !old {
			return
		}
		m.created.Remove(m.operations[finished.id])
		m.finished.Remove(e)
		delete(m.operations, finished.id)
	}
}

func clone(op Operation) Operation {
	op.Result, op.Input = bytes.Clone(op.Result), bytes.Clone(op.Input)
	return op
}

func withoutInput(op Operation) Operation {
	op.Result, op.Input = bytes.Clone(op.Result), nil
	return op
}
