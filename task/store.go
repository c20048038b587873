package task

import (
	"context"
	"errors"
	"time"
)

// Store keeps operations. Memory keeps them in one process; package sqlstore keeps them in a database that several
// processes share. A Store must be safe for concurrent use, honour ctx, and copy the operations it receives and
// returns. Package storetest checks a Store.
type Store interface {
	// Create adds op. It returns ErrExists if an operation with this ID exists.
	Create(ctx context.Context, op Operation) error

	// Get returns an operation without its Input, or ErrNotFound.
	Get(ctx context.Context, id string) (Operation, error)

	// List returns the operations that q selects, without their Input, newest first.
	List(ctx context.Context, q Query) ([]Operation, error)

	// Update replaces the operation with op's ID. The stored Revision must be op.Revision-1, and the stored
	// Status.MayBecome(op.Status) must hold. Otherwise Update returns ErrConflict, or ErrNotFound if the operation
	// does not exist. Of concurrent Updates from one Revision, only one may succeed. ID, Name, Input and CreatedAt
	// keep their stored values. The Store may drop the Input of a final operation.
	Update(ctx context.Context, op Operation) error

	// Renew gives owner a lease that ends after the duration lease, measured by the store's clock. Operations of an
	// owner with a lease are not orphans. A lease of 0 ends the current lease at once.
	Renew(ctx context.Context, owner string, lease time.Duration) error

	// Orphans returns at most limit operations that are not final and whose Owner has no lease, oldest first. It
	// returns those that are Running, those without Input, and those with a Name in names. The operations include
	// their Input of up to 1 MiB. A Runner reads the Input only here, to take operations over.
	Orphans(ctx context.Context, names []string, limit int) ([]Operation, error)
}

// Errors of a Store's methods, matched with errors.Is. A Runner treats any other error as temporary.
var (
	ErrNotFound = errors.New("task: no such operation")
	ErrExists   = errors.New("task: an operation with this ID already exists")
	ErrConflict = errors.New("task: the operation has changed")
)

// Query selects operations. The zero Query selects the newest DefaultLimit operations.
type Query struct {
	Name     string   // "": any
	Statuses []Status // none: any
	Owner    string   // "": any
	Limit    int      // at most this many. Default DefaultLimit
}

// DefaultLimit is the default of Query.Limit.
const DefaultLimit = 100

// Match reports whether q selects op, apart from the Limit.
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
