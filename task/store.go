package task

import (
	"context"
	"errors"
	"time"
)

// Store keeps operations. Memory is one; a database that several processes share is another. It must be safe for
// concurrent use, honour ctx, and hand out and keep copies. Package storetest checks a Store.
type Store interface {
	// Create adds op. It fails with ErrExists if there is one with its ID.
	Create(ctx context.Context, op Operation) error

	// Get returns an operation without its Input, or ErrNotFound.
	Get(ctx context.Context, id string) (Operation, error)

	// List returns the operations that q asks for without their Input, the newest first.
	List(ctx context.Context, q Query) ([]Operation, error)

	// Update replaces the operation with op's ID, if its Revision is op's less one and its Status.MayBecome op's; else it
	// fails with ErrConflict, or ErrNotFound. Two concurrent Updates from one Revision never both succeed. ID, Name,
	// Input and CreatedAt stay as they are; a final operation may lose its Input.
	Update(ctx context.Context, op Operation) error

	// Renew keeps the operations of owner from being orphans until lease from now, by the store's clock, has passed.
	// A lease of 0 ends it at once.
	Renew(ctx context.Context, owner string, lease time.Duration) error

	// Orphans returns at most limit operations, the oldest first, that are not final and whose Owner has no lease: those
	// that are Running, those without Input, and those with a Name in names. They have their Input, which is up to 1 MiB: a
	// Runner asks for it only here, to take them over.
	Orphans(ctx context.Context, names []string, limit int) ([]Operation, error)
}

// What a Store's methods fail with, to be found by errors.Is. Any other error is taken for one that may pass.
var (
	ErrNotFound = errors.New("task: no such operation")
	ErrExists   = errors.New("task: an operation with this id exists")
	ErrConflict = errors.New("task: the operation has changed")
)

// Query selects operations. The zero Query selects the newest DefaultLimit of all.
type Query struct {
	Name     string   // "": any
	Statuses []Status // none: any
	Owner    string   // "": any
	Limit    int      // at most so many. DefaultLimit
}

// DefaultLimit is that of a Query.
const DefaultLimit = 100

// Match reports whether op is one that q asks for.
func (q Query) Match(op Operation) bool {
	if q.Name != "" && op.Name != q.Name || q.Owner != "" && op.Owner != q.Owner {
		return false
	}
	for _, s := range q.Statuses {
		if s == op.Status {
			return true
		}
	}
	return len(q.Statuses) == 0
}
