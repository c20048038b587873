package cacheguard

import (
	"context"
	"time"
)

// Index finds the question that is most similar to another. It must be safe for concurrent use and return soon after
// ctx has ended. The package indextest checks an Index.
//
// All vectors have length 1, so that the scalar product of two vectors is their cosine similarity. Vectors of one
// partition usually have the same dimension. An Index must never match two vectors of different dimensions.
type Index interface {
	// Nearest returns the item of the partition whose vector is most similar to vector, or the zero Match if no
	// similarity is at least least.
	Nearest(ctx context.Context, partition string, vector []float32, least float64) (Match, error)

	// Update removes the items with these IDs, and then adds items. An added item replaces the item with its ID, in
	// whatever partition that is. Update ignores unknown IDs. The Transport does not modify items.
	Update(ctx context.Context, add []Item, remove []string) error
}

// Item is a question in an Index.
type Item struct {
	ID        string // 64 hexadecimal digits
	Partition string // 64 hexadecimal digits; only items of the same partition are compared
	Vector    []float32
	TTL       time.Duration // the item must not be found after this time
}

// Match is the result of a search. The zero Match means that there is none.
type Match struct {
	ID         string
	Similarity float64 // cosine similarity, at most 1
}
