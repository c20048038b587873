// Package redisstore stores cacheguard's answers in Redis. Several processes can share them, and they survive
// restarts.
//
//	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
//	cache, err := cacheguard.New(guard.Transport(nil), cacheguard.Config{Store: redisstore.New(rdb, "answers:")})
//
// With ContextTimeoutEnabled, go-redis stops at cacheguard's timeout instead of its own ReadTimeout. Configure
// maxmemory and an eviction policy such as allkeys-lfu on the server, because this package limits only the TTL of
// each answer and not their total size. The values are unencrypted answers. The keys reveal nothing about the
// requests.
package redisstore

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// Store is a cacheguard.Store in Redis. It is safe for concurrent use.
type Store struct {
	client redis.Cmdable
	prefix string
}

// New returns a Store whose keys begin with prefix. The caller closes client after the Transport.
func New(client redis.Cmdable, prefix string) *Store {
	return &Store{client: client, prefix: prefix}
}

// Get returns the entry with this name, or nil if there is none.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	entry, err := s.client.Get(ctx, s.prefix+name).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return entry, err
}

// Set stores entry for ttl.
func (s *Store) Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error {
	return s.client.Set(ctx, s.prefix+name, entry, ttl).Err()
}
