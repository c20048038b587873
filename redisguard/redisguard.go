// Package redisguard shares the limits of aiguard between processes, with Redis or Valkey.
//
//	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
//	limiter, err := redisguard.New(rdb, redisguard.Config{Key: "openai", Limit: 20})
//	guard, err := aiguard.New(aiguard.Config{Limiter: limiter})
//	routes, err := redisguard.ShareRoutes(rdb, guard, redisguard.RoutesConfig{Key: "openai"})
//
// All processes with the same Key share one limit of the weight in flight. Pace shares a limit per minute, ShareRoutes
// shares what is known of provider routes, and Store keeps the windows of package budget.
//
// While Redis does not answer, each process goes on with its part of the limit, or rejects calls. See Failure.
package redisguard

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/aiguard-go/aiguard"
)

// Failure is what a process does while Redis does not answer.
type Failure int8

const (
	// KeepShare goes on with the limit divided by the number of processes last seen, at least 1 per process. A process
	// that Redis has never answered has 1. It is the default.
	KeepShare Failure = iota
	// FailClosed rejects calls with aiguard.ErrOverloaded.
	FailClosed
)

// noAnswer returns the error of a call that FailClosed rejects.
func noAnswer(phase string, cause error) *aiguard.Error {
	return &aiguard.Error{Kind: aiguard.ErrOverloaded, Phase: phase, RetryAfter: retryEvery,
		Err: fmt.Errorf("redisguard: Redis does not answer: %w", cause)}
}

// Defaults of Config.
const (
	DefaultLease   = 15 * time.Second
	DefaultTimeout = time.Second
)

// Config configures a Limiter. Key and Limit are required.
type Config struct {
	Key   string // names the shared limit. All keys in Redis begin with it, in one hash slot. 1 to 200 bytes without { and }
	Limit int64  // weight in flight of all processes together. 1 to 1e9. Processes of one Key should use the same Limit

	// MaxBackground is the part of Limit for calls with aiguard.Background. Default Limit-1, at least 1; aiguard.Off:
	// no limit
	MaxBackground int64

	// Lease is how long a process that has died keeps its slots. A process renews its lease three times per Lease.
	// Default 15s; 1s to 1h
	Lease time.Duration

	// Timeout is how long Redis may take to answer before it counts as failed. Default 1s, or Lease/3 if that is less;
	// 1ms to Lease/3
	Timeout time.Duration

	OnFailure Failure      // what happens while Redis does not answer. Default KeepShare
	Logger    *slog.Logger // logs when Redis fails and when it is back. Default slog.Default()
}

func (c *Config) validate() error {
	c.MaxBackground = cmp.Or(c.MaxBackground, max(c.Limit-1, 1))
	c.Lease = cmp.Or(c.Lease, DefaultLease)
	c.Timeout = cmp.Or(c.Timeout, min(DefaultTimeout, c.Lease/3))
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case c.Limit < 1 || c.Limit > 1e9:
		return fmt.Errorf("redisguard: Config.Limit is %d; want 1 to 1e9", c.Limit)
	case c.MaxBackground < 1 && c.MaxBackground != aiguard.Off:
		return fmt.Errorf("redisguard: Config.MaxBackground is %d; want at least 1, or aiguard.Off", c.MaxBackground)
	case c.Lease < time.Second || c.Lease > time.Hour:
		return fmt.Errorf("redisguard: Config.Lease is %v; want 1s to 1h", c.Lease)
	case c.Timeout < time.Millisecond || c.Timeout > c.Lease/3:
		return fmt.Errorf("redisguard: Config.Timeout is %v; want 1ms to Lease/3 (%v)", c.Timeout, c.Lease/3)
	case c.OnFailure != KeepShare && c.OnFailure != FailClosed:
		return fmt.Errorf("redisguard: Config.OnFailure is %d; want KeepShare or FailClosed", c.OnFailure)
	}
	return checkKey("Config.Key", c.Key)
}

// maxKey is the largest length of a Key.
const maxKey = 200

func checkKey(field, key string) error {
	if key == "" || len(key) > maxKey || strings.ContainsAny(key, "{}") {
		return fmt.Errorf("redisguard: %s is %q; want 1 to %d bytes without { and }", field, key[:min(len(key), maxKey)], maxKey)
	}
	return nil
}

// checkClient rejects a client whose commands can outlive their context.
func checkClient(client redis.UniversalClient) error {
	heedsContext := true
	switch c := client.(type) {
	case nil:
		return fmt.Errorf("redisguard: the client is nil; want one such as redis.NewClient returns")
	case *redis.Client:
		heedsContext = c != nil && c.Options().ContextTimeoutEnabled
	case *redis.ClusterClient:
		heedsContext = c != nil && c.Options().ContextTimeoutEnabled
	case *redis.Ring:
		heedsContext = c != nil && c.Options().ContextTimeoutEnabled
	}
	if !heedsContext {
		return fmt.Errorf("redisguard: the client is nil or has ContextTimeoutEnabled false; want true, so that no call waits longer than its timeout")
	}
	return nil
}

// newMember returns a name for this process that no other has.
func newMember() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// tenantKey returns a text of 16 bytes for a tenant, or for a process whose calls have no tenant. It is a hash,
// because names of tenants can be long and confidential.
func tenantKey(tenant, member string) string {
	if tenant == "" {
		return member
	}
	sum := sha256.Sum256([]byte(tenant))
	return hex.EncodeToString(sum[:8])
}

// jittered returns 75% to 125% of d.
func jittered(d time.Duration) time.Duration {
	return d*3/4 + time.Duration(mathrand.Int64N(int64(d)/2+1))
}

// command bounds a command that no caller waits for.
func command(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), timeout)
}
