// Package redisstore keeps cacheguard's answers in Redis, for several processes and across restarts.
//
//	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
//	cache, err := cacheguard.New(guard.Transport(nil), cacheguard.Config{Store: redisstore.New(rdb, "answers:")})
//
// ContextTimeoutEnabled lets go-redis stop when cacheguard has stopped waiting, instead of after its own ReadTimeout. Give
// the server a maxmemory and an eviction policy such as allkeys-lfu: each answer has its TTL, but nothing here bounds
// their sum. The values are the answers, unencrypted; the keys tell nothing.
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

// New returns a Store whose keys begin with prefix. The client stays the caller's, to close after the Transport.
func New(client redis.Cmdable, prefix string) *Store {
	return &Store{client: client, prefix: prefix}
}

// Get returns the entry under name, or nil if there is none.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	entry, err := s.client.Get(ctx, s.prefix+name).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, nil
	}
	return entry, err
}

// Set keeps entry for ttl.
func (s *Store) Set(ctx context.Context, name string, entry []byte, ttl time.Duration) error {
	return s.client.Set(ctx, s.prefix+name, entry, ttl).Err()
}
