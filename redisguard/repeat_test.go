package redisguard_test

import (
	"os"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/aiguard-go/aiguard/redisguard"
)

// The client repeats a command whose reply was lost.
func TestRepeatedCommandTakesOneSlot(t *testing.T) {
	s := startRedis(t)
	c := s.client(t)
	const key = "aiguard:{test}:held"
	l := newLimiter(t, c, redisguard.Config{Limit: 3})
	acquire(t, l)()
	eventually(t, func() bool { return inFlight(t.Context(), c, "test") == 0 }, "the slot is back")
	fields := c.HGetAll(t.Context(), key).Val()
	var member string
	for field := range fields {
		if strings.HasPrefix(field, "m:") {
			member = field
		}
	}
	source, err := os.ReadFile("acquire.lua")
	require.NoError(t, err)
	script := redis.NewScript(string(source))
	number := member[2:] + ":18446744073709551615"
	for range 2 {
		got, err := script.Run(t.Context(), c, []string{key}, member, fields["e"], 3, 2, "2 1 0 tenant", number).Int()
		require.NoError(t, err)
		require.Equal(t, 1, got)
		require.EqualValues(t, 2, inFlight(t.Context(), c, "test"))
	}
	require.NoError(t, c.FlushAll(t.Context()).Err())
}
